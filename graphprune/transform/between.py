"""Which widths have no basis of their own: dims that only matrices make and read, and only linear nodes hand on.

Queries and keys of attention, values and what reads them, the narrow ends of inverted residuals. What weights and
nodes tell is a guess; `turning.py` runs the model to prove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import Dim, Role, leaves, owners
from graphprune.groups import ChannelGroup, Coupling, Occurrence
from graphprune.ops import ADD, LINEAR, TOGETHER, Op

Index: TypeAlias = npt.NDArray[np.int64]
Key: TypeAlias = tuple[int, ...]
"""Indices of the outer dims: which head."""

_EXACT = 4  # bytes: shorter numbers would be rounded once more
_HEADS = 2  # at least: a factor of 1 tells nothing about what is between
_DIRECTIONS = 2  # at least, to choose from
_MATRIX = 2  # axes at least of what is no vector
_ENDS = {
    (True, True): [(0, 1)],  # queries and keys
    (True, False): [(0, 1)],  # values and what reads them
    (True, True, True, False): [(0, 1), (2, 3)],  # all of these have one width, where one weight makes the first three
}
"""Which sides of heads meet, by whether they make or read the width."""


@dataclass(frozen=True, eq=False)
class Side:
    """A weight that makes or reads a dim; `biases` are added to what it makes.

    `blocks` has for every head, by its indices of the `outer` dims, the slots of the axis that are the dim's, in order.
    """

    weight: str
    axis: int
    outer: tuple[Dim, ...]
    blocks: Mapping[Key, Index]
    produced: bool
    biases: tuple[str, ...] = ()


Place: TypeAlias = tuple[Side, Index]
"""The slots of a side that are one head."""


class Head(NamedTuple):
    """What shares a basis: places that are turned by A, and those that are turned by B."""

    first: tuple[Place, ...]
    second: tuple[Place, ...]


@dataclass(frozen=True)
class Pair:
    """A dim between two ends, each of one weight or of several, in heads (one, where it is no width of heads)."""

    group: str
    first: tuple[Side, ...]
    second: tuple[Side, ...]
    heads: tuple[Head, ...]

    @property
    def met(self) -> bool:
        """Whether both ends are made, and meet in products; else the second end reads what the first makes."""
        return self.second[0].produced


def pairs(coupling: Coupling) -> tuple[Pair, ...]:
    """Return the groups whose basis is free, as far as weights tell; only running the turned model proves it.

    >>> [p.group for p in pairs(coupling)]  # doctest: +SKIP
    ['query.weight:0.1', 'value.weight:0.1']
    """
    lies = _Lies(coupling)
    return tuple(pair for g in coupling.groups for pair in _pairs(g, coupling, lies))


def _pairs(group: ChannelGroup, coupling: Coupling, lies: _Lies) -> list[Pair]:
    sides = _all_sides(group, coupling, lies)
    several = [len(s.blocks) >= _HEADS for s in sides]
    if all(several) and (met := _ENDS.get(tuple(s.produced for s in sides))):
        ends = [(sides[a], sides[b], _heads(sides[a], sides[b])) for a, b in met]
        return [Pair(group.name, (a,), (b,), heads) for a, b, heads in ends if heads]
    first, second = (tuple(s for s in sides if s.produced is made) for made in (True, False))
    if any(several) or not first or not second:
        return []
    head = Head(*(tuple((s, next(iter(s.blocks.values()))) for s in end) for end in (first, second)))
    return [Pair(group.name, first, second, (head,))]


def _all_sides(group: ChannelGroup, coupling: Coupling, lies: _Lies) -> list[Side]:
    """Return all sides of a group; none where it lies on something else, or something but matrices is between."""
    if any(o.gain for o in group.occurrences) or group.size < _DIRECTIONS:
        return []
    known = coupling.graph.weights
    ends = [o for o in group.occurrences if o.role in (Role.PRODUCED, Role.CONTRACTED)]
    weights = [o for o in ends if len(known[o.initializer].shape) >= _MATRIX]
    places = {(o.initializer, o.axis) for o in weights}
    found = [_sides(coupling, group, o) for o in weights]
    if len(places) < len(weights) or not all(found):
        return []
    rest = [o.initializer for o in group.occurrences if o not in weights]
    sides = [
        replace(s, biases=tuple(b for b in rest if s.produced and lies.added(s.weight, b)))
        for some in found
        for s in some
    ]
    added = [(b, slot) for s in sides for b in s.biases for at in s.blocks.values() for slot in at.tolist()]
    if {b for b, _ in added} != set(rest) or len(set(added)) < len(added):  # nor is a number turned twice
        return []
    return sides if lies.linear(group, {*rest, *[w for w, _ in places]}) else []


class _Lies:
    """Which values lie on which groups, and which nodes read them."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.readers: dict[str, list[Op]] = {}
        for op in coupling.graph.ops:
            for name in dict.fromkeys(o.name for o in op.inputs if o is not None):
                self.readers.setdefault(name, []).append(op)

    def added(self, weight: str, bias: str) -> bool:
        """Return whether a constant is added to what a weight makes, and to nothing else."""
        making = self.readers.get(weight, [])
        made = [o.name for op in making for o in op.outputs if o is not None]
        sums = [op for name in made for op in self.readers.get(name, ()) if op.type == ADD]
        reading = self.readers.get(bias, [])
        return bool(reading) and all(any(op is other for other in (*making, *sums)) for op in reading)

    @cached_property
    def reading(self) -> dict[Dim, list[tuple[Op, list[str]]]]:
        """Return for each dim the nodes that read something on it, and what."""
        out: dict[Dim, list[tuple[Op, list[str]]]] = {}
        for op in self.coupling.graph.ops:
            on: dict[Dim, list[str]] = {}
            for o in op.inputs:
                dims = {d for axis in o.axes for d in self.coupling.free(axis)} if o is not None else ()
                for dim in dims:
                    on.setdefault(dim, []).append(o.name if o is not None else "")
            for dim, names in on.items():
                out.setdefault(dim, []).append((op, names))
        return out

    def linear(self, group: ChannelGroup, own: Set[str]) -> bool:
        """Return whether all nodes between a group's `own` weights are linear and treat its indices alike."""
        graph = self.coupling.graph
        if any(a.matrix in own for a in graph.adapters):  # these are matrices that are to stay units
            return False
        for op, names in self.reading.get(group.dim, ()):
            if own.isdisjoint(names):
                several = len(names) > 1 and op.type not in TOGETHER
                if op.bodies or op.type not in LINEAR or several:
                    return False
        return True


