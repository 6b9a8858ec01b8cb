"""What operators say about axes: equations and notes, as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from graphprune.axes.expr import Axis


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an equation comes from: a node's name and its operator (empty for the graph's own border)."""

    node: str
    operator: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}" if self.operator else self.node


class Role(str, enum.Enum):
    """What an operator does with a dim of one of its inputs."""

    PRODUCED = "produced"
    CARRIED = "carried"
    CONTRACTED = "contracted"
    NORMALISED = "normalised"


@dataclass(frozen=True, slots=True)
class Same:
    """Two axes are the same axis, slot by slot."""

    left: Axis
    right: Axis


@dataclass(frozen=True, slots=True)
class Pin:
    """No index of this axis may be removed, and why."""

    axis: Axis
    reason: str


@dataclass(frozen=True, slots=True)
class Follow:
    """If every dim of `leader` is pinned, so is this axis: slots that were added to it have no life of their own."""

    axis: Axis
    leader: Axis
    reason: str


@dataclass(frozen=True, slots=True)
class Free:
    """This axis of an output is made here from nothing, at any size."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Use:
    """Input number `operand` has this axis (or this part of one) in this role; `gain`: as a scale per index.

    `zero` is the number of the input that says which integer stands for zero, where the operand holds integers.
    `own`: what is contracted with this weight is the operator's own state, which is no input.
    """

    operand: int
    axis: Axis
    role: Role
    gain: bool = False
    zero: int | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class Letter:
    """What a letter of the operator's notation stands for at this node; refit rules ask for its size."""

    letter: str
    axis: Axis


@dataclass(frozen=True, slots=True)
class Least:
    """At least so many indices of this axis remain: the operator asks for them."""

    axis: Axis
    number: int


@dataclass(frozen=True, slots=True)
class Points:
    """Elements of output number `output` are positions along an axis: not numbers, but names of slots."""

    output: int
    axis: Axis


@dataclass(frozen=True, slots=True)
class Understood:
    """The positions in input number `operand` are only used to pick slots, or are not looked at."""

    operand: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Constant input number `operand` counts 0, 1, 2 ... along this axis of it, however many slots remain."""

    operand: int
    axis: Axis


Spoken: TypeAlias = Same | Pin | Follow | Free | Use | Letter | Least
"""Equations that speak of axes."""

Equation: TypeAlias = Spoken | Points | Understood | Counts
