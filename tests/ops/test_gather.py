"""Indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check


def conv_net(opset: int = 17, size: Any = 6) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.conv(net.input("x", [None, 3, size, size]), 3, 8, name="a")


@pytest.mark.parametrize(
    ("indices", "text"),
    [([0, 1, 2], "(3 + 5)"), ([4, 5, 6, 7, 0, 1, 2, 3], "(4 + 4)"), ([-2, -1], "(6 + 2)"),
     ([1, 2, 1, 2], "(1 + 2 + 5)"), ([0, 4, 1, 5], None), ([7, 6, 5, 4, 3, 2, 1, 0], None), ([2, 3, 3, 4], None)],
)
def test_fixed_indices(indices: list[int], text: str | None) -> None:
    net, y = conv_net()
    z = net.conv(net("Gather", y, net.ints(*indices), axis=1), len(indices), 4)
    check(net.output(net("Add", z, net.conv(y, 8, 4))), free={"a:0": text} if text else ())


@pytest.mark.parametrize("index", [0, 3, -1])
def test_scalar_index(index: int) -> None:
    """The picked slot stays, the others are free."""
    net, y = conv_net()
    z = net.conv(net("Unsqueeze", net("Gather", y, net.const(index), axis=1), net.ints(1)), 1, 4)
    check(net.output(net("Add", z, net.conv(y, 8, 4))), free=["a:0"])


def test_picked_parts_of_a_fused_projection() -> None:
    """A projection reshaped to (3 h d) and picked apart by scalars."""
    net = Net()
    y = net("Reshape", net.matmul(net.input("x", [None, "s", 5]), 5, 36, name="qkv"), net.ints(0, 0, 3, 3, 4))
    y = net("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net("Gather", y, net.const(i), axis=0) for i in range(3))
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])))
    y = net("Reshape", net("Transpose", net("MatMul", scores, v), perm=[0, 2, 1, 3]), net.ints(0, 0, 12))
    check(net.output(net.matmul(y, 12, 5, name="o")), groups=2, free={"qkv:1": "(3 3 4)", "o:0": "(3 4)"})


@pytest.mark.parametrize("shape", [[None, "s"], [None]])
def test_embedding(shape: list[Any]) -> None:
    net = Net()
    ids = net.input("ids", shape, np.int64, between=(0, 11))
    y = net("Gather", net.weight(11, 8, name="table"), ids)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"table:1": "8"}, pinned={"table:0": "indexed by data"})


def test_tied_embedding() -> None:
    """The output head is the table transposed."""
    net = Net()
    ids = net.input("ids", [None, "s"], np.int64, between=(0, 11))
    table = net.weight(11, 8, name="table")
    y = net("LayerNormalization", net("Gather", table, ids), net.weight(8), net.weight(8))
    y = net("MatMul", y, net("Transpose", table, perm=[1, 0]))
    check(net.output(y), groups=1, free={"table:1": "8"}, pinned={"table:0": ""})


def test_gather_positions() -> None:
    net, y = conv_net()
    index = net.input("index", [2], np.int64, between=(0, 6))
    check(net.output(net.conv(net("Gather", y, index, axis=3), 8, 4)), groups=1, free={"a:0": "8"})


def test_gather_last_token_of_open_length() -> None:
    net = Net()
    y = net.matmul(net.input("x", [None, "s", 5]), 5, 8, name="a")
    y = net("Gather", y, net.const(-1), axis=1)
    check(net.output(net.gemm(y, 8, 4)), groups=1, free={"a:1": "8"})


@pytest.mark.parametrize("axis", [1, 3])
def test_gather_elements(axis: int) -> None:
    net, y = conv_net(size=2)
    index = net.const(np.random.default_rng(0).integers(0, 2, (3, 8, 2, 2)))
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 3
    y = net("GatherElements", y, index, axis=axis)
    check(net.output(net.conv(y, 8, 4)), groups=1, pinned={} if axis != 1 else {"a:0": "indexed"})


def test_gather_elements_by_expanded_indices() -> None:
    """Tokens picked by rank, the index repeated over the width."""
    net = Net()
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    _, index = net("TopK", net("ReduceMax", y, axes=[2], keepdims=1), net.ints(3), n=2, axis=1)
    y = net("GatherElements", y, net("Expand", index, net.ints(2, 3, 8)), axis=1)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8"})


@pytest.mark.parametrize(("op_type", "opset"), [("ScatterElements", 13), ("ScatterElements", 18), ("Scatter", 9)])
@pytest.mark.parametrize("axis", [1, 3])
def test_scatter_elements(op_type: str, opset: int, axis: int) -> None:
    net = Net(opset)
    x = net.input("x", [3, 3, 2, 2])
    y, z = net.conv(x, 3, 8, name="a"), net.conv(x, 3, 8, name="c")
    order = np.array([1, 0]) if axis == 3 else np.arange(8)[::-1, None, None]
    y = net(op_type, y, net.const(np.broadcast_to(order, (3, 8, 2, 2)).copy()), z, axis=axis)
    pinned = {"a:0": "indexed", "c:0": "in this order"} if axis == 1 else {}
    check(net.output(net.conv(y, 8, 4)), groups=int(axis != 1), pinned=pinned)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_gather_nd(batch_dims: int) -> None:
    net = Net(13)
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    index = np.array([[[0, 3], [1, 2]], [[1, 5], [0, 0]]]) if batch_dims == 0 else np.array([[[3], [2]], [[5], [0]]])
    y = net("GatherND", y, net.const(index), batch_dims=batch_dims)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8"})


def test_gather_nd_through_channels_pins() -> None:
    net = Net(13)
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    y = net("GatherND", y, net.const(np.array([[0, 3, 1], [1, 2, 2]])))
    check(net.output(y), groups=0, pinned={"a:1": "indexed by data"})


@pytest.mark.parametrize("opset", [11, 16, 18])
def test_scatter_nd(opset: int) -> None:
    net = Net(opset)
    x = net.input("x", [2, 6, 5])
    y, z = net.matmul(x, 5, 8, name="a"), net.matmul(x, 5, 8, name="c")
    index = np.stack(np.meshgrid([0, 1], range(6), indexing="ij"), -1)
    y = net("ScatterND", y, net.const(index), z)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8", "c:1": "8"})


def test_tensor_scatter() -> None:
    net = Net(24)
    x = net.input("x", [2, 6, 5])
    update = net.matmul(net.input("u", [2, 1, 5]), 5, 8, name="c")
    y = net("TensorScatter", net.matmul(x, 5, 8, name="a"), update, net.ints(2, 3), axis=1)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8", "c:1": "8"})


@pytest.mark.parametrize("axis", [None, 1, 3])
def test_compress(axis: int | None) -> None:
    net, y = conv_net(size=2)
    if axis == 3:
        y = net("Compress", y, net.const(np.array([True, False])), axis=3)
        check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})
        return
    z = net("Compress", y, net.const(np.arange(8) % 2 == 0), **({} if axis is None else {"axis": axis}))
    check(net.output(z), groups=0, pinned={"a:0": "indexed by data"})


@pytest.mark.parametrize("axis", [-1, 1])
def test_one_hot(axis: int) -> None:
    net, y = conv_net()
    classes = net("ArgMax", y, axis=3, keepdims=0)
    y = net("OneHot", classes, net.const(6), net.const([0.0, 1.0]), axis=axis)
    y = net("Transpose", y, perm=[0, 2, 1, 3]) if axis == 1 else y
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_non_max_suppression_pins() -> None:
    net = Net(11)
    y = net.matmul(net.input("x", [1, 6, 5]), 5, 8, name="a")
    boxes = net.matmul(y, 8, 4, name="boxes")
    scores = net("Transpose", net.matmul(y, 8, 3, name="scores"), perm=[0, 2, 1])
    picked = net("NonMaxSuppression", boxes, scores, net.const(3), net.const([1.0]), net.const([-1e9]))
    pinned = {"boxes:1": "boxes", "scores:1": "boxes"}
    check(net.output(net("Shape", picked), dtype=np.int64), groups=1, free={"a:1": "8"}, pinned=pinned)