def _sides(coupling: Coupling, group: ChannelGroup, place: Occurrence) -> list[Side]:
    """Return the one or two times that a weight has a dim on an axis; nothing where it is there in another way."""
    weight = coupling.graph.weights.get(place.initializer)
    if weight is None or weight.quantised or weight.filled or len(weight.shape) < _MATRIX or weight.itemsize < _EXACT:
        return []
    axis = coupling.expand(weight.axes[place.axis])
    outer = [d for d in dict.fromkeys(leaves(axis)) if d is not group.dim]
    own, around = owners(axis, group.dim), [owners(axis, d) for d in outer]
    found: dict[Key, list[list[int]]] = {}
    for s in np.flatnonzero(own >= 0).tolist():
        key = tuple(int(a[s]) for a in around)
        if key not in found:
            found[key] = [[] for _ in range(group.size)]
        found[key][own[s]].append(s)
    counts = {len(at) for lists in found.values() for at in lists}
    if len(counts) != 1:
        return []
    blocks = [{k: np.array([at[t] for at in lists]) for k, lists in found.items()} for t in range(counts.pop())]
    return [Side(weight.name, place.axis, tuple(outer), b, place.role is Role.PRODUCED) for b in blocks]


def _heads(first: Side, second: Side) -> tuple[Head, ...]:
    """Return which blocks of both sides share a basis: those with the same indices of the outer dims of both."""
    common = [d for d in first.outer if d in second.outer]
    if not common:
        return ()
    joined: dict[Key, tuple[list[Place], list[Place]]] = {}
    for k, side in enumerate((first, second)):
        for block, slots in side.blocks.items():
            key = tuple(block[side.outer.index(d)] for d in common)
            joined.setdefault(key, ([], []))[k].append((side, slots))
    heads = tuple(Head(tuple(a), tuple(b)) for a, b in joined.values())
    return heads if all(a and b for a, b in heads) else ()
