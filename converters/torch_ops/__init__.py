"""Torch rules: one table, one row per operator and range of opsets; and which constants training may change."""

from __future__ import annotations

from graphprune.converters.torch_ops import (
    attention,
    control_flow,
    conv,
    elementwise,
    frozen,
    fused,
    fused_attention,
    gather,
    matmul,
    movement,
    normalization,
    recurrent,
    reduction,
    sampling,
    shapes,
    spectral,
)
from graphprune.converters.torch_ops.registry import TorchRule
from graphprune.ops.registry import Table

TORCH: Table[TorchRule] = Table(
    "torch rules",
    (
        *elementwise.RULES, *matmul.RULES, *conv.RULES, *sampling.RULES, *movement.RULES, *gather.RULES,
        *shapes.RULES, *reduction.RULES, *normalization.RULES, *recurrent.RULES, *attention.RULES,
        *control_flow.RULES, *spectral.RULES, *fused.RULES, *fused_attention.RULES, *frozen.RULES,
    ),
)

__all__ = ["TORCH"]
