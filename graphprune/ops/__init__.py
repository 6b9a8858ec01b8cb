"""All operator knowledge, in tables: one table per question, one row per operator.

`AXES`: which axes are the same, and which may not change. `REFITS`: which attributes and integer inputs
follow a size. `BOUNDS`: below which number indices must lie. `COSTS`: multiply-accumulates. `CONTENTS`: which contents
shapes alone tell. `SHAPES`: type and sizes of outputs where onnx has no answer.
`STORED`: which operands hold quantised weights. `BODIES`: what sizes cross the border of an operator's bodies.
`DESIGNS`: how data and weight of a node make y = x W + b.
`RESIDUALS`: which inputs are added up, and what becomes of the node without one of them.
`NOOPS`: which nodes do nothing. `FOLDS`: where a layer takes a scale of its output.
`INITIAL`, `BIASES`: how weights start before training.
`MOMENTS`, `AFFINE`, `LOOKUPS`, `FLOORS`: what a model tells of its inputs and inner values.
"""

from __future__ import annotations

from graphprune.ops import (
    attention,
    attention_sizes,
    blockwise,
    contributed,
    control_flow,
    conv,
    cuts,
    designs,
    elementwise,
    folds,
    fused,
    fused_attention,
    fused_designs,
    fused_grouped,
    fused_matmul,
    fused_norm,
    gather,
    inference,
    initial,
    losses,
    matmul,
    moe,
    movement,
    nchwc,
    noops,
    normalization,
    qlinear,
    qshapes,
    quantised_experts,
    quantization,
    reading,
    recurrent,
    reduction,
    resample,
    residual,
    shapes,
    spectral,
)
from graphprune.ops.control_flow import BodyRule
from graphprune.ops.cuts import CUTTERS
from graphprune.ops.designs import Design, DesignRule
from graphprune.ops.folds import FoldRule
from graphprune.ops.fused_designs import ADD, DYNAMIC, SCALERS, SPELLED
from graphprune.ops.gather import CARRIERS, MOVERS, PICKERS, REPEATERS, BoundRule
from graphprune.ops.inference import ShapeRule
from graphprune.ops.initial import Start, StartRule
from graphprune.ops.linear import LINEAR, TOGETHER
from graphprune.ops.matmul import MATMUL
from graphprune.ops.movement import TRANSPOSE
from graphprune.ops.noops import NoopRule, Sight
from graphprune.ops.qlinear import ROUNDERS
from graphprune.ops.quantised_experts import QUANTISED
from graphprune.ops.quantization import ROUND_TRIP
from graphprune.ops.reading import AffineRule, FloorRule, LookupRule, MomentRule
from graphprune.ops.registry import AxisRule, CostRule, Op, Operand, Table
from graphprune.ops.residual import IDENTITY, MULTIPLY, PASSING, Instead, Residual, ResidualRule
from graphprune.ops.shapes import FILLERS, RANDOM, ContentRule
from graphprune.ops.sizes import RefitRule
from graphprune.ops.stored import StoredRule

