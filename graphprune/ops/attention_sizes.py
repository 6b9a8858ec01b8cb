"""Sizes of what com.microsoft's attention operators return, and their multiply-accumulates."""

from __future__ import annotations

from math import prod

import numpy as np

from graphprune.ops.fused import MICROSOFT
from graphprune.ops.inference import Answer, Question, ShapeRule, Sizes, like_first
from graphprune.ops.registry import CostRule, Op, Row, ShapeOf, row

_KEEPS_BUFFER = "past_present_share_buffer"


def _number(asked: Question, name: str) -> int:
    return int(asked.attributes[name])


def _attention(asked: Question) -> list[Answer]:
    x, w, kind = asked.shape(0), asked.shape(1), asked.dtype(0)
    if x is None or w is None:
        return [(kind, None), (kind, None)]
    given = asked.attributes.get("qkv_hidden_sizes") or [w[1] // 3] * 3
    heads = _number(asked, "num_heads")
    out: Answer = (kind, (*x[:-1], int(given[2])))
    if len(x) < 3:
        return [out]
    past = asked.shape(4)
    if past is not None and len(past) == 5 and asked.attributes.get(_KEEPS_BUFFER, 0):
        return [out, (kind, past)]
    before = past[3] if past is not None and len(past) == 5 else 0
    return [out, (kind, (2, x[0], heads, before + x[1], int(given[0]) // heads))]


def _multi_head(past: int, shared: int) -> ShapeRule:
    """Return the rule where past keys are input `past`, and input `shared` says how much of a buffer is filled."""

    def rule(asked: Question) -> list[Answer]:
        q, kind, heads = asked.shape(0), asked.dtype(0), _number(asked, "num_heads")
        if q is None:
            return [(kind, None)] * 4
        k, v = asked.shape(1), asked.shape(2)
        width, value = _widths(q, k, v, heads)
        keys = q[1] if k is None else k[2] if len(k) == 4 else k[1]
        before = asked.shape(past)
        total: int = keys
        if before is not None and len(before) == 4:
            filled = shared < len(asked.inputs) and asked.inputs[shared] is not None
            total = before[2] if filled or asked.attributes.get(_KEEPS_BUFFER, 0) else before[2] + keys
        cache = (q[0], heads, total)
        return [
            (kind, (q[0], q[1], heads * value)), (kind, (*cache, width)), (kind, (*cache, value)),
            (kind, (q[0], heads, q[1], total)),
        ]

    return rule


def _widths(
    q: tuple[int, ...], k: tuple[int, ...] | None, v: tuple[int, ...] | None, heads: int
) -> tuple[int, int]:
    """Return the width of a head of queries and of values."""
    if len(q) == 5:
        return q[-1], q[-1]
    if k is None:
        return q[-1] // (3 * heads), q[-1] // (3 * heads)
    width = q[-1] // heads
    return width, width if v is None else v[-1] if len(v) == 4 else v[-1] // heads


def _packed_heads(asked: Question) -> list[Answer]:
    q, v, kind = asked.shape(0), asked.shape(2), asked.dtype(0)
    if q is None:
        return [(kind, None)]
    return [(kind, (q[0], v[-1] if v is not None else q[1] * q[3]))]


def _grouped(asked: Question) -> list[Answer]:
    q, past, kind = asked.shape(0), asked.shape(3), asked.dtype(0)
    if q is None:
        return [(kind, None)] * 4
    many, few = _number(asked, "num_heads"), _number(asked, "kv_num_heads")
    width = q[-1] // (many if asked.shape(1) is not None else many + 2 * few)
    length = asked.content(6)
    before = past[2] if past is not None and len(past) == 4 else 0
    total = before + q[1] if length is None else max(before, int(np.ravel(length)[0]))
    cache: Sizes = (q[0], few, total, past[3] if past is not None and len(past) == 4 else width)
    cached = asked.dtype(3) or kind
    return [(kind, (*q[:-1], many * width)), (cached, cache), (cached, cache), (kind, (q[0], many, q[1], total))]


def _sparse(asked: Question) -> list[Answer]:
    q, kind = asked.shape(0), asked.dtype(0)
    if q is None:
        return [(kind, None), asked.like(3), asked.like(4)]
    many, few = _number(asked, "num_heads"), _number(asked, "kv_num_heads")
    width = q[-1] // (many if asked.shape(1) is not None else many + 2 * few)
    return [(kind, (*q[:-1], many * width)), asked.like(3), asked.like(4)]


def _relative(asked: Question) -> list[Answer]:
    table, queries, keys = asked.shape(0), asked.content(1), asked.content(2)
    if table is None or queries is None or keys is None:
        return [(asked.dtype(0), (1, None if table is None else table[1], None, None))]
    return [(asked.dtype(0), (1, table[1], int(np.ravel(queries)[0]), int(np.ravel(keys)[0])))]


def _gated(asked: Question) -> list[Answer]:
    q, bias = asked.shape(0), asked.shape(2)
    if q is None or bias is None:
        return [(asked.dtype(0), None)]
    return [(asked.dtype(0), (q[0], *bias[1:]))]


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(_attention, "Attention", "DecoderMaskedSelfAttention", "PackedAttention", domain=MICROSOFT),
    row(_multi_head(6, 8), "MultiHeadAttention", domain=MICROSOFT),
    row(_multi_head(5, 7), "DecoderMaskedMultiHeadAttention", domain=MICROSOFT),
    row(_packed_heads, "PackedMultiHeadAttention", domain=MICROSOFT),
    row(_grouped, "GroupQueryAttention", domain=MICROSOFT),
    row(_sparse, "SparseAttention", domain=MICROSOFT),
    row(like_first, "LongformerAttention", "RotaryEmbedding", "DecoderAttention", domain=MICROSOFT),
    row(_relative, "RelativePositionBias", domain=MICROSOFT),
    row(_gated, "GatedRelativePositionBias", domain=MICROSOFT),
)


def attention_cost(op: Op, shape: ShapeOf) -> int:
    """Projection of queries, keys and values; scores and their sum over values."""
    x, w, y = shape(op.x(0)), shape(op.x(1)), shape(op.y())
    past = None if op.type.startswith("Packed") else op.input(4)
    keys = x[-2] + (shape(past)[3] if past is not None else 0)
    queries = prod(x[:-1]) * (w[1] - y[-1]) // 2
    return prod(x) * w[1] + (queries + prod(y)) * keys


def multi_head_cost(op: Op, shape: ShapeOf) -> int:
    """Scores and their sum over values."""
    q, k, y = op.x(0), op.input(1), shape(op.y())
    queries = prod(shape(q)) // (3 if k is None else 1)
    if op.type.startswith("Packed"):
        return (queries + prod(y)) * y[0]
    keys = shape(q)[1] if k is None else shape(k)[2 if k.rank == 4 else 1]
    past = op.input(5 if op.type.startswith("Decoder") else 6)
    keys += shape(past)[2] if past is not None else 0
    return (queries + prod(y)) * keys


def grouped_cost(op: Op, shape: ShapeOf) -> int:
    """Scores and their sum over values, for every query head."""
    y, past, present = shape(op.y()), op.input(3), op.output(1)
    keys = shape(present)[2] if present is not None else y[1] + (shape(past)[2] if past is not None else 0)
    return 2 * prod(y) * keys


COSTS: tuple[Row[CostRule], ...] = (
    row(attention_cost, "Attention", "DecoderMaskedSelfAttention", "PackedAttention", domain=MICROSOFT),
    row(
        multi_head_cost, "MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "PackedMultiHeadAttention",
        domain=MICROSOFT,
    ),
    row(grouped_cost, "GroupQueryAttention", domain=MICROSOFT),
)
