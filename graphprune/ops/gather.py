"""Indexing: which axis is indexed, and by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import Axis, Equation, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Understood
from graphprune.ops.registry import AxisRule, Op, Operand, Row, normalise_axis, pin_all, row
from graphprune.ops.sizes import BecomeReshape, Change, RefitRule, SetInput, Shrunk

BoundRule: TypeAlias = Callable[[Op], tuple[int, int]]
_INDEXED = "indexed by data"
_MOST_RUNS = 16


def runs(indices: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return (start, stop) of maximal ascending runs; an index that comes twice ends a run.

    >>> runs(np.array([4, 5, 6, 0, 1]))
    [(4, 7), (0, 2)]
    """
    out: list[tuple[int, int]] = []
    for i in indices.tolist():
        if out and i == out[-1][1]:
            out[-1] = (out[-1][0], i + 1)
        else:
            out.append((i, i + 1))
    return out


def pieces(axis: Axis, spans: list[tuple[int, int]]) -> Iterator[tuple[list[Axis], list[Equation]]]:
    """Cut an axis at all ends of `spans`; yield the parts of each span with the equations that cut it."""
    cuts = sorted({0, axis.size, *[e for s in spans for e in s]})
    parts = [fresh(b - a) for a, b in pairwise(cuts)]
    equation: list[Equation] = [Same(axis, concat(*parts))]
    for a, b in spans:
        yield [p for p, lo in zip(parts, cuts, strict=False) if a <= lo < b], equation
        equation = []


def selected(op: Op) -> tuple[int, npt.NDArray[np.int64]] | None:
    """Return the axis and the fixed, nonnegative, at most 1-D indices of a gather."""
    indices = op.fixed(1)
    if indices is None or np.ndim(indices) > 1:
        return None
    x = op.x()
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    flat = np.asarray(indices, dtype=np.int64).ravel()
    return axis, np.where(flat < 0, flat + x.shape[axis], flat)


def in_order(op: Op) -> bool:
    """Return whether all slots of a flat input are gathered once, in order: a reshape written as a gather."""
    x, indices = op.x(0), op.x(1)
    if indices.value is None or indices.rank < 2 or x.rank != 1 or sum(op.y().dynamic) > 1:
        return False
    return indices.value.size == x.shape[0] and bool((np.ravel(indices.value) == np.arange(x.shape[0])).all())  # type: ignore[arg-type]


def gather(op: Op) -> Iterator[Equation]:
    """Axes of the indices take the place of the indexed axis; fixed indices select slots of it."""
    x, indices, y = op.x(0), op.x(1), op.y()
    if in_order(op):
        yield Same(x.axes[0], product(*y.axes))
        yield Use(0, x.axes[0], Role.CARRIED)
        return
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    for k, a in enumerate(x.axes):
        if k != axis:
            out = y.axes[k if k < axis else k + indices.rank - 1]
            yield from _carried(0, a, out)
    found = selected(op)
    if found is not None:
        spans = runs(found[1])
        if spans and len(spans) <= _MOST_RUNS:
            yield from _select(op, axis, spans, y.axes[axis] if indices.rank else None)
            return
    reason = _INDEXED if found is None else "picked in an order of its own"
    yield from _indexed(op, 1, x.axes[axis], reason)
    for k, a in enumerate(indices.axes):
        yield from _carried(1, a, y.axes[axis + k])


def _indexed(op: Op, i: int, axis: Axis, reason: str = _INDEXED) -> Iterator[Equation]:
    """The indices are input `i`: positions along an axis pick from that very axis, other indices pin what they pick."""
    points = op.x(i).points
    if points is None:
        yield Pin(axis, reason)
        return
    yield Same(points, axis)
    yield Understood(i)


def _carried(operand: int, axis: Axis, out: Axis) -> Iterator[Equation]:
    yield Same(axis, out)
    yield Use(operand, axis, Role.CARRIED)


def _select(op: Op, axis: int, spans: list[tuple[int, int]], out: Axis | None) -> Iterator[Equation]:
    taken: list[Axis] = []
    for parts, equations in pieces(op.x().axes[axis], spans):
        yield from equations
        taken += parts
    if out is not None:
        yield Same(out, concat(*taken))
    else:
        yield Pin(concat(*taken), "picked by index")
    yield from (Use(1, a, Role.CARRIED) for a in op.x(1).axes)


