"""What a model costs, as a function of the sizes of its dims: parameters, bytes, multiply-accumulates, and further
kinds that are priced elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Protocol, TypeAlias

import onnx_ir as ir

from graphprune.axes import Axis, Dim, kept_size, leaves
from graphprune.groups import Coupling
from graphprune.kinds import COUNTED, SPELLED, kind_of
from graphprune.ops import COSTS, CostRule, Op, Operand
from graphprune.ops.registry import ShapeOf

_ITEM = 4.0
_NO_SIZE = (int(ir.DataType.UNDEFINED), int(ir.DataType.STRING))

Sizes: TypeAlias = "Mapping[Dim, int]"
"""How many indices each dim keeps; dims that are not in it keep all."""

Price: TypeAlias = "Callable[[Sizes], Mapping[str, float]]"
"""What something costs at such sizes, by column; a column that is absent costs nothing."""


@dataclass(frozen=True)
class Costs:
    """Costs of one model at one pruning, by column.

    A kind of cost has one column, named as the kind is. One that is the largest of several (a peak over places) has a
    column for each, `kind@place`.
    """

    by_column: Mapping[str, float]

    def of(self, kind: str) -> float:
        """Return one cost by the name that targets use, such as `macs`; raises KeyError for one that is not counted.

        >>> Costs({"macs": 100.0, "memory@a": 1.0, "memory@b": 3.0}).of("memory")
        3.0
        """
        found = [value for column, value in self.by_column.items() if kind_of(column) == kind]
        if not found:
            raise KeyError(kind)
        return max(found)

    @property
    def macs(self) -> int:
        return round(self.of("macs"))

    @property
    def parameters(self) -> int:
        return round(self.of("params"))

    @property
    def bytes(self) -> int:
        return round(self.of("bytes"))

    def to_json(self) -> dict[str, float]:
        """Return all kinds as plain JSON: whole numbers where they are counted.

        >>> Costs({"params": 8.0, "latency": 1.5}).to_json()
        {'parameters': 8, 'latency': 1.5}
        """
        kinds = dict.fromkeys(kind_of(column) for column in self.by_column)
        return {SPELLED.get(k, k): round(self.of(k)) if k in COUNTED else self.of(k) for k in kinds}


@dataclass(frozen=True)
class Part:
    """What one owner, a node or a weight, adds to the costs, and the prunable dims that this depends on."""

    owner: str
    dims: tuple[Dim, ...]
    price: Price


@dataclass(frozen=True)
class Term:
    """Parts of the costs that depend on the same prunable dims."""

    dims: tuple[Dim, ...]
    parts: tuple[Part, ...]

    def price(self, sizes: Sizes) -> dict[str, float]:
        """Return what the parts cost when each dim in `sizes` has that size, by column."""
        return _summed(part.price(sizes) for part in self.parts)


class Pricing(Protocol):
    """A further kind of cost: the columns it has, and the parts it consists of."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns: the kind, or several `kind@place`."""

    def parts(self, costs: CostModel) -> Iterable[Part]:
        """Yield what each node and weight adds to them, and a part that depends on no dim for what is constant."""


def _summed(prices: Iterable[Mapping[str, float]]) -> dict[str, float]:
    out: dict[str, float] = {}
    for price in prices:
        for column, value in price.items():
            out[column] = out.get(column, 0.0) + value
    return out


def _weight_price(fixed: int, itemsize: float, axes: list[Axis]) -> Price:
    def price(sizes: Sizes) -> Mapping[str, float]:
        n = fixed * prod(kept_size(a, sizes) for a in axes)
        return {"params": float(n), "bytes": n * itemsize}

    return price


