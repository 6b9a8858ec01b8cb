"""Quantised numbers: to and from real ones, and arithmetic on integers with scales and zero points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from graphprune.ops.registry import AxisRule, Op, Row, row
from graphprune.ops.stored import Around, Array, Stored, StoredRule, dequantised


def _real(axis: int | None, block: int, arrays: Sequence[Array | None]) -> Array:
    weight, scale, zero = arrays
    assert weight is not None
    return dequantised(weight, scale, zero, axis, block)


def stored_dequantize(op: Op, around: Around) -> Iterator[Stored]:
    """The input, with its scale and zero point."""
    real = partial(_real, op.attr("axis", 1), op.attr("block_size", 0))
    yield Stored(0, (op.input(0), op.input(1), op.input(2)), real)


AXES: tuple[Row[AxisRule], ...] = ()
STORED: tuple[Row[StoredRule], ...] = (row(stored_dequantize, "DequantizeLinear"),)