def refit_gather(op: Op, now: Shrunk) -> Iterator[Change]:
    """Indices move to where their slots are now; a reshape written as a gather becomes one."""
    if in_order(op):
        if any(now.changed(a) for a in op.y().axes):
            sizes = zip(now.shape(op.y()), op.y().dynamic, strict=True)
            yield BecomeReshape(tuple(-1 if dynamic else n for n, dynamic in sizes))
        return
    found = selected(op)
    if found is None:
        return
    axis, indices = found
    where = op.x().axes[axis]
    if not now.changed(where):
        return
    place = {old: new for new, old in enumerate(now.slots(where))}
    yield SetInput(1, tuple(place[i] for i in indices.tolist() if i in place), scalar=op.x(1).rank == 0)


def gather_elements(op: Op) -> Iterator[Equation]:
    """`x i, x j -> x j`: one axis is indexed by data or by positions along it, the others go along."""
    x, indices, y = op.x(0), op.x(1), op.y()
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    yield from _aligned(x, indices, axis)
    yield from (Same(a, b) for a, b in zip(indices.axes, y.axes, strict=True))
    yield from _indexed(op, 1, x.axes[axis])


def _aligned(x: Operand, indices: Operand, axis: int) -> Iterator[Equation]:
    """Axes that are not indexed belong together where the indices span them."""
    for k, (a, b) in enumerate(zip(x.axes, indices.axes, strict=True)):
        if k != axis and a.size == b.size:
            yield Same(a, b)
        elif k != axis:
            yield Pin(a, _INDEXED)
            yield Pin(b, _INDEXED)


def scatter_elements(op: Op) -> Iterator[Equation]:
    """`x i, x j, x j -> x i`: one axis is indexed by data or by positions along it, the others go along."""
    x, indices, updates, y = op.x(0), op.x(1), op.x(2), op.y()
    axis = normalise_axis(op.attr("axis", 0), x.rank)
    yield from _aligned(x, indices, axis)
    yield from (Same(a, b) for a, b in zip(x.axes, y.axes, strict=True))
    yield from (Same(a, b) for a, b in zip(indices.axes, updates.axes, strict=True))
    yield from _writing(op, updates.axes[axis : axis + 1])
    yield from _indexed(op, 1, x.axes[axis])


def _writing(op: Op, axes: tuple[Axis, ...]) -> Iterator[Equation]:
    """Of several updates of one slot the last wins, unless they are reduced."""
    reduction = op.attr("reduction", "none")
    role = Role.CONTRACTED if reduction == "add" else Role.NORMALISED
    for a in axes:
        yield Pin(a, "written in this order") if reduction == "none" else Use(2, a, role, own=True)


def gather_nd(op: Op) -> Iterator[Equation]:
    """`b i x, b r k -> b r x`: the axes that the last axis of the indices picks from are indexed."""
    x, indices, y = op.x(0), op.x(1), op.y()
    batch, depth = op.attr("batch_dims", 0), indices.shape[-1]
    yield from (Same(a, b) for a, b in zip(x.axes[:batch], indices.axes, strict=False))
    yield from (Same(a, b) for a, b in zip(indices.axes[:-1], y.axes, strict=False))
    yield from (Same(a, b) for a, b in zip(x.axes[batch + depth :], y.axes[indices.rank - 1 :], strict=True))
    yield from _indexed_together(op, x.axes[batch : batch + depth])


def _indexed_together(op: Op, axes: tuple[Axis, ...]) -> Iterator[Equation]:
    """The last axis of the indices has one place for each of some axes."""
    yield Pin(op.x(1).axes[-1], _INDEXED)
    if len(axes) == 1:
        yield from _indexed(op, 1, axes[0])
    else:
        yield from (Pin(a, _INDEXED) for a in axes)


def scatter_nd(op: Op) -> Iterator[Equation]:
    """`i x, r k, r x -> i x`: the axes that the last axis of the indices picks from are indexed."""
    x, indices, updates, y = op.x(0), op.x(1), op.x(2), op.y()
    depth = indices.shape[-1]
    yield from (Same(a, b) for a, b in zip(x.axes, y.axes, strict=True))
    yield from (Same(a, b) for a, b in zip(indices.axes[:-1], updates.axes, strict=False))
    yield from (Same(a, b) for a, b in zip(x.axes[depth:], updates.axes[indices.rank - 1 :], strict=True))
    yield from _writing(op, updates.axes[: indices.rank - 1])
    yield from _indexed_together(op, x.axes[:depth])


