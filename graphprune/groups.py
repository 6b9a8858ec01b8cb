"""Channel groups: the solved, unpinned dims with all their places in weights, and what is pinned and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from graphprune.axes import (
    Axis,
    Dim,
    Follow,
    Least,
    Origin,
    Pin,
    Product,
    Role,
    Same,
    Solution,
    Sum,
    leaves,
    show,
    solve,
)
from graphprune.normalize import COPY_MARK
from graphprune.trace import AxisGraph
from graphprune.transform.branches import Branches
from graphprune.weights import Weight


@dataclass(frozen=True)
class Occurrence:
    """One place of a dim: axis `axis` of an initializer, in a role; `gain`: as a scale per index."""

    initializer: str
    axis: int
    role: Role
    expression: str
    gain: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """What is removed together: a dim with all its occurrences.

    `parameters` counts the weight elements that lie on the dim, `normalised` says that other indices' values
    depend on which indices are there (LayerNorm, softmax), so removal is not the same as masking. At least `least`
    indices must stay: an operator asks for as many.
    """

    name: str
    dim: Dim
    size: int
    occurrences: tuple[Occurrence, ...]
    parameters: int
    normalised: bool
    least: int = 1


@dataclass(frozen=True)
class Coupling:
    """The solved model: expressions of all axes, channel groups, pins."""

    graph: AxisGraph
    solution: Solution
    groups: tuple[ChannelGroup, ...]

    def expand(self, axis: Axis) -> Axis:
        return self.solution.expand(axis)

    def group(self, name: str) -> ChannelGroup | None:
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {g.name: g for g in self.groups}

    @cached_property
    def dims(self) -> dict[Dim, ChannelGroup]:
        return {g.dim: g for g in self.groups}

    def free(self, axis: Axis) -> tuple[Dim, ...]:
        """Return the dims of an axis that are groups, each once."""
        return tuple(d for d in dict.fromkeys(leaves(self.expand(axis))) if d in self.dims)

    @cached_property
    def branches(self) -> Branches:
        """The branches that may be bypassed, and those that may not."""
        return Branches(self.graph)

    @cached_property
    def coverage(self) -> float:
        """Fraction of weight elements that lie on at least one group."""
        total = sum(w.size for w in self.graph.own)
        covered = sum(self.covered(w) for w in self.graph.own)
        return covered / total if total else 0.0

    def covered(self, weight: Weight) -> int:
        """Return how many elements of a weight lie on at least one group."""
        return covered_elements(self, weight, self.dims)

    @cached_property
    def idle(self) -> Mapping[str, tuple[Dim, ...]]:
        """For each matrix and node of an adapter the dims inside: while these keep all, it is not in the model."""
        out: dict[str, tuple[Dim, ...]] = {}
        for adapter in self.graph.adapters:
            axis = self.expand(self.graph.constants[adapter.matrix].axes[adapter.inner])
            out.update(dict.fromkeys((adapter.matrix, *adapter.nodes), tuple(dict.fromkeys(leaves(axis)))))
        return out

    def pins(self) -> list[tuple[str, str, int]]:
        """Return (weight and axis, reason, elements of the weight) for each weight axis without a free dim."""
        out = []
        for w in self.graph.own:
            for k, axis in enumerate(w.axes):
                dims = list(leaves(self.expand(axis)))
                if dims and not any(d in self.dims for d in dims):
                    reason, origin = self.solution.pins.get(dims[0], ("no weight lies on it", Origin("", "")))
                    out.append((f"{w.name}:{k}", f"{reason} [{origin}]" if origin.operator else reason, w.size))
        return out


def couple(graph: AxisGraph) -> Coupling:
    """Solve the equations of a traced model and collect its groups."""
    solution = solve((eq, origin) for eq, origin in graph.equations if isinstance(eq, Same | Pin | Follow | Least))
    places: dict[Dim, list[tuple[Weight, int]]] = {}
    for weight in graph.weights.values():
        for k, axis in enumerate(weight.axes):
            for dim in dict.fromkeys(leaves(solution.expand(axis))):
                if dim not in solution.pins:
                    places.setdefault(dim, []).append((weight, k))
    roles, gains, normalised = _roles(graph, solution, places)
    taken: dict[str, int] = {}
    groups = []
    for dim, found in places.items():
        occurrences = tuple(
            Occurrence(
                w.name, k, _role(roles, w.name, dim, k), show(solution.expand(w.axes[k])), (w.name, dim) in gains
            )
            for w, k in found
        )
        name = _name(dim, found, occurrences, solution)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}~{taken[name]}"
        parameters = 0
        for w in {w.name: w for w, _ in found}.values():
            parameters += _elements(w, [solution.expand(a) for a in w.axes], {dim})
        least = solution.least.get(dim, (1, None))[0]
        groups.append(ChannelGroup(name, dim, dim.size, occurrences, parameters, dim in normalised, least))
    return Coupling(graph, solution, tuple(groups))


def _role(roles: Mapping[tuple[str, Dim, int | None], Role], weight: str, dim: Dim, axis: int) -> Role:
    found = [roles.get((weight, dim, k), Role.CARRIED) for k in (axis, None)]
    return next((r for r in found if r is not Role.CARRIED), Role.CARRIED)


def _roles(
    graph: AxisGraph, solution: Solution, places: Mapping[Dim, object]
) -> tuple[dict[tuple[str, Dim, int | None], Role], set[tuple[str, Dim]], set[Dim]]:
    """Return the role of each dim in each weight, which of them are gains, and the dims normalised over.

    Where an operator reads the weight itself the role is that of one axis: a dim may be on two, in different roles.
    """
    roles: dict[tuple[str, Dim, int | None], Role] = {}
    gains: set[tuple[str, Dim]] = set()
    normalised: set[Dim] = set()
    for op in graph.ops:
        for use in graph.uses.get(op.name, ()):
            operand = op.input(use.operand)
            dims = [d for d in leaves(solution.expand(use.axis)) if d in places]
            if not dims or operand is None:
                continue
            if use.role is Role.NORMALISED:
                normalised.update(dims)
            for source in graph.sources.get(operand.name, ()):
                mine = source == operand.name
                own: list[int | None] = [k for k, a in enumerate(operand.axes) if mine and a is use.axis]
                for d in dims:
                    for key in [(source, d, k) for k in own or [None]]:
                        if roles.get(key) in (None, Role.CARRIED):
                            roles[key] = use.role
                    if use.gain:
                        gains.add((source, d))
    return roles, gains, normalised


def _name(
    dim: Dim, found: list[tuple[Weight, int]], occurrences: tuple[Occurrence, ...], solution: Solution
) -> str:
    """Name a group after its first producing initializer and axis, with the dim's place where the axis has many."""

    def rank(i: int) -> tuple[bool, bool, int]:
        return occurrences[i].role is not Role.PRODUCED, COPY_MARK in occurrences[i].initializer, i

    best = min(range(len(found)), key=rank)
    weight, k = found[best]
    dims = list(dict.fromkeys(leaves(solution.expand(weight.axes[k]))))
    suffix = f".{dims.index(dim)}" if len(dims) > 1 else ""
    return f"{weight.name}:{k}{suffix}"


