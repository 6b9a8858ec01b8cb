"""Positions along an axis as values: who makes them, who hands them on, and who may read them.

TopK and ArgMax answer with positions. As long as those only pick slots of axes that are the same axis (the experts'
weights, a one-hot row), slots may go or change places: the position says the same slot before and after. Where they are
used as numbers, or leave the graph, the axis that they point along is pinned.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from graphprune.axes import Axis, Equation, Pin
from graphprune.axes.equations import Counts, Points, Spoken, Understood
from graphprune.ops import MOVERS, Op, Operand

NUMBERS = "positions along this axis are used as numbers"
OUTSIDE = "positions along this axis leave the graph"


@dataclass(frozen=True)
class Followed:
    """Equations without those on positions, outputs that are positions, and the constants that count along an axis."""

    equations: list[Spoken]
    points: dict[str, Operand]
    counts: set[str]


def axes(operands: Iterable[Operand]) -> list[Axis]:
    """Return the axes that the elements of some values point along."""
    return [o.points for o in operands if o.points is not None]


def follow(op: Op, said: Iterable[Equation], constants: Container[str]) -> Followed:
    """Take what a rule said on positions out of its equations; pin what positions it did not speak of point along."""
    equations: list[Spoken] = []
    made: list[tuple[Operand, Axis]] = []
    counts: set[str] = set()
    understood: set[int] = set()
    for eq in said:
        if isinstance(eq, Understood):
            understood.add(eq.operand)
        elif isinstance(eq, Points):
            made += [(y, eq.axis) for y in [op.output(eq.output)] if y is not None]
        elif isinstance(eq, Counts):
            counts.add(op.x(eq.operand).name)
            if op.x(eq.operand).name not in constants:
                equations.append(Pin(eq.axis, NUMBERS))
        else:
            equations.append(eq)
    for i, x in enumerate(op.inputs):
        if x is None or x.points is None or i in understood:
            continue
        if i == 0 and not op.domain and op.type in MOVERS:
            made += [(y, x.points) for y in op.outputs if y is not None]
        else:
            equations.append(Pin(x.points, NUMBERS))
    equations += [Pin(axis, NUMBERS) for axis in axes(o for body in op.bodies for o in body.outputs)]
    return Followed(equations, {y.name: replace(y, points=axis) for y, axis in made}, counts)