def tensor_scatter(op: Op) -> Iterator[Equation]:
    """A cache is written along one axis, in each sample at a place of its own; the others go along."""
    x, update, y = op.x(0), op.x(1), op.y()
    axis = normalise_axis(op.attr("axis", -2), x.rank)
    yield Pin(x.axes[0], "each sample is written at a place of its own")
    for k, a in enumerate(x.axes):
        yield Same(a, y.axes[k])
        yield Pin(update.axes[k], _INDEXED) if k == axis else Same(a, update.axes[k])
    yield Pin(x.axes[axis], _INDEXED)
    yield from (Pin(a, _INDEXED) for o in op.inputs[2:] if o is not None for a in o.axes)


def compress(op: Op) -> Iterator[Equation]:
    """A condition picks along one axis."""
    axis = op.attr("axis")
    if axis is None:
        yield from pin_all(op, _INDEXED)
        return
    axis = normalise_axis(axis, op.x().rank)
    yield from (Same(a, b) for k, (a, b) in enumerate(zip(op.x().axes, op.y().axes, strict=True)) if k != axis)
    yield from (Pin(a, _INDEXED) for a in (op.x().axes[axis], op.y().axes[axis], *op.x(1).axes))


def one_hot(op: Op) -> Iterator[Equation]:
    """Indices become an axis of classes; positions along an axis become that axis."""
    x, y = op.x(0), op.y()
    axis = normalise_axis(op.attr("axis", -1), y.rank)
    rest = [a for k, a in enumerate(y.axes) if k != axis]
    yield from (Same(a, b) for a, b in zip(x.axes, rest, strict=True))
    yield from _indexed(op, 0, y.axes[axis], "one index per class")
    yield from (Pin(a, "a pair of values") for a in op.x(2).axes)
    yield from (Pin(a, "a number") for a in op.x(1).axes)


def refit_one_hot(op: Op, now: Shrunk) -> Iterator[Change]:
    """As many classes as the axis has now."""
    y = op.y()
    axis = normalise_axis(op.attr("axis", -1), y.rank)
    if now.changed(y.axes[axis]):
        yield SetInput(1, (now.size(y.axes[axis]),), scalar=op.x(1).rank == 0)


def nms(op: Op) -> Iterator[Equation]:
    """Boxes are selected by data."""
    yield from pin_all(op, "boxes are selected by data")


AXES: tuple[Row[AxisRule], ...] = (
    row(gather, "Gather"),
    row(gather_elements, "GatherElements"),
    row(scatter_elements, "ScatterElements", "Scatter"),
    row(gather_nd, "GatherND"),
    row(scatter_nd, "ScatterND"),
    row(tensor_scatter, "TensorScatter"),
    row(compress, "Compress"),
    row(one_hot, "OneHot"),
    row(nms, "NonMaxSuppression"),
)

REFITS: tuple[Row[RefitRule], ...] = (row(refit_gather, "Gather"), row(refit_one_hot, "OneHot"))


def _first_axis_size(op: Op) -> tuple[int, int]:
    """The indices are input 1, and must lie below the size of the indexed axis."""
    return 1, op.x().shape[normalise_axis(op.attr("axis", 0), op.x().rank)]


def _picked_size(op: Op) -> tuple[int, int]:
    """The places of a row of input 1 must lie below the smallest of the sizes that they pick from."""
    first, depth = op.attr("batch_dims", 0), op.x(1).shape[-1]
    return 1, min(op.x().shape[first : first + depth], default=1)


BOUNDS: tuple[Row[BoundRule], ...] = (
    row(_first_axis_size, "Gather", "GatherElements", "ScatterElements", "Scatter"),
    row(_picked_size, "GatherND", "ScatterND"),
)
"""Which input's elements must lie below which number."""

CARRIERS = frozenset(
    [
        "Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Expand", "Tile",
        "Dropout", "Split", "Concat",
    ]
)
"""Operators whose outputs hold elements of their first input as they were."""

REPEATERS = CARRIERS - {"Concat", "Dropout", "Split"}
"""Operators whose output repeats a number where their first input does."""

PICKERS = CARRIERS | {"Gather", "GatherElements", "GatherND"}
"""Operators whose outputs hold elements of their first input, all or some."""

MOVERS = PICKERS - {"Concat"}
"""Those of them whose outputs hold nothing else."""
