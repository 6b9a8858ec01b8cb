"""Convolutions, pooling, and operators that sample positions of feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import Equation
from graphprune.ops.registry import AxisRule, CostRule, Op, Row, ShapeOf, line, pin_all, row
from graphprune.ops.sizes import RefitRule, attributes

_CONV_PINS = {
    "s": "positions of a convolution",
    "k": "kernel positions",
    "t": "positions of a convolution",
    "n": "samples of a batch",
}
_POOL_PINS = {"s": "positions of a pooling window", "t": "positions of a pooling window"}

conv = line("n (g i) *s, (g o) i *k, (g o)? -> n (g o) *t", sizes={"g": "group"}, pins=_CONV_PINS)
conv_transpose = line("n (g i) *s, (g i) o *k, (g o)? -> n (g o) *t", sizes={"g": "group"}, pins=_CONV_PINS)
pool = line("n c *s -> n c *t, n c *t", pins=_POOL_PINS)
global_pool = line("n c *s -> n c *u", pins={"s": "positions that are pooled"}, normalised="s")
deform = line(
    "n (g i) *s, (g o) i *k, n f *t, (g o)?, n m *t -> n (g o) *t",
    sizes={"g": "group"},
    pins={**_CONV_PINS, "f": "sampling offsets", "m": "sampling masks"},
)
grid_sample = line(
    "n c *s, n *g -> n c *t",
    pins={"n": "samples of a batch", "s": "sampled positions", "g": "a sampling grid", "t": "sampled positions"},
)
roi = line(
    "n c *s, r k, b? -> r c *t",
    pins={"n": "samples of a batch", "s": "sampled positions", "r": "regions", "k": "regions", "b": "regions",
          "t": "sampled positions"},
)
col2im = line(
    "n (c k) l, d, b -> n c *s",
    sizes={"k": lambda op: prod(op.ints(2, "") or ())},
    pins={"k": "kernel positions", "l": "positions", "d": "a size", "b": "a size", "s": "positions"},
)


def max_pool(op: Op) -> Iterator[Equation]:
    """As other pooling; indices, where asked for, count through samples, channels and positions."""
    yield from pool(op)
    if op.output(1) is not None:
        yield from pin_all(op, "positions are indexed in the flattened input")


def deform_conv(op: Op) -> Iterator[Equation]:
    """As a convolution, where one set of offsets serves all channels."""
    if op.attr("offset_group", 1) != 1:
        yield from pin_all(op, "sampling offsets differ between groups of channels")
        return
    yield from deform(op)


AXES: tuple[Row[AxisRule], ...] = (
    row(conv, "Conv"),
    row(conv_transpose, "ConvTranspose"),
    row(deform_conv, "DeformConv"),
    row(max_pool, "MaxPool"),
    row(pool, "AveragePool", "LpPool"),
    row(global_pool, "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    row(grid_sample, "GridSample"),
    row(roi, "RoiAlign", "MaxRoiPool"),
    row(col2im, "Col2Im"),
)

REFITS: tuple[Row[RefitRule], ...] = (row(attributes(group="g"), "Conv", "ConvTranspose", "DeformConv"),)


def conv_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the weights that each of them sums."""
    return prod(shape(op.y())) * prod(shape(op.x(1))[1:])


def conv_transpose_cost(op: Op, shape: ShapeOf) -> int:
    """Input elements times the weights that each of them is spread by."""
    return prod(shape(op.x())) * prod(shape(op.x(1))[1:])


COSTS: tuple[Row[CostRule], ...] = (
    row(conv_cost, "Conv", "DeformConv"),
    row(conv_transpose_cost, "ConvTranspose"),
)
