"""Attention with shared keys, rotary embedding, and attention that stays as it is, domain com.microsoft.

Layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.attention import refit_rotary, rotary
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.fused_attention import ORDER, Places, contracted, outside, refit_heads, scores, sequences, states
from graphprune.ops.registry import AxisRule, Op, Row, pin_all, row
from graphprune.ops.sizes import RefitRule

_BLOCK = 8
"""GroupQueryAttention takes widths in multiples of this, with rotary embedding in twice as many."""

_PLACES = Places(-1, 5, 10, (3, 4), (1, 2), 3)
_COS, _SIN, _SINK, _SCALES, _NORMS = 7, 8, 11, (12, 13), (14, 15)
_CACHE_RANK, _BYTE = 4, 8
_OPERANDS = (0, 2, 3, 1)
"""Which inputs are those of ai.onnx's rotary embedding: input, cosines, sines, positions."""


def _blocks(op: Op, size: int) -> tuple[Axis, Iterator[Equation]]:
    """Return the width of a head, which goes in blocks, and pairs within it where positions are turned by angles."""
    turned = bool(op.attr("do_rotary", 0))
    half = size // 2 if turned else size
    if half % _BLOCK:
        whole = fresh(size)
        return whole, iter([Pin(whole, "a width that is no multiple of a block")])
    block = fresh(_BLOCK)
    part = product(fresh(half // _BLOCK), block)
    pin: list[Equation] = [Pin(block, f"widths go in blocks of {_BLOCK}")]
    cos = op.input(_COS)
    if not turned:
        return part, iter(pin)
    if cos is None or cos.shape[-1] != half:
        whole = fresh(size)
        return whole, iter([Pin(whole, "only a part of each head is turned, by a number")])
    for i in (_COS, _SIN):
        table = op.x(i)
        pin += [Same(table.axes[-1], part), Use(i, table.axes[-1], Role.CARRIED), Pin(table.axes[0], "positions")]
    return (product(part, concat(UNIT, UNIT)) if op.attr("rotary_interleaved", 0) else concat(part, part)), iter(pin)


def grouped(op: Op) -> Iterator[Equation]:
    """`b s (k r d), b s (k d), b s (k d) -> b s (k r d)`, or one input `b s (k r d + k d + k d)`.

    r query heads share a key head; caches are `b k t d`; d is made of blocks of 8.
    """
    q, k, v, y = op.x(0), op.input(1), op.input(2), op.y()
    many, few = op.attr("num_heads"), op.attr("kv_num_heads")
    key, share = fresh(few), fresh(many // few)
    width, said = _blocks(op, q.shape[-1] // (many + (2 * few if k is None else 0)))
    yield from said
    head = product(key, share)
    wide, narrow = product(head, width), product(key, width)
    yield Same(q.axes[-1], wide if k is not None else concat(wide, narrow, narrow))
    for operand in (k, v):
        if operand is not None:
            yield Same(operand.axes[-1], narrow)
            yield from (Same(a, b) for a, b in zip(operand.axes[:1], q.axes[:1], strict=True))
            yield Pin(operand.axes[1], ORDER)
    yield Same(y.axes[-1], wide)
    yield from contracted(op, width)
    yield from sequences(op, q.axes[:-1], q.axes[:-1], None)
    yield from scores(op, _PLACES.scores, head)
    yield from _cached(op, key, width, q.axes[0])
    yield from outside(op, _PLACES, head)
    yield from _per_head(op, head, width)
    yield from (Letter(name, axis) for name, axis in (("heads", head), ("shared", key), ("width", width)))


def _per_head(op: Op, head: Axis, width: Axis) -> Iterator[Equation]:
    """A number for each head beside its scores, scales of a normalisation within heads."""
    sink = op.input(_SINK)
    if sink is not None:
        yield Same(sink.axes[0], head)
        yield Use(_SINK, sink.axes[0], Role.CARRIED)
    for i in _NORMS:
        scale = op.input(i)
        if scale is not None:
            yield Same(scale.axes[0], width)
            yield Use(i, scale.axes[0], Role.NORMALISED, gain=True)
            yield Use(0, width, Role.NORMALISED)


def _cached(op: Op, key: Axis, width: Axis, batch: Axis) -> Iterator[Equation]:
    """Caches `b k t d`; quantised ones with one scale, or scales `1 k 1 d`; with 4 bits `d` shares bytes."""
    halved = op.input(_SCALES[0]) is not None and op.attr("kv_cache_bit_width", _BYTE) != _BYTE
    inside = fresh(width.size // 2) if halved else width
    yield from states(op, _PLACES, key, inside, batch)
    if halved:
        yield from (Pin(a, "a quantised cache, whose numbers share bytes") for a in (inside, width))
    for i in _SCALES:
        scale = op.input(i)
        if scale is not None and scale.rank == _CACHE_RANK:
            for axis, owner in ((scale.axes[1], key), (scale.axes[3], width)):
                if axis is not UNIT:
                    yield Same(axis, owner)
                    yield Use(i, axis, Role.CARRIED)


def rotary_embedding(op: Op) -> Iterator[Equation]:
    """Pairs of positions of a head turn together, as in ai.onnx; uncounted heads are as wide as the tables."""
    x, places, cos, sin = op.x(0), op.x(1), op.x(2), op.x(3)
    number = op.attr("num_heads", 0)
    if not number and x.rank == 3:
        number = x.shape[-1] // (2 * cos.shape[-1])
    chosen = places if places.rank == 2 else None
    attributes = {**op.attributes, "num_heads": number}
    if chosen is None:
        yield from (Pin(a, "positions of a sequence") for a in (*places.axes, x.axes[2 if x.rank == 4 else 1]))
        chosen = replace(places, axes=(UNIT, UNIT), shape=(1, 1), dynamic=(False, False))
    for eq in rotary(replace(op, inputs=(x, cos, sin, chosen), attributes=attributes)):
        yield replace(eq, operand=_OPERANDS[eq.operand]) if isinstance(eq, Use) else eq


def pinned(op: Op) -> Iterator[Equation]:
    """Heads differ in what they see, or their width is told by that of the input: nothing may go."""
    yield from pin_all(op, "heads are told apart by position, or measured by the input's width")


def relative(op: Op) -> Iterator[Equation]:
    """A table that lies the other way round in memory than its shape says."""
    yield from pin_all(op, "positions are computed inside, from a table in an order of its own")


AXES: tuple[Row[AxisRule], ...] = (
    row(grouped, "GroupQueryAttention", domain=MICROSOFT),
    row(rotary_embedding, "RotaryEmbedding", domain=MICROSOFT),
    row(pinned, "LongformerAttention", "SparseAttention", "DecoderAttention", domain=MICROSOFT),
    row(relative, "RelativePositionBias", "GatedRelativePositionBias", domain=MICROSOFT),
)
REFITS: tuple[Row[RefitRule], ...] = (
    row(refit_heads, "GroupQueryAttention", domain=MICROSOFT),
    row(refit_rotary, "RotaryEmbedding", domain=MICROSOFT),
)
