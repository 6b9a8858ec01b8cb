"""How fused and quantised nodes that contract an axis compute y = x W + b: as the plain ones, with something around it.

What an activation is fused to puts out no product, so such a layer is fitted by its inputs alone. Quantised weights are
not fitted; their designs say what they read, in real numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from graphprune.ops.designs import (
    Array,
    Attributes,
    Design,
    DesignRule,
    Positions,
    conv,
    fused_attention,
    gemm,
    matmul,
)
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.registry import Row, row

Shapes = Sequence[tuple[int, ...]]

DYNAMIC = frozenset(["DynamicQuantizeLinear"])
"""Operators that choose the scale of integers at run time; real numbers are their first input."""

ADD = "Add"
"""What adds a bias behind a node that takes none."""

SCALERS = frozenset(["Cast", "Mul"])
"""What stands between a product of integers and the bias that is added to it: the way to real numbers."""


SPELLED = SCALERS | {"Sub"}
"""What reads quantised numbers where that is spelled out, each at most once."""


def fused_matmul(attributes: Attributes, shapes: Shapes, weight: int) -> Design | None:
    """`*b m k, k n -> *b m n` times a factor, either matrix transposed."""
    alpha, turned = float(attributes.get("alpha", 1.0)), bool(attributes.get("transB", 0))
    swapped = bool(attributes.get("transA", 0)) and len(shapes[0]) > 1
    plain = matmul({}, shapes, weight)
    if plain is None or not alpha or attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return None

    def rows(x: Array, positions: Positions) -> Array:
        return plain.rows(np.swapaxes(x, -1, -2) if swapped else x, positions)

    def matrix(w: Array) -> Array:
        return alpha * (w.T if turned else w)[None]

    def weights(m: Array, shape: Sequence[int]) -> Array:
        return np.ascontiguousarray(m[0].T if turned else m[0]).reshape(shape) / alpha

    key = ("turned rows",) if swapped else plain.key
    return replace(plain, axis=int(turned), key=key, rows=rows, matrix=matrix, weights=weights)


def activated(rule: DesignRule) -> DesignRule:
    """Return the rule of a node that does what another one does, and then applies a function."""

    def fused(attributes: Attributes, shapes: Shapes, weight: int) -> Design | None:
        plain = rule(attributes, shapes, weight)
        return None if plain is None else replace(plain, answers=None)

    return fused


def channels_last(rule: DesignRule, weight_too: bool) -> DesignRule:
    """Return the rule of a convolution whose data, and whose weight where that is said, has its channels last."""

    def last(attributes: Attributes, shapes: Shapes, weight: int) -> Design | None:
        if weight != 1:
            return None
        turned = [(s[0], s[-1], *s[1:-1]) if len(s) > 2 else s for s in shapes]
        plain = rule(attributes, [turned[0], turned[1] if weight_too else shapes[1]], weight)
        if plain is None:
            return None
        inside, answers = plain, plain.answers

        def rows(x: Array, positions: Positions) -> Array:
            return inside.rows(np.moveaxis(x, -1, 1), positions)

        def found(y: Array, positions: Positions) -> Array:
            assert answers is not None
            return answers(np.moveaxis(y, -1, 1), positions)

        def matrix(w: Array) -> Array:
            return inside.matrix(np.moveaxis(w, -1, 1) if weight_too else w)

        def weights(m: Array, shape: Sequence[int]) -> Array:
            if not weight_too:
                return inside.weights(m, shape)
            back = inside.weights(m, (shape[0], shape[-1], *shape[1:-1]))
            return np.ascontiguousarray(np.moveaxis(back, 1, -1))

        axis = len(shapes[1]) - 1 if weight_too else plain.axis
        return replace(
            plain, axis=axis, key=("last", *plain.key), rows=rows, answers=None if answers is None else found,
            matrix=matrix, weights=weights,
        )

    return last


# Quantised weights


def quantised(
    rule: DesignRule, weight: int, bias: int | None, integers: tuple[int | None, int | None] | None,
    units: tuple[int, ...] = (),
) -> DesignRule:
    """Return the rule of a node that does to integers what another one does to real numbers; its data is input 0."""

    def found(attributes: Attributes, shapes: Shapes, given: int) -> Design | None:
        if attributes.get("channels_last", 0):
            return None
        plain = rule(attributes, [shapes[0], shapes[weight]], 1)
        return None if plain is None else replace(
            plain, weight=weight, bias=bias, answers=None, integers=integers, units=units
        )

    return found


def dynamic_recurrence(attributes: Attributes, shapes: Shapes, weight: int) -> Design | None:
    """What the steps' inputs are multiplied with: `d i (4 h)`, quantised when it runs."""

    def matrix(w: Array) -> Array:
        return np.ascontiguousarray(w.transpose(1, 0, 2)).reshape(1, w.shape[1], -1)

    def weights(m: Array, shape: Sequence[int]) -> Array:
        return np.ascontiguousarray(m[0].reshape(shape[1], shape[0], shape[2]).transpose(1, 0, 2))

    plain = matmul({}, [shapes[0], shapes[1][1:]], 1)
    return None if plain is None else replace(plain, axis=1, answers=None, matrix=matrix, weights=weights)


DESIGNS: tuple[Row[DesignRule], ...] = (
    row(fused_matmul, "FusedMatMul", "TransposeMatMul", domain=MICROSOFT),
    row(activated(gemm), "FusedGemm", domain=MICROSOFT),
    row(activated(conv), "FusedConv", domain=MICROSOFT),
    row(channels_last(conv, True), "NhwcConv", domain=MICROSOFT),
    row(channels_last(activated(conv), False), "NhwcFusedConv", domain=MICROSOFT),
    row(quantised(conv, 3, 8, (1, 2), (1, 4)), "QLinearConv"),
    row(quantised(conv, 3, 8, (1, 2), (1, 4)), "QLinearConv", domain=MICROSOFT),
    row(quantised(matmul, 3, None, (1, 2)), "QLinearMatMul"),
    row(quantised(gemm, 3, 6, (1, 2), (1, 4)), "QGemm", domain=MICROSOFT),
    row(quantised(matmul, 1, None, (None, 2)), "MatMulInteger"),
    row(quantised(conv, 1, None, (None, 2)), "ConvInteger"),
    row(quantised(matmul, 1, 6, (2, 4)), "MatMulIntegerToFloat", domain=MICROSOFT),
    row(quantised(matmul, 1, 4, None), "DynamicQuantizeMatMul", domain=MICROSOFT),
    row(dynamic_recurrence, "DynamicQuantizeLSTM", domain=MICROSOFT),
    row(quantised(fused_attention, 1, 2, (3, 6)), "QAttention", domain=MICROSOFT),
)
