"""The axis algebra: expressions over dims, equations between them, their notation and their solver.

An axis of a value is an expression over dims; operators only say which expressions are equal, and one
solver finds the dims. This room imports nothing else of graphprune.
"""

from graphprune.axes.equations import Equation, Follow, Free, Least, Origin, Pin, Role, Same, Use
from graphprune.axes.expr import (
    UNIT,
    ZERO,
    Axis,
    Dim,
    Product,
    Sum,
    concat,
    fresh,
    keep,
    kept_size,
    leaves,
    owners,
    product,
    reduce,
    slots,
)
from graphprune.axes.notation import show
from graphprune.axes.solve import Solution, solve

__all__ = [
    "UNIT",
    "ZERO",
    "Axis",
    "Dim",
    "Equation",
    "Follow",
    "Free",
    "Least",
    "Origin",
    "Pin",
    "Product",
    "Role",
    "Same",
    "Solution",
    "Sum",
    "Use",
    "concat",
    "fresh",
    "keep",
    "kept_size",
    "leaves",
    "owners",
    "product",
    "reduce",
    "show",
    "slots",
    "solve",
]
