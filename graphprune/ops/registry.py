"""What a rule sees of a node, the tables rules live in, and the notation most rules are written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from graphprune.axes import UNIT, Axis, Equation, Free, Pin, Role, Same, Use, fresh, product
from graphprune.axes.equations import Letter
from graphprune.axes.notation import Operand as OperandPattern
from graphprune.axes.notation import Pattern, Term, parse


@dataclass(frozen=True, slots=True)
class Operand:
    """A value as a rule sees it: sizes at the traced input sizes, one axis per dimension.

    `value` is its content where it is small and known; `fixed` says that this content, `dynamic` which of
    the sizes, is the same or not at other input sizes. `rank_known` is False where nothing is known.
    Where the elements are positions along an axis (what TopK or ArgMax answer), `points` is that axis.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    dynamic: tuple[bool, ...]
    value: npt.NDArray[Any] | None = None
    fixed: bool = False
    rank_known: bool = True
    points: Axis | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class Body:
    """A graph inside of a node: a branch, or what a loop repeats."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """A node as a rule sees it; absent optional inputs and outputs are None.

    `never`: it is in a branch that is not taken at any of the sizes looked at; such a branch need not fit them.
    """

    name: str
    type: str
    domain: str
    version: int
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand | None, ...]
    attributes: Mapping[str, Any]
    bodies: tuple[Body, ...] = ()
    never: bool = False

    @property
    def operands(self) -> list[Operand]:
        """All values that a node's rule speaks of, those at the borders of its bodies last."""
        inside = [o for body in self.bodies for o in (*body.inputs, *body.outputs)]
        return [*[o for o in (*self.inputs, *self.outputs) if o is not None], *inside]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def input(self, i: int) -> Operand | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def x(self, i: int = 0) -> Operand:
        """Return an input that must be there."""
        got = self.inputs[i]
        assert got is not None
        return got

    def y(self, i: int = 0) -> Operand:
        """Return an output that must be there."""
        got = self.outputs[i]
        assert got is not None
        return got

    def output(self, i: int) -> Operand | None:
        return self.outputs[i] if i < len(self.outputs) else None

    def fixed(self, i: int) -> npt.NDArray[Any] | None:
        """Return the content of input `i` if it is the same at all input sizes."""
        got = self.input(i)
        return got.value if got is not None and got.fixed else None

    def ints(self, i: int, attribute: str) -> list[int] | None:
        """Return a parameter that newer opsets take as input `i` and older ones as an attribute."""
        got = self.fixed(i)
        if got is not None:
            return [int(v) for v in np.asarray(got).ravel()]
        value = self.attr(attribute)
        if value is None:
            return None
        return [int(value)] if isinstance(value, int) else [int(v) for v in value]


AxisRule: TypeAlias = Callable[[Op], Iterable[Equation]]
ShapeOf: TypeAlias = Callable[[Operand], tuple[int, ...]]
CostRule: TypeAlias = Callable[[Op, ShapeOf], int]
T = TypeVar("T")


@dataclass(frozen=True)
class Row(Generic[T]):
    """One row of a table: these operators, in this opset range, have this rule."""

    rule: T
    operators: tuple[str, ...]
    domain: str = ""
    since: int = 1
    until: int = 10**6


def row(rule: T, *operators: str, domain: str = "", since: int = 1, until: int = 10**6) -> Row[T]:
    """Spell a row."""
    return Row(rule, operators, domain, since, until)


class Table(Generic[T]):
    """One question asked of operators; rows are given once and duplicates raise.

    >>> Table("answer", [row(1, "Relu"), row(2, "Slice", until=9), row(3, "Slice", since=10)]).get("", "Slice", 13)
    3
    """

    def __init__(self, question: str, rows: Iterable[Row[T]]) -> None:
        self.question = question
        self._rows: dict[tuple[str, str], list[Row[T]]] = {}
        for r in rows:
            self.add(r)

    def add(self, new: Row[T]) -> None:
        """Add a row; raises ValueError where an operator has one for the same opsets."""
        for operator in new.operators:
            others = self._rows.setdefault((new.domain, operator), [])
            if any(new.since <= o.until and o.since <= new.until for o in others):
                raise ValueError(f"two rows for {operator} in the table of the {self.question}")
            others.append(new)

    def get(self, domain: str, operator: str, version: int) -> T | None:
        for r in self._rows.get((domain, operator), ()):
            if r.since <= version <= r.until:
                return r.rule
        return None

    def operators(self) -> list[tuple[str, str, int, int]]:
        """Return (domain, operator, since, until) of every row, sorted."""
        return sorted((d, o, r.since, r.until) for (d, o), rows in self._rows.items() for r in rows)


def pin_all(op: Op, reason: str) -> Iterator[Equation]:
    """Pin every axis of every operand of a node."""
    for operand in (*op.inputs, *op.outputs):
        if operand is not None:
            for axis in operand.axes:
                yield Pin(axis, reason)


