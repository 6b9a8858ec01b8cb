"""Operators that put axes together and cut them: Concat, Split, Slice and Pad."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import UNIT, Axis, Equation, Follow, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Points, Understood
from graphprune.ops.registry import AxisRule, Op, Operand, Row, normalise_axis, pin_all, row, same_axes
from graphprune.ops.sizes import Change, Element, RefitRule, SetAttribute, SetElements, Shrunk


def concat_rule(op: Op) -> Iterator[Equation]:
    """One axis of the output is the sum of the inputs' axes."""
    y = op.y()
    axis = normalise_axis(op.attr("axis", 1), y.rank)
    parts = []
    for i, x in enumerate(op.inputs):
        assert x is not None
        if x.rank != y.rank:
            yield from pin_all(op, "shapes unknown")
            return
        # An empty input may be of any other sizes; where they are the same it grows with the others.
        odd = {k for k in range(x.rank) if x.shape[k] != y.shape[k]} if not x.shape[axis] else set()
        yield from same_axes(x, y, {axis, *odd})
        parts.append(x.axes[axis])
        yield from (Use(i, a, Role.CARRIED) for a in x.axes)
    yield Same(y.axes[axis], concat(*parts))
    pointed = [x.points for x in op.inputs if x is not None and x.points is not None]
    if len(pointed) == len(op.inputs):
        yield from (Same(pointed[0], a) for a in pointed[1:])
        yield from (Understood(i) for i in range(len(op.inputs)))
        yield Points(0, pointed[0])


def split_rule(op: Op) -> Iterator[Equation]:
    """One axis of the input is the sum of the outputs' axes."""
    x = op.x()
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    parts: list[Axis] = []
    for k, y in enumerate(op.outputs):
        if y is None:
            parts.append(fresh(_split_size(op, k, x.shape[axis])))
            yield Pin(x.axes[axis], "a part without a name")
            continue
        yield from same_axes(x, y, {axis})
        parts.append(y.axes[axis])
    yield Same(x.axes[axis], concat(*parts))
    sizes = op.input(1)
    if sizes is not None:
        if op.fixed(1) is None:
            yield Pin(x.axes[axis], "the sizes of the parts are computed at run time")
        yield from (Pin(a, "a list of sizes") for a in sizes.axes)
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)


