"""Operators of several inputs that broadcast, between two convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Net, check

ARITHMETIC = ["Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "PRelu", "Pow", "Sub", "Sum"]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
SHAPES = {
    "channels": (1, 8, 1, 1), "no batch": (8, 1, 1), "positions": (6, 6), "everything": (1, 8, 6, 6), "scalar": (),
    "one": (1,), "row": (6,), "all ones": (1, 1, 1, 1), "positions of channels": (8, 6, 1),
}


def operand(net: Net, op_type: str, y: str, shape: tuple[int, ...]) -> str:
    other = net.weight(*shape, name="s", positive=True)
    y = net("Exp", net("Sin", y)) if op_type in ("Pow", "Mod") else y
    return str(net(op_type, y, other, **({"fmod": 1} if op_type == "Mod" else {})))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("op_type", ARITHMETIC)
def test_constant_operand(op_type: str, shape: tuple[int, ...]) -> None:
    net = Net()
    y = operand(net, op_type, net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a"), shape)
    got = check(net.output(net.conv(y, 8, 3, name="b")), groups=1, free={"a:0": "8", "b:1": "8"})
    if 8 in shape:
        assert got.axis(f"s:{shape.index(8)}") == "8"


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Sub", "Max", "Sum", "Mean", "Min", "Div", "Pow", "Mod"])
def test_two_branches(op_type: str) -> None:
    """A residual sum ties the channels of both branches."""
    net = Net()
    x = net.input("x", [None, 4, 6, 6])
    y, z = (net("Exp", net("Sin", net.conv(x, 4, 8, name=n))) for n in "ac")
    y = net(op_type, y, z, **({"fmod": 1} if op_type == "Mod" else {}))
    got = check(net.output(net.conv(y, 8, 3, name="b")), groups=1)
    assert got.group("a:0") is got.group("c:0") is got.group("b:1")


@pytest.mark.parametrize("opset", [8, 13])
@pytest.mark.parametrize("op_type", ["Sum", "Max", "Min", "Mean"])
def test_many_inputs(op_type: str, opset: int) -> None:
    net = Net(opset)
    x = net.input("x", [None, 4, 6, 6])
    branches = [net.conv(x, 4, 8), net.conv(x, 4, 8, bias=False), net.weight(8, 1, 1), net.conv(x, 4, 1)]
    check(net.output(net.conv(net(op_type, *branches), 8, 3)), groups=1)


@pytest.mark.parametrize("op_type", COMPARISONS)
def test_comparisons(op_type: str) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a")
    y = net("Round", y) if op_type == "Equal" else y
    mask = net(op_type, y, net.const(np.arange(-3.0, 5.0).reshape(8, 1, 1)))
    check(net.output(net.conv(net("Cast", mask, to=1), 8, 3)), groups=1)


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type: str) -> None:
    net = Net()
    x = net.input("x", [None, 4, 6, 6])
    y, z = (net("Greater", net.conv(x, 4, 8, name=n), net.const(0.0)) for n in "ac")
    check(net.output(net.conv(net("Cast", net(op_type, y, z), to=1), 8, 3)), groups=1)


@pytest.mark.parametrize("op_type", ["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"])
def test_bits(op_type: str) -> None:
    net = Net(18)
    x = net.input("x", [None, 4, 6, 6])
    y = net("Cast", net("Abs", net("Mul", net.conv(x, 4, 8, name="a"), net.const(5.0))), to=2)
    z = net.const(np.arange(8, dtype=np.uint8).reshape(8, 1, 1), np.uint8)
    y = net(op_type, y, z, **({"direction": "RIGHT"} if op_type == "BitShift" else {}))
    check(net.output(net.conv(net("Cast", y, to=1), 8, 3)), groups=1)


@pytest.mark.parametrize("mask", ["computed", "weight", "positions", "scalar branch"])
def test_where(mask: str) -> None:
    net = Net()
    x = net.input("x", [None, 4, 6, 6])
    y, z = net.conv(x, 4, 8, name="a"), net.conv(x, 4, 8, name="c")
    condition = net("Less", z, net.const(0.1))
    if mask == "weight":
        condition = net.const(np.arange(8).reshape(8, 1, 1) % 3 == 0, np.bool_)
    elif mask == "positions":
        condition = net.const(np.eye(6) > 0, np.bool_)
    elif mask == "scalar branch":
        z = net.const(-1.0)
    check(net.output(net.conv(net("Where", condition, y, z), 8, 3)), groups=1)


def test_outer_product() -> None:
    """Two axes that broadcast against each other are separate groups."""
    net = Net()
    x = net.input("x", [None, 4, 1, 5])
    rows = net("Transpose", net.matmul(x, 5, 6, name="r"), perm=[0, 1, 3, 2])
    y = net("Mul", rows, net.matmul(x, 5, 7, name="c"))
    y = net("MatMul", net.weight(2, 6, name="left"), net.matmul(y, 7, 3, name="right"))
    check(net.output(y), groups=2, free={"r:1": "6", "left:1": "6", "c:1": "7", "right:0": "7"})


@pytest.mark.parametrize("ir_version", [3, 10])
def test_prelu_slope_of_channels(ir_version: int) -> None:
    net = Net(9, ir_version)
    y = net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a")
    y = net("PRelu", y, net.weight(8, 1, 1, name="slope"))
    check(net.output(net.conv(y, 8, 3)), groups=1, free=["slope:0"])


def test_old_broadcast_attribute_pins() -> None:
    """Before opset 7 the axis was an attribute."""
    net = Net(6)
    y = net.conv(net.input("x", [None, 4, 8, 8]), 4, 8, name="a")
    y = net("Add", y, net.weight(8, name="s"), broadcast=1, axis=1)
    check(net.output(net.conv(y, 8, 3)), groups=0, pinned={"a:0": "broadcast"})