AXES: Table[AxisRule] = Table(
    "axes",
    [
        *elementwise.AXES,
        *conv.AXES,
        *matmul.AXES,
        *normalization.AXES,
        *reduction.AXES,
        *movement.AXES,
        *cuts.AXES,
        *resample.AXES,
        *gather.AXES,
        *attention.AXES,
        *control_flow.AXES,
        *recurrent.AXES,
        *quantization.AXES,
        *qlinear.AXES,
        *blockwise.AXES,
        *shapes.AXES,
        *losses.AXES,
        *spectral.AXES,
        *fused.AXES,
        *fused_norm.AXES,
        *fused_matmul.AXES,
        *fused_attention.AXES,
        *fused_grouped.AXES,
        *contributed.AXES,
        *nchwc.AXES,
        *moe.AXES,
        *quantised_experts.AXES,
    ],
)
REFITS: Table[RefitRule] = Table(
    "refits",
    [
        *conv.REFITS,
        *normalization.REFITS,
        *movement.REFITS,
        *cuts.REFITS,
        *resample.REFITS,
        *gather.REFITS,
        *attention.REFITS,
        *recurrent.REFITS,
        *quantization.REFITS,
        *qlinear.REFITS,
        *blockwise.REFITS,
        *shapes.REFITS,
        *fused_norm.REFITS,
        *fused_matmul.REFITS,
        *fused_attention.REFITS,
        *fused_grouped.REFITS,
        *contributed.REFITS,
        *nchwc.REFITS,
    ],
)
BOUNDS: Table[BoundRule] = Table(
    "bounds", [*gather.BOUNDS, *recurrent.BOUNDS, *fused_norm.BOUNDS, *contributed.BOUNDS, *qlinear.BOUNDS]
)
COSTS: Table[CostRule] = Table(
    "costs",
    [
        *conv.COSTS,
        *matmul.COSTS,
        *attention.COSTS,
        *recurrent.COSTS,
        *quantization.COSTS,
        *qlinear.COSTS,
        *blockwise.COSTS,
        *fused_matmul.COSTS,
        *attention_sizes.COSTS,
        *nchwc.COSTS,
        *moe.COSTS,
        *quantised_experts.COSTS,
    ],
)
CONTENTS: Table[ContentRule] = Table("contents", [*shapes.CONTENTS])
DESIGNS: Table[DesignRule] = Table("designs", [*designs.DESIGNS, *fused_designs.DESIGNS])
FOLDS: Table[FoldRule] = Table("scales behind layers", [*folds.FOLDS])
FLOORS: Table[FloorRule] = Table("floors", [*reading.FLOORS])
MOMENTS: Table[MomentRule] = Table("moments", [*reading.MOMENTS])
AFFINE: Table[AffineRule] = Table("affine maps", [*reading.AFFINE])
INITIAL: Table[StartRule] = Table("how weights start", [*initial.INITIAL])
BIASES: Table[StartRule] = Table("how what is added behind a layer starts", [*initial.AFTER_LAYERS])
LOOKUPS: Table[LookupRule] = Table("lookups", [*reading.LOOKUPS])
BODIES: Table[BodyRule] = Table("bodies", [*control_flow.BODIES])
NOOPS: Table[NoopRule] = Table("nodes that do nothing", [*noops.NOOPS])
RESIDUALS: Table[ResidualRule] = Table("residual sums", [*residual.RESIDUALS])
STORED: Table[StoredRule] = Table(
    "quantised weights",
    [*quantization.STORED, *qlinear.STORED, *blockwise.STORED, *quantised_experts.STORED],
)
SHAPES: Table[ShapeRule] = Table(
    "shapes",
    [
        *inference.SHAPES, *recurrent.SHAPES,
        *attention.SHAPES,
        *qshapes.SHAPES,
        *fused.SHAPES,
        *fused_norm.SHAPES,
        *fused_matmul.SHAPES,
        *attention_sizes.SHAPES,
        *contributed.SHAPES,
        *nchwc.SHAPES,
        *moe.SHAPES,
        *quantised_experts.SHAPES,
    ],
)

__all__ = [
    "ADD",
    "AFFINE",
    "AXES",
    "BIASES",
    "BODIES",
    "BOUNDS",
    "CARRIERS",
    "CONTENTS",
    "COSTS",
    "CUTTERS",
    "DESIGNS",
    "DYNAMIC",
    "FILLERS",
    "FLOORS",
    "FOLDS",
    "IDENTITY",
    "INITIAL",
    "LINEAR",
    "LOOKUPS",
    "MATMUL",
    "MOMENTS",
    "MOVERS",
    "MULTIPLY",
    "NOOPS",
    "PASSING",
    "PICKERS",
    "QUANTISED",
    "RANDOM",
    "REFITS",
    "REPEATERS",
    "RESIDUALS",
    "ROUNDERS",
    "ROUND_TRIP",
    "SCALERS",
    "SHAPES",
    "SPELLED",
    "STORED",
    "TOGETHER",
    "TRANSPOSE",
    "AxisRule",
    "BodyRule",
    "CostRule",
    "Design",
    "DesignRule",
    "Instead",
    "NoopRule",
    "Op",
    "Operand",
    "RefitRule",
    "Residual",
    "ResidualRule",
    "ShapeRule",
    "Sight",
    "Start",
    "StartRule",
    "StoredRule",
    "Table",
]
