"""Branches that can be bypassed: what is computed beside a value and then added to it.

A branch ends in a residual sum. Its nodes are those that nobody needs without it; what they read of the value that
goes past them comes in at one place. A branch is one more choice beside the widths of groups, so it has a dim of its
own, its `gate`: of size 1 where it is kept, 0 where it is bypassed. Sizes and choices of dims thus say of branches,
too, what is left of a model.

Sources: blocks of two kinds (attention, feed-forward) as single candidates: Zhang et al., FinerCut (2024), section 3.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graphprune.axes import Dim
from graphprune.ops import AFFINE, COSTS, PASSING, RESIDUALS, Op, Operand, Residual

if TYPE_CHECKING:
    from graphprune.trace import AxisGraph

_FAR = 4  # sums and scalings that the value may go through on its way past a branch
_SIZES = frozenset([6, 7, 9])  # element types of sizes, positions and masks: integers and truth values


@dataclass(frozen=True)
class Branch:
    """A branch: the sum `join` gets it as input `summand`; its `nodes` are needed by nothing else.

    `before` is the value that goes past it. `reason`: why it cannot be bypassed, empty if it can.
    """

    name: str
    gate: Dim
    join: Op
    summand: int
    before: str
    nodes: frozenset[str]
    reason: str = ""

    @property
    def residual(self) -> Residual:
        found = RESIDUALS.get(self.join.domain, self.join.type, self.join.version)
        made = found(self.join) if found is not None else None
        assert made is not None
        return made


class Branches:
    """All branches of a traced model, in its order."""

    def __init__(self, graph: AxisGraph) -> None:
        self._flow = _Flow(graph)
        found = list(_found(self._flow))
        sums = Counter(b.join.name for b in found)
        self.all = tuple(replace(b, name=f"{b.name}:{b.summand}") if sums[b.name] > 1 else b for b in found)
        self.free = tuple(b for b in self.all if not b.reason)
        self.by_gate: Mapping[Dim, Branch] = {b.gate: b for b in self.free}

    @cached_property
    def gates(self) -> Mapping[str, tuple[Dim, ...]]:
        """For each node inside of branches their gates, those of inner branches and of those around them."""
        out: dict[str, tuple[Dim, ...]] = {}
        for b in self.free:
            for name in b.nodes:
                out[name] = (*out.get(name, ()), b.gate)
        return out

    def closed(self, chosen: Mapping[Dim, Any]) -> tuple[Branch, ...]:
        """Return the branches that a choice of dims, or of their sizes, bypasses."""
        if not self.by_gate.keys() & chosen.keys():
            return ()
        return tuple(b for b in self.free if b.gate in chosen and not _count(chosen[b.gate]))

    def gone(self, closed: Iterable[Branch]) -> frozenset[str]:
        """Return the nodes that nothing needs when these branches are bypassed."""
        return self._flow.unneeded([(b.join, b.summand) for b in closed])

    def around(self, owner: str) -> tuple[tuple[Dim, ...], ...]:
        """Return the gates around a node, or around each node that reads a weight; nothing around what is outside."""
        weight = owner in self._flow.graph.weights
        nodes = [*self._flow.readers.get(owner, ())] if weight else []
        if not weight or owner in self.gates:
            nodes.append(owner)
        return tuple(self.gates.get(name, ()) for name in nodes) or ((),)

    def unread(self, gone: frozenset[str]) -> frozenset[str]:
        """Return the weights that only such nodes read."""
        readers = self._flow.readers
        return frozenset(w for w in self._flow.graph.weights if readers.get(w) and set(readers[w]) <= gone)

    def named(self, name: str) -> Branch | None:
        return next((b for b in self.all if b.name == name), None)


def _count(choice: Any) -> int:
    return choice if isinstance(choice, int) else len(choice)


class _Flow:
    """Who makes and who reads each value of a graph; only nodes outside of bodies can be taken away."""

    def __init__(self, graph: AxisGraph) -> None:
        self.graph = graph
        inner = graph.worlds.natural.times.keys()
        self.outputs = frozenset(graph.outputs)
        self.place = {op.name: k for k, op in enumerate(graph.ops)}
        self.ops = [op for op in graph.ops if op.name not in inner]
        self.by_name = {op.name: op for op in self.ops}
        self.maker = {o.name: op for op in self.ops for o in op.outputs if o is not None}
        self.readers: dict[str, list[str]] = {}
        for op in graph.ops:
            for o in op.inputs:
                if o is not None:
                    self.readers.setdefault(o.name, []).append(op.name)
        self.uses = Counter(o.name for op in graph.ops for o in op.inputs if o is not None)
        self.uses.update(o.name for op in graph.ops for body in op.bodies for o in body.outputs)

    def constant(self, name: str) -> bool:
        return name in self.graph.sources or name in self.graph.constants

    def unneeded(self, cuts: Iterable[tuple[Op, int]]) -> frozenset[str]:
        """Return the nodes that nothing needs when these inputs of nodes are no longer read."""
        cut = {(op.name, k) for op, k in cuts}
        ahead = [op.x(k).name for op, k in cuts]
        left = dict[str, int]()
        gone: set[str] = set()
        while ahead:
            name = ahead.pop()
            left[name] = left.get(name, self.uses[name]) - 1
            op = self.maker.get(name)
            if op is None or op.bodies or op.name in gone or any(self._needed(o, left) for o in op.outputs):
                continue
            gone.add(op.name)
            ahead += [o.name for k, o in enumerate(op.inputs) if o is not None and (op.name, k) not in cut]
        return frozenset(gone)

    def _needed(self, value: Operand | None, left: Mapping[str, int]) -> bool:
        return value is not None and (value.name in self.outputs or left.get(value.name, self.uses[value.name]) > 0)

    def reads(self, gone: frozenset[str]) -> list[str]:
        """Return what nodes read of others, constants and sizes left out."""
        nodes = [self.by_name[name] for name in gone]
        made = {o.name for op in nodes for o in op.outputs if o is not None}
        names = dict.fromkeys(o.name for op in nodes for o in op.inputs if o is not None and o.name not in made)
        return [n for n in names if not self._aside(n)]

    def _aside(self, name: str) -> bool:
        """Return whether a value is a constant, or holds sizes, positions or a mask."""
        return self.constant(name) or self.graph.worlds.traced.dtypes.get(name) in _SIZES

    def comes_from(self, name: str, source: str) -> bool:
        """Return whether a value is computed from another, or is it; its sizes alone do not count."""
        maker = self.maker.get(source)
        first = self.place[maker.name] if maker is not None else -1
        ahead, seen = [name], set()
        while ahead:
            now = ahead.pop()
            if now == source:
                return True
            op = self.maker.get(now)
            if now not in seen and op is not None and self.place[op.name] > first:
                seen.add(now)
                ahead += [o.name for o in op.inputs if o is not None and not self._aside(o.name)]
        return False

    def past(self, name: str) -> Iterator[str]:
        """Yield a value and those that it is a scaled, shifted or reshaped form of, or a sum of."""
        ahead = [name]
        for _ in range(_FAR):
            now = ahead
            yield from now
            ahead = [n for value in now for n in self._carried(value)]

    def _carried(self, name: str) -> list[str]:
        op = self.maker.get(name)
        if op is None:
            return []
        data = [o.name for o in op.inputs if o is not None and not self.constant(o.name)]
        affine = AFFINE.get(op.domain, op.type, op.version) is not None and len(data) == 1
        if op.type in PASSING or affine:
            return data[:1]
        rule = RESIDUALS.get(op.domain, op.type, op.version)
        made = rule(op) if rule is not None else None
        whole = made is not None and name == op.y(next(iter(made.without(made.summands[0]).totals), 0)).name
        return [op.x(k).name for k in made.summands] if made is not None and whole else []


def _found(flow: _Flow) -> Iterator[Branch]:
    for op in flow.ops:
        rule = RESIDUALS.get(op.domain, op.type, op.version)
        if rule is None or not all(o is None or o.rank_known for o in (*op.inputs, *op.outputs)):
            continue
        made = rule(op)
        if made is None or not _even(flow, op, made):
            continue
        found = []
        for summand in made.summands:
            others = [op.x(k).name for k in made.summands if k != summand]
            branch = _branch(flow, op, summand, others)
            found += [branch] if branch is not None else []
        yield from found[: len(made.summands) - 1]  # one summand stays


def _even(flow: _Flow, op: Op, made: Residual) -> bool:
    """Return whether all summands have the sizes of their sum, at all sizes looked at."""
    natural = flow.graph.worlds.natural.shapes
    summands = [op.x(k) for k in made.summands]
    sizes = {(o.shape, natural.get(o.name)) for o in summands}
    if len(sizes) > 1 or not summands[0].rank:
        return False
    return not any(flow.constant(o.name) for o in summands)


def _branch(flow: _Flow, join: Op, summand: int, others: list[str]) -> Branch | None:
    """Return what a sum gets as one of its inputs as a branch; None where it is none, or costs nothing."""
    gone = flow.unneeded([(join, summand)])
    reads = flow.reads(gone)
    for before in (name for other in others for name in flow.past(other)):
        entries = [r for r in reads if flow.comes_from(r, before)]
        if entries:
            break
    else:
        return None
    nodes = (flow.by_name[name] for name in gone)
    if not any(COSTS.get(op.domain, op.type, op.version) is not None for op in nodes):
        return None
    return Branch(join.name, Dim(1, join.name), join, summand, before, gone, _reason(flow, entries))


def _reason(flow: _Flow, entries: list[str]) -> str:
    """Return why a branch cannot be bypassed: something else is computed from what is inside of it."""
    if len(entries) == 1:
        return ""
    outside = next((n for n in entries if n in flow.outputs), None)
    if outside is not None:
        return f"{outside!r}, which is computed in it, is an output of the model"
    return f"what is computed in it is needed elsewhere, too: {', '.join(map(repr, entries[:3]))}"
