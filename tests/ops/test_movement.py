"""Reshape, Flatten, Transpose, Squeeze, Unsqueeze, Expand and Tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check


def conv_net(opset: int = 17, channels: int = 8, size: Any = 4) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.conv(net.input("x", [None, 3, size, size]), 3, channels, name="a")


def token_net(opset: int = 17, width: int = 12) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.matmul(net.input("x", [None, "s", 5]), 5, width, name="a")


@pytest.mark.parametrize("shape", [(-1, 128), (0, -1), (0, 128)])
@pytest.mark.parametrize("opset", [7, 13, 14])
def test_flatten_to_gemm(opset: int, shape: tuple[int, ...]) -> None:
    net, y = conv_net(opset)
    y = net("Reshape", y, net.ints(*shape), **({"allowzero": 0} if opset >= 14 else {}))
    y = net("Gemm", y, net.weight(5, 128, name="fc"), net.weight(5), transB=1)
    check(net.output(y), groups=1, free={"a:0": "8", "fc:1": "(8 [4] [4])"})


@pytest.mark.parametrize("axis", [0, 1, 2, -3, -1])
def test_flatten(axis: int) -> None:
    """Whatever is flattened with the channels stays a product with them."""
    net = Net()
    y = net.conv(net.input("x", [2, 3, 4, 4]), 3, 8, name="a")
    width = {0: 256, 1: 128, 2: 16, -3: 128, -1: 4}[axis]
    y = net("Flatten", y, axis=axis)
    if axis in (2, -1):
        y = net("MatMul", net.weight(3, 16 if axis == 2 else 64, name="left"), y)
        check(net.output(y), groups=1, free={"a:0": "8", "left:1": "([2] 8)" if axis == 2 else "([2] 8 [4])"})
        return
    check(net.output(net.matmul(y, width, 5)), groups=1, free={"a:0": "8"})


def test_merge_all_but_channels() -> None:
    net, y = conv_net()
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 3, 1]), net.ints(-1, 8))
    check(net.output(net.gemm(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("shape", [(0, 0, 3, 4), (0, -1, 3, 4), (0, 0, -1, 4), (0, 0, 3, -1)])
def test_heads(shape: tuple[int, ...]) -> None:
    net, y = token_net()
    y = net("Transpose", net("Reshape", y, net.ints(*shape)), perm=[0, 2, 1, 3])
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    check(net.output(net.matmul(y, 12, 4, name="o")), groups=2, free={"a:1": "(3 4)", "o:0": "(3 4)"})


@pytest.mark.parametrize("node", ["Constant", "initializer"])
def test_heads_by_shapes_made_at_run_time(node: str) -> None:
    """Shape, Gather, Unsqueeze, Concat: as PyTorch exports `view(b, s, h, d)`."""
    net, y = token_net()
    sizes = [net("Unsqueeze", net("Gather", net("Shape", y), net.const(k, node=node == "Constant")), net.ints(0))
             for k in (0, 1)]
    y = net("Reshape", y, net("Concat", *sizes, net.const([3], node=node == "Constant"), net.ints(4), axis=0))
    y = net("Transpose", net("Softmax", net("Transpose", y, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
    y = net("Reshape", y, net("Concat", *sizes, net.ints(12), axis=0))
    check(net.output(net.matmul(y, 12, 4, name="o")), groups=2, free={"a:1": "(3 4)", "o:0": "(3 4)"})


def test_head_width_made_at_run_time() -> None:
    """The width of a head as the whole width divided by the number of heads."""
    net, y = token_net()
    shape = net("Shape", y)
    b, s, d = (net("Gather", shape, net.ints(k)) for k in range(3))
    y = net("Reshape", y, net("Concat", b, s, net.ints(3), net("Div", d, net.ints(3)), axis=0))
    y = net("Reshape", net("Softmax", y), net("Concat", b, s, d, axis=0))
    check(net.output(net.matmul(y, 12, 4, name="o")), groups=2, free={"a:1": "(3 4)", "o:0": "(3 4)"})


def test_batch_times_heads() -> None:
    """Heads folded into the batch, as BART does; the batch size is open."""
    net, y = token_net()
    shape = net("Shape", y)
    b, s = (net("Gather", shape, net.ints(k)) for k in range(2))
    y = net("Transpose", net("Reshape", y, net("Concat", b, s, net.ints(3, 4), axis=0)), perm=[0, 2, 1, 3])
    y = net("Reshape", y, net("Concat", net("Mul", b, net.ints(3)), s, net.ints(4), axis=0))
    y = net("Softmax", net("MatMul", y, net("Transpose", y, perm=[0, 2, 1])))
    y = net("Reshape", y, net("Concat", b, net.ints(3), s, s, axis=0))
    y = net("ReduceMean", y, axes=[2, 3], keepdims=0)
    check(net.output(net.gemm(y, 3, 4, name="o")), groups=2, free={"a:1": "(3 4)", "o:1": "3"})


def test_shape_attribute() -> None:
    """Before opset 5 the shape was an attribute; what it asks for is not run here."""
    net, y = conv_net(7)
    y = net("Reshape", y, net.const(np.array([0, 8, 16], np.int64), node=True))
    check(net.output(net.matmul(net("Transpose", y, perm=[0, 2, 1]), 8, 4)), groups=1, free={"a:0": "8"})


def test_allowzero() -> None:
    net, y = conv_net(14)
    y = net("Reshape", y, net.ints(-1, 8, 16), allowzero=1)
    check(net.output(net.matmul(net("Transpose", y, perm=[0, 2, 1]), 8, 4)), groups=1, free={"a:0": "8"})


def test_factorisations_that_do_not_nest() -> None:
    """Four rows of three against three of four: whatever is left free must be right."""
    net, y = token_net()
    y = net("Reshape", net("Softmax", net("Reshape", y, net.ints(0, 0, 4, 3))), net.ints(0, 0, 3, 4))
    y = net("Reshape", net("Softmax", y), net.ints(0, 0, 12))
    check(net.output(net.matmul(y, 12, 4)))


def test_shape_from_data_pins() -> None:
    net, y = token_net()
    y = net("Reshape", y, net.input("shape", [3], np.int64, between=(0, 1)))
    check(net.output(net.matmul(y, 12, 4)), groups=0, pinned={"a:1": "depends on data"})


@pytest.mark.parametrize("perm", [None, [0, 2, 3, 1], [3, 2, 0, 1]])
def test_transpose(perm: list[int] | None) -> None:
    """Channels last, at any place of the others; all axes reversed leaves them third."""
    net, y = conv_net()
    y = net("Transpose", y, **({} if perm is None else {"perm": perm}))
    y = net("Transpose", y, perm=[0, 1, 3, 2]) if perm is None else y
    check(net.output(net.matmul(y, 8, 5)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("given", ["attribute", "input", "absent"])
def test_squeeze(given: str) -> None:
    net, y = conv_net(11 if given == "attribute" else 13)
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 3
    y = net("GlobalAveragePool", y)
    if given == "absent":
        y = net("Squeeze", y)
    else:
        y = net("Squeeze", y, axes=[2, 3]) if given == "attribute" else net("Squeeze", y, net.ints(-1, 2))
    check(net.output(net.gemm(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("opset", [11, 13])
def test_unsqueeze(opset: int, axis: int) -> None:
    net, y = token_net(opset)

    def change(op_type: str, value: str, k: int) -> str:
        return str(net(op_type, value, axes=[k]) if opset < 13 else net(op_type, value, net.ints(k)))

    y = change("Squeeze", net("Relu", change("Unsqueeze", y, axis)), axis)
    check(net.output(net.matmul(y, 12, 4)), groups=1, free={"a:1": "12"})


def test_expand_to_a_constant_shape() -> None:
    net, y = conv_net()
    y = net("Expand", net("ReduceMean", y, axes=[2, 3]), net.ints(1, 8, 5, 5))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_expand_makes_channels() -> None:
    """One channel repeated: the copies are a group of the consumer's."""
    net, y = conv_net(channels=1)
    y = net("Expand", y, net.ints(1, 6, 1, 1))
    check(net.output(net.conv(y, 6, 4, name="b")), groups=1, free={"b:1": "6"})