def _split_size(op: Op, k: int, total: int) -> int:
    given = op.ints(1, "split")
    n = len(op.outputs)
    return given[k] if given else (-(-total // n) if k < n - 1 else total - (n - 1) * -(-total // n))


def refit_split(op: Op, now: Shrunk) -> Iterator[Change]:
    """The sizes of the parts follow; equal parts that are no longer equal are spelled out."""
    axis = normalise_axis(op.attr("axis", 0), op.x().rank)
    if not now.changed(op.x().axes[axis]) or any(y is None for y in op.outputs):
        return
    sizes = tuple(now.size(y.axes[axis]) for y in op.outputs if y is not None)
    if op.version < 13:
        yield SetAttribute("split", sizes)
    else:
        yield SetElements(
            1, tuple(Element(y.shape[axis], n) for y, n in zip(op.outputs, sizes, strict=True) if y is not None)
        )


def _cuts(op: Op) -> dict[int, tuple[int, int, int]] | None:
    """Return axis -> (start, stop, step) with start and stop inside the axis; None if computed at run time."""
    x = op.x()
    starts, ends = op.ints(1, "starts"), op.ints(2, "ends")
    axes, steps = op.ints(3, "axes"), op.ints(4, "steps")
    if starts is None or ends is None or (axes is None and op.input(3)) or (steps is None and op.input(4)):
        return None
    out = {}
    for j, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[j] if steps else 1
        k = normalise_axis(axis, x.rank)
        out[k] = (*slice(starts[j], ends[j], step).indices(x.shape[k])[:2], step)
    return out


def slice_rule(op: Op) -> Iterator[Equation]:
    """A slice cuts its axis; a step divides it; anything else pins it."""
    x, y = op.x(), op.y()
    cuts = _cuts(op)
    given = op.fixed(3) if op.input(3) is not None else op.attr("axes")
    sliced = {normalise_axis(int(v), x.rank) for v in given} if given is not None else set(range(x.rank))
    for k, (a, b) in enumerate(zip(x.axes, y.axes, strict=True)):
        yield Use(0, a, Role.CARRIED)
        if cuts is not None and k in cuts:
            yield from _cut_axis(x, k, b, *cuts[k])
        elif cuts is None and k in sliced and not _whole(op, k):
            yield Pin(a, "cut at places computed at run time")
            yield Pin(b, "cut at places computed at run time")
        else:
            yield Same(a, b)
    yield from (Pin(a, "a list of places") for o in op.inputs[1:] if o is not None for a in o.axes)


def _whole(op: Op, k: int) -> bool:
    """Return whether a slice in steps of one keeps an axis as it is, wherever it starts and ends."""
    x, y = op.x(), op.y()
    steps = op.ints(4, "steps")
    forward = op.input(4) is None if steps is None else set(steps) == {1}
    return forward and x.shape[k] == y.shape[k] and not x.dynamic[k] and not y.dynamic[k]


def _cut_axis(x: Operand, k: int, out: Axis, start: int, stop: int, step: int) -> Iterator[Equation]:
    axis, size = x.axes[k], x.shape[k]
    if (start, stop, step) == (0, size, 1):
        yield Same(axis, out)
        return
    if step < 0 or x.dynamic[k] or stop <= start:
        yield Pin(axis, "reversed" if step < 0 else "cut where the size is not fixed")
        yield Pin(out, "cut from an axis that is not")
        return
    if step == 1:
        yield Same(axis, concat(fresh(start), out, fresh(size - stop)))
        return
    first = start // step * step
    whole, tail = divmod(size - first, step)
    number = out.size
    if number > whole and start - first >= tail:
        number = whole
    body = fresh(min(number, whole))
    after = size - first - body.size * step
    lines = product(body, concat(*[UNIT] * step))
    yield Same(axis, concat(fresh(first), lines, fresh(after)))
    yield Same(out, concat(body, fresh(out.size - body.size)))
    if out.size > body.size:
        yield Pin(axis, "cut in steps that do not divide it")
        yield Pin(out, "cut in steps that do not divide it")


def refit_slice(op: Op, now: Shrunk) -> Iterator[Change]:
    """Starts and ends move to the number of kept slots before them."""
    cuts = _cuts(op)
    if cuts is None or not any(now.changed(op.x().axes[k]) for k in cuts):
        return
    starts: list[Element | None] = []
    ends: list[Element | None] = []
    for k, (start, stop, step) in cuts.items():
        axis = op.x().axes[k]
        if not now.changed(axis):
            starts.append(None)
            ends.append(None)
            continue
        first = start // step * step
        begin = now.before(axis, first) + start - first
        starts.append(Element(start, begin))
        end = now.size(axis) if stop >= axis.size else now.before(axis, first) + step * now.size(op.y().axes[k])
        ends.append(Element(stop, end))
    if op.input(1) is not None:
        yield SetElements(1, tuple(starts))
        yield SetElements(2, tuple(ends))
    else:
        for name, elements in (("starts", starts), ("ends", ends)):
            old = op.attr(name)
            yield SetAttribute(name, tuple(e.new if e else o for e, o in zip(elements, old, strict=True)))


def _pads(op: Op) -> list[tuple[int, int] | None]:
    """Return the slots added before and after each axis, None where computed at run time."""
    x = op.x()
    given = op.ints(1, "pads") or op.attr("paddings")
    axes = op.ints(3, "axes") if op.input(3) is not None else list(range(x.rank))
    if given is None or axes is None:
        return [None] * x.rank
    out: list[tuple[int, int] | None] = [(0, 0)] * x.rank
    n = len(given) // 2
    for j, a in enumerate(axes):
        out[normalise_axis(a, x.rank)] = (given[j], given[n + j])
    return out


def pad(op: Op) -> Iterator[Equation]:
    """Padded axes grow by slots made from nothing; other modes than constant repeat slots."""
    x, y = op.x(), op.y()
    for k, (pads, a, b) in enumerate(zip(_pads(op), x.axes, y.axes, strict=True)):
        yield Use(0, a, Role.CARRIED)
        if pads == (0, 0) or (pads is None and a is UNIT and b is UNIT):
            yield Same(a, b)
        elif pads is None or min(pads) < 0 or op.attr("mode", "constant") != "constant" or x.dynamic[k]:
            yield Pin(a, "padded")
            yield Pin(b, "padded")
        else:
            before, after = fresh(pads[0]), fresh(pads[1])
            yield Same(b, concat(before, a, after))
            yield Follow(concat(before, after), a, "padding of an axis that is pinned")
    for o in op.inputs[1:]:
        if o is not None:
            yield from (Pin(a, "a list of pads") for a in o.axes)


def refit_pad(op: Op, now: Shrunk) -> Iterator[Change]:
    """Slots that were added before and after an axis are counted again."""
    x, y = op.x(), op.y()
    before: list[Element | None] = []
    after: list[Element | None] = []
    for pads, a, b in zip(_pads(op), x.axes, y.axes, strict=True):
        if pads is None or pads == (0, 0) or not now.changed(b):
            before.append(None)
            after.append(None)
            continue
        first = now.before(b, pads[0])
        before.append(Element(pads[0], first))
        after.append(Element(pads[1], now.size(b) - now.size(a) - first))
    if not any((*before, *after)):
        return
    if op.input(1) is None:
        name = "pads" if op.attr("pads") is not None else "paddings"
        old = op.attr(name)
        yield SetAttribute(name, tuple(e.new if e else o for e, o in zip((*before, *after), old, strict=True)))
        return
    if op.input(3) is not None:
        axes = [normalise_axis(a, x.rank) for a in op.ints(3, "axes") or []]
        before, after = [before[a] for a in axes], [after[a] for a in axes]
    yield SetElements(1, (*before, *after))


AXES: tuple[Row[AxisRule], ...] = (
    row(concat_rule, "Concat"),
    row(split_rule, "Split"),
    row(slice_rule, "Slice"),
    row(pad, "Pad"),
)
REFITS: tuple[Row[RefitRule], ...] = (
    row(refit_split, "Split"),
    row(refit_slice, "Slice"),
    row(refit_pad, "Pad"),
)

CUTTERS = frozenset(["Slice", "Split", "Gather"])
"""Operators that read a part of their first input: sharing it ties nothing but that part."""
