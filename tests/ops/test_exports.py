"""Idioms of exporters: what a line of Python becomes when sizes are traced as values."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Net, check

FAR = 2**63 - 1


def width_of(net: Net, y: str, k: int) -> str:
    return str(net("Gather", net("Shape", y), net.ints(k)))


def test_rotate_half() -> None:
    """`x[..., : x.shape[-1] // 2]` beside `x[..., x.shape[-1] // 2 :]`."""
    net = Net()
    y = net.matmul(net.input("x", [None, "s", 5]), 5, 24, name="a")
    y = net("Transpose", net("Reshape", y, net.ints(0, 0, 3, 8)), perm=[0, 2, 1, 3])
    half = net("Div", width_of(net, y, 3), net.ints(2))
    first = net("Slice", y, net.ints(0), half, net.ints(3))
    second = net("Slice", y, half, net.ints(FAR), net.ints(3))
    turned = net("Concat", net("Neg", second), first, axis=-1)
    sines = net.weight(1, 4, name="sines")
    table = net("Slice", net("Concat", sines, sines, axis=-1), net.ints(0), net.ints(1), net.ints(0))
    y = net("Add", y, net("Mul", turned, table))
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 24))
    check(net.output(net.matmul(y, 24, 5)), groups=2, free={"a:1": "(3 (4 + 4))", "sines:1": "4"})


def test_chunk() -> None:
    """`x.chunk(2, -1)` with sizes computed from Shape."""
    net = Net(13)
    y = net.matmul(net.input("x", [None, "s", 5]), 5, 8, name="a")
    half = net("Div", width_of(net, y, 2), net.ints(2))
    value, gate = net("Split", y, net("Concat", half, half, axis=0), n=2, axis=-1)
    y = net("Mul", value, net("Sigmoid", gate))
    check(net.output(net.matmul(y, 4, 5)), groups=1, free={"a:1": "(4 + 4)"})


@pytest.mark.parametrize("op_type", ["Resize", "Upsample"])
def test_interpolate_by_scales_computed_from_sizes(op_type: str) -> None:
    net = Net(10 if op_type == "Resize" else 9)
    x = net.input("x", [None, 3, None, None])
    y = net.conv(x, 3, 8, 2, name="a", strides=[2, 2])
    size = net("Cast", net("Slice", net("Shape", y), net.ints(2), net.ints(4)) if net.opset >= 10 else
               net("Slice", net("Shape", y), starts=[2], ends=[4]), to=1)
    factor = net("Div", net("Mul", size, net.const(2.0)), size)
    y = net(op_type, y, net("Concat", net.const([1.0, 1.0]), factor, axis=0))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_pads_as_pytorch_writes_them() -> None:
    """`F.pad` at opset 11: zeros appended, reversed by a slice, transposed."""
    net = Net(11)
    y = net.conv(net.input("x", [None, 3, None, None]), 3, 8, name="a")
    missing = net("Sub", net("Mul", net("Size", net("Shape", y)), net.const(2)), net.const(4))
    zeros = net("ConstantOfShape", net("Unsqueeze", missing, axes=[0]))
    pads = net("Concat", net.ints(1, 2, 0, 1), net("Cast", zeros, to=7), axis=0)
    pads = net("Slice", net("Reshape", pads, net.ints(-1, 2)), net.ints(-1), net.ints(-FAR), net.ints(0), net.ints(-1))
    pads = net("Cast", net("Reshape", net("Transpose", pads, perm=[1, 0]), net.ints(-1)), to=7)
    check(net.output(net.conv(net("Pad", y, pads), 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [13, 18])
def test_weight_norm(opset: int) -> None:
    net = Net(opset)
    y = net.matmul(net.input("x", [None, 5]), 5, 6, name="a")
    v = net.weight(8, 6, name="v")
    norm = net("ReduceL2", v, axes=[1], keepdims=1) if opset < 18 else net("ReduceL2", v, net.ints(1), keepdims=1)
    w = net("Mul", net("Div", v, norm), net.weight(8, 1, name="g"))
    y = net.matmul(net("MatMul", y, net("Transpose", w, perm=[1, 0])), 8, 4)
    check(net.output(y), groups=2, free={"a:1": "6", "v:0": "8", "v:1": "6", "g:0": "8"})


def test_window_partition() -> None:
    """Swin: positions cut into windows and put back; the width passes, the image's sizes are fixed."""
    net = Net()
    y = net.matmul(net.input("x", [None, 4, 6, 5]), 5, 8, name="a")
    y = net("Transpose", net("Reshape", y, net.ints(-1, 2, 2, 3, 2, 8)), perm=[0, 1, 3, 2, 4, 5])
    y = net("Softmax", net("Reshape", y, net.ints(-1, 4, 8)), axis=1)
    y = net("Transpose", net("Reshape", y, net.ints(-1, 2, 3, 2, 2, 8)), perm=[0, 1, 3, 2, 4, 5])
    y = net("Reshape", y, net.ints(-1, 4, 6, 8))
    check(net.output(net.matmul(y, 8, 3)), groups=1, free={"a:1": "8"})


