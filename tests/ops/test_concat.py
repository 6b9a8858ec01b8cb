"""Concat, Split, Slice and Pad: sums of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check

FAR = 2**63 - 1


def conv_net(opset: int = 17, channels: int = 8, size: Any = 6) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.conv(net.input("x", [None, 3, size, size]), 3, channels, name="a")


@pytest.mark.parametrize("axis", [1, -3])
def test_concat_channels(axis: int) -> None:
    net = Net()
    x = net.input("x", [None, 3, 6, 6])
    y = net("Concat", net.conv(x, 3, 8, name="a"), x, net.conv(x, 3, 5, name="c"), axis=axis)
    net.output(net.conv(y, 16, 4, name="b"))
    got = check(net, groups=2, free={"a:0": "8", "c:0": "5", "b:1": "(8 + [3] + 5)"})
    assert got.macs("Conv") == 36 * (3 * 8 + 3 * 5 + 16 * 4)


def test_concat_of_the_same() -> None:
    """A value beside itself (CReLU): both halves go together."""
    net, y = conv_net()
    y = net("Concat", net("Relu", y), net("Relu", net("Neg", y)), axis=1)
    check(net.output(net.conv(y, 16, 4, name="b")), groups=1, free={"a:0": "8", "b:1": "(8 + 8)"})


def test_concat_positions() -> None:
    """A class token before the patches: its width is theirs."""
    net = Net()
    y = net.matmul(net.input("x", [None, "s", 5]), 5, 8, name="a")
    shape = net("Concat", net("Slice", net("Shape", y), net.ints(0), net.ints(1)), net.ints(-1, -1), axis=0)
    shape = net("Where", net("Equal", shape, net.ints(-1)), net.ints(1, 1, 8), shape)
    token = net("Expand", net.weight(1, 1, 8, name="token"), shape)
    y = net("Concat", token, y, axis=1)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8", "token:2": "8"})


def test_concat_with_an_empty_constant() -> None:
    """An empty cache of the first step has the width of what is added."""
    net = Net()
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    y = net("Concat", net.const(np.zeros((2, 0, 8), np.float32)), y, axis=1)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8"})


@pytest.mark.parametrize("parts", [(4, 4), (2, 6), (1, 3, 4)])
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split(opset: int, parts: tuple[int, ...]) -> None:
    """Parts used by themselves are groups of their own, a part of one slot too."""
    net, y = conv_net(opset)
    operands, attributes = ([], {"split": parts}) if opset < 13 else ([net.ints(*parts)], {})
    pieces = net("Split", y, *operands, n=len(parts), axis=1, **attributes)
    outs = [net.conv(p, n, 4) for p, n in zip(pieces, parts, strict=True)]
    text = "(" + " + ".join(str(n) for n in parts) + ")"
    check(net.output(net("Sum", *outs)), groups=sum(n > 1 for n in parts), free={"a:0": text})


@pytest.mark.parametrize(("channels", "n"), [(8, 2), (9, 3), (8, 3)])
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split_equally(opset: int, channels: int, n: int) -> None:
    """Without sizes; from opset 18 on the last part may be smaller."""
    if channels % n and opset < 18:
        pytest.skip("parts were equal before opset 18")
    net, y = conv_net(opset, channels)
    pieces = net("Split", y, n=n, axis=1, **({"num_outputs": n} if opset >= 18 else {}))
    each = -(-channels // n)
    outs = [net.conv(p, min(each, channels - k * each), 4) for k, p in enumerate(pieces)]
    check(net.output(net("Sum", *outs)), groups=n)


def test_split_tied() -> None:
    """A gated unit ties both halves."""
    net, y = conv_net(13)
    value, gate = net("Split", y, n=2, axis=1)
    y = net("Mul", value, net("Sigmoid", gate))
    check(net.output(net.conv(y, 4, 5)), groups=1, free={"a:0": "(4 + 4)"})


def test_split_leaves_a_part() -> None:
    net, y = conv_net(13)
    first, _ = net("Split", y, net.ints(3, 5), n=2, axis=1)
    check(net.output(net.conv(first, 3, 4)), free={"a:0": "(3 + 5)"})


def test_split_with_an_unnamed_part() -> None:
    net, y = conv_net(13)
    first, _ = net("Split", y, net.ints(3, 5), n=2, axis=1)
    net.nodes[-1].output[1] = ""
    check(net.output(net.conv(first, 3, 4)), pinned={"a:0": "without a name"})


def test_split_fused_projection() -> None:
    net = Net()
    y = net.matmul(net.input("x", [None, "s", 5]), 5, 24, name="qkv")
    q, k, v = net("Split", y, n=3, axis=-1)
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])))
    check(net.output(net.matmul(net("MatMul", scores, v), 8, 4)), groups=2, free={"qkv:1": "(8 + 8 + 8)"})


def cut(net: Net, y: str, start: int, end: int, axis: int, step: int = 1) -> str:
    """Slice as the opset wants it."""
    if net.opset < 10:
        return str(net("Slice", y, starts=[start], ends=[end], axes=[axis]))
    return str(net("Slice", y, net.ints(start), net.ints(end), net.ints(axis), net.ints(step)))


@pytest.mark.parametrize("opset", [9, 10, 13])
@pytest.mark.parametrize(
    ("start", "end", "size", "text"),
    [(0, 3, 3, "(3 + 5)"), (5, FAR, 3, "(5 + 3)"), (-3, FAR, 3, "(5 + 3)"), (2, -2, 4, "(2 + 4 + 2)"),
     (-6, -2, 4, "(2 + 4 + 2)"), (0, 100, 8, "8"), (0, FAR, 8, "8")],
)
def test_slice(start: int, end: int, size: int, text: str, opset: int) -> None:
    net, y = conv_net(opset)
    out = net.conv(cut(net, y, start, end, 1), size, 4)
    check(net.output(net("Add", out, net.conv(y, 8, 4))), groups=text.count("+") + 1, free={"a:0": text})


def test_halves() -> None:
    """Half-split rotary embedding: the halves change places with a sign."""
    net = Net()
    y = net.matmul(net.input("x", [2, "s", 5]), 5, 8, name="a")
    turned = net("Concat", net("Neg", cut(net, y, 4, FAR, 2)), cut(net, y, 0, 4, 2), axis=-1)
    y = net("Add", y, turned)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "(4 + 4)"})


def test_interleaved() -> None:
    """Even and odd slots: pairs stay together."""
    net = Net()
    y = net.matmul(net.input("x", [2, "s", 5]), 5, 8, name="a")
    even, odd = cut(net, y, 0, FAR, 2, 2), cut(net, y, 1, FAR, 2, 2)
    pairs = [net("Unsqueeze", p, net.ints(3)) for p in (net("Neg", odd), even)]
    y = net("Add", y, net("Reshape", net("Concat", *pairs, axis=3), net.ints(0, 0, 8)))
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "(4 2)"})


@pytest.mark.parametrize(
    ("start", "end", "step", "size", "free"),
    [(0, FAR, 2, 4, True), (1, FAR, 2, 4, True), (3, FAR, 2, 3, True), (2, 6, 2, 2, True), (0, FAR, 4, 2, True),
     (0, 5, 2, 3, True), (0, FAR, 3, 3, False), (1, FAR, 3, 3, False), (-1, -FAR, -1, 8, False),
     (6, 1, -2, 3, False)],
)
def test_steps(start: int, end: int, step: int, size: int, free: bool) -> None:
    net, y = conv_net()
    net.output(net("Add", net.conv(cut(net, y, start, end, 1, step), size, 4), net.conv(y, 8, 4)))
    check(net, free=["a:0"] if free else [], pinned={} if free else {"a:0": "reversed" if step < 0 else "steps"})


@pytest.mark.parametrize("opset", [9, 13])
def test_slice_many_axes(opset: int) -> None:
    net, y = conv_net(opset)
    given = ([2, 1, -4], [6, 5, FAR], [1, 2, 3])
    if opset < 10:
        y = net("Slice", y, starts=given[0], ends=given[1], axes=given[2])
    else:
        y = net("Slice", y, *[net.ints(*g) for g in given])
    check(net.output(net.conv(y, 4, 3)), groups=3, free={"a:0": "(2 + 4 + 2)"})


def test_slice_at_run_time_pins_its_axis() -> None:
    net, y = conv_net()
    end = net.input("end", [1], np.int64, between=(3, 4))
    z = net("ReduceMean", net("Slice", y, net.ints(0), end, net.ints(1)), axes=[1], keepdims=1)
    check(net.output(net.conv(z, 1, 4)), groups=0, pinned={"a:0": "run time"})


def test_slice_positions_at_run_time() -> None:
    net, y = conv_net()
    end = net.input("end", [1], np.int64, between=(3, 4))
    y = net("Slice", y, net.ints(0), end, net.ints(3))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_slice_of_open_positions() -> None:
    net, y = conv_net(size=None)
    y = cut(net, cut(net, y, 1, FAR, 2), 0, -1, 3, 2)
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [2, 11, 13, 18])
def test_pad_channels(opset: int) -> None:
    """The zero-padded shortcut of early residual networks."""
    net = Net(max(opset, 7))
    x = net.input("x", [None, 3, 6, 6])
    y = net.conv(x, 3, 8, name="a")
    if opset < 11:
        padded = net("Pad", y, pads=[0, 2, 0, 0, 0, 4, 0, 0])
    elif opset < 18:
        padded = net("Pad", y, net.ints(0, 2, 0, 0, 0, 4, 0, 0))
    else:
        padded = net("Pad", y, net.ints(2, 4), "", net.ints(1))
    y = net("Add", padded, net.conv(x, 3, 14, name="c"))
    check(net.output(net.conv(y, 14, 4, name="b")), groups=3, free={"a:0": "8", "c:0": "(2 + 8 + 4)"})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("axis", [1, 3])
def test_pad_modes(mode: str, axis: int) -> None:
    net, y = conv_net(19)
    y = net("Pad", y, net.ints(1, 2), net.const(0.5) if mode == "constant" else "", net.ints(axis), mode=mode)
    net.output(net.conv(y, 11 if axis == 1 else 8, 4))
    free = axis != 1 or mode == "constant"
    check(net, groups=(1 if axis != 1 else 2) if free else 0, pinned={} if free else {"a:0": "padded"})


def test_crop_by_negative_pads_pins() -> None:
    net, y = conv_net(13)
    y = net("Pad", y, net.ints(0, -2, 0, 0, 0, 0, 0, 0))
    check(net.output(net.conv(y, 6, 4)), groups=0, pinned={"a:0": "padded"})


def test_pads_at_run_time() -> None:
    net, y = conv_net(13)
    y = net("Pad", y, net.input("pads", [8], np.int64, between=(0, 1)))
    check(net.output(net.conv(y, 8, 4)), groups=0, pinned={"a:0": "padded"})
