"""Who contracts a channel group: the nodes that multiply data which lies on it with a weight, as y = x W + b."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.axes import Axis, Dim, Role, leaves, owners
from graphprune.groups import Coupling
from graphprune.ops import DESIGNS, DYNAMIC, SPELLED, Design, Op, Operand
from graphprune.weights import Weight

Index = npt.NDArray[np.int64]
_MATRIX = 2
QUANTISED = "its weight is quantised and stays: its groups are ordered by its error, and at most its bias is corrected"


@dataclass(frozen=True)
class Source:
    """What a node reads, as real numbers: a value, or (value - zero) * scale."""

    name: str
    scale: float = 1.0
    zero: float = 0.0

    def real(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return real numbers as float32."""
        given = np.asarray(x, dtype=np.float32)
        if (self.scale, self.zero) == (1.0, 0.0):
            return given
        shifted: npt.NDArray[np.float32] = (given - np.float32(self.zero)) * np.float32(self.scale)
        return shifted


@dataclass(frozen=True)
class Consumer:
    """One node that contracts an axis of a weight with data, or several that contract one weight in the same way.

    `axis` is the solved expression of the contracted axis of the weight, `columns` the number of columns of its matrix
    for each slot of that axis (kernel positions), `groups` the blocks on the matrix' diagonal. `source` is what the
    node reads; `others` are further nodes with the same weight, whose rows count as well, and what they read.
    `frozen`: the weight is quantised, and not fitted anew; `shifted`: what it adds can be corrected all the same.
    """

    node: str
    op: Op
    design: Design
    weight: str
    axis: Axis
    columns: int
    groups: int
    source: Source
    others: tuple[tuple[Op, Source], ...] = ()
    frozen: bool = False
    shifted: bool = False

    @property
    def biased(self) -> bool:
        """Whether a bias can take up a change of the mean."""
        return self.shifted if self.frozen else self.design.answers is not None or self.design.bias is not None

    @property
    def data(self) -> str:
        """The value that it reads."""
        return self.source.name

    @property
    def sources(self) -> tuple[Source, ...]:
        """What all nodes with this weight read."""
        return tuple(dict.fromkeys((self.source, *[s for _, s in self.others])))

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node, *[op.name for op, _ in self.others])

    @property
    def output(self) -> str:
        return self.op.y().name

    @property
    def bias(self) -> str | None:
        """The value that it adds, None where it adds none."""
        operand = self.op.input(self.design.bias) if self.design.bias is not None else None
        return operand.name if operand is not None else None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells rows apart: consumers with equal keys have equal rows."""
        plain = self.sources == (Source(self.data),)
        return (self.data if plain else self.sources, *self.design.key)

    @cached_property
    def width(self) -> int:
        """Number of columns of one block."""
        return self.axis.size * self.columns

    def columns_of(self, dim: Dim) -> list[Index]:
        """Return, for every index of a dim, the columns that go with it."""
        owned = owners(self.axis, dim)
        order = np.argsort(owned, kind="stable")
        ends = np.searchsorted(owned[order], np.arange(dim.size + 1))
        return [self.spread(order[a:b]) for a, b in pairwise(ends)]

    def spread(self, kept: npt.NDArray[np.integer]) -> Index:
        """Return the columns that belong to slots of the axis."""
        return (np.asarray(kept)[:, None] * self.columns + np.arange(self.columns)).ravel()


@dataclass(frozen=True)
class Consumers:
    """All consumers of a model, and which nodes that contract a group are not repaired, and why."""

    found: tuple[Consumer, ...]
    left_out: Mapping[str, str]

    @cached_property
    def by_dim(self) -> dict[Dim, list[Consumer]]:
        out: dict[Dim, list[Consumer]] = {}
        for c in self.found:
            for dim in dict.fromkeys(leaves(c.axis)):
                out.setdefault(dim, []).append(c)
        return out


def consumers(coupling: Coupling) -> Consumers:
    """Return the nodes whose contracted axis lies on a channel group."""
    found: list[Consumer] = []
    left_out: dict[str, str] = {}
    makers = {o.name: op for op in coupling.graph.ops for o in op.outputs if o is not None}
    for op in coupling.graph.ops:
        got = _consumer(op, coupling, makers)
        if isinstance(got, str):
            left_out[op.name] = got
        elif got is not None:
            found.append(got)
            if got.frozen:
                left_out[op.name] = QUANTISED
    return Consumers(tuple(_joint(found, coupling, left_out)), left_out)


def _consumer(op: Op, coupling: Coupling, makers: Mapping[str, Op]) -> Consumer | str | None:
    """Return a node as a consumer, or why it is none; None where it contracts no group with a weight."""
    graph = coupling.graph
    rule = DESIGNS.get(op.domain, op.type, op.version)
    if any(o is not None and not o.rank_known for o in op.inputs):
        return None
    if rule is None:
        return _without_design(op, coupling)
    given = [(i, o.name) for i, o in enumerate(op.inputs) if o is not None]
    constant = [i for i, name in given if name in graph.sources or _stored(name, graph.weights)]
    if not constant:
        return None
    design = rule(op.attributes, [o.shape if o is not None else () for o in op.inputs], constant[0])
    if design is None:
        return f"{op.type} of this form is not repaired"
    if design.weight not in constant:
        return None
    operand = op.x(design.weight)
    axis = coupling.expand(operand.axes[design.axis])
    if not any(d in coupling.dims for d in leaves(axis)):
        return None
    weight = _weight(op, design, coupling, makers)
    reason = weight if isinstance(weight, str) else unfit(op, design, coupling)
    source = _source(op, design, makers)
    if reason or isinstance(weight, str) or source is None:
        return reason or "the scale of what it reads is made at run time"
    groups, width, _ = design.matrix(np.broadcast_to(np.float32(0), operand.shape)).shape
    if width % axis.size or (groups > 1 and not _even(design, operand.shape, width // axis.size)):
        return "its groups split the contracted axis"
    return Consumer(
        op.name, op, design, weight.name, axis, width // axis.size, groups, source, frozen=weight.quantised
    )


def _without_design(op: Op, coupling: Coupling) -> str | None:
    """Return that a node is not repaired if it contracts a group with a weight and nothing is known of how."""
    for use in coupling.graph.uses.get(op.name, ()):
        operand = op.input(use.operand)
        if use.role is not Role.CONTRACTED or operand is None or operand.rank < _MATRIX:
            continue
        known = coupling.graph.sources
        ours = operand.name in known or _stored(operand.name, coupling.graph.weights)
        data = any(o is not None and o.name not in known and o.name not in coupling.graph.constants for o in op.inputs)
        if ours and data and any(d in coupling.dims for d in leaves(coupling.expand(use.axis))):
            return f"{op.type} is not repaired"
    return None


def _stored(name: str, weights: Mapping[str, Weight]) -> bool:
    return name in weights and weights[name].quantised


def _weight(op: Op, design: Design, coupling: Coupling, makers: Mapping[str, Op]) -> Weight | str:
    """Return the weight that a node reads: itself, or quantised numbers that a node before it reads; else why none."""
    operand, weights = op.x(design.weight), coupling.graph.weights
    for name in (operand.name, *_quantised(operand, weights, makers)):
        found = weights.get(name)
        if found is None or found.filled or found.shape != operand.shape:
            continue
        if all(_same(a, b, coupling) for a, b in zip(found.axes, operand.axes, strict=True)):
            return found
    return "its weight is computed from others"


def _quantised(value: Operand, weights: Mapping[str, Weight], makers: Mapping[str, Op]) -> Iterator[str]:
    """Yield the quantised numbers that a value has in real form: read by a node, or cast, shifted and scaled."""
    seen: set[str] = set()
    while (maker := makers.get(value.name)) is not None and maker.type not in seen:
        seen.add(maker.type)
        given = [o for o in maker.inputs if o is not None and o.shape == value.shape]
        yield from (o.name for o in given[:1] if _stored(o.name, weights))
        if maker.type not in SPELLED or not given:
            return
        value = given[0]


def _same(a: Axis, b: Axis, coupling: Coupling) -> bool:
    """Return whether two axes have the same slots: pinned ones need not be told to be."""
    a, b = coupling.expand(a), coupling.expand(b)
    return a == b or not any(d in coupling.dims for d in (*leaves(a), *leaves(b)))


def _source(op: Op, design: Design, makers: Mapping[str, Op]) -> Source | None:
    """Return what a node reads; None where that are integers of a scale that is not known."""
    data = op.x(design.data)
    if design.integers is None:
        return Source(data.name)
    maker = makers.get(data.name)
    if maker is not None and maker.type in DYNAMIC:
        return Source(maker.x().name)
    numbers = [op.fixed(i) if i is not None and op.input(i) is not None else None for i in design.integers]
    absent = design.integers[1] is None or op.input(design.integers[1]) is None
    scale, zero = numbers
    if scale is None or scale.size != 1 or (zero is None and not absent) or (zero is not None and zero.size != 1):
        return None
    return Source(data.name, float(scale.ravel()[0]), float(zero.ravel()[0]) if zero is not None else 0.0)


def _even(design: Design, shape: Sequence[int], columns: int) -> bool:
    """Return whether all blocks have all slots of the contracted axis, in order."""
    numbers = np.arange(shape[design.axis], dtype=np.int64)
    spread = np.broadcast_to(numbers.reshape([-1 if k == design.axis else 1 for k in range(len(shape))]), shape)
    matrix = design.matrix(spread)
    return bool((matrix == (np.arange(matrix.shape[1]) // columns)[:, None]).all())


def unfit(op: Op, design: Design, coupling: Coupling) -> str:
    """Return why a node cannot be fitted anew, nothing if it can."""
    graph = coupling.graph
    if op.x(design.data).name in graph.sources:
        return "it multiplies constants"
    if op.name in graph.worlds.natural.times:
        return "it is inside of a branch or a loop"
    return "" if prod(op.x(design.weight).shape) else "its weight is empty"


def _joint(found: Sequence[Consumer], coupling: Coupling, left_out: dict[str, str]) -> Iterator[Consumer]:
    """Make one consumer of those with one weight; none where something else reads it, or reads it in another way."""
    readers: dict[str, list[Op]] = {}
    for op in coupling.graph.ops:
        for o in op.inputs:
            if o is not None:
                readers.setdefault(o.name, []).append(op)
    by_weight: dict[str, list[Consumer]] = {}
    for c in found:
        by_weight.setdefault(c.weight, []).append(c)
    for c in found:
        same = by_weight[c.weight]
        reading = readers.get(c.weight, [])
        if c.frozen or (len(reading) == 1 and len(same) == 1):
            yield c
            continue
        strange = next((op for op in reading if not any(_alike(c, s) and s.op is op for s in same)), None)
        if strange is not None or len(reading) > len(same):
            other = strange or reading[0]
            left_out[c.node] = f"its weight is tied: {other.type} {other.name!r} reads it in another way"
        elif c is same[0]:
            yield replace(c, others=tuple((s.op, s.source) for s in same[1:]))


def _alike(a: Consumer, b: Consumer) -> bool:
    return a.design.key == b.design.key and a.op.type == b.op.type and a.design.bias == b.design.bias
