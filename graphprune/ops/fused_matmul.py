"""Contractions with something fused before or behind them, and convolutions with channels last, domain com.microsoft.

Formulas and layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeVar

from graphprune.axes import Equation, Role, Same, Use
from graphprune.ops.conv import conv_cost
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.inference import Answer, Question, ShapeRule
from graphprune.ops.matmul import gemm, gemm_cost, matmul, matmul_cost
from graphprune.ops.registry import AxisRule, CostRule, Op, Operand, Row, ShapeOf, broadcast, line, pin_all, row
from graphprune.ops.sizes import RefitRule, attributes

T = TypeVar("T")

_ELEMENTWISE = frozenset(
    [
        "", "affine", "clip", "elu", "fastgelu", "gelu", "hardsigmoid", "hardswish", "identity", "leakyrelu", "relu",
        "scaledtanh", "selu", "sigmoid", "softplus", "softsign", "swish", "tanh", "thresholdedrelu",
    ]
)
_POSITIONS = {
    "s": "positions of a convolution", "k": "kernel positions", "t": "positions of a convolution",
    "n": "samples of a batch",
}
_POOLED = {"s": "positions of a pooling window", "t": "positions of a pooling window"}

_fused_conv = line(
    "n (g i) *s, (g o) i *k, (g o)?, n (g o) *t? -> n (g o) *t", sizes={"g": "group"}, pins=_POSITIONS
)
_nhwc_conv = line("n *s (g i), (g o) *k i, (g o)? -> n *t (g o)", sizes={"g": "group"}, pins=_POSITIONS)
_nhwc_fused_conv = line(
    "n *s (g i), (g o) i *k, (g o)?, n *t (g o)? -> n *t (g o)", sizes={"g": "group"}, pins=_POSITIONS
)
nhwc_pool = line("n *s c -> n *t c", pins=_POOLED)


def turned(items: Sequence[T], attributes: Mapping[str, Any], side: str) -> tuple[T, ...]:
    """Return sizes or axes of a factor as the multiplication sees them; `side` is A or B.

    >>> turned(("m", "b", "k"), {"transA": 1, "transBatchA": 1}, "A")
    ('b', 'k', 'm')
    """
    out = list(items)
    if len(out) < 2:
        return tuple(out)
    if attributes.get(f"transBatch{side}", 0):
        out = [*out[1:-1], out[0], out[-1]]
    if attributes.get(f"trans{side}", 0):
        out[-2:] = out[:-3:-1]
    return tuple(out)


def _plain(op: Op) -> Op:
    """Return the node as a MatMul of factors that are turned already."""

    def seen(i: int, side: str) -> Operand:
        x = op.x(i)
        axes, shape = turned(x.axes, op.attributes, side), turned(x.shape, op.attributes, side)
        return replace(x, axes=axes, shape=shape)

    return replace(op, inputs=(seen(0, "A"), seen(1, "B"), *op.inputs[2:]))


def mixes(op: Op) -> bool:
    """Return whether the fused activation may mix slots, as softmax does."""
    return str(op.attr("activation", "")).lower() not in _ELEMENTWISE


def fused_matmul(op: Op) -> Iterator[Equation]:
    """`*b m k, *b k n -> *b m n`, either factor transposed, and its first axis moved behind its batches."""
    if mixes(op):
        yield from pin_all(op, "the activation may mix slots")
        return
    yield from matmul(_plain(op))


def fused_gemm(op: Op) -> Iterator[Equation]:
    """`m k, k n, (m n)? -> m n`, either matrix transposed; then an activation."""
    if mixes(op):
        yield from pin_all(op, "the activation may mix slots")
        return
    yield from gemm(op)


def matmul_gelu(op: Op) -> Iterator[Equation]:
    """`*b m k, k n, n? -> *b m n`."""
    yield from matmul(op)
    yield from broadcast(op, [2], op.y(), Role.PRODUCED)


def fused_conv(op: Op) -> Iterator[Equation]:
    """`n (g i) *s, (g o) i *k, (g o)?, n (g o) *t? -> n (g o) *t`: the last input is added before the activation."""
    if mixes(op):
        yield from pin_all(op, "the activation may mix slots")
        return
    yield from _fused_conv(op)


def nhwc_conv(op: Op) -> Iterator[Equation]:
    """`n *s (g i), (g o) *k i, (g o)? -> n *t (g o)`."""
    if op.x(1).shape[-1] * op.attr("group", 1) != op.x().shape[-1]:
        yield from pin_all(op, "the channels are not the last axis of the weight")
        return
    yield from _nhwc_conv(op)


def nhwc_fused_conv(op: Op) -> Iterator[Equation]:
    """`n *s (g i), (g o) i *k, (g o)?, n *t (g o)? -> n *t (g o)`."""
    if mixes(op) or op.x(1).shape[1] * op.attr("group", 1) != op.x().shape[-1]:
        yield from pin_all(op, "the activation or the layout of the weight is not known")
        return
    yield from _nhwc_fused_conv(op)


def distances(op: Op) -> Iterator[Equation]:
    """`m k, n k -> m n`: a distance between any two rows."""
    a, b, y = op.x(0), op.x(1), op.y()
    yield Same(a.axes[1], b.axes[1])
    yield from (Use(i, op.x(i).axes[1], Role.NORMALISED) for i in (0, 1))
    for i, (operand, out) in enumerate(zip((a, b), y.axes, strict=True)):
        yield Same(operand.axes[0], out)
        yield Use(i, operand.axes[0], Role.CARRIED if i == 0 else Role.PRODUCED)


AXES: tuple[Row[AxisRule], ...] = (
    row(fused_matmul, "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT),
    row(fused_gemm, "FusedGemm", domain=MICROSOFT),
    row(matmul_gelu, "GemmFastGelu", domain=MICROSOFT),
    row(fused_conv, "FusedConv", domain=MICROSOFT),
    row(nhwc_conv, "NhwcConv", domain=MICROSOFT),
    row(nhwc_fused_conv, "NhwcFusedConv", domain=MICROSOFT),
    row(nhwc_pool, "NhwcMaxPool", domain=MICROSOFT),
    row(distances, "CDist", domain=MICROSOFT),
)

REFITS: tuple[Row[RefitRule], ...] = (
    row(attributes(group="g"), "FusedConv", "NhwcConv", "NhwcFusedConv", domain=MICROSOFT),
)


def fused_matmul_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the length of the contracted axis."""
    return prod(shape(op.y())) * turned(shape(op.x()), op.attributes, "A")[-1]


