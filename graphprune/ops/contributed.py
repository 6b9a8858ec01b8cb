"""Operators of com.microsoft that ai.onnx has, too, often since later: the same rules under another name.

Layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from graphprune.axes import UNIT, Equation, Pin, Role, Same, Use
from graphprune.ops.conv import grid_sample
from graphprune.ops.cuts import pad, refit_pad
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.gather import BoundRule, gather, gather_nd
from graphprune.ops.inference import Answer, Question, ShapeRule, like_first, not_known
from graphprune.ops.reduction import last_two
from graphprune.ops.registry import AxisRule, Op, Row, normalise_axis, pin_all, row
from graphprune.ops.shapes import positions
from graphprune.ops.sizes import RefitRule

_BOOL, _INT64 = 9, 7


def expand_dims(op: Op) -> Iterator[Equation]:
    """An axis of size one comes; the others stay in order."""
    x, y, at = op.x(), op.y(), op.fixed(1)
    assert at is not None
    gone = normalise_axis(int(np.ravel(at)[0]), y.rank)
    yield from (Same(a, b) for a, b in zip(x.axes, (*y.axes[:gone], *y.axes[gone + 1 :]), strict=True))
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)


def embedding(op: Op) -> Iterator[Equation]:
    """`v h, *b -> *b h`: the rows of a table are indexed."""
    yield from gather(replace(op, attributes={}))


def padded(op: Op) -> Iterator[Equation]:
    """Padded axes grow by slots made from nothing; a list of pads with two axes pins."""
    yield from pad(op) if op.x(1).rank == 1 else pin_all(op, "a list of pads with two axes")


def inverse(op: Op) -> Iterator[Equation]:
    """Batches are free; both axes of a matrix are pinned."""
    x, y = op.x(), op.y()
    yield from (Same(a, b) for a, b in zip(x.axes, y.axes, strict=True))
    yield from (Use(0, a, Role.CARRIED) for a in x.axes if a is not UNIT)
    yield from (Pin(a, "an inverse needs the whole matrix") for a in x.axes[-2:])


AXES: tuple[Row[AxisRule], ...] = (
    row(grid_sample, "GridSample", domain=MICROSOFT),
    row(last_two("a triangle depends on positions"), "Trilu", domain=MICROSOFT),
    row(inverse, "Inverse", domain=MICROSOFT),
    row(padded, "Pad", domain=MICROSOFT),
    row(positions, "Range", "Unique", domain=MICROSOFT),
    row(gather_nd, "GatherND", domain=MICROSOFT),
    row(expand_dims, "ExpandDims", domain=MICROSOFT),
    row(embedding, "TorchEmbedding", domain=MICROSOFT),
)

REFITS: tuple[Row[RefitRule], ...] = (row(refit_pad, "Pad", domain=MICROSOFT),)


def _rows(op: Op) -> tuple[int, int]:
    """The indices are input 1, and must lie below the number of rows."""
    return 1, op.x().shape[0]


BOUNDS: tuple[Row[BoundRule], ...] = (row(_rows, "TorchEmbedding", domain=MICROSOFT),)


def _sampled(asked: Question) -> list[Answer]:
    x, grid = asked.shape(0), asked.shape(1)
    return [(asked.dtype(0), None if x is None or grid is None else (*x[:2], *grid[1:-1]))]


def _padded(asked: Question) -> list[Answer]:
    x, pads = asked.shape(0), asked.content(1)
    if x is None:
        return [(asked.dtype(0), None)]
    if pads is None:
        return [(asked.dtype(0), (None,) * len(x))]
    both = np.ravel(pads).reshape(2, -1).sum(axis=0)
    return [(asked.dtype(0), tuple(n + int(p) for n, p in zip(x, both, strict=True)))]


def _counted(asked: Question) -> list[Answer]:
    start, limit = asked.content(0), asked.content(1)
    step = asked.content(2) if len(asked.inputs) > 2 and asked.inputs[2] is not None else np.ones(1)
    if start is None or limit is None or step is None:
        return [(asked.dtype(0), (None,))]
    span = (float(np.ravel(limit)[0]) - float(np.ravel(start)[0])) / float(np.ravel(step)[0])
    return [(asked.dtype(0), (max(0, int(np.ceil(span))),))]


def _unique(asked: Question) -> list[Answer]:
    return [(asked.dtype(0), (None,)), (_INT64, asked.shape(0)), (_INT64, (None,))]


def _picked(asked: Question) -> list[Answer]:
    x, indices = asked.shape(0), asked.shape(1)
    if x is None or indices is None:
        return [(asked.dtype(0), None)]
    return [(asked.dtype(0), (*indices[:-1], *x[indices[-1] :]))]


def _widened(asked: Question) -> list[Answer]:
    x, at = asked.shape(0), asked.content(1)
    if x is None or at is None:
        return [(asked.dtype(0), None)]
    k = normalise_axis(int(np.ravel(at)[0]), len(x) + 1)
    return [(asked.dtype(0), (*x[:k], 1, *x[k:]))]


def _embedded(asked: Question) -> list[Answer]:
    table, indices = asked.shape(0), asked.shape(1)
    return [(asked.dtype(0), None if table is None or indices is None else (*indices, table[1]))]


def _second(asked: Question) -> list[Answer]:
    return [asked.like(1)]


def _verdict(asked: Question) -> list[Answer]:
    return [(_BOOL, ())]


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(_sampled, "GridSample", domain=MICROSOFT),
    row(like_first, "Trilu", "Inverse", domain=MICROSOFT),
    row(_padded, "Pad", domain=MICROSOFT),
    row(_counted, "Range", domain=MICROSOFT),
    row(_unique, "Unique", domain=MICROSOFT),
    row(_picked, "GatherND", domain=MICROSOFT),
    row(_widened, "ExpandDims", domain=MICROSOFT),
    row(_embedded, "TorchEmbedding", domain=MICROSOFT),
    row(_second, "NGramRepeatBlock", domain=MICROSOFT),
    row(_verdict, "IsAllFinite", domain=MICROSOFT),
    row(like_first, "SampleOp", "MRotaryEmbedding", "HyperConnectionPostMix", domain=MICROSOFT),
    row(not_known, "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch", "Tokenizer", domain=MICROSOFT),
)
"""The last rows are of operators without an axis rule: what they touch is pinned, and what follows has its sizes."""
