"""Which inputs of operators are weights, which are never trained: tables, bounds, sizes, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphprune.converters.torch_ops.registry import MICROSOFT
from graphprune.ops.registry import Table, row

EVERY = tuple(range(32))
"""All inputs of an operator."""

WEIGHTS: Table[tuple[int, ...]] = Table(
    "weights, trained whatever their size",
    (
        row((1, 2), "Conv", "ConvTranspose", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        row((1, 2), "BatchNormalization", "DeformConv"),
        row((0, 1, 2), "Gemm"),
        row((0, 1), "MatMul"),
        row((1,), "PRelu", "RMSNormalization", "SimplifiedLayerNormalization"),
        row((1, 2, 3, 7), "LSTM"),
        row((1, 2, 3), "GRU", "RNN"),
        row((1, 2), "LayerNormalization", "NhwcConv", "FusedConv", "NhwcFusedConv", domain=MICROSOFT),
        row((1, 2), "Attention", "GroupNorm", "GemmFastGelu", domain=MICROSOFT),
        row((1,), "BiasGelu", "FastGelu", "BiasAdd", "BiasSplitGelu", "BiasDropout", domain=MICROSOFT),
        row((1,), "SimplifiedLayerNormalization", domain=MICROSOFT),
        row((0, 1), "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT),
        row((0, 1, 2), "FusedGemm", domain=MICROSOFT),
        row((2, 3, 4), "SkipLayerNormalization", domain=MICROSOFT),
        row((2, 3), "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
        row((2, 3, 4, 5, 6), "EmbedLayerNormalization", domain=MICROSOFT),
        row((3,), "MultiHeadAttention", domain=MICROSOFT),
        row((11,), "GroupQueryAttention", domain=MICROSOFT),
    ),
)

STATISTICS: Table[tuple[int, ...]] = Table("running statistics", (row((3, 4), "BatchNormalization"),))

FIXED: Table[tuple[int, ...]] = Table(
    "inputs that are never trained",
    (
        row(EVERY, "Cos", "Sin", "Range", "ConstantOfShape", "Shape", "Size", "NonMaxSuppression", "Unique", "EyeLike"),
        row(EVERY, "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin", "NonZero"),
        row(EVERY, "Ceil", "Floor", "Round", "Sign", "IsNaN", "IsInf", "Bernoulli", "Multinomial", "MelWeightMatrix"),
        row(EVERY, "If", "Loop", "OneHot"),
        row((0,), "CastLike"),
        row((1,), "Pow", "Dropout", "TopK", "GridSample", "RoiAlign", "CumSum", "CumProd", "Mod", "MaxUnpool"),
        row((1, 2), "Clip", "RotaryEmbedding", "Trilu"),
        row((1, 2, 3), "Resize", "Upsample", "Pad", "DFT", "STFT"),
        row((4, 5, 6), "LSTM", "GRU", "RNN"),
        row((3,), "Attention"),
        row((2, 3), "RotaryEmbedding", domain=MICROSOFT),
        row((3, 4, 5), "Attention", domain=MICROSOFT),
        row((4, 5), "MultiHeadAttention", domain=MICROSOFT),
        row((3, 4, 5, 6, 7, 8, 10), "GroupQueryAttention", domain=MICROSOFT),
    ),
)

LOOKED_UP: Table[int] = Table(
    "tables that are looked up", (row(0, "Gather"), row(0, "TorchEmbedding", domain=MICROSOFT))
)

CONTRACTED: Table[Mapping[int, int]] = Table(
    "axis that a matrix product sums over, by input", (row({0: -1, 1: -2}, "MatMul"),)
)

SCALED: Table[bool] = Table("factors", (row(True, "Mul", "Div"),))

NORMS: Table[bool] = Table(
    "normalisations",
    (
        row(True, "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        row(True, "RMSNormalization", "SimplifiedLayerNormalization"),
        row(True, "LayerNormalization", "SkipLayerNormalization", "GroupNorm", domain=MICROSOFT),
        row(True, "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
    ),
)


@dataclass(frozen=True)
class Layer:
    """Which inputs of a layer are its weight and its bias, and the weight's axis of outputs, axis 1 of the values."""

    weight: int = 1
    bias: int = 2
    axis: int = 0


FOLDED: Table[Layer] = Table("layers that exporters fold batch normalisations into", (row(Layer(), "Conv"),))

ANGLES: Table[bool] = Table("what turns angles into numbers", (row(True, "Cos", "Sin"),))
