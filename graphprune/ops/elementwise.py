"""Operators that act on each element by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphprune.axes import Axis, Equation, Free, Role, Same, Use
from graphprune.axes.equations import Counts, Understood
from graphprune.ops.registry import AxisRule, Op, Operand, Row, broadcast, pin_all, row, same_axes


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


def random(op: Op) -> Iterator[Equation]:
    """Random numbers: other ones at other places, so nothing can be compared."""
    yield from pin_all(op, "random numbers")


def dropout(op: Op) -> Iterator[Equation]:
    """Every output has the axes of the first input; in training mode it is random."""
    training = op.input(2)
    if training is not None and (op.fixed(2) is None or bool(np.any(op.fixed(2)))):
        yield from random(op)
    else:
        yield from unary(op)


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


def equal(op: Op) -> Iterator[Equation]:
    """Both inputs broadcast; a position equals a place of the axis that it points along."""
    yield from nary(op)
    left, right = op.x(0), op.x(1)
    if left.points is not None and right.points is not None:
        yield Same(left.points, right.points)
        yield Understood(0)
        yield Understood(1)
    for i, j in ((0, 1), (1, 0)):
        points, axis = op.x(i).points, _counted(op.x(j))
        if points is not None and axis is not None and op.x(j).points is None:
            yield Same(points, axis)
            yield Counts(j, axis)
            yield Understood(i)


def _counted(operand: Operand) -> Axis | None:
    """Return the axis along which a constant counts 0, 1, 2 ..."""
    value = operand.value if operand.fixed else None
    longest = max(operand.axes, key=lambda a: a.size, default=None)
    if value is None or longest is None or value.size != longest.size or value.size < 2:
        return None
    return longest if bool((np.ravel(value) == np.arange(value.size)).all()) else None


AXES: tuple[Row[AxisRule], ...] = (
    row(
        unary,
        *[
            "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip",
            "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
            "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu",
            "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
            "ThresholdedRelu", "BitCast",
        ],
    ),
    row(dropout, "Dropout"),
    row(
        random, "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    ),
    row(cast_like, "CastLike"),
    row(equal, "Equal"),
    row(
        nary,
        *[
            "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Greater",
            "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow",
            "Sub", "Sum", "SwiGLU", "Where", "Xor",
        ],
    ),
)
