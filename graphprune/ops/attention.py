"""Fused attention and rotary embedding of ai.onnx (opset 23 and later)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.registry import AxisRule, CostRule, Op, Operand, Row, ShapeOf, pin_all, row
from graphprune.ops.sizes import Change, RefitRule, SetAttribute, Shrunk


def _heads(operand: Operand, number: int) -> tuple[Axis, Axis, Axis, Axis]:
    """Return batch, head, sequence and width of a value given as `b h s d` or `b s (h d)`."""
    if operand.rank == 4:
        b, h, s, d = operand.axes
        return b, h, s, d
    b, s, _ = operand.axes
    return b, fresh(number), s, fresh(operand.shape[2] // number)


def _fused(operand: Operand, head: Axis, width: Axis) -> Iterator[Equation]:
    if operand.rank == 3:
        yield Same(operand.axes[2], product(head, width))


def attention(op: Op) -> Iterator[Equation]:
    """`b (k r) s d, b k t d, b k t e -> b (k r) s e`; r query heads share a key head."""
    q, k, v, y = op.x(0), op.x(1), op.x(2), op.y()
    nq, nk = op.attr("q_num_heads", q.shape[1]), op.attr("kv_num_heads", k.shape[1])
    qb, qh, qs, qd = _heads(q, nq)
    kb, kh, ks, kd = _heads(k, nk)
    vb, vh, vs, vd = _heads(v, nk)
    yb, yh, ys, yd = _heads(y, nq)
    share = fresh(nq // nk)
    for operand, head, width in ((q, qh, qd), (k, kh, kd), (v, vh, vd), (y, yh, yd)):
        yield from _fused(operand, head, width)
    yield Same(qh, product(kh, share))
    pairs = [(kh, vh), (yh, qh), (qd, kd), (yd, vd), (qb, kb), (qb, vb), (qb, yb), (ks, vs), (qs, ys)]
    yield from (Same(a, b) for a, b in pairs)
    yield Use(0, qd, Role.CONTRACTED)
    yield Use(1, kd, Role.CONTRACTED)
    yield Use(1, ks, Role.NORMALISED)
    yield from (Letter(letter, axis) for letter, axis in (("heads", qh), ("shared", kh), ("width", qd)))
    yield from _mask(op, qb, qh)
    yield from _caches(op, kb, kh, kd, vd)


def _mask(op: Op, batch: Axis, head: Axis) -> Iterator[Equation]:
    mask = op.input(3)
    for k, axis in enumerate(mask.axes if mask is not None else ()):
        assert mask is not None
        place = k - mask.rank
        if place == -3 and axis is not UNIT:
            yield Same(axis, head)
        elif axis is not UNIT:
            yield Pin(axis, "positions of a mask")


def _caches(op: Op, batch: Axis, head: Axis, kd: Axis, vd: Axis) -> Iterator[Equation]:
    for operand, width in (
        (op.input(4), kd), (op.input(5), vd), (op.output(1), kd), (op.output(2), vd)
    ):
        if operand is not None:
            yield Same(operand.axes[0], batch)
            yield Same(operand.axes[1], head)
            yield Pin(operand.axes[2], "positions of a cache")
            yield Same(operand.axes[3], width)
    weights = op.output(3)
    if weights is not None:
        yield from (Pin(a, "positions of attention weights") for a in (weights.axes[0], *weights.axes[2:]))
        yield Pin(weights.axes[1], "attention weights are used outside")
    if op.input(6) is not None:
        yield from (Pin(a, "lengths of sequences") for a in op.x(6).axes)


def refit_attention(op: Op, now: Shrunk) -> Iterator[Change]:
    """Head counts follow; the scale stays what it was before the width shrank."""
    for name, letter in (("q_num_heads", "heads"), ("kv_num_heads", "shared")):
        if op.attr(name) is not None:
            yield SetAttribute(name, now.size(now.letters[letter]))
    width = now.letters["width"]
    if now.changed(width) and op.attr("scale") is None:
        yield SetAttribute("scale", width.size**-0.5)


def attention_cost(op: Op, shape: ShapeOf) -> int:
    """Scores and their sum over values."""
    q, k, y = shape(op.x(0)), shape(op.x(1)), shape(op.y())
    past = op.input(4)
    keys = k[-2] + (shape(past)[2] if past is not None else 0)
    return prod(q) * keys + prod(y) * keys


def rotary(op: Op) -> Iterator[Equation]:
    """Pairs of positions of a head turn together: `(r + r)`, or `(r 2)` where interleaved."""
    x, cos, sin, y = op.x(0), op.x(1), op.x(2), op.y()
    yield from (Same(a, b) for a, b in zip(x.axes, y.axes, strict=True))
    number = op.attr("num_heads", 0) or (x.shape[1] if x.rank == 4 else 0)
    if not number:
        yield from pin_all(op, "the number of heads is not given")
        return
    batch, head, place, width = _heads(x, number)
    yield from _fused(x, head, width)
    turned = op.attr("rotary_embedding_dim", 0) or width.size
    pair = fresh(turned // 2)
    halves = product(pair, concat(UNIT, UNIT)) if op.attr("interleaved", 0) else concat(pair, pair)
    rest = fresh(width.size - turned)
    yield Same(width, concat(halves, rest))
    if turned != width.size:
        yield Pin(halves, "only a part of each head is turned, by a number")
    for i, table in ((1, cos), (2, sin)):
        yield Same(table.axes[-1], pair)
        yield from (Use(i, a, Role.CARRIED) for a in table.axes)
    chosen = op.input(3)
    rows = cos.axes[:-1] if chosen is None else chosen.axes
    yield from (Same(a, b) for a, b in zip(rows, (batch, place), strict=True) if a is not UNIT)
    if chosen is not None:
        yield from (Pin(a, "positions of a table") for a in cos.axes[:-1])
        yield from (Use(3, a, Role.CARRIED) for a in chosen.axes)
    yield from (Same(a, b) for a, b in zip(cos.axes, sin.axes, strict=True))
    yield Letter("heads", head)
    yield Letter("turned", halves)


def refit_rotary(op: Op, now: Shrunk) -> Iterator[Change]:
    """The number of heads follows, and the rotated width where it is the whole of a head."""
    if op.attr("num_heads", 0) and "heads" in now.letters:
        yield SetAttribute("num_heads", now.size(now.letters["heads"]))
    if op.attr("rotary_embedding_dim", 0) and "turned" in now.letters:
        yield SetAttribute("rotary_embedding_dim", now.size(now.letters["turned"]))


AXES: tuple[Row[AxisRule], ...] = (row(attention, "Attention"), row(rotary, "RotaryEmbedding"))
REFITS: tuple[Row[RefitRule], ...] = (row(refit_attention, "Attention"), row(refit_rotary, "RotaryEmbedding"))
COSTS: tuple[Row[CostRule], ...] = (row(attention_cost, "Attention"),)
