"""Who contracts a channel group: the nodes that multiply data which lies on it with a weight, as y = x W + b."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from graphprune.axes import Axis, Dim, leaves, owners
from graphprune.groups import Coupling
from graphprune.ops import DESIGNS, Design, Op

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Consumer:
    """One node that contracts an axis of a weight with data.

    `axis` is the solved expression of the contracted axis of the weight, `columns` the number of columns of its matrix
    for each slot of that axis (kernel positions), `groups` the blocks on the matrix' diagonal.
    """

    node: str
    op: Op
    design: Design
    weight: str
    axis: Axis
    columns: int
    groups: int

    @property
    def data(self) -> str:
        """The value that it reads."""
        return self.op.x(self.design.data).name

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
        return (self.data, *self.design.key)

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
    """All consumers of a model, and why other nodes that contract a group are none."""

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
    found, left_out = [], {}
    readers = _readers(coupling)
    for op in coupling.graph.ops:
        rule = DESIGNS.get(op.domain, op.type, op.version)
        if rule is None or any(o is not None and not o.rank_known for o in op.inputs):
            continue
        weight = next((i for i, o in enumerate(op.inputs) if o is not None and o.name in coupling.graph.sources), None)
        if weight is None:
            continue
        design = rule(op.attributes, [o.shape if o is not None else () for o in op.inputs], weight)
        if design is None:
            left_out[op.name] = f"{op.type} of this form is not repaired"
            continue
        operand = op.x(design.weight)
        axis = coupling.expand(operand.axes[design.axis])
        if not any(d in coupling.dims for d in leaves(axis)):
            continue
        reason = _unfit(op, design, coupling, readers)
        if reason:
            left_out[op.name] = reason
            continue
        groups, width, _ = design.matrix(np.broadcast_to(np.float32(0), operand.shape)).shape
        if width % axis.size or (groups > 1 and not _even(design, operand.shape, width // axis.size)):
            left_out[op.name] = "its groups split the contracted axis"
            continue
        found.append(Consumer(op.name, op, design, operand.name, axis, width // axis.size, groups))
    return Consumers(tuple(found), left_out)


def followers(coupling: Coupling, found: Consumers) -> tuple[Consumer, ...]:
    """Return the other nodes that multiply data with a weight of their own: they contract no group.

    Their inputs change where something before them is pruned, so they can make up for it: depthwise convolutions, and
    layers behind one that is narrower inside.
    """
    readers, known = _readers(coupling), {c.node for c in found.found} | set(found.left_out)
    out = []
    for op in coupling.graph.ops:
        rule = DESIGNS.get(op.domain, op.type, op.version)
        if rule is None or op.name in known or any(o is not None and not o.rank_known for o in op.inputs):
            continue
        weight = next((i for i, o in enumerate(op.inputs) if o is not None and o.name in coupling.graph.sources), None)
        design = rule(op.attributes, [o.shape if o is not None else () for o in op.inputs], weight or 0)
        if weight is None or design is None or design.answers is None or _unfit(op, design, coupling, readers):
            continue
        operand = op.x(design.weight)
        axis = coupling.expand(operand.axes[design.axis])
        groups, width, _ = design.matrix(np.broadcast_to(np.float32(0), operand.shape)).shape
        if axis.size and width % axis.size == 0:
            out.append(Consumer(op.name, op, design, operand.name, axis, width // axis.size, groups))
    return tuple(out)


def _even(design: Design, shape: Sequence[int], columns: int) -> bool:
    """Return whether all blocks have all slots of the contracted axis, in order."""
    numbers = np.arange(shape[design.axis], dtype=np.int64)
    spread = np.broadcast_to(numbers.reshape([-1 if k == design.axis else 1 for k in range(len(shape))]), shape)
    matrix = design.matrix(spread)
    return bool((matrix == (np.arange(matrix.shape[1]) // columns)[:, None]).all())


def _readers(coupling: Coupling) -> dict[str, int]:
    out: dict[str, int] = {}
    for op in coupling.graph.ops:
        for o in op.inputs:
            if o is not None:
                out[o.name] = out.get(o.name, 0) + 1
    return out


def _unfit(op: Op, design: Design, coupling: Coupling, readers: Mapping[str, int]) -> str:
    """Return why a node's weight cannot be fitted anew, nothing if it can."""
    graph, name = coupling.graph, op.x(design.weight).name
    if name not in graph.weights or graph.weights[name].filled:
        return "its weight is computed from others"
    if graph.weights[name].quantised:
        return "its weight is quantised"
    if op.x(design.data).name in graph.sources:
        return "it multiplies constants"
    if op.name in graph.worlds.natural.times:
        return "it is inside of a body"
    if readers[name] > 1:
        return "its weight is used more than once"
    return "" if prod(graph.weights[name].shape) else "its weight is empty"
