"""Normalisations that onnxruntime fuses with what stands before them, domain com.microsoft.

Formulas and layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.gather import BoundRule
from graphprune.ops.inference import Answer, Question, ShapeRule, like_first
from graphprune.ops.normalization import trailing_norm
from graphprune.ops.registry import AxisRule, Op, Row, broadcast, normalise_axis, row, same_axes
from graphprune.ops.sizes import RefitRule, attributes

_FLOAT, _INT32 = 1, 6
_INDEXED = "indexed by data"
_GAIN = 2
_EMBED_GAIN = 5


def bias_softmax(op: Op) -> Iterator[Equation]:
    """Softmax over the axes from `axis` on of data plus bias, whose leading axes are repeated as a whole."""
    x, bias, y = op.x(0), op.x(1), op.y()
    start = normalise_axis(op.attr("axis", 1), x.rank)
    yield from same_axes(x, y)
    yield from (Use(0, a, Role.NORMALISED if k >= start else Role.CARRIED) for k, a in enumerate(x.axes))
    if bias.rank != x.rank:
        yield from (Pin(a, "a bias of another rank") for a in (*x.axes, *bias.axes))
        return
    for eq in broadcast(op, (1,), y):
        over = isinstance(eq, Use) and any(eq.axis is a for a in bias.axes[start:])
        yield Use(1, eq.axis, Role.NORMALISED) if over and isinstance(eq, Use) else eq


def skip_norm(op: Op) -> Iterator[Equation]:
    """`*b h, *b h, h, h?, h? -> *b h, *b 1, *b 1, *b h`: the sum of both inputs and a bias, normalised over h.

    SkipSimplifiedLayerNormalization has no second parameter: scale, then bias.
    """
    x, y = op.x(0), op.output(0) or op.y(3)
    for out in (op.output(0), op.output(3)):
        if out is not None:
            yield from same_axes(x, out)
    for statistics in op.outputs[1:3]:
        if statistics is not None:
            yield from (Same(a, b) for a, b in zip(x.axes[:-1], statistics.axes[:-1], strict=True))
    last = len(x.axes) - 1
    yield from (Use(0, a, Role.NORMALISED if k == last else Role.CARRIED) for k, a in enumerate(x.axes))
    for eq in broadcast(op, range(1, len(op.inputs)), y):
        if isinstance(eq, Use):
            parameter = eq.operand > 1 or eq.axis is op.x(eq.operand).axes[-1]
            yield Use(eq.operand, eq.axis, Role.NORMALISED if parameter else Role.CARRIED, eq.operand == _GAIN)
        else:
            yield eq


def embed_norm(op: Op) -> Iterator[Equation]:
    """`b s, b s?, v h, p h, t h?, h, h, b s? -> b s h, b, b s h`: three embeddings, added and normalised over h."""
    ids = op.x(0)
    hidden = op.x(2).axes[1]
    for out in (op.output(0), op.output(2)):
        if out is not None:
            yield from (Same(a, b) for a, b in zip((*ids.axes, hidden), out.axes, strict=True))
    for i in (1, 7, 8):
        operand = op.input(i)
        if operand is not None:
            yield from (Same(a, b) for a, b in zip(operand.axes, ids.axes, strict=True) if a is not UNIT)
    for i in (2, 3, 4):
        table = op.input(i)
        if table is not None:
            yield Pin(table.axes[0], _INDEXED)
            yield Same(table.axes[1], hidden)
            yield Use(i, table.axes[1], Role.PRODUCED)
            yield Use(i, hidden, Role.NORMALISED)
    for i in (5, 6):
        yield Same(op.x(i).axes[0], hidden)
        yield Use(i, op.x(i).axes[0], Role.NORMALISED, i == _EMBED_GAIN)
    yield from (Pin(a, "positions of embedded tokens") for a in ids.axes)
    index = op.output(1)
    if index is not None:
        yield from (Same(a, b) for a, b in zip(index.axes, ids.axes[:1], strict=True))


def group_norm(op: Op) -> Iterator[Equation]:
    """`n *s (g c), (g c), (g c) -> n *s (g c)`, with channels last or, by attribute, second; after a sum, or not."""
    x, groups = op.x(), op.attr("groups")
    place = x.rank - 1 if op.attr("channels_last", 1) else 1
    channels = x.axes[place]
    group = fresh(groups)
    inner = fresh(channels.size // groups)
    yield Same(channels, product(group, inner))
    for out in op.outputs:
        if out is not None:
            yield from same_axes(x, out)
    for k, a in enumerate(x.axes):
        if k != place:
            yield Use(0, a, Role.NORMALISED if k else Role.CARRIED)
    yield Use(0, inner, Role.NORMALISED)
    for i in (1, 2, 4):
        operand = op.input(i)
        if operand is not None:
            yield Same(operand.axes[0], channels)
            yield Use(i, operand.axes[0], Role.PRODUCED, i == 1)
            yield Use(i, inner, Role.NORMALISED)
    skip = op.input(3)
    if skip is not None:
        axes = skip.axes if skip.rank == x.rank else _spread(skip.axes, x.rank, place)
        yield from (Same(a, b) for a, b in zip(axes, x.axes, strict=True) if a is not UNIT)
        yield Use(3, inner, Role.NORMALISED)
    yield Letter("g", group)


def _spread(axes: tuple[Axis, ...], rank: int, place: int) -> tuple[Axis, ...]:
    """Return the axes `n c` among `rank` axes."""
    return tuple(axes[0] if k == 0 else axes[1] if k == place else UNIT for k in range(rank))


def gated_rms_norm(op: Op) -> Iterator[Equation]:
    """`*b (g c), c, *b (g c) -> *b (g c)`, normalised over c and multiplied with the gate."""
    x, scale = op.x(0), op.x(1)
    inner = scale.axes[0]
    outer = fresh(x.shape[-1] // scale.shape[0])
    yield from same_axes(x, op.y())
    yield from same_axes(x, op.x(2))
    yield Same(x.axes[-1], product(outer, inner))
    for i in (0, 2):
        yield from (Use(i, a, Role.CARRIED) for a in op.x(i).axes[:-1])
        yield Use(i, inner, Role.NORMALISED if i == 0 else Role.CARRIED)
    yield Use(1, inner, Role.NORMALISED, gain=True)


def branchwise_norm(op: Op) -> Iterator[Equation]:
    """`*b c h` or `*b (c h)`, and a scale `h`, `c h` or `(c h)`; normalised over h."""
    x, scale = op.x(), op.input(1)
    branches = op.attr("num_branches", 0) or (x.shape[-2] if x.rank > 1 else 1)
    flat = bool(op.attr("num_branches", 0))
    width = x.shape[-1] // branches if flat else x.shape[-1]
    branch, inner = fresh(branches), fresh(width)
    yield from same_axes(x, op.y())
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)
    yield from _branches(x.axes, product(branch, inner), branch, inner, flat)
    yield Use(0, inner, Role.NORMALISED)
    if scale is not None:
        if scale.shape == (width,):
            yield Same(scale.axes[0], inner)
        else:
            yield from _branches(scale.axes, product(branch, inner), branch, inner, scale.rank == 1)
        yield Use(1, inner, Role.NORMALISED, gain=True)
    if flat:
        yield Letter("c", branch)


def _branches(
    axes: tuple[Axis, ...], both: Axis, branch: Axis, inner: Axis, flat: bool
) -> Iterator[Equation]:
    if flat:
        yield Same(axes[-1], both)
    else:
        yield Same(axes[-2], branch)
        yield Same(axes[-1], inner)


AXES: tuple[Row[AxisRule], ...] = (
    row(bias_softmax, "BiasSoftmax", domain=MICROSOFT),
    row(skip_norm, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
    row(trailing_norm, "SimplifiedLayerNormalization"),
    row(trailing_norm, "SimplifiedLayerNormalization", "LayerNormalization", domain=MICROSOFT),
    row(embed_norm, "EmbedLayerNormalization", domain=MICROSOFT),
    row(group_norm, "GroupNorm", "SkipGroupNorm", domain=MICROSOFT),
    row(gated_rms_norm, "GatedRMSNorm", domain=MICROSOFT),
    row(branchwise_norm, "BranchwiseRMSNorm", domain=MICROSOFT),
)

REFITS: tuple[Row[RefitRule], ...] = (
    row(attributes(groups="g"), "GroupNorm", "SkipGroupNorm", domain=MICROSOFT),
    row(attributes(num_branches="c"), "BranchwiseRMSNorm", domain=MICROSOFT),
)


def _word_bound(op: Op) -> tuple[int, int]:
    """Words are numbered by the rows of their table."""
    return 0, op.x(2).shape[0]


BOUNDS: tuple[Row[BoundRule], ...] = (row(_word_bound, "EmbedLayerNormalization", domain=MICROSOFT),)


def _normalised(statistics: int) -> ShapeRule:
    """Return the rule of a normalisation: the first output as the first input, then means and deviations."""

    def rule(asked: Question) -> list[Answer]:
        shape = asked.shape(0)
        if shape is None:
            return [(asked.dtype(0), None), *[(_FLOAT, None)] * statistics, (asked.dtype(0), None)]
        start = normalise_axis(int(asked.attributes.get("axis", -1)), len(shape))
        reduced: Answer = (_FLOAT, tuple(n if k < start else 1 for k, n in enumerate(shape)))
        return [asked.like(0), *[reduced] * statistics, asked.like(0)]

    return rule


def _embedded(asked: Question) -> list[Answer]:
    ids, words = asked.shape(0), asked.shape(2)
    if ids is None or words is None:
        return [(asked.dtype(2), None), (_INT32, None), (asked.dtype(2), None)]
    out: Answer = (asked.dtype(2), (*ids, words[1]))
    return [out, (_INT32, ids[:1]), out]


def _twice(asked: Question) -> list[Answer]:
    return [asked.like(0), asked.like(0)]


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(like_first, "BiasSoftmax", "GroupNorm", "GatedRMSNorm", "BranchwiseRMSNorm", domain=MICROSOFT),
    row(_twice, "SkipGroupNorm", domain=MICROSOFT),
    row(_normalised(2), "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
    row(_normalised(2), "LayerNormalization", domain=MICROSOFT),
    row(_normalised(2), "LayerNormalization", until=16),
    row(_normalised(1), "SimplifiedLayerNormalization"),
    row(_normalised(1), "SimplifiedLayerNormalization", domain=MICROSOFT),
    row(_embedded, "EmbedLayerNormalization", domain=MICROSOFT),
)
