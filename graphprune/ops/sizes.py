"""How a node's own sizes follow the sizes of its axes: the words that refit rules are written in.

A refit rule looks at a node whose axes have shrunk and returns `Change`s: attributes, or elements of an
integer input, that must follow. Elements of inputs computed at run time are rescaled or overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from graphprune.axes import Axis
from graphprune.ops.registry import Op, Operand


@dataclass(frozen=True, slots=True)
class SetAttribute:
    """Give an attribute a new value."""

    name: str
    value: int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an integer input: `new` in place of `old`; `exact`: else the ratio new / old is applied."""

    old: int
    new: int
    exact: bool = True


@dataclass(frozen=True, slots=True)
class SetElements:
    """Give elements of an integer input new values; None leaves one as it is."""

    operand: int
    elements: tuple[Element | None, ...]


@dataclass(frozen=True, slots=True)
class SetInput:
    """Give a constant integer input a new content."""

    operand: int
    value: tuple[int, ...]
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class FreezeOutput:
    """Keep an integer output at what it was before: sizes used as numbers.

    `elements` say of each number that differs now what it is (`old`) and what it was (`new`); `whole` is all that it
    was, where none of it depends on the input.
    """

    elements: tuple[Element | None, ...]
    whole: tuple[int, ...] | None
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class BecomeReshape:
    """Give the node's first input this shape, and do nothing else; -1 marks the sizes that depend on the input."""

    shape: tuple[int, ...]
    operator = "Reshape"


Change: TypeAlias = SetAttribute | SetElements | SetInput | FreezeOutput | BecomeReshape


@dataclass(frozen=True)
class Shrunk:
    """What a refit rule may ask: new sizes of axes, kept slots, and the letters of the node's notation."""

    size: Callable[[Axis], int]
    before: Callable[[Axis, int], int]
    slots: Callable[[Axis], list[int]]
    letters: Mapping[str, Axis]

    def shape(self, operand: Operand) -> tuple[int, ...]:
        return tuple(self.size(a) for a in operand.axes)

    def changed(self, axis: Axis) -> bool:
        return self.size(axis) != axis.size


RefitRule: TypeAlias = Callable[[Op, Shrunk], Iterable[Change]]


def attributes(**letters: str) -> RefitRule:
    """Return the rule that integer attributes equal the sizes of letters of the axis rule's notation."""

    def rule(op: Op, now: Shrunk) -> Iterator[Change]:
        for name, letter in letters.items():
            axis = now.letters.get(letter)
            if axis is not None and now.changed(axis):
                yield SetAttribute(name, now.size(axis))

    return rule


def resized(operand: Operand, now: Shrunk) -> tuple[Element | None, ...]:
    """Return, for each axis of a value, how a number that equals its size changes."""
    return tuple(
        Element(axis.size, now.size(axis), not dynamic) if now.changed(axis) else None
        for axis, dynamic in zip(operand.axes, operand.dynamic, strict=True)
    )


def output_sizes(i: int, attribute: str | None = None) -> RefitRule:
    """Return the rule that input `i` (or an older opset's attribute) holds the sizes of the first output."""

    def rule(op: Op, now: Shrunk) -> Iterator[Change]:
        elements = resized(op.y(), now)
        if not any(elements):
            return
        if op.input(i) is not None:
            yield SetElements(i, elements)
        elif attribute is not None and op.attr(attribute) is not None:
            old = op.attr(attribute)
            new = tuple(e.new if e and o > 0 else o for e, o in zip(elements, old, strict=True))
            yield SetAttribute(attribute, new)

    return rule
