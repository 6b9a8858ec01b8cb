"""What a model costs, as a function of the sizes of its dims: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from graphprune.axes import Axis, Dim, kept_size, leaves
from graphprune.groups import Coupling
from graphprune.ops import COSTS, CostRule, Op, Operand


@dataclass(frozen=True)
class Costs:
    """Costs of one model at one pruning."""

    parameters: int
    macs: int
    bytes: int

    def of(self, kind: str) -> int:
        """Return one cost by the name that targets use: `macs`, `params` or `bytes`."""
        return {"macs": self.macs, "params": self.parameters, "bytes": self.bytes}[kind]


@dataclass(frozen=True)
class Term:
    """A part of the costs, and the prunable dims that it depends on."""

    dims: tuple[Dim, ...]
    parts: tuple[Callable[[Mapping[Dim, int]], tuple[float, float, float]], ...]

    def price(self, sizes: Mapping[Dim, int]) -> dict[str, float]:
        """Return what the part costs when each dim in `sizes` has that size, by the names that targets use."""
        found = [part(sizes) for part in self.parts]
        return {kind: sum(f[i] for f in found) for i, kind in enumerate(("macs", "params", "bytes"))}


def _weight_price(
    fixed: int, itemsize: float, axes: list[Axis]
) -> Callable[[Mapping[Dim, int]], tuple[float, float, float]]:
    def price(sizes: Mapping[Dim, int]) -> tuple[float, float, float]:
        n = fixed * prod(kept_size(a, sizes) for a in axes)
        return 0.0, float(n), n * itemsize

    return price


@dataclass(frozen=True)
class CostModel:
    """Counts costs for any sizes of dims; MACs are those of the natural input sizes."""

    coupling: Coupling

    @cached_property
    def _shapes(self) -> dict[str, list[tuple[int, Axis | None]]]:
        """Return for each operand its natural sizes, and the expression of each axis that may shrink."""
        natural = self.coupling.graph.worlds.natural.shapes
        out: dict[str, list[tuple[int, Axis | None]]] = {}
        for op, _ in self._priced:
            for o in (*op.inputs, *op.outputs):
                if o is not None and o.name not in out:
                    sizes = natural.get(o.name, o.shape)
                    axes = [self._shrinking(a) for a in o.axes]
                    out[o.name] = list(zip(sizes, axes, strict=False))
        return out

    def _shrinking(self, axis: Axis) -> Axis | None:
        axis = self.coupling.expand(axis)
        return axis if any(d in self.coupling.dims for d in leaves(axis)) else None

    @cached_property
    def _priced(self) -> list[tuple[Op, CostRule]]:
        found = []
        for op in self.coupling.graph.ops:
            rule = COSTS.get(op.domain, op.type, op.version)
            if rule is not None and all(o is None or o.rank_known for o in (*op.inputs, *op.outputs)):
                found.append((op, rule))
        return found

    @cached_property
    def _weights(self) -> list[tuple[int, float, list[Axis]]]:
        return [
            (
                prod(s for s, a in pairs if a is None),
                w.itemsize * (not w.filled),
                [a for _, a in pairs if a is not None],
            )
            for w in self.coupling.graph.weights.values()
            for pairs in [[(s, self._shrinking(a)) for s, a in zip(w.shape, w.axes, strict=True)]]
        ]

    def _shape_of(self, sizes: Mapping[Dim, int]) -> Callable[[Operand], tuple[int, ...]]:
        def shape(operand: Operand) -> tuple[int, ...]:
            return tuple(
                n if a is None else n * kept_size(a, sizes) // a.size for n, a in self._shapes[operand.name]
            )

        return shape

    def op_macs(self, sizes: Mapping[Dim, int]) -> dict[str, int]:
        """Return the multiply-accumulates of each priced node."""
        shape, times = self._shape_of(sizes), self.coupling.graph.worlds.natural.times
        return {op.name: rule(op, shape) * times.get(op.name, 1) for op, rule in self._priced}

    def __call__(self, sizes: Mapping[Dim, int]) -> Costs:
        """Return the costs when each dim in `sizes` has that size."""
        parameters, stored = 0, 0.0
        for fixed, itemsize, axes in self._weights:
            n = fixed * prod(kept_size(a, sizes) for a in axes)
            parameters += n
            stored += n * itemsize
        return Costs(parameters, sum(self.op_macs(sizes).values()), round(stored))

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Return the parts of the costs that depend on sizes, each with the dims that it depends on.

        The costs change by the sum of what the terms change: a search need not count all of them at every step.
        """
        out: dict[tuple[Dim, ...], list[Callable[[Mapping[Dim, int]], tuple[float, float, float]]]] = {}
        times = self.coupling.graph.worlds.natural.times
        for op, rule in self._priced:
            axes = [a for o in (*op.inputs, *op.outputs) if o is not None for _, a in self._shapes[o.name]]
            out.setdefault(self._dims(axes), []).append(self._op_price(op, rule, times.get(op.name, 1)))
        for fixed, itemsize, found in self._weights:
            out.setdefault(self._dims(found), []).append(_weight_price(fixed, itemsize, found))
        return tuple(Term(dims, tuple(prices)) for dims, prices in out.items() if dims)

    def _dims(self, axes: Iterable[Axis | None]) -> tuple[Dim, ...]:
        found = (d for a in axes if a is not None for d in leaves(a) if d in self.coupling.dims)
        return tuple(dict.fromkeys(found))

    def _op_price(
        self, op: Op, rule: CostRule, times: int
    ) -> Callable[[Mapping[Dim, int]], tuple[float, float, float]]:
        return lambda sizes: (float(rule(op, self._shape_of(sizes)) * times), 0.0, 0.0)

    def macs_by_group(self) -> dict[str, int]:
        """Return for each group the MACs of the nodes that have its dim on an axis."""
        found = self.op_macs({})
        out = dict.fromkeys((g.name for g in self.coupling.groups), 0)
        for op, _ in self._priced:
            dims = {
                d
                for o in (*op.inputs, *op.outputs)
                if o is not None
                for _, a in self._shapes[o.name]
                if a is not None
                for d in leaves(a)
            }
            for d in dims:
                if d in self.coupling.dims:
                    out[self.coupling.dims[d].name] += found[op.name]
        return out
