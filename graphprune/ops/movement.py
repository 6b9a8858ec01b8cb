"""Operators that move slots about: concatenate, cut, reshape, permute, repeat, pad and resample."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod


from graphprune.axes import UNIT, Axis, Equation, Free, Pin, Role, Same, Use, concat, fresh, product
from graphprune.ops.registry import AxisRule, Op, Operand, Row, line, normalise_axis, pin_all, row, same_axes
from graphprune.ops.sizes import (
    Change,
    Element,
    RefitRule,
    SetAttribute,
    SetElements,
    SetInput,
    Shrunk,
    output_sizes,
)


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
        if x.shape[axis]:
            yield from same_axes(x, y, {axis})
        parts.append(x.axes[axis])
        yield from (Use(i, a, Role.CARRIED) for a in x.axes)
    yield Same(y.axes[axis], concat(*parts))


def split_rule(op: Op) -> Iterator[Equation]:
    """One axis of the input is the sum of the outputs' axes."""
    x = op.x()
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    parts: list[Axis] = []
    for k, y in enumerate(op.outputs):
        if y is None:
            parts.append(fresh(_split_size(op, k, x.shape[axis])))
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
    sliced = op.fixed(3) if op.input(3) is not None else op.attr("axes")
    for k, (a, b) in enumerate(zip(x.axes, y.axes, strict=True)):
        yield Use(0, a, Role.CARRIED)
        if cuts is not None and k in cuts:
            yield from _cut_axis(x, k, b, *cuts[k])
        elif cuts is None and (sliced is None or k in {normalise_axis(int(v), x.rank) for v in sliced}):
            yield Pin(a, "cut at places computed at run time")
            yield Pin(b, "cut at places computed at run time")
        else:
            yield Same(a, b)
    yield from (Pin(a, "a list of places") for o in op.inputs[1:] if o is not None for a in o.axes)


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


def reshape(op: Op) -> Iterator[Equation]:
    """All slots in the same order: the products of both shapes are the same axis."""
    x, y = op.x(), op.y()
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)
    if prod(x.shape) != prod(y.shape):
        yield from pin_all(op, "a shape that depends on data")
        return
    left, right = list(x.axes), list(y.axes)
    while left and right and left[0].size == right[0].size:
        yield Same(left.pop(0), right.pop(0))
    while left and right and left[-1].size == right[-1].size:
        yield Same(left.pop(), right.pop())
    yield Same(product(*left), product(*right))


def refit_reshape(op: Op, now: Shrunk) -> Iterator[Change]:
    """Set what changed; a 0 that copied a size which now differs, and a 1 or -1, are set or left by `apply`."""
    x, y = op.x(), op.y()
    new = now.shape(y)
    if new == y.shape:
        return
    given = _known_shape(op)
    old_x, new_x = x.shape, now.shape(x)
    elements: list[Element | None] = []
    for k, axis in enumerate(y.axes):
        copies = given is not None and given[k] == 0 and not op.attr("allowzero", 0)
        if given is not None and given[k] == -1:
            elements.append(None)
        elif copies and (k >= len(old_x) or new_x[k] == new[k]):
            elements.append(None)
        elif now.changed(axis):
            elements.append(Element(axis.size, new[k], not y.dynamic[k]))
        else:
            elements.append(None)
    if not any(elements):
        return
    if op.input(1) is None:
        assert given is not None
        yield SetAttribute("shape", tuple(e.new if e else g for e, g in zip(elements, given, strict=True)))
        return
    plain = _plain_shape(op, new) if op.fixed(1) is None else None
    yield SetInput(1, plain) if plain is not None else SetElements(1, tuple(elements))


def _known_shape(op: Op) -> list[int] | None:
    """Return the asked-for shape at the traced sizes: its 0 and -1 are the same at all sizes."""
    asked = op.input(1)
    if asked is not None and asked.value is not None:
        return [int(n) for n in asked.value]
    return op.ints(1, "shape")