def test_expand_like_another() -> None:
    net = Net()
    x = net.input("x", [None, 3, None, None])
    y = net.conv(x, 3, 8, name="a")
    z = net("Expand", net("ReduceMean", net.conv(x, 3, 8, name="c"), axes=[2, 3]), net("Shape", y))
    check(net.output(net.conv(net("Concat", y, z, axis=1), 16, 4)), free={"a:0": "8", "c:0": "8"})


@pytest.mark.parametrize("sizes", ["constant", "run time"])
def test_grouped_queries(sizes: str) -> None:
    """Key heads repeated for their queries: Unsqueeze, Expand, Reshape."""
    net = Net()
    x = net.input("x", [None, "s", 5])
    q = net("Reshape", net.matmul(x, 5, 24, name="q"), net.ints(0, 0, 6, 4))
    k = net("Reshape", net.matmul(x, 5, 8, name="k"), net.ints(0, 0, 2, 4))
    q, k = (net("Transpose", v, perm=[0, 2, 1, 3]) for v in (q, k))
    wide = net("Unsqueeze", k, net.ints(2))
    shape = net("Shape", k)
    b, s = (net("Gather", shape, net.ints(i)) for i in (0, 2))
    target, joined = net.ints(1, 1, 3, 1, 1), net.ints(0, 6, -1, 4)
    if sizes == "run time":
        target = net("Concat", b, net.ints(2, 3), s, net.ints(4), axis=0)
        joined = net("Concat", b, net.ints(6), s, net.ints(4), axis=0)
    k = net("Reshape", net("Expand", wide, target), joined)
    y = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])))
    y = net("MatMul", y, k)
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    got = check(net.output(net.matmul(y, 24, 5, name="o")), groups=3, free={"q:1": "(2 3 4)", "k:1": "(2 4)"})
    assert got.axis("o:0") == "(2 3 4)"


@pytest.mark.parametrize("repeats", ["constant", "run time"])
def test_tile(repeats: str) -> None:
    net, y = conv_net()
    times = net.ints(1, 3, 1, 1) if repeats == "constant" else net.input("times", [4], np.int64, between=(1, 2))
    y = net("Tile", y, times)
    if repeats == "constant":
        check(net.output(net.conv(y, 24, 4, name="b")), groups=2, free={"a:0": "8", "b:1": "(3 8)"})
    else:
        check(net.output(net.conv(y, 8, 4, name="b")), groups=0)


def test_tile_positions_like_another() -> None:
    """Repeats computed from Shape: the channels pass."""
    net = Net()
    x = net.input("x", [None, 3, None, None])
    y = net("GlobalAveragePool", net.conv(x, 3, 8, name="a"))
    hw = net("Slice", net("Shape", x), net.ints(2), net.ints(4))
    y = net("Tile", y, net("Concat", net.ints(1, 1), hw, axis=0))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})
