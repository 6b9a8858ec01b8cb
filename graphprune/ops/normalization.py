"""Normalisations and softmaxes: dims that are normalised over."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import Equation, Pin, Role, Same, Use
from graphprune.ops.registry import AxisRule, Op, Row, broadcast, line, normalise_axis, pin_all, row, same_axes
from graphprune.ops.sizes import RefitRule, attributes

batch_norm = line("n c *s, c, c, c, c -> n c *s, c, c, c, c", gain=1)
instance_norm = line("n c *s, c, c -> n c *s", normalised="s", gain=1)
group_norm_18 = line("n (g c) *s, g, g -> n (g c) *s", sizes={"g": "num_groups"}, normalised="cs", gain=1)
group_norm_21 = line(
    "n (g c) *s, (g c), (g c) -> n (g c) *s", sizes={"g": "num_groups"}, normalised="cs", gain=1
)
lrn = line("n c *s -> n c *s", pins={"c": "normalised over neighbouring channels"})


def trailing_norm(op: Op) -> Iterator[Equation]:
    """LayerNormalization and RMSNormalization: over the axes from `axis` on; scale and bias broadcast."""
    x, y = op.x(), op.y()
    start = normalise_axis(op.attr("axis", -1), x.rank)
    yield from same_axes(x, y)
    yield from (Use(0, a, Role.NORMALISED if k >= start else Role.CARRIED) for k, a in enumerate(x.axes))
    for eq in broadcast(op, range(1, len(op.inputs)), y, Role.NORMALISED):
        yield Use(eq.operand, eq.axis, eq.role, eq.operand == 1) if isinstance(eq, Use) else eq
    for extra in op.outputs[1:]:
        if extra is not None:
            yield from (Same(a, b) for a, b in zip(x.axes[:start], extra.axes[:start], strict=True))


def over(op: Op, axes: set[int]) -> Iterator[Equation]:
    """The output has the input's axes; `axes` are normalised over."""
    yield from same_axes(op.x(), op.y())
    for k, a in enumerate(op.x().axes):
        yield Use(0, a, Role.NORMALISED if k in axes else Role.CARRIED)


def softmax_1(op: Op) -> Iterator[Equation]:
    """Before opset 13: over all axes from `axis` on."""
    rank = op.x().rank
    yield from over(op, set(range(normalise_axis(op.attr("axis", 1), rank), rank)))


def softmax_13(op: Op) -> Iterator[Equation]:
    """From opset 13, and LpNormalization: over one axis."""
    yield from over(op, {normalise_axis(op.attr("axis", -1), op.x().rank)})


def mean_variance(op: Op) -> Iterator[Equation]:
    """Normalised over the axes that `axes` lists."""
    rank = op.x().rank
    yield from over(op, {normalise_axis(a, rank) for a in op.attr("axes", [0, 2, 3])})


def batch_norm_rule(op: Op) -> Iterator[Equation]:
    """A vector of samples has no channel axis; old files may have parameters for every position."""
    if op.x().rank < 2 or op.x(1).rank != 1:
        yield from pin_all(op, "the parameters have no channel axis")
        return
    yield from batch_norm(op)
    if op.attr("training_mode", 0):
        yield from (Use(0, a, Role.NORMALISED) for k, a in enumerate(op.x().axes) if k != 1)


def hardmax(op: Op) -> Iterator[Equation]:
    """Ties go to the first index, so the order along the axis matters."""
    rank = op.x().rank
    start = normalise_axis(op.attr("axis", 1 if op.version < 13 else -1), rank)
    over_axes = set(range(start, rank)) if op.version < 13 else {start}
    yield from over(op, over_axes)
    yield from (Pin(op.x().axes[k], "the first of equal maxima wins") for k in over_axes)


AXES: tuple[Row[AxisRule], ...] = (
    row(batch_norm_rule, "BatchNormalization"),
    row(instance_norm, "InstanceNormalization"),
    row(group_norm_18, "GroupNormalization", until=20),
    row(group_norm_21, "GroupNormalization", since=21),
    row(trailing_norm, "LayerNormalization", "RMSNormalization"),
    row(lrn, "LRN"),
    row(softmax_1, "Softmax", "LogSoftmax", until=12),
    row(softmax_13, "Softmax", "LogSoftmax", since=13),
    row(softmax_13, "LpNormalization"),
    row(hardmax, "Hardmax"),
    row(mean_variance, "MeanVarianceNormalization"),
)

REFITS: tuple[Row[RefitRule], ...] = (row(attributes(num_groups="g"), "GroupNormalization"),)
