"""Attention as onnxruntime fuses it: heads and their widths, domain com.microsoft.

Layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. Everywhere `b` are
samples, `s` and `t` positions of queries and keys, `h` heads, `d` the width of a head, `e` that of its values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.registry import AxisRule, Op, Operand, Row, row
from graphprune.ops.sizes import Change, RefitRule, SetAttribute, Shrunk

ORDER = "the order of positions matters"
_CACHE = "positions of a cache"
_LAYOUT = "a cache whose layout depends on the width of heads"
_HEADS_FIRST = 4
_WITH_SIZES = ("Attention", "PackedAttention")


@dataclass(frozen=True)
class Places:
    """At which inputs and outputs an operator has what several have; -1: nowhere."""

    bias: int
    mask: int
    scores: int
    past: tuple[int, ...]
    present: tuple[int, ...]
    outside: int = -1


_MULTI = Places(3, 4, 5, (6, 7), (1, 2), 3)
_MASKED = Places(10, 3, 4, (5, 6), (1, 2), 3)
_PACKED = Places(3, 5, 6, (), ())
def at(values: tuple[Operand | None, ...], i: int) -> Operand | None:
    """Return a value by its number, None where it is absent or the number is -1."""
    return values[i] if 0 <= i < len(values) else None


def scores(op: Op, i: int, head: Axis) -> Iterator[Equation]:
    """What is added to the products of queries and keys: `b|1 h|1 s t`."""
    operand = at(op.inputs, i)
    for k, axis in enumerate(operand.axes if operand is not None else ()):
        if axis is not UNIT:
            yield Same(axis, head) if k == 1 else Pin(axis, "positions of attention scores")


def sequences(op: Op, queries: tuple[Axis, ...], keys: tuple[Axis, ...], source: int | None) -> Iterator[Equation]:
    """Samples of queries and keys agree; positions are free where nothing tells one from another.

    `source` is the input that keys come from, None where the order of positions matters.
    """
    out = op.output(0)
    if out is not None:
        yield from (Same(a, b) for a, b in zip(queries, out.axes[:-1], strict=True))
    if len(queries) > 1:
        yield Same(queries[0], keys[0])
    if source is None:
        yield from (Pin(a, ORDER) for a in (queries[-1], keys[-1]))
    else:
        yield Use(source, keys[-1], Role.NORMALISED)


def _state(axes: tuple[Axis, ...], head: Axis, width: Axis, batch: Axis) -> Iterator[Equation]:
    """A cache `b h t d`."""
    b, h, t, d = axes
    yield Same(b, batch)
    yield Same(h, head)
    yield Pin(t, _CACHE)
    yield Same(d, width)


def states(op: Op, places: Places, head: Axis, width: Axis, batch: Axis) -> Iterator[Equation]:
    """Caches that come in and go out."""
    for side, numbers in ((op.inputs, places.past), (op.outputs, places.present)):
        for i in numbers:
            operand = at(side, i)
            if operand is not None:
                yield from _state(operand.axes, head, width, batch)


def outside(op: Op, places: Places, head: Axis) -> Iterator[Equation]:
    """Attention weights `b h s t` that go out."""
    out = at(op.outputs, places.outside)
    if out is not None:
        yield from (Pin(a, "attention weights are used outside") for a in (*out.axes, head))


def _bias(op: Op, i: int, axis: Axis) -> Iterator[Equation]:
    """The bias of queries, keys and values, one after the other."""
    operand = at(op.inputs, i)
    if operand is not None:
        yield Same(operand.axes[0], axis)
        yield Use(i, operand.axes[0], Role.PRODUCED)
        yield Use(i, operand.axes[0], Role.CONTRACTED, own=True)


def _ordered(op: Op, *inputs: int) -> bool:
    """Return whether a mask, scores or a causal order tell positions apart."""
    return bool(op.attr("unidirectional", 0)) or any(at(op.inputs, i) is not None for i in inputs)


def attention(op: Op) -> Iterator[Equation]:
    """`b s i, i (h d + h d + h e), (h d + h d + h e)? -> b s (h e), p b h t d`, without samples where packed."""
    packed = op.type.startswith("Packed")
    x, w, y = op.x(0), op.x(1), op.y()
    past, present = (None, None) if packed else (op.input(4), op.output(1))
    number = op.attr("num_heads")
    given = op.attr("qkv_hidden_sizes") or [w.shape[1] // 3] * 3
    head, width = fresh(number), fresh(given[0] // number)
    cached = past is not None or present is not None
    value = width if cached else fresh(given[2] // number)
    wide, out = product(head, width), product(head, value)
    yield Same(w.axes[1], concat(wide, wide, out))
    yield Use(1, w.axes[1], Role.PRODUCED)
    yield Use(1, w.axes[1], Role.CONTRACTED, own=True)
    yield from _bias(op, 2, concat(wide, wide, out))
    yield Same(y.axes[-1], out)
    yield Same(x.axes[-1], w.axes[0])
    yield Use(0, x.axes[-1], Role.CONTRACTED)
    yield Use(1, w.axes[0], Role.CONTRACTED)
    apart = packed or cached or _ordered(op, 3, 4, 5)
    yield from sequences(op, x.axes[:-1], x.axes[:-1], None if apart else 0)
    yield from scores(op, 5, head)
    for cache in (past, present):
        if cache is not None:
            yield Pin(cache.axes[0], "keys and values")
            yield from _state(cache.axes[1:], head, width, x.axes[0])
    if op.attr("do_rotary", 0):
        yield Pin(width, "turned by angles that depend on the place in the head")
    if "Masked" in op.type:
        yield Pin(width, _LAYOUT)
    yield from (Letter(k, v) for k, v in (("heads", head), ("width", width), ("value", value)))


def _projected(op: Op, i: int, head: Axis, width: Axis) -> Iterator[Equation]:
    """An input `b s (h d)` or `b h s d`."""
    operand = op.x(i)
    if operand.rank == _HEADS_FIRST:
        yield Same(operand.axes[1], head)
        yield Same(operand.axes[3], width)
    else:
        yield Same(operand.axes[-1], product(head, width))


def _positions(operand: Operand, token_axes: int) -> tuple[Axis, ...]:
    """Return samples and positions of an input, whichever way its heads lie."""
    if token_axes > 1 and operand.rank == _HEADS_FIRST:
        return operand.axes[0], operand.axes[2]
    return operand.axes[:token_axes]


def _stacked(operand: Operand, token_axes: int, head: Axis, width: Axis) -> Iterator[Equation]:
    """Queries, keys and values in one input `b s h 3 d`, or keys and values in `b t h 2 d`."""
    h, number, d = operand.axes[token_axes:]
    yield Same(h, head)
    yield Pin(number, "queries, keys and values")
    yield Same(d, width)


def multi_head(op: Op) -> Iterator[Equation]:
    """`b s (h d), b t (h d), b t (h e) -> b s (h e)`; keys and values also `b h t d`, or stacked: `b s h 3 d`."""
    places = {"Packed": _PACKED, "Decode": _MASKED}.get(op.type[:6], _MULTI)
    tokens = 1 if places is _PACKED else 2
    q, k, v, y = op.x(0), op.input(1), op.input(2), op.y()
    stacked = [o for o in (q, k) if o is not None and o.rank == tokens + 3]
    fused = k is None and not stacked
    cached = _cached(op, places)
    number = op.attr("num_heads")
    head = fresh(number)
    width = fresh(stacked[0].shape[-1] if stacked else q.shape[-1] // (number * (3 if fused else 1)))
    together = stacked or fused or cached or (v is not None and v.rank == _HEADS_FIRST)
    value = width if together else fresh(y.shape[-1] // number)
    wide, out = product(head, width), product(head, value)
    everything = concat(wide, wide, out)
    for i, operand, size in ((0, q, width), (1, k, width), (2, v, value)):
        if operand is not None and operand in stacked:
            yield from _stacked(operand, tokens, head, width)
        elif operand is not None and not (fused and i == 0):
            yield from _projected(op, i, head, size)
    if fused:
        yield Same(q.axes[-1], everything)
    yield Same(y.axes[-1], out)
    yield from contracted(op, width)
    yield from _bias(op, places.bias, everything)
    yield from _tokens(op, places, tokens, cached)
    yield from scores(op, places.scores, head)
    yield from states(op, places, head, width, q.axes[0])
    yield from outside(op, places, head)
    if places is _MASKED:
        yield Pin(width, _LAYOUT)
    yield from (Letter(letter, axis) for letter, axis in (("heads", head), ("width", width), ("value", value)))


def _cached(op: Op, places: Places) -> bool:
    past = any(at(op.inputs, i) is not None for i in places.past)
    return past or any(at(op.outputs, i) is not None for i in places.present)


def _tokens(op: Op, places: Places, number: int, cached: bool) -> Iterator[Equation]:
    """Samples and positions of queries, keys and values."""
    q, k, v = op.x(0), op.input(1), op.input(2)
    keys = q.axes[:number] if k is None else _positions(k, number)
    apart = cached or places is not _MULTI or _ordered(op, places.mask, places.scores)
    yield from sequences(op, q.axes[:number], keys, None if apart else 0 if k is None else 1)
    if v is not None:
        yield from (Same(a, b) for a, b in zip(keys, _positions(v, number), strict=True))


def contracted(op: Op, width: Axis) -> Iterator[Equation]:
    """Queries and keys are multiplied over the width of a head."""
    yield Use(0, width, Role.CONTRACTED)
    if op.input(1) is not None:
        yield Use(1, width, Role.CONTRACTED)


def refit_heads(op: Op, now: Shrunk) -> Iterator[Change]:
    """Head counts and widths follow; the scale stays what it was before the width shrank."""
    for name, letter in (("num_heads", "heads"), ("kv_num_heads", "shared")):
        if op.attr(name) is not None and letter in now.letters:
            yield SetAttribute(name, now.size(now.letters[letter]))
    width, value = now.letters["width"], now.letters.get("value")
    if now.changed(width) and not op.attr("scale", 0.0):
        yield SetAttribute("scale", width.size**-0.5)
    if value is not None and op.type in _WITH_SIZES:
        heads, d, e = now.size(now.letters["heads"]), now.size(width), now.size(value)
        if op.attr("qkv_hidden_sizes") is not None or d != e:
            yield SetAttribute("qkv_hidden_sizes", (heads * d, heads * d, heads * e))


AXES: tuple[Row[AxisRule], ...] = (
    row(attention, "Attention", "DecoderMaskedSelfAttention", "PackedAttention", domain=MICROSOFT),
    row(
        multi_head, "MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "PackedMultiHeadAttention",
        domain=MICROSOFT,
    ),
)
REFITS: tuple[Row[RefitRule], ...] = (
    row(
        refit_heads, "Attention", "DecoderMaskedSelfAttention", "PackedAttention", "MultiHeadAttention",
        "DecoderMaskedMultiHeadAttention", "PackedMultiHeadAttention", domain=MICROSOFT,
    ),
)