def distances_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the length of the rows."""
    return prod(shape(op.y())) * shape(op.x())[1]


COSTS: tuple[Row[CostRule], ...] = (
    row(fused_matmul_cost, "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT),
    row(gemm_cost, "FusedGemm", domain=MICROSOFT),
    row(matmul_cost, "GemmFastGelu", domain=MICROSOFT),
    row(conv_cost, "FusedConv", "NhwcConv", "NhwcFusedConv", domain=MICROSOFT),
    row(distances_cost, "CDist", domain=MICROSOFT),
)


def _multiplied(asked: Question) -> list[Answer]:
    a, b = asked.shape(0), asked.shape(1)
    if a is None or b is None:
        return [(asked.dtype(0), None)]
    a, b = turned(a, asked.attributes, "A"), turned(b, asked.attributes, "B")
    batch = _broadcast(a[:-2], b[:-2])
    return [(asked.dtype(0), (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ())))]


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(n if m == 1 else m for m, n in pairs)


def _gemm(asked: Question) -> list[Answer]:
    a, b = asked.shape(0), asked.shape(1)
    if a is None or b is None:
        return [(asked.dtype(0), None)]
    rows = a[1] if asked.attributes.get("transA", 0) else a[0]
    return [(asked.dtype(0), (rows, b[0] if asked.attributes.get("transB", 0) else b[1]))]


def _rows(asked: Question) -> list[Answer]:
    a, b = asked.shape(0), asked.shape(1)
    return [(asked.dtype(0), None if a is None or b is None else (a[0], b[0]))]


def _window(asked: Question, kernel: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return at how many positions a window of this kernel fits."""
    rank, given = len(sizes), asked.attributes
    strides = list(given.get("strides") or [1] * rank)
    dilations = list(given.get("dilations") or [1] * rank)
    pads = list(given.get("pads") or [0] * 2 * rank)
    mode = given.get("auto_pad", "NOTSET")
    text = mode.decode() if isinstance(mode, bytes) else str(mode)
    if text.startswith("SAME"):
        return tuple(-(-n // s) for n, s in zip(sizes, strides, strict=True))
    up = int(bool(given.get("ceil_mode", 0)))
    return tuple(
        (n + pads[i] + pads[i + rank] - ((kernel[i] - 1) * dilations[i] + 1) + up * (strides[i] - 1)) // strides[i] + 1
        for i, n in enumerate(sizes)
    )


def convolved(last: bool, weight_last: bool) -> ShapeRule:
    """Return the rule of a convolution whose data, and whose weight, has its channels last or second."""

    def rule(asked: Question) -> list[Answer]:
        x, w = asked.shape(0), asked.shape(1)
        if x is None or w is None:
            return [(asked.dtype(0), None)]
        sizes = x[1:-1] if last else x[2:]
        out = _window(asked, w[1:-1] if weight_last else w[2:], sizes)
        return [(asked.dtype(0), (x[0], *out, w[0]) if last else (x[0], w[0], *out))]

    return rule


def pooled(last: bool) -> ShapeRule:
    """Return the rule of pooling of data with its channels last or second."""

    def rule(asked: Question) -> list[Answer]:
        x, kernel = asked.shape(0), list(asked.attributes["kernel_shape"])
        if x is None:
            return [(asked.dtype(0), None)]
        out = _window(asked, kernel, x[1:-1] if last else x[2:])
        return [(asked.dtype(0), (x[0], *out, x[-1]) if last else (*x[:2], *out))]

    return rule


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(
        _multiplied, "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "GemmFastGelu", domain=MICROSOFT
    ),
    row(_gemm, "FusedGemm", domain=MICROSOFT),
    row(convolved(False, False), "FusedConv", domain=MICROSOFT),
    row(convolved(True, True), "NhwcConv", domain=MICROSOFT),
    row(convolved(True, False), "NhwcFusedConv", domain=MICROSOFT),
    row(pooled(True), "NhwcMaxPool", domain=MICROSOFT),
    row(_rows, "CDist", domain=MICROSOFT),
)
