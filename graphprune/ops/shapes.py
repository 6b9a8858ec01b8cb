"""Operators that answer with sizes, or make values from sizes; and which contents are known from shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import Equation, Free, Pin
from graphprune.axes.equations import Points, Understood
from graphprune.ops.registry import AxisRule, Op, Row, pin_all, row
from graphprune.ops.sizes import Change, Element, FreezeOutput, RefitRule, SetInput, Shrunk, output_sizes

FILLERS = frozenset(["ConstantOfShape"])
"""Operators that make one value everywhere, at a size that they are given."""

Content: TypeAlias = npt.NDArray[Any]
ContentRule: TypeAlias = Callable[[tuple[int, ...], Mapping[str, Any]], Content]


def sizes_answered(op: Op) -> Iterator[Equation]:
    """A size is asked; the axes asked of are not touched."""
    yield from (Pin(a, "a list of sizes") for a in op.y().axes)
    yield from (Free(a) for a in op.x().axes)
    yield Understood(0)


def counting(op: Op) -> Iterator[Equation]:
    """Numbers at equal distances: 0, 1, 2 ... up to a fixed size are the positions along their own axis."""
    y = op.y()
    if not counts_up(op):
        yield from positions(op)
        return
    yield Free(y.axes[0])
    yield Points(0, y.axes[0])


def counts_up(op: Op) -> bool:
    """Return whether a Range is 0, 1, 2 ... at all input sizes."""
    y = op.y()
    if y.value is None or not y.fixed or y.dynamic[0] or y.value.dtype.kind != "i":
        return False
    return bool((y.value == np.arange(y.shape[0])).all())


def refit_range(op: Op, now: Shrunk) -> Iterator[Change]:
    """Positions along an axis go up to its size."""
    if now.changed(op.y().axes[0]):
        yield SetInput(1, (now.size(op.y().axes[0]),), scalar=True)


def positions(op: Op) -> Iterator[Equation]:
    """Values that depend on where they stand: nothing may move."""
    yield from pin_all(op, "values that depend on positions")


def filled(op: Op) -> Iterator[Equation]:
    """One value everywhere: the output can be made at any size."""
    y = op.y()
    for axis, dynamic in zip(y.axes, y.dynamic, strict=True):
        yield Pin(axis, "made at a size that is not fixed") if dynamic else Free(axis)
    yield from (Pin(a, "a list of sizes") for a in op.x().axes)


def is_filled(op: Op) -> bool:
    """Return whether a node makes one value everywhere at a size that is written in the file."""
    return op.domain == "" and op.type in FILLERS and op.fixed(0) is not None


def shape_range(op: Op) -> tuple[int, int]:
    """Return the range of axes that a Shape node reports (opset 15: start and end)."""
    rank = op.x().rank
    start, end, _ = slice(op.attr("start", 0), op.attr("end"), 1).indices(rank)
    return start, end


def refit_shape(op: Op, now: Shrunk) -> Iterator[Change]:
    """Sizes used as numbers stay what they were; what needs the new sizes is refit where it is used."""
    start, end = shape_range(op)
    axes, dynamic = op.x().axes[start:end], op.x().dynamic[start:end]
    if any(now.changed(a) for a in axes):
        yield FreezeOutput(
            tuple(
                Element(now.size(a), a.size, not d) if now.changed(a) else None
                for a, d in zip(axes, dynamic, strict=True)
            ),
            None if any(dynamic) else tuple(a.size for a in axes),
        )



def elements_read(
    operator: str, attributes: Mapping[str, Any], contents: Sequence[Content | None], size: int
) -> set[int] | None:
    """Return which elements of its first input, a list of sizes, a node reads; None where that is not known."""
    if operator == "Gather" and contents[1] is not None:
        return {int(i) % size for i in np.asarray(contents[1]).ravel()}
    if operator == "Slice" and len(contents) > 2 and contents[1] is not None and contents[2] is not None:
        step = int(np.asarray(contents[4]).ravel()[0]) if len(contents) > 4 and contents[4] is not None else 1
        start, end = (int(np.asarray(c).ravel()[0]) for c in contents[1:3])  # type: ignore[union-attr]
        return set(range(size)[start:end:step])
    return None


def axes_kept(
    operator: str, attributes: Mapping[str, Any], contents: Sequence[Content | None], rank: int
) -> set[int]:
    """Return axes that a node passes on at their size even where onnx infers none of the output's sizes."""
    if operator not in ("Slice", "Pad"):
        return set()
    given = contents[3] if len(contents) > 3 else attributes.get("axes")
    return set() if given is None else set(range(rank)) - {int(a) % rank for a in np.asarray(given).ravel()}


def refit_size(op: Op, now: Shrunk) -> Iterator[Change]:
    """A number of elements stays what it was; it is fixed, or its axes are pinned."""
    x = op.x()
    if any(now.changed(a) for a in x.axes):
        yield FreezeOutput((Element(prod(now.shape(x)), prod(x.shape)),), (prod(x.shape),), scalar=True)


def size_rule(op: Op) -> Iterator[Equation]:
    """The number of elements: fixed only where every size is."""
    if any(op.x().dynamic):
        yield from pin_all(op, "the number of elements is used as a number")
    else:
        yield from (Free(a) for a in op.x().axes)


AXES: tuple[Row[AxisRule], ...] = (
    row(sizes_answered, "Shape"),
    row(size_rule, "Size"),
    row(filled, "ConstantOfShape"),
    row(counting, "Range"),
    row(positions, "NonZero", "EyeLike", "Unique"),
)

REFITS: tuple[Row[RefitRule], ...] = (
    row(refit_shape, "Shape"),
    row(refit_size, "Size"),
    row(output_sizes(0), "ConstantOfShape"),
    row(refit_range, "Range"),
)

def _shape_content(shape: tuple[int, ...], attributes: Mapping[str, Any]) -> Content:
    return np.asarray(shape[slice(attributes.get("start", 0), attributes.get("end"))], dtype=np.int64)


def _size_content(shape: tuple[int, ...], attributes: Mapping[str, Any]) -> Content:
    return np.asarray(prod(shape), dtype=np.int64)


CONTENTS: tuple[Row[ContentRule], ...] = (row(_shape_content, "Shape"), row(_size_content, "Size"))
RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"]
)
"""Operators whose content is not a function of their inputs."""
