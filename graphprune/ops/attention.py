"""Fused attention and rotary embedding of ai.onnx (opset 23 and later)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.inference import Answer, Question, ShapeRule
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
    yield from _caches(op, (kb, kh, ks), kd, vd)
    yield from _scores(op, (qb, qh, qs, ks))
    if op.attr("is_causal", 0) or op.input(3) is not None or op.attr("left_window_size") is not None:
        yield from (Pin(a, "which positions see which depends on where they are") for a in (qs, ks))


def _mask(op: Op, batch: Axis, head: Axis) -> Iterator[Equation]:
    mask = op.input(3)
    for k, axis in enumerate(mask.axes if mask is not None else ()):
        assert mask is not None
        place = k - mask.rank
        if place < -2 and axis is not UNIT:
            yield Same(axis, head if place == -3 else batch)
        elif axis is not UNIT:
            yield Pin(axis, "positions of a mask")


def _caches(op: Op, keys: tuple[Axis, Axis, Axis], kd: Axis, vd: Axis) -> Iterator[Equation]:
    """A cache is what was before and, after it, the keys or values of this step."""
    for past, present, width in ((4, 1, kd), (5, 2, vd)):
        for operand in (op.input(past), op.output(present)):
            if operand is not None:
                yield from (Same(operand.axes[k], a) for k, a in ((0, keys[0]), (1, keys[1]), (3, width)))
        before, after = op.input(past), op.output(present)
        if before is not None:
            yield Pin(before.axes[2], "positions of a cache")
        if after is not None:
            yield Same(after.axes[2], concat(before.axes[2], keys[2]) if before is not None else keys[2])
    if op.input(6) is not None:
        yield from (Pin(a, "lengths of sequences") for a in (*op.x(6).axes, keys[0], keys[2]))


def _scores(op: Op, axes: tuple[Axis, Axis, Axis, Axis]) -> Iterator[Equation]:
    """The attention weights, `b h q t`, with past keys before those of this step."""
    weights, past = op.output(3), op.input(4)
    if weights is None:
        return
    *others, keys = axes
    yield from (Same(a, b) for a, b in zip(weights.axes, others, strict=False))
    yield Same(weights.axes[3], concat(past.axes[2], keys) if past is not None else keys)


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


def attention_sizes(asked: Question) -> list[Answer]:
    """Caches as long as what was before and the keys of this step; onnx has no answer where nothing was before."""
    kinds = [asked.dtype(0), asked.dtype(1), asked.dtype(2), asked.dtype(0)]
    shapes = [asked.shape(i) for i in range(3)]
    past = asked.inputs[4] if len(asked.inputs) > 4 else None
    if any(s is None for s in shapes) or (past is not None and past.shape is None):
        return [(kind, None) for kind in kinds]
    q, k, v = (s for s in shapes if s is not None)
    heads = [int(asked.attributes.get(name, s[1])) for name, s in (("q_num_heads", q), ("kv_num_heads", k))]
    (batch, number, length, _), (_, _, keys, width), (_, _, _, value) = (
        s if len(s) == 4 else (s[0], n, s[1], s[2] // n)
        for s, n in zip((q, k, v), (heads[0], *heads[1:] * 2), strict=True)
    )
    total = keys + (past.shape[2] if past is not None and past.shape is not None else 0)
    y = (batch, number, length, value) if len(q) == 4 else (batch, length, number * value)
    caches = [(batch, heads[1], total, n) for n in (width, value)]
    return list(zip(kinds, [y, *caches, (batch, number, length, total)], strict=True))


AXES: tuple[Row[AxisRule], ...] = (row(attention, "Attention"), row(rotary, "RotaryEmbedding"))
REFITS: tuple[Row[RefitRule], ...] = (row(refit_attention, "Attention"), row(refit_rotary, "RotaryEmbedding"))
COSTS: tuple[Row[CostRule], ...] = (row(attention_cost, "Attention"),)
SHAPES: tuple[Row[ShapeRule], ...] = (row(attention_sizes, "Attention"),)
