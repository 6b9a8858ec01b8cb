"""Losses, which models that are trained further carry with them."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import Equation, Pin, Role, Same, Use
from graphprune.ops.registry import AxisRule, Op, Row, row, same_axes


def loss(op: Op) -> Iterator[Equation]:
    """`n c *s, n *s, c? -> n *s` or one number; labels are numbers of classes."""
    scores, labels, weight = op.x(0), op.x(1), op.input(2)
    rest = (scores.axes[0], *scores.axes[2:])
    yield from (Same(a, b) for a, b in zip(rest, labels.axes, strict=True))
    yield Pin(scores.axes[1], "labels are numbers of classes")
    if weight is not None:
        yield Same(weight.axes[0], scores.axes[1])
    if op.attr("reduction", "mean") == "none":
        yield from (Same(a, b) for a, b in zip(rest, op.y().axes, strict=True))
    else:
        yield from (Use(0, a, Role.NORMALISED) for a in rest)
    logarithms = op.output(1)
    if logarithms is not None:
        yield from same_axes(scores, logarithms)


AXES: tuple[Row[AxisRule], ...] = (row(loss, "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),)