def count_slots(axis: Axis, dims: Iterable[Dim]) -> int:
    """Return how many slots of an axis lie on at least one of the dims.

    >>> h, d = Dim(2), Dim(3)
    >>> count_slots(Sum((h, d)), {d})
    3
    """
    if isinstance(axis, Dim):
        return axis.size if axis in dims else 0
    if isinstance(axis, Sum):
        return sum(count_slots(p, dims) for p in axis.parts)
    assert isinstance(axis, Product)
    return axis.size - prod(p.size - count_slots(p, dims) for p in axis.parts)


def covered_elements(coupling: Coupling, weight: Weight, dims: Iterable[Dim]) -> int:
    """Return how many elements of a weight lie on at least one of the dims."""
    return _elements(weight, [coupling.expand(a) for a in weight.axes], dims)


def _elements(weight: Weight, axes: list[Axis], dims: Iterable[Dim]) -> int:
    if not weight.size:
        return 0
    return weight.size - prod(a.size - count_slots(a, dims) for a in axes)


def axis_text(coupling: Coupling, axis: Axis) -> str:
    """Return an axis in einops notation with the sizes of its dims, pinned ones in brackets."""
    pins = coupling.solution.pins
    return show(coupling.expand(axis), lambda d: f"[{d.size}]" if d in pins else str(d.size))
