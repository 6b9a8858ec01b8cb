"""Operators that give the slots another shape or order: reshape, permute, repeat."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import UNIT, Equation, Free, Pin, Role, Same, Use, fresh, product
from graphprune.ops.registry import AxisRule, Op, Row, normalise_axis, pin_all, row
from graphprune.ops.sizes import Change, Element, RefitRule, SetAttribute, SetElements, SetInput, Shrunk

TRANSPOSE = "Transpose"


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
        follows = (given is not None and given[k] == -1) or (copies and (k >= len(old_x) or new_x[k] == new[k]))
        if now.changed(axis) and not follows:
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
    """Axes change places."""
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


def refit_squeeze(op: Op, now: Shrunk) -> Iterator[Change]:
    """Without a list, all axes of size one go: also one that only now has that size."""
    x = op.x()
    if op.ints(1, "axes") is not None or not any(now.size(a) == 1 for a in op.y().axes):
        return
    gone = tuple(k for k, n in enumerate(x.shape) if n == 1)
    yield SetAttribute("axes", gone) if op.version < 13 else SetInput(1, gone)


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
    """Sizes that are repeated to follow; where the input has the size already, a 1 says so."""
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
    """Repeats follow where the repeated axis itself shrank."""
    elements: list[Element | None] = []
    for a, b in zip(op.x().axes, op.y().axes, strict=True):
        old, new = b.size // a.size, now.size(b) // now.size(a)
        elements.append(Element(old, new) if old != new else None)
    if any(elements):
        yield SetElements(1, tuple(elements))


AXES: tuple[Row[AxisRule], ...] = (
    row(reshape, "Reshape", "Flatten"),
    row(transpose, "Transpose"),
    row(squeeze, "Squeeze", "Unsqueeze"),
    row(expand, "Expand"),
    row(tile, "Tile", since=6),
)
REFITS: tuple[Row[RefitRule], ...] = (
    row(refit_reshape, "Reshape"),
    row(refit_squeeze, "Squeeze"),
    row(refit_expand, "Expand"),
    row(refit_tile, "Tile"),
)