def test_shifted_windows() -> None:
    """`torch.roll` of positions is two slices and a Concat."""
    net = Net()
    y = net.matmul(net.input("x", [None, 6, 5]), 5, 8, name="a")
    parts = [net("Slice", y, net.ints(s), net.ints(e), net.ints(1)) for s, e in ((2, FAR), (0, 2))]
    check(net.output(net.matmul(net("Concat", *parts, axis=1), 8, 3)), groups=1, free={"a:1": "8"})


def test_patch_merging() -> None:
    """Every second row and column, beside each other along the width."""
    net = Net()
    y = net.matmul(net.input("x", [None, 4, 6, 5]), 5, 8, name="a")
    parts = [
        net("Slice", net("Slice", y, net.ints(r), net.ints(FAR), net.ints(1), net.ints(2)), net.ints(c), net.ints(FAR),
            net.ints(2), net.ints(2))
        for c in (0, 1) for r in (0, 1)
    ]
    got = check(net.output(net.matmul(net("Concat", *parts, axis=-1), 32, 3, name="b")), groups=1, free={"a:1": "8"})
    assert got.axis("b:0") == "(8 + 8 + 8 + 8)"


def test_relative_position_bias() -> None:
    """A table of biases gathered by a fixed index, then one matrix for each head."""
    net = Net()
    q = net.matmul(net.input("x", [None, 4, 5]), 5, 12, name="q")
    q = net("Transpose", net("Reshape", q, net.ints(0, 0, 3, 4)), perm=[0, 2, 1, 3])
    scores = net("MatMul", q, net("Transpose", q, perm=[0, 1, 3, 2]))
    index = net.const(np.abs(np.arange(4)[:, None] - np.arange(4)[None, :]).ravel())
    bias = net("Reshape", net("Gather", net.weight(4, 3, name="table"), index), net.ints(4, 4, -1))
    bias = net("Unsqueeze", net("Transpose", bias, perm=[2, 0, 1]), net.ints(0))
    y = net("MatMul", net("Softmax", net("Add", scores, bias)), q)
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 12))
    check(net.output(net.matmul(y, 12, 3)), groups=2, free={"q:1": "(3 4)", "table:1": "3"})


def test_causal_mask_from_positions() -> None:
    net = Net(18)
    q = net.matmul(net.input("x", [None, "s", 5]), 5, 8, name="q")
    scores = net("MatMul", q, net("Transpose", q, perm=[0, 2, 1]))
    n = net("Squeeze", width_of(net, q, 1), net.ints(0))
    places = net("Range", net.const(0), n, net.const(1))
    causal = net("LessOrEqual", net("Unsqueeze", places, net.ints(0)), net("Unsqueeze", places, net.ints(1)))
    y = net("MatMul", net("Softmax", net("Where", causal, scores, net.const(-1e9))), q)
    check(net.output(net.matmul(y, 8, 3)), groups=1, free={"q:1": "8"})


def test_unused_weight_is_no_group() -> None:
    net = Net()
    net.weight(4, 6, name="left over")
    y = net.matmul(net.matmul(net.input("x", [None, 5]), 5, 8, name="a"), 8, 3)
    check(net.output(y), groups=1, pinned={"left over:0": "no operator"})
