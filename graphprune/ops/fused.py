"""Element-wise operators that onnxruntime fuses, domain com.microsoft.

Formulas and layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import Equation, Pin, Role, Same, Use, concat
from graphprune.ops.elementwise import unary
from graphprune.ops.inference import Answer, Question, ShapeRule, broadcast_first, like_first
from graphprune.ops.registry import AxisRule, Op, Row, broadcast, pin_all, row, same_axes

MICROSOFT = "com.microsoft"
_BOOL, _UINT32 = 9, 12
_BITS = 32


def added(op: Op) -> Iterator[Equation]:
    """All inputs broadcast to the output, which has the shape of the first."""
    yield from broadcast(op, range(len(op.inputs)), op.y())


def scaled(op: Op) -> Iterator[Equation]:
    """The output has the axes of the first input; a second one is a number."""
    yield from same_axes(op.x(), op.y())
    yield from (Use(0, a, Role.CARRIED) for a in op.x().axes)


def split_gelu(op: Op) -> Iterator[Equation]:
    """`*b (h + h), (h + h) -> *b h`: the left half times the activated right half."""
    x, y = op.x(), op.y()
    half = y.axes[-1]
    yield from (Same(a, b) for a, b in zip(x.axes[:-1], y.axes[:-1], strict=True))
    for i in (0, 1):
        yield Same(op.x(i).axes[-1], concat(half, half))
        yield Use(i, op.x(i).axes[-1], Role.PRODUCED if i else Role.CARRIED)


def bias_dropout(op: Op) -> Iterator[Equation]:
    """Data, bias and residual broadcast to the output and to the mask of what was dropped."""
    y = op.y()
    yield from broadcast(op, range(3), y)
    mask = op.output(1)
    if mask is not None:
        yield from (Same(a, b) for a, b in zip(y.axes, mask.axes, strict=True))


def bitmask_dropout(op: Op) -> Iterator[Equation]:
    """The output has the axes of the data; a mask packed into bits pins them."""
    if op.output(1) is not None:
        yield from pin_all(op, "a mask packed into bits")
        return
    yield from scaled(op)


def bitmask_bias_dropout(op: Op) -> Iterator[Equation]:
    """Data, bias and residual broadcast to the output; a mask packed into bits pins them."""
    if op.output(1) is not None:
        yield from pin_all(op, "a mask packed into bits")
        return
    yield from bias_dropout(op)


def complex_product(op: Op) -> Iterator[Equation]:
    """Inputs broadcast to the output; real and imaginary parts lie side by side on the last axis."""
    y = op.y()
    yield from broadcast(op, (0, 1), y)
    yield Pin(y.axes[-1], "real and imaginary parts")


AXES: tuple[Row[AxisRule], ...] = (
    row(unary, "Gelu", "QuickGelu", domain=MICROSOFT),
    row(scaled, "ScaledSiLU", domain=MICROSOFT),
    row(added, "BiasGelu", "FastGelu", "BiasAdd", "GatedAdd", domain=MICROSOFT),
    row(split_gelu, "BiasSplitGelu", domain=MICROSOFT),
    row(bias_dropout, "BiasDropout", domain=MICROSOFT),
    row(bitmask_dropout, "BitmaskDropout", domain=MICROSOFT),
    row(bitmask_bias_dropout, "BitmaskBiasDropout", domain=MICROSOFT),
    row(complex_product, "ComplexMul", "ComplexMulConj", domain=MICROSOFT),
)


def _halved(asked: Question) -> list[Answer]:
    shape = asked.shape(0)
    return [(asked.dtype(0), None if shape is None else (*shape[:-1], shape[-1] // 2))]


def _dropped(packed: bool) -> ShapeRule:
    def rule(asked: Question) -> list[Answer]:
        shape = asked.shape(0)
        if packed:
            mask: Answer = (_UINT32, None if shape is None else (-(-prod(shape) // _BITS),))
        else:
            mask = (_BOOL, shape)
        return [asked.like(0), mask]

    return rule


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(
        like_first, "Gelu", "QuickGelu", "FastGelu", "BiasGelu", "BiasAdd", "ScaledSiLU", "GatedAdd", domain=MICROSOFT
    ),
    row(_halved, "BiasSplitGelu", domain=MICROSOFT),
    row(_dropped(False), "BiasDropout", domain=MICROSOFT),
    row(_dropped(True), "BitmaskDropout", "BitmaskBiasDropout", domain=MICROSOFT),
    row(broadcast_first(0, 1), "ComplexMul", "ComplexMulConj", domain=MICROSOFT),
)
