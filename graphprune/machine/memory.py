"""Memory as a kind of cost: the weights, and at every node the values that are alive there; the largest counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphprune.costs import CostModel, Part, Price, Sizes
from graphprune.ops import Op, Operand
from graphprune.ops.workloads import IN_PLACE


@dataclass(frozen=True)
class Memory:
    """Bytes of weights and live values: `alive` has for each buffer the columns in which it is held."""

    columns: tuple[str, ...]
    alive: tuple[tuple[Operand, tuple[str, ...]], ...]

    def parts(self, costs: CostModel) -> Iterable[Part]:
        """Yield a part for each weight, which is always held, and for each value."""
        for name, weight in costs.coupling.graph.weights.items():
            if not weight.filled:
                operand = costs.coupling.graph.values.get(name)
                if operand is not None:
                    yield Part(name, costs.dims_of(operand), _price(costs, operand, self.columns))
        givers = {o.name: op.name for op in costs.coupling.graph.ops for o in op.outputs if o is not None}
        for operand, columns in self.alive:
            giver = givers.get(operand.name, operand.name)
            yield Part(giver, costs.dims_of(operand), _price(costs, operand, columns))


def _price(costs: CostModel, operand: Operand, columns: tuple[str, ...]) -> Price:
    def price(sizes: Sizes) -> dict[str, float]:
        return dict.fromkeys(columns, costs.bytes_of(operand, sizes))

    return price


def memory(costs: CostModel) -> Memory:
    """Return the memory of a model at its natural sizes.

    A value is held from the node that gives it to the last that reads it; inputs from the start, outputs, and what
    nobody reads, to the end. A node that works element by element, or only looks at its input in another shape, writes
    over an input of the same size that nobody reads any more. Places at which no more is held than at the next are left
    out.

    >>> CostModel(coupling, (memory(CostModel(coupling)),))({}).of("memory")  # doctest: +SKIP
    12400000.0
    """
    spans, buffers = _spans(costs)
    places = [frozenset(name for name, (a, b) in spans.items() if a <= t <= b) for t in range(_length(costs))]
    kept = [
        t for t, here in enumerate(places)
        if not (t and here <= places[t - 1]) and not (t + 1 < len(places) and here < places[t + 1])
    ]
    names = {t: f"memory@{t}" for t in kept} or {0: "memory"}
    alive = tuple(
        (buffers[name], tuple(column for t, column in names.items() if a <= t <= b)) for name, (a, b) in spans.items()
    )
    return Memory(tuple(names.values()), tuple((o, c) for o, c in alive if c))


def _length(costs: CostModel) -> int:
    return len(costs.coupling.graph.ops)


def _spans(costs: CostModel) -> tuple[dict[str, tuple[int, int]], dict[str, Operand]]:
    """Return from which node to which each buffer is held, and the value that it is made for."""
    graph = costs.coupling.graph
    last = {o.name: t for t, op in enumerate(graph.ops) for o in _read(op)}
    end, fixed = _length(costs), graph.constants.keys() | graph.weights.keys()
    home: dict[str, str] = {}
    spans: dict[str, tuple[int, int]] = {}
    buffers: dict[str, Operand] = {}

    def hold(operand: Operand, t: int) -> None:
        spans[operand.name] = (t, last.get(operand.name, end))
        buffers[operand.name] = operand
        home[operand.name] = operand.name

    for t, op in enumerate(graph.ops):
        for o in op.inputs:
            if o is not None and o.name not in home and o.name not in fixed:
                hold(o, 0)
        for k, o in enumerate(op.outputs):
            if o is None or o.name in fixed:
                continue
            source = None if k else _written_over(costs, op, o, {n: spans[h][1] for n, h in home.items()}, t)
            if source is None:
                hold(o, t)
            else:
                root = home[o.name] = home[source.name]
                spans[root] = (spans[root][0], max(spans[root][1], last.get(o.name, end)))
    return spans, buffers


def _read(op: Op) -> list[Operand]:
    """Return what a node reads, also within its bodies."""
    inside = [o for body in op.bodies for o in (*body.inputs, *body.outputs)]
    return [*[o for o in op.inputs if o is not None], *inside]


def _written_over(costs: CostModel, op: Op, output: Operand, until: dict[str, int], t: int) -> Operand | None:
    """Return the input whose memory an output takes."""
    if op.type not in IN_PLACE:
        return None
    size = costs.bytes_of(output, {})
    for o in op.inputs:
        if o is not None and until.get(o.name, t + 1) <= t and costs.bytes_of(o, {}) == size:
            return o
    return None
