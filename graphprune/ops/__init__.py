"""All operator knowledge, in tables: one table per question, one row per operator.

`AXES`: which axes are the same, and which may not change. `REFITS`: which attributes and integer inputs
follow a size. `BOUNDS`: below which number indices must lie. `COSTS`: multiply-accumulates. `CONTENTS`: which contents
shapes alone tell. `SHAPES`: type and sizes of outputs where onnx has no answer.
`STORED`: which operands hold quantised weights.
"""

from __future__ import annotations

from graphprune.ops import (
    attention,
    conv,
    cuts,
    elementwise,
    gather,
    inference,
    matmul,
    movement,
    normalization,
    quantization,
    recurrent,
    reduction,
    resample,
    shapes,
)
from graphprune.ops.gather import CARRIERS, PICKERS, REPEATERS, BoundRule
from graphprune.ops.inference import ShapeRule
from graphprune.ops.registry import AxisRule, CostRule, Op, Operand, Table
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
        *recurrent.AXES,
        *shapes.AXES,
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
        *shapes.REFITS,
    ],
)
BOUNDS: Table[BoundRule] = Table("bounds", [*gather.BOUNDS, *recurrent.BOUNDS])
COSTS: Table[CostRule] = Table("costs", [*conv.COSTS, *matmul.COSTS, *attention.COSTS, *recurrent.COSTS])
CONTENTS: Table[ContentRule] = Table("contents", [*shapes.CONTENTS])
STORED: Table[StoredRule] = Table("quantised weights", [*quantization.STORED])
SHAPES: Table[ShapeRule] = Table("shapes", [*inference.SHAPES])

__all__ = [
    "AXES",
    "BOUNDS",
    "CARRIERS",
    "CONTENTS",
    "COSTS",
    "FILLERS",
    "PICKERS",
    "REPEATERS",
    "RANDOM",
    "REFITS",
    "SHAPES",
    "STORED",
    "AxisRule",
    "CostRule",
    "Op",
    "Operand",
    "RefitRule",
    "ShapeRule",
    "StoredRule",
    "Table",
]