def pin_axis(operand: Operand | None, axis: int, reason: str) -> Iterator[Equation]:
    """Pin one axis of an operand."""
    if operand is not None:
        yield Pin(operand.axes[axis], reason)


def same_axes(left: Operand, right: Operand, skip: Iterable[int] = ()) -> Iterator[Equation]:
    """Equate two values of one shape axis by axis, except those in `skip`."""
    avoid = set(skip)
    for i, (a, b) in enumerate(zip(left.axes, right.axes, strict=True)):
        if i not in avoid and a is not UNIT:
            yield Same(a, b)


def normalise_axis(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis


def broadcast(op: Op, inputs: Iterable[int], output: Operand, role: Role = Role.CARRIED) -> Iterator[Equation]:
    """Equate inputs with an output under numpy broadcasting."""
    for i in inputs:
        operand = op.input(i)
        if operand is None:
            continue
        offset = output.rank - operand.rank
        for k, axis in enumerate(operand.axes):
            if operand.shape[k] == 1 and (k + offset < 0 or output.shape[k + offset] != 1):
                continue
            yield Same(axis, output.axes[k + offset])
            yield Use(i, axis, role)


def line(
    text: str,
    *,
    sizes: Mapping[str, str | Callable[[Op], int]] | None = None,
    pins: Mapping[str, str] | None = None,
    free: str = "",
    normalised: str = "",
    gain: int | None = None,
) -> AxisRule:
    """Return the axis rule that a line of notation says.

    `sizes` gives letters that occur only inside products by an attribute's name (default 1) or a function;
    `pins` letters with reasons; `free` letters that outputs make from nothing; `normalised` letters whose
    removal changes what the others become; `gain` the input that scales each index.
    """
    pattern = parse(text)
    roles = _roles(pattern, normalised)

    def rule(op: Op) -> Iterator[Equation]:
        env: dict[str, list[Axis]] = {}
        operands = [*zip(pattern.inputs, op.inputs, strict=False), *zip(pattern.outputs, op.outputs, strict=False)]
        pairs = [pair for p, o in operands if o is not None for pair in _match(p, o)]
        known = {k: (op.attr(v, 1) if isinstance(v, str) else v(op)) for k, v in (sizes or {}).items()}
        for term, axes in pairs:
            if len(term.letters) == 1:
                letter = term.letters[0]
                for a, b in zip(env.setdefault(letter, axes), axes, strict=False):
                    if a is not b:
                        yield Same(a, b)
        yield from _products(pairs, env, known)
        for letter, reason in (pins or {}).items():
            for axis in env.get(letter, ()):
                yield Pin(axis, reason)
        for letter in free:
            yield from (Free(a) for a in env.get(letter, ()))
        for i, letter, role in roles:
            if op.input(i) is not None:
                yield from (Use(i, a, role, gain == i) for a in env.get(letter, ()) if a is not UNIT)
        yield from (Letter(letter, axes[0]) for letter, axes in env.items() if len(axes) == 1)

    rule.__doc__ = text
    return rule


def _match(pattern: OperandPattern, operand: Operand) -> Iterator[tuple[Term, list[Axis]]]:
    extra = operand.rank - (len(pattern.terms) - sum(t.variadic for t in pattern.terms))
    at = 0
    for term in pattern.terms:
        n = max(extra, 0) if term.variadic else 1
        yield term, list(operand.axes[at : at + n])
        at += n


def _products(
    pairs: list[tuple[Term, list[Axis]]], env: dict[str, list[Axis]], known: Mapping[str, int]
) -> Iterator[Equation]:
    for term, axes in pairs:
        if len(term.letters) == 1 or not axes:
            continue
        size = {x: env[x][0].size if x in env else known[x] for x in term.letters if x in env or x in known}
        rest = axes[0].size // max(prod(size.values()), 1)
        for letter in term.letters:
            if letter not in env:
                env[letter] = [fresh(size.get(letter, rest), letter)]
        yield Same(axes[0], product(*[env[x][0] for x in term.letters]))


def _roles(pattern: Pattern, normalised: str) -> tuple[tuple[int, str, Role], ...]:
    """Say what happens to each letter of each input; the first input is the data."""

    def letters(operand: OperandPattern) -> list[str]:
        return [x for t in operand.terms for x in t.letters]

    data = set(letters(pattern.inputs[0]))
    out = {x for o in pattern.outputs for x in letters(o)}
    roles = []
    for i, operand in enumerate(pattern.inputs):
        for x in letters(operand):
            if x in normalised:
                role = Role.NORMALISED
            elif x not in out:
                role = Role.CONTRACTED
            else:
                role = Role.CARRIED if x in data else Role.PRODUCED
            roles.append((i, x, role))
    return tuple(roles)
