"""Operators that fold an axis away or look along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check

REDUCTIONS = [
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
]
CONTRACTED = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}


def reduced(net: Net, op_type: str, y: str, axes: list[int] | None, **attributes: Any) -> str:
    """Give the axes as the opset wants them."""
    as_input = net.opset >= (13 if op_type == "ReduceSum" else 18)
    if axes is None:
        return str(net(op_type, y, **attributes))
    if as_input:
        return str(net(op_type, y, net.ints(*axes), **attributes))
    return str(net(op_type, y, axes=axes, **attributes))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_positions(op_type: str, keepdims: int, opset: int) -> None:
    net = Net(opset)
    y = net("Exp", net("Sin", net.conv(net.input("x", [None, 3, 3, 3]), 3, 8, name="a")))
    y = reduced(net, op_type, y, [2, 3], keepdims=keepdims)
    y = net("Flatten", y) if keepdims else y
    got = check(net.output(net.gemm(y, 8, 4, name="b")), groups=1, free={"a:0": "8", "b:1": "8"})
    assert not got.coupling.groups[0].normalised


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_channels(op_type: str, axis: int, opset: int) -> None:
    """Folding the channels: masking is the same as removal only for sums."""
    net = Net(opset)
    y = net("Exp", net("Sin", net.conv(net.input("x", [None, 3, 3, 3]), 3, 8, name="a")))
    y = reduced(net, op_type, y, [axis], keepdims=1)
    got = check(net.output(net.conv(y, 1, 4)), groups=1, free={"a:0": "8"})
    assert got.coupling.groups[0].normalised == (op_type not in CONTRACTED)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum"])
def test_all_axes(op_type: str, opset: int) -> None:
    net = Net(opset)
    y = net.conv(net.input("x", [None, 3, 3, 3]), 3, 8, name="a")
    check(net.output(reduced(net, op_type, y, None, keepdims=0)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("axes", ["absent", "empty"])
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum"])
def test_noop(op_type: str, axes: str) -> None:
    net = Net(18)
    y = net.conv(net.input("x", [None, 3, 3, 3]), 3, 8, name="a")
    operands = [net.const(np.zeros(0, dtype=np.int64))] if axes == "empty" else []
    y = net(op_type, y, *operands, noop_with_empty_axes=1)
    got = check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})
    assert not got.coupling.groups[0].normalised


def test_axes_computed_at_run_time_pin() -> None:
    net = Net(18)
    axes = net.input("axes", [1], np.int64, between=(2, 3))
    y = net("ReduceMean", net.conv(net.input("x", [None, 3, 3, 3]), 3, 8, name="a"), axes, keepdims=1)
    check(net.output(net.conv(y, 8, 4)), groups=0, pinned={"a:0": "not known"})


def test_squeeze_and_excitation() -> None:
    net = Net()
    x = net.input("x", [None, 3, 6, 6])
    y = net.conv(x, 3, 8, name="a")
    gate = net("Relu", net.conv(net("ReduceMean", y, axes=[2, 3], keepdims=1), 8, 4, name="squeeze"))
    gate = net("Sigmoid", net.conv(gate, 4, 8, name="excite"))
    got = check(net.output(net.conv(net("Mul", y, gate), 8, 5)), groups=2, free={"squeeze:0": "4", "excite:1": "4"})
    assert got.group("a:0") is got.group("excite:0") is got.group("squeeze:1")


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("axis", "pins"), [(1, True), (2, False), (-1, False)])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg(op_type: str, axis: int, pins: bool, keepdims: int) -> None:
    net = Net()
    y = net(op_type, net.conv(net.input("x", [None, 3, 6, 6]), 3, 8, name="a"), axis=axis, keepdims=keepdims)
    y = net("Unsqueeze", y, net.ints(axis if axis > 0 else 3)) if not keepdims else y
    y = net("Cast", y, to=1)
    net.output(net.conv(y, 1 if axis == 1 else 8, 4))
    check(net, groups=0 if pins else 1, pinned={"a:0": "used as numbers"} if pins else {})


@pytest.mark.parametrize("opset", [9, 10, 11, 24])
@pytest.mark.parametrize(("axis", "pins"), [(1, True), (3, False)])
def test_top_k(axis: int, pins: bool, opset: int) -> None:
    net = Net(opset)
    y = net.conv(net.input("x", [None, 3, 6, 6]), 3, 8, name="a")
    operands, attributes = ([], {"k": 2}) if opset < 10 else ([net.ints(2)], {})
    values, indices = net("TopK", y, *operands, n=2, axis=axis, **attributes)
    y = net("Add", values, net("Cast", indices, to=1))
    net.output(net.conv(y, 2 if axis == 1 else 8, 4))
    check(net, groups=0 if pins else 1, pinned={"a:0": "used as numbers"} if pins else {})


@pytest.mark.parametrize("where", ["constant", "run time"])
@pytest.mark.parametrize(("axis", "pins"), [(1, True), (-1, False)])
@pytest.mark.parametrize("op_type", ["CumSum", "CumProd"])
def test_running(op_type: str, axis: int, pins: bool, where: str) -> None:
    net = Net(26 if op_type == "CumProd" else 17)
    x = net.input("x", [None, 3, 6, 6])
    place = net.const(axis) if where == "constant" else net.input("axis", [], np.int64, between=(2, 3))
    y = net(op_type, net.conv(x, 3, 8, name="a"), place)
    net.output(net.conv(y, 8, 4))
    pins = pins or where == "run time"
    reason = "order" if where == "constant" else "run time"
    check(net, groups=0 if pins else 1, pinned={"a:0": reason} if pins else {}, reference=op_type == "CumProd")


@pytest.mark.parametrize("last", ["positions", "channels"])
def test_trilu(last: str) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 3, 6, 6]), 3, 8, name="a")
    if last == "channels":
        y = net("Transpose", net("Trilu", net("Transpose", y, perm=[0, 2, 3, 1]), upper=1), perm=[0, 3, 1, 2])
    else:
        y = net("Trilu", y, upper=1)
    net.output(net.conv(y, 8, 4))
    check(net, groups=0 if last == "channels" else 1, pinned={"a:0": "triangle"} if last == "channels" else {})


def test_reverse_sequence() -> None:
    net = Net()
    lengths = net.input("lengths", [3], np.int64, between=(1, 6))
    y = net("ReverseSequence", net.matmul(net.input("x", [6, 3, 5]), 5, 8, name="a"), lengths)
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8"})


def test_reverse_sequence_of_channels_pins() -> None:
    net = Net()
    lengths = net.input("lengths", [3], np.int64, between=(1, 6))
    y = net("Transpose", net.matmul(net.input("x", [2, 3, 5]), 5, 8, name="a"), perm=[2, 1, 0])
    y = net("Transpose", net("ReverseSequence", y, lengths), perm=[2, 1, 0])
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"a:1": "reversed"})
