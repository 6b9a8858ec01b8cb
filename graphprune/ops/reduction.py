"""Operators that fold an axis away or look along it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from graphprune.axes import Equation, Pin, Role, Same, Use
from graphprune.axes.equations import Least, Points
from graphprune.ops.registry import AxisRule, Op, Operand, Row, normalise_axis, pin_all, pin_axis, row, same_axes

_UNORDERED = "the largest in no order (sorted = 0): what follows may depend on the one they happen to be in"


def _carry(op: Op, x: Operand, y: Operand, gone: set[int], keepdims: bool) -> Iterator[Equation]:
    """Equate the axes that stay."""
    out = 0
    for k, axis in enumerate(x.axes):
        if k in gone:
            out += keepdims
            continue
        yield Same(axis, y.axes[out])
        yield Use(0, axis, Role.CARRIED)
        out += 1


def reducer(role: Role, attribute_until: int) -> AxisRule:
    """Return the rule of a reduction whose `axes` are an attribute up to an opset and an input after it."""

    def rule(op: Op) -> Iterator[Equation]:
        x, y = op.x(), op.y()
        given = op.attr("axes") if op.version <= attribute_until else op.fixed(1)
        if op.version > attribute_until and op.input(1) is not None and given is None:
            yield from pin_all(op, "the axes of a reduction are computed at run time")
            return
        axes = {normalise_axis(int(a), x.rank) for a in (given if given is not None else ())}
        if not axes and not op.attr("noop_with_empty_axes", 0):
            axes = set(range(x.rank))
        yield from _carry(op, x, y, axes, bool(op.attr("keepdims", 1)))
        yield from (Use(0, x.axes[k], role) for k in sorted(axes))

    return rule


def arg(op: Op) -> Iterator[Equation]:
    """The answer is a position along the axis; which one depends on all that are there."""
    x = op.x()
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    yield from _carry(op, x, op.y(), {axis}, bool(op.attr("keepdims", 1)))
    yield Use(0, x.axes[axis], Role.NORMALISED)
    yield Points(0, x.axes[axis])


def top_k(op: Op) -> Iterator[Equation]:
    """The k largest along one axis and their positions; of that axis k places must stay."""
    x = op.x()
    axis = normalise_axis(op.attr("axis", -1), x.rank)
    k = op.ints(1, "k")
    for y in op.outputs:
        if y is not None:
            yield from same_axes(x, y, {axis}) if y.rank == x.rank else pin_all(op, "shapes unknown")
            yield from pin_axis(y, axis, "the largest along an axis, in order")
    if k is None or not op.attr("sorted", 1):
        yield Pin(x.axes[axis], "the largest, as many as computed at run time" if k is None else _UNORDERED)
        return
    yield Use(0, x.axes[axis], Role.NORMALISED)
    yield Least(x.axes[axis], k[0])
    yield Points(1, x.axes[axis])


def along(attribute: str, default: int, reason: str) -> AxisRule:
    """Return the rule of an operator that keeps the shape and depends on the order along one axis."""

    def rule(op: Op) -> Iterator[Equation]:
        x = op.x()
        given = op.fixed(1) if attribute == "" else op.attr(attribute, default)
        if given is None:
            yield from pin_all(op, "the axis is computed at run time")
            return
        axis = normalise_axis(int(given if isinstance(given, int) else given.ravel()[0]), x.rank)
        yield from same_axes(x, op.y())
        yield from pin_axis(x, axis, reason)

    return rule


def last_two(reason: str) -> Callable[[Op], Iterator[Equation]]:
    """Return the rule of an operator that keeps the shape and depends on positions in the last two axes."""

    def rule(op: Op) -> Iterator[Equation]:
        x = op.x()
        yield from same_axes(x, op.y())
        yield from pin_axis(x, -1, reason)
        yield from pin_axis(x, -2, reason)

    return rule


def reverse_sequence(op: Op) -> Iterator[Equation]:
    """Both the time axis and the samples stay in place: each sample has a length of its own."""
    yield from same_axes(op.x(), op.y())
    yield from pin_axis(op.x(), op.attr("time_axis", 0), "reversed up to each sequence's length")
    yield from pin_axis(op.x(), op.attr("batch_axis", 1), "reversed up to each sequence's length")


AXES: tuple[Row[AxisRule], ...] = (
    row(reducer(Role.CONTRACTED, 12), "ReduceSum"),
    row(reducer(Role.CONTRACTED, 17), "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    row(
        reducer(Role.NORMALISED, 17), "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum",
        "ReduceLogSumExp",
    ),
    row(arg, "ArgMax", "ArgMin"),
    row(top_k, "TopK"),
    row(along("", 0, "a running sum depends on the order"), "CumSum", "CumProd"),
    row(last_two("a triangle depends on positions"), "Trilu"),
    row(reverse_sequence, "ReverseSequence"),
)
