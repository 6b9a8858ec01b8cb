"""Operators that treat the indices of an axis alike and linearly: a matrix may act on them before or after."""

from __future__ import annotations

from graphprune.ops.gather import MOVERS

_PRODUCTS = frozenset(
    ["Attention", "Einsum", "FusedMatMul", "GroupQueryAttention", "MatMul", "MultiHeadAttention", "TransposeMatMul"]
)

TOGETHER = _PRODUCTS | {"Add", "Concat", "Mean", "Sub", "Sum"}
"""Of several inputs on the axis at once: as in (x + y) A = x A + y A, or where they meet in products."""

LINEAR = (
    TOGETHER
    | MOVERS
    | {
        "AveragePool", "CumSum", "Div", "GlobalAveragePool", "Mul", "Neg", "Pad", "ReduceMean", "ReduceSum", "Resize",
        "Shape", "Upsample",
    }
)  # fmt: skip
"""Of one input on the axis: the others are factors, sizes, places, weights."""