def _plain_shape(op: Op, new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Write a shape computed at run time as a constant, with 0 for copied sizes and at most one -1."""
    x, y = op.x(), op.y()
    if op.attr("allowzero", 0):
        return None
    out = []
    for k, n in enumerate(new):
        if not y.dynamic[k]:
            out.append(n)
        elif x.shape[: k + 1] == y.shape[: k + 1]:
            out.append(0)
        else:
            out.append(-1)
    return tuple(out) if out.count(-1) <= 1 else None


def transpose(op: Op) -> Iterator[Equation]:
    x, y = op.x(), op.y()
    order = op.attr("perm") or list(range(x.rank))[::-1]
    for k, axis in enumerate(order):
        yield Same(x.axes[axis], y.axes[k])
        yield Use(0, x.axes[axis], Role.CARRIED)


def squeeze(op: Op) -> Iterator[Equation]:
    """Axes of size one come or go; the others stay in order."""
    x, y = op.x(), op.y()
    given = op.ints(1, "axes")
    longer, shorter = (x, y) if x.rank > y.rank else (y, x)
    if given is not None:
        gone = {normalise_axis(a, longer.rank) for a in given}
    else:
        gone = {k for k, n in enumerate(longer.shape) if n == 1}
    stay = [a for k, a in enumerate(longer.axes) if k not in gone]
    if len(stay) != shorter.rank:
        yield from pin_all(op, "which axes have size one is computed at run time")
        return
    yield from (Same(a, b) for a, b in zip(stay, shorter.axes, strict=True))
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)
    if op.input(1) is not None:
        yield from (Pin(a, "a list of axes") for a in op.x(1).axes)


def expand(op: Op) -> Iterator[Equation]:
    """Axes of size one are repeated to any size; the others stay."""
    x, y = op.x(), op.y()
    offset = y.rank - x.rank
    for k, axis in enumerate(y.axes):
        source = x.axes[k - offset] if k >= offset else UNIT
        if source.size == axis.size:
            yield Same(source, axis)
            yield Use(0, source, Role.CARRIED)
        else:
            yield Pin(axis, "repeated to a size that is not fixed") if y.dynamic[k] else Free(axis)


def refit_expand(op: Op, now: Shrunk) -> Iterator[Change]:
    x, y = op.x(), op.y()
    offset = y.rank - x.rank
    shape = op.x(1)
    elements: list[Element | None] = []
    for k in range(y.rank - shape.shape[0], y.rank):
        axis = y.axes[k]
        if not now.changed(axis):
            elements.append(None)
        elif k >= offset and x.shape[k - offset] == axis.size:
            elements.append(Element(axis.size, 1))
        else:
            elements.append(Element(axis.size, now.size(axis), not y.dynamic[k]))
    if any(elements):
        yield SetElements(1, tuple(elements))


def tile(op: Op) -> Iterator[Equation]:
    """Each axis is repeated as a whole: `(r c)`."""
    x, y = op.x(), op.y()
    fixed = op.fixed(1) is not None
    for a, b in zip(x.axes, y.axes, strict=True):
        repeat = fresh(b.size // a.size)
        yield Same(b, product(repeat, a))
        yield Use(0, a, Role.CARRIED)
        if not fixed:
            yield Pin(repeat, "repeated a number of times computed at run time")
    yield from (Pin(a, "a list of repeats") for a in op.x(1).axes)


def refit_tile(op: Op, now: Shrunk) -> Iterator[Change]:
    elements: list[Element | None] = []
    for a, b in zip(op.x().axes, op.y().axes, strict=True):
        old, new = b.size // a.size, now.size(b) // now.size(a)
        elements.append(Element(old, new) if old != new else None)
    if any(elements):
        yield SetElements(1, tuple(elements))


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
            yield Same(b, concat(fresh(pads[0]), a, fresh(pads[1])))
    for o in op.inputs[1:]:
        if o is not None:
            yield from (Pin(a, "a list of pads") for a in o.axes)


def refit_pad(op: Op, now: Shrunk) -> Iterator[Change]:
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


def resize(op: Op) -> Iterator[Equation]:
    """Axes that keep their size go along, resampled ones are positions."""
    x, y = op.x(), op.y()
    for k, (a, b) in enumerate(zip(x.axes, y.axes, strict=True)):
        yield Use(0, a, Role.CARRIED)
        if a.size == b.size and x.dynamic[k] == y.dynamic[k]:
            yield Same(a, b)
        else:
            yield Pin(a, "resampled positions")
            yield Pin(b, "resampled positions")
    for o in op.inputs[1:]:
        if o is not None:
            yield from (Pin(a, "a list of sizes") for a in o.axes)


def refit_resize(op: Op, now: Shrunk) -> Iterator[Change]:
    """Only an input of sizes names the channel count; scales stay."""
    if op.input(3) is None or op.x(3).shape == (0,):
        return
    axes = op.attr("axes")
    elements = [
        Element(b.size, now.size(b), not d) if now.changed(b) else None
        for b, d in zip(op.y().axes, op.y().dynamic, strict=True)
    ]
    if axes is not None:
        elements = [elements[normalise_axis(a, len(elements))] for a in axes]
    if any(elements):
        yield SetElements(3, tuple(elements))


def depth_to_space(op: Op) -> Iterator[Equation]:
    yield from (_DCR if op.attr("mode", "DCR") == "DCR" else _CRD)(op)


_BLOCK = {"a": "blocksize", "b": "blocksize"}
_BLOCK_PINS = {"a": "positions in a block", "b": "positions in a block", "h": "positions", "w": "positions"}
_DCR = line("n (a b c) h w -> n c (h a) (w b)", sizes=_BLOCK, pins=_BLOCK_PINS)
_CRD = line("n (c a b) h w -> n c (h a) (w b)", sizes=_BLOCK, pins=_BLOCK_PINS)
space_to_depth = line("n c (h a) (w b) -> n (a b c) h w", sizes=_BLOCK, pins=_BLOCK_PINS)


AXES: tuple[Row[AxisRule], ...] = (
    row(concat_rule, "Concat"),
    row(split_rule, "Split"),
    row(slice_rule, "Slice"),
    row(reshape, "Reshape", "Flatten"),
    row(transpose, "Transpose"),
    row(squeeze, "Squeeze", "Unsqueeze"),
    row(expand, "Expand"),
    row(tile, "Tile", since=6),
    row(pad, "Pad"),
    row(resize, "Resize", "Upsample", "CenterCropPad"),
    row(depth_to_space, "DepthToSpace"),
    row(space_to_depth, "SpaceToDepth"),
)

REFITS: tuple[Row[RefitRule], ...] = (
    row(refit_split, "Split"),
    row(refit_slice, "Slice"),
    row(refit_reshape, "Reshape"),
    row(refit_expand, "Expand"),
    row(refit_tile, "Tile"),
    row(refit_pad, "Pad"),
    row(refit_resize, "Resize"),
    row(output_sizes(1), "CenterCropPad"),
)
