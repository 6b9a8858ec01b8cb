"""Operators that act on each element by itself, between two convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check

UNARY = [
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
]
# What makes the input lie where the function is defined and tame.
RANGES = {
    "Acos": "Sin", "Asin": "Sin", "Atanh": "Sin", "Acosh": "Exp", "Log": "Exp", "Sqrt": "Exp", "Tan": "Sin",
    "Reciprocal": "Exp", "Exp": "Sin", "Sinh": "Sin", "Cosh": "Sin",
}
OPSETS = {"Gelu": 20, "Mish": 18, "Swish": 24}


def between_convolutions(op_type: str, opset: int, *, dtype: Any = np.float32, **attributes: Any) -> Net:
    net = Net(opset, dtype=dtype)
    double = net.dtype == np.float64  # onnxruntime has no convolution of it
    x = net.input("x", [None, 4] if double else [None, 4, 6, 6])
    layer = net.gemm if double else net.conv
    y = layer(x, 4, 8, name="a")
    if op_type in RANGES:
        y = net(RANGES[op_type], y)
        y = net("Add", y, net.const(2.0)) if RANGES[op_type] == "Exp" else y
    y = net(op_type, net("Mul", y, net.const(0.9)), **attributes)
    return net.output(layer(y, 8, 3, name="b"))


@pytest.mark.parametrize("op_type", UNARY)
def test_unary(op_type: str) -> None:
    net = between_convolutions(op_type, OPSETS.get(op_type, 17))
    check(net, groups=1, free={"a:0": "8", "a.b:0": "8", "b:1": "8"}, reference=op_type == "Swish")


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 22])
@pytest.mark.parametrize("op_type", ["Relu", "LeakyRelu", "Sigmoid", "Dropout", "HardSigmoid", "Identity"])
def test_opsets(op_type: str, opset: int) -> None:
    check(between_convolutions(op_type, opset), groups=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2e-2), (np.float64, 1e-9)])
@pytest.mark.parametrize("op_type", ["Relu", "Tanh", "Sigmoid", "Clip"])
def test_other_types(op_type: str, dtype: Any, tolerance: float) -> None:
    check(between_convolutions(op_type, 17, dtype=dtype), groups=1, tolerance=tolerance)


@pytest.mark.parametrize("opset", [7, 10, 11, 12, 13])
def test_clip_bounds(opset: int) -> None:
    net = Net(opset)
    y = net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a")
    y = net("Clip", y, min=-0.5, max=2.0) if opset < 11 else net("Clip", y, net.const(-0.5), net.const(2.0))
    check(net.output(net.conv(y, 8, 3)), groups=1)


@pytest.mark.parametrize("op_type", ["Clip", "Dropout"])
def test_absent_inputs(op_type: str) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a")
    y = net("Clip", y, "", net.const(2.0)) if op_type == "Clip" else net("Dropout", y, net.const(0.3))
    check(net.output(net.conv(y, 8, 3)), groups=1)


@pytest.mark.parametrize("opset", [10, 12, 13])
def test_dropout_mask(opset: int) -> None:
    """The mask output has the same channels."""
    net = Net(opset)
    y, mask = net("Dropout", net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a"), n=2)
    check(net.output(net.conv(net("Add", y, net("Cast", mask, to=1)), 8, 3)), groups=1)


@pytest.mark.parametrize("to", [np.float16, np.float64, np.int32])
def test_cast_and_back(to: Any) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a")
    y = net("Cast", net("Cast", net("Mul", y, net.const(3.0)), to=_code(to)), to=1)
    check(net.output(net.conv(y, 8, 3)), groups=1, tolerance=5e-2)


@pytest.mark.parametrize("like", ["weight", "activation", "input"])
def test_cast_like(like: str) -> None:
    """The second input gives a type only: its own channels are not touched."""
    net = Net(19)
    x = net.input("x", [None, 4, 6, 6])
    y, z = net.conv(x, 4, 8, name="a"), net.conv(x, 4, 6, name="c")
    kind = net.weight(6, name="kind") if like == "weight" else {"activation": z, "input": x}[like]
    out = net("Add", net.conv(net("CastLike", y, kind), 8, 3), net.conv(z, 6, 3))
    check(net.output(out), groups=3 if like == "weight" else 2, free=["a:0", "c:0"])


def _code(dtype: Any) -> int:
    return {np.float16: 10, np.float64: 11, np.int32: 6}[dtype]


@pytest.mark.parametrize("op_type", ["Not", "IsNaN", "IsInf", "BitwiseNot"])
def test_masks(op_type: str) -> None:
    net = Net(20)
    y = net.conv(net.input("x", [None, 4, 6, 6]), 4, 8, name="a")
    positive = net("Greater", y, net.const(0.0))
    if op_type == "Not":
        mask = net("Not", positive)
    elif op_type == "BitwiseNot":
        mask = net("BitwiseNot", net("Cast", y, to=7))
    else:
        y = net("Relu", y)
        mask = net(op_type, net("Div", y, y) if op_type == "IsNaN" else net("Log", y))
    check(net.output(net.conv(net("Cast", mask, to=1), 8, 3)), groups=1)


def test_bit_cast() -> None:
    net = Net(26)
    y = net.conv(net.input("x", [None, 4, 3, 3]), 4, 8, name="a")
    y = net("BitCast", net("BitCast", y, to=6), to=1)
    check(net.output(net.conv(y, 8, 3)), groups=1, reference=True)