@dataclass(frozen=True)
class CostModel:
    """Counts costs for any sizes of dims, at the natural input sizes; `pricings` add kinds of cost to the three here.

    >>> CostModel(coupling, (latency,))({dim: 32}).of("latency")  # doctest: +SKIP
    1250000.0
    """

    coupling: Coupling
    pricings: tuple[Pricing, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of all kinds."""
        return ("params", "macs", "bytes", *(c for p in self.pricings for c in p.columns))

    def columns_of(self, kind: str) -> tuple[str, ...]:
        """Return the columns of one kind, none where it is not counted here."""
        return tuple(c for c in self.columns if kind_of(c) == kind)

    @cached_property
    def _shapes(self) -> dict[str, list[tuple[int, Axis | None]]]:
        """Return for each operand its natural sizes, and the expression of each axis that may shrink."""
        natural = self.coupling.graph.worlds.natural.shapes
        out: dict[str, list[tuple[int, Axis | None]]] = {}
        for op in self.coupling.graph.ops:
            for o in (*op.inputs, *op.outputs):
                if o is not None and o.rank_known and o.name not in out:
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
    def _weights(self) -> list[tuple[str, int, float, list[Axis]]]:
        return [
            (
                w.name,
                prod(s for s, a in pairs if a is None),
                w.itemsize * (not w.filled),
                [a for _, a in pairs if a is not None],
            )
            for w in self.coupling.graph.weights.values()
            for pairs in [[(s, self._shrinking(a)) for s, a in zip(w.shape, w.axes, strict=True)]]
        ]

    def shape_of(self, sizes: Sizes) -> ShapeOf:
        """Return what tells the natural sizes of operands when each dim in `sizes` has that size."""

        def shape(operand: Operand) -> tuple[int, ...]:
            return tuple(
                n if a is None else n * kept_size(a, sizes) // a.size for n, a in self._shapes[operand.name]
            )

        return shape

    def op_macs(self, sizes: Sizes) -> dict[str, int]:
        """Return the multiply-accumulates of each priced node."""
        shape, times = self.shape_of(sizes), self.coupling.graph.worlds.natural.times
        return {op.name: rule(op, shape) * times.get(op.name, 1) for op, rule in self._priced}

    def __call__(self, sizes: Sizes) -> Costs:
        """Return the costs when each dim in `sizes` has that size; what only bypassed branches need costs nothing."""
        branches = self.coupling.branches
        gone = branches.gone(branches.closed(sizes))
        gone |= branches.unread(gone)
        left = (part.price(sizes) for part in self.parts if part.owner not in gone)
        return Costs({**dict.fromkeys(self.columns, 0.0), **_summed(left)})

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Return what each node and weight costs."""
        nodes = [self.part(op, self._macs_prices[op.name]) for op, _ in self._priced]
        weights = [
            Part(name, self._dims(axes), _weight_price(fixed, itemsize, axes))
            for name, fixed, itemsize, axes in self._weights
        ]
        further = (part for p in self.pricings for part in p.parts(self))
        return tuple(self._gated(self._idle(part)) for part in (*nodes, *weights, *further))

    def _idle(self, part: Part) -> Part:
        """Return a part that costs nothing while its owner, an adapter, has nothing to do."""
        inside = self.coupling.idle.get(part.owner)
        if inside is None:
            return part
        return replace(
            part, dims=tuple(dict.fromkeys((*part.dims, *(d for d in inside if d in self.coupling.dims)))),
            price=lambda sizes: part.price(sizes) if any(sizes.get(d, d.size) != d.size for d in inside) else {},
        )

    def _gated(self, part: Part) -> Part:
        """Return a part that costs nothing where all branches that its owner is needed in are bypassed."""
        around = self.coupling.branches.around(part.owner)
        if not all(around):
            return part
        dims = tuple(dict.fromkeys((*part.dims, *(gate for gates in around for gate in gates))))

        def price(sizes: Sizes) -> Mapping[str, float]:
            needless = all(any(sizes.get(gate, 1) == 0 for gate in gates) for gates in around)
            return {} if needless else part.price(sizes)

        return replace(part, dims=dims, price=price)

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Return the parts of the costs that depend on sizes, together where they depend on the same dims.

        The costs change by the sum of what the terms change: a search need not count all of them at every step.
        """
        out: dict[tuple[Dim, ...], list[Part]] = {}
        for part in self.parts:
            out.setdefault(part.dims, []).append(part)
        return tuple(Term(dims, tuple(parts)) for dims, parts in out.items() if dims)

    def macs_price(self, op: Op) -> Price | None:
        """Return the price of a node in multiply-accumulates, None where it has none."""
        return self._macs_prices.get(op.name)

    @cached_property
    def _macs_prices(self) -> dict[str, Price]:
        times = self.coupling.graph.worlds.natural.times
        return {op.name: self._op_price(op, rule, times.get(op.name, 1)) for op, rule in self._priced}

    def itemsize(self, name: str) -> float:
        """Return the bytes of one element of a value, 4 where its type is not known."""
        weight = self.coupling.graph.weights.get(name)
        if weight is not None:
            return weight.itemsize * (not weight.filled)
        kind = self.coupling.graph.worlds.natural.dtypes.get(name, 0)
        return ir.DataType(kind).bitwidth / 8 if kind not in _NO_SIZE else _ITEM

    def bytes_of(self, operand: Operand, sizes: Sizes) -> float:
        """Return the bytes of a value when each dim in `sizes` has that size, 0 where nothing is known of it."""
        return prod(self.shape_of(sizes)(operand)) * self.itemsize(operand.name) if operand.rank_known else 0.0

    def dims_of(self, operand: Operand) -> tuple[Dim, ...]:
        """Return the prunable dims that the size of a value depends on."""
        return self._dims(a for _, a in self._shapes.get(operand.name, ()))

    def part(self, op: Op, price: Price) -> Part:
        """Return a price as a node's part of the costs, which depends on all dims of what the node reads and gives."""
        axes = [a for o in (*op.inputs, *op.outputs) if o is not None for _, a in self._shapes[o.name]]
        return Part(op.name, self._dims(axes), price)

    def _dims(self, axes: Iterable[Axis | None]) -> tuple[Dim, ...]:
        found = (d for a in axes if a is not None for d in leaves(a) if d in self.coupling.dims)
        return tuple(dict.fromkeys(found))

    def _op_price(self, op: Op, rule: CostRule, times: int) -> Price:
        return lambda sizes: {"macs": float(rule(op, self.shape_of(sizes)) * times)}

    def macs_by_group(self) -> dict[str, int]:
        """Return for each group the MACs of the nodes that have its dim on an axis."""
        found = self.op_macs({})
        out = dict.fromkeys((g.name for g in self.coupling.groups), 0)
        for op, _ in self._priced:
            if op.name not in self.coupling.idle:
                for d in self.part(op, self._macs_prices[op.name]).dims:
                    out[self.coupling.dims[d].name] += found[op.name]
        return out
