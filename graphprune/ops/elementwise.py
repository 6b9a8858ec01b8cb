"""Operators that act on each element by itself."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import Equation, Free, Role, Use
from graphprune.ops.registry import AxisRule, Op, Row, broadcast, pin_all, row, same_axes


def unary(op: Op) -> Iterator[Equation]:
    """Every output has the axes of the first input; other inputs are parameters."""
    x = op.x()
    for y in op.outputs:
        if y is None:
            continue
        if y.shape != x.shape:
            yield from pin_all(op, "the output's shape is not the input's")
            return
        yield from same_axes(x, y)
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)


def cast_like(op: Op) -> Iterator[Equation]:
    """The second input is asked for its type only."""
    yield from unary(op)
    yield from (Free(a) for a in op.x(1).axes)


def nary(op: Op) -> Iterator[Equation]:
    """All inputs broadcast to the output; before opset 7 an attribute said along which axis."""
    if op.attr("broadcast", 0):
        yield from pin_all(op, "broadcast along an axis of an attribute")
        return
    yield from broadcast(op, range(len(op.inputs)), op.y())


AXES: tuple[Row[AxisRule], ...] = (
    row(
        unary,
        *[
            "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip",
            "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
            "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu",
            "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
            "ThresholdedRelu", "Bernoulli", "BitCast",
        ],
    ),
    row(cast_like, "CastLike"),
    row(
        nary,
        *[
            "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
            "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow",
            "Sub", "Sum", "Where", "Xor",
        ],
    ),
)
