"""Latency as a kind of cost: what each node of the optimised graph takes, at any sizes of the groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from graphprune.axes import Dim
from graphprune.costs import CostModel, Part, Price, Sizes
from graphprune.machine.looked import Looked, Node
from graphprune.machine.profile import Profile
from graphprune.machine.roofline import Loads, Record, Roof, fitted
from graphprune.machine.table import Table
from graphprune.ops.workloads import workload

_SMALL = 64.0
_OVERHEAD = 0.05  # of the time of nodes: what a run takes beside them
_CALL = 10_000.0  # nanoseconds of a call


@dataclass(frozen=True)
class Latency:
    """Prices nodes in nanoseconds: `roofs` by their keys, times `scale`; `fixed` is what a run takes beside its nodes.

    >>> CostModel(coupling, (latency,))({}).of("latency")  # doctest: +SKIP
    7340000.0
    """

    nodes: tuple[Node, ...]
    roofs: Mapping[str, Roof]
    scale: float = 1.0
    fixed: float = 0.0
    columns: tuple[str, ...] = field(default=("latency",))
    by: ClassVar[str] = "latency"

    def parts(self, costs: CostModel) -> Iterable[Part]:
        """Yield a part for each node, and one for what does not depend on sizes."""
        yield Part("", (), lambda sizes: {"latency": self.fixed})
        for node in self.nodes:
            dims = tuple(d for d in node.dims if d in costs.coupling.dims)
            yield Part(node.owner, dims, self._price(node, dims))

    def _price(self, node: Node, dims: tuple[Dim, ...]) -> Price:
        known: dict[tuple[int, ...], Mapping[str, float]] = {}
        roof = self.roofs[node.key].scaled(self.scale)

        def price(sizes: Sizes) -> Mapping[str, float]:
            key = tuple(sizes.get(d, d.size) for d in dims)
            if key not in known:
                known[key] = {"latency": roof(node.workload(sizes).loads)}
            return known[key]

        return price

    def ns(self, sizes: Sizes) -> float:
        """Return the predicted nanoseconds of a run when each dim in `sizes` has that size."""
        return self.fixed + self.scale * sum(self.roofs[n.key](n.workload(sizes).loads) for n in self.nodes)

    def calibrated(self, measured: float) -> Latency:
        """Return the same with the dense model as long as measured.

        What its nodes leave unexplained is a run's own time, as far as that is plausible. What they have too much is
        the profiler's, the same for each node, as far as they have a fixed time. The rest is a factor.
        """
        nodes = self.ns({}) - self.fixed
        fixed = min(max(measured - nodes, 0.0), _OVERHEAD * nodes + _CALL)
        found = self._relieved(max(nodes - measured, 0.0) / max(len(self.nodes), 1) / self.scale)
        nodes = found.ns({}) - found.fixed
        return replace(found, fixed=fixed, scale=found.scale * (measured - fixed) / max(nodes, 1e-9))

    def _relieved(self, each: float) -> Latency:
        """Return the same with so many nanoseconds less in each node's fixed time: they were the profiler's."""
        roofs = {key: Roof((max(r.rates[0] - each, 0.0), *r.rates[1:])) for key, r in self.roofs.items()}
        return replace(self, roofs=roofs)


def priced(looked: Looked, table: Table, own: bool = True) -> Latency:
    """Return the latency of a model by its own profiles and by a table; only by the table where `own` is False."""
    mine = _by_node(looked.variants) if own else {}
    roofs = {}
    for node in looked.nodes:
        records = mine.get(node.key, [])
        dense = node.workload({})
        at = _centre([r.loads for r in records] or [node.workload(s).loads for s, _ in looked.variants])
        roofs[node.key] = fitted(table.near(dense.family, at), at, table.prior, records)
    return Latency(looked.nodes, roofs)


def records_of(profiles: Iterable[Profile]) -> list[Record]:
    """Return what profiles say of nodes' times."""
    found = ((n, workload(n.seen)) for p in profiles for n in p.nodes)
    return [Record(w.family, w.loads, n.ns) for n, w in found if n.ns > 0]


def _by_node(variants: Sequence[tuple[Sizes, Profile]]) -> dict[str, list[Record]]:
    out: dict[str, list[Record]] = {}
    for _, profile in variants:
        for node in profile.nodes:
            w = workload(node.seen)
            out.setdefault(node.key, []).append(Record(w.family, w.loads, node.ns))
    return out


def _centre(loads: Sequence[Loads]) -> Loads:
    """Return the geometric mean of loads."""
    logs = np.log(np.maximum(np.array(loads), _SMALL)).mean(axis=0)
    macs, data, stored = (float(x) for x in np.exp(logs))
    return macs, data, stored
