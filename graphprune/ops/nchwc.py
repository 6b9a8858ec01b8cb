"""Convolutions in blocks of channels, domain com.microsoft.nchwc: what onnxruntime saves after all optimisation.

A weight keeps its shape `o i *k`, and lies in memory as `o/B i/B *k B B`, with B = 8 or 16 by the processor that
optimised the model: https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/nchwc_transformer.cc.
So output channels are rows of the weight in whole blocks of 16, which is right for either; input channels are none.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.conv import conv_cost, global_pool, pool
from graphprune.ops.fused_matmul import convolved, pooled
from graphprune.ops.inference import Answer, Question, ShapeRule
from graphprune.ops.registry import AxisRule, CostRule, Op, Row, pin_all, row
from graphprune.ops.sizes import Change, RefitRule, SetAttribute, Shrunk, attributes

NCHWC = "com.microsoft.nchwc"
_BLOCK = 16
_MIXED = "a weight whose blocks mix input channels in memory"
_WHERE = "positions of a convolution"
_SUM = 3


def _blocks(size: int) -> tuple[Axis, Axis] | None:
    """Return how many blocks there are, and a block."""
    return None if size % _BLOCK else (fresh(size // _BLOCK), fresh(_BLOCK))


def conv_in_blocks(op: Op) -> Iterator[Equation]:
    """`n i *s, (o [16]) i *k, (o [16])?, n (o [16]) *t? -> n (o [16]) *t`, or one input channel for each output."""
    x, w, y = op.x(0), op.x(1), op.y()
    group = op.attr("group", 1)
    apart = group == w.shape[0] == x.shape[1] and w.shape[1] == 1
    made = _blocks(w.shape[0])
    if made is None or (group != 1 and not apart):
        yield from pin_all(op, _MIXED)
        return
    out, block = product(*made), made[1]
    yield Pin(block, f"channels lie in blocks of {_BLOCK}")
    yield Same(w.axes[0], out)
    yield Use(1, w.axes[0], Role.PRODUCED)
    if apart:
        yield Same(x.axes[1], out)
        yield Use(0, x.axes[1], Role.CARRIED)
        yield Letter("g", w.axes[0])
    else:
        yield Pin(x.axes[1], _MIXED)
        yield Pin(w.axes[1], _MIXED)
    yield from (Pin(a, _WHERE) for a in (*x.axes[2:], *w.axes[2:], *y.axes[2:]))
    yield Same(x.axes[0], y.axes[0])
    yield Same(y.axes[1], out)
    bias, total = op.input(2), op.input(_SUM)
    if bias is not None:
        yield Same(bias.axes[0], out)
        yield Use(2, bias.axes[0], Role.PRODUCED)
    if total is not None:
        yield from (Same(a, b) for a, b in zip(total.axes, y.axes, strict=True) if a is not UNIT)
        yield Use(_SUM, total.axes[1], Role.CARRIED)


def reordered(op: Op) -> Iterator[Equation]:
    """Channels go into blocks or come out of them, second or last; what is filled up to whole blocks stays."""
    x, y = op.x(), op.y()
    last = bool(op.attr("channels_last", 0))
    entering = op.type.endswith("Input")
    plain, blocked = (x, y) if entering else (y, x)
    axes = (plain.axes[0], plain.axes[-1], *plain.axes[1:-1]) if last else plain.axes
    made = _blocks(blocked.shape[1])
    if made is None or axes[1].size != blocked.shape[1]:
        yield from pin_all(op, "channels that are filled up to whole blocks")
        return
    yield Pin(made[1], f"channels lie in blocks of {_BLOCK}")
    yield Same(blocked.axes[1], product(*made))
    for a, b in zip(axes, blocked.axes, strict=True):
        yield Same(a, b)
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)
    yield Letter("c", blocked.axes[1])


def refit_reordered(op: Op, now: Shrunk) -> Iterator[Change]:
    """The number of channels that come out follows."""
    if op.attr("channels") is not None and "c" in now.letters:
        yield SetAttribute("channels", now.size(now.letters["c"]))


AXES: tuple[Row[AxisRule], ...] = (
    row(conv_in_blocks, "Conv", domain=NCHWC),
    row(reordered, "ReorderInput", "ReorderOutput", domain=NCHWC),
    row(pool, "MaxPool", "AveragePool", "Upsample", domain=NCHWC),
    row(global_pool, "GlobalAveragePool", "GlobalMaxPool", domain=NCHWC),
)
REFITS: tuple[Row[RefitRule], ...] = (
    row(attributes(group="g"), "Conv", domain=NCHWC),
    row(refit_reordered, "ReorderOutput", domain=NCHWC),
)
COSTS: tuple[Row[CostRule], ...] = (row(conv_cost, "Conv", domain=NCHWC),)


def _entered(asked: Question) -> list[Answer]:
    """How far channels are filled up depends on the processor, where they are no multiple of 16."""
    x = asked.shape(0)
    if x is None:
        return [(asked.dtype(0), None)]
    if asked.attributes.get("channels_last", 0):
        x = (x[0], x[-1], *x[1:-1])
    return [(asked.dtype(0), None if x[1] % _BLOCK else x)]


def _left(asked: Question) -> list[Answer]:
    x = asked.shape(0)
    if x is None:
        return [(asked.dtype(0), None)]
    channels = int(asked.attributes["channels"])
    return [(asked.dtype(0), (x[0], *x[2:], channels) if asked.attributes.get("channels_last", 0) else
             (x[0], channels, *x[2:]))]


def _to_one(asked: Question) -> list[Answer]:
    x = asked.shape(0)
    return [(asked.dtype(0), None if x is None else (*x[:2], *[1] * (len(x) - 2)))]


def _grown(asked: Question) -> list[Answer]:
    x = asked.shape(0)
    scales = asked.attributes.get("scales") or [1] * len(x or ())
    return [(asked.dtype(0), None if x is None else tuple(n * int(s) for n, s in zip(x, scales, strict=True)))]


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(convolved(False, False), "Conv", domain=NCHWC),
    row(_entered, "ReorderInput", domain=NCHWC),
    row(_left, "ReorderOutput", domain=NCHWC),
    row(pooled(False), "MaxPool", "AveragePool", domain=NCHWC),
    row(_to_one, "GlobalAveragePool", "GlobalMaxPool", domain=NCHWC),
    row(_grown, "Upsample", domain=NCHWC),
)
