"""Mixtures of experts in one operator: inner width of the experts, and whole experts, domain com.microsoft.

Layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import UNIT, Axis, Equation, Role, Same, Use, concat, product
from graphprune.axes.equations import Least
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.inference import ShapeRule, like_first
from graphprune.ops.registry import AxisRule, CostRule, Op, Row, ShapeOf, row

_ROUTER, _DOWN, _DOWN_BIAS = 1, 4, 5
_UPS = ((2, 3), (6, 7))
"""Weight and bias of what widens: fc1, and fc3, which is a gate."""


def up_axis(op: Op, inner: Axis) -> Axis:
    """Return the rows of fc1: where gate and value are one matrix, side by side or one after the other."""
    how = op.attr("swiglu_fusion", 0)
    return product(inner, concat(UNIT, UNIT)) if how == 1 else concat(inner, inner) if how == 2 else inner


def experts(op: Op) -> Iterator[Equation]:
    """`*t c, r x, x i c, (x i)?, x c i, (x c)?, x i c?, (x i)? -> *t c`: x experts of inner width i.

    fc1 has rows `(i 2)` or `(i + i)` where it holds the gate as well.
    """
    x, router, first, down = op.x(0), op.x(_ROUTER), op.x(2), op.x(_DOWN)
    yield from (Same(a, b) for a, b in zip(x.axes, op.y().axes, strict=True))
    width, expert, inner = x.axes[-1], router.axes[-1], down.axes[2]
    yield Use(0, width, Role.CONTRACTED)
    yield Use(_ROUTER, expert, Role.NORMALISED)
    yield Same(down.axes[1], width)
    yield Use(_DOWN, down.axes[1], Role.PRODUCED)
    yield Use(_DOWN, inner, Role.CONTRACTED, own=True)
    for weight, bias in _UPS:
        operand, added = op.input(weight), op.input(bias)
        rows = up_axis(op, inner) if operand is first else inner
        if operand is not None:
            yield Same(operand.axes[2], width)
            yield Use(weight, operand.axes[2], Role.CONTRACTED)
            yield Same(operand.axes[1], rows)
            yield Use(weight, operand.axes[1], Role.PRODUCED)
        if added is not None:
            yield Same(added.axes[1], rows)
            yield Use(bias, added.axes[1], Role.PRODUCED)
    added = op.input(_DOWN_BIAS)
    if added is not None:
        yield Same(added.axes[1], width)
        yield Use(_DOWN_BIAS, added.axes[1], Role.PRODUCED)
    for i, operand in enumerate(op.inputs[2:], 2):
        if operand is not None:
            yield Same(operand.axes[0], expert)
            yield Use(i, operand.axes[0], Role.NORMALISED)
    yield from (Use(_ROUTER, a, Role.CARRIED) for a in router.axes[:-1])
    yield Same(router.axes[0], product(*x.axes[:-1]))
    yield Least(expert, op.attr("k", 1))


AXES: tuple[Row[AxisRule], ...] = (row(experts, "MoE", domain=MICROSOFT),)


def experts_cost(op: Op, shape: ShapeOf) -> int:
    """Every token through the experts that it is sent to."""
    tokens = prod(shape(op.x())[:-1])
    chosen = min(int(op.attr("k", 1)), shape(op.x(_ROUTER))[-1])
    weights = [shape(o) for o in (op.input(2), op.input(_DOWN), op.input(6)) if o is not None]
    return tokens * chosen * sum(prod(w[1:]) for w in weights)


COSTS: tuple[Row[CostRule], ...] = (row(experts_cost, "MoE", domain=MICROSOFT),)
SHAPES: tuple[Row[ShapeRule], ...] = (row(like_first, "MoE", domain=MICROSOFT),)
