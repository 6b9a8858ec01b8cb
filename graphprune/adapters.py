"""Adapters: matrices between a narrower inside and an input or output that keeps its size.

A width that reaches an input or output is pinned there, and with it all weights that lie on no other group: the
embeddings of a text encoder, the matrices of a recurrent layer whose state goes in and out. Where those are many, a
matrix is put between: one that changes nothing (the unit matrix, exactly), so the width inside is free, and its rows or
columns go with the width. What is left of it gives a caller the size that he knows; as it is a layer like others, its
repair fits what is gone from what is left. A matrix that lost nothing is taken out again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.axes import Dim, Role
from graphprune.border import WORTH, Opened
from graphprune.groups import Coupling, covered_elements
from graphprune.model import add_constant, all_nodes, all_values, values_of
from graphprune.ops import MATMUL, TRANSPOSE
from graphprune.sizes import real_inputs
from graphprune.states import AFTER, BEFORE, Adapter

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)  # what onnxruntime multiplies matrices of


@dataclass(frozen=True)
class _Place:
    """An axis of an input or output."""

    side: str
    name: str
    axis: int
    size: int


def adapted(opened: Opened) -> tuple[ir.Model, tuple[Adapter, ...]]:
    """Return a copy of a normalised model with adapters where they free weights, and these; the model if nowhere.

    >>> adapted(Opened(model, coupling))[1][0].port  # doctest: +SKIP
    'last_hidden_state'
    """
    places = _worthwhile(opened) if opened.coupling.coverage < 1 - WORTH else []
    if not places:
        return opened.model, ()
    out = opened.model.clone()
    return out, tuple(_insert(out, place) for place in places)


def _worthwhile(asked: Opened) -> list[_Place]:
    """Return the axes of inputs and outputs behind which enough weights lie that nothing else frees.

    Every adapter must free more weight elements than it has itself.
    """
    model, free = asked.model, asked.free
    opened = {port.name for port in asked.coupling.graph.ports}
    everywhere = _places(model, free)
    held = set(free.dims) - everywhere.keys()
    places = {
        d: found for d, found in everywhere.items() if _inner(free, d) and all(_possible(model, free, p) for p in found)
    }
    total, chosen = sum(w.size for w in free.graph.weights.values()), dict[_Place, None]()
    while places:
        gains = {d: _gain(free, held, d) - sum(p.size**2 for p in found) for d, found in places.items()}
        best = max(gains, key=lambda d: gains[d])
        if gains[best] < max(WORTH * total, 1):
            break
        held.add(best)
        chosen.update((p, None) for p in places.pop(best) if p.name not in opened)
    return list(chosen)


def _inner(free: Coupling, dim: Dim) -> bool:
    """Return whether a dim is a width of the inside: made there and read there, not a class or a feature."""
    return {Role.PRODUCED, Role.CONTRACTED} <= {o.role for o in free.dims[dim].occurrences}


def _places(model: ir.Model, free: Coupling) -> dict[Dim, list[_Place]]:
    """Return for each dim the axes of inputs and outputs that it lies on, if those are free."""
    out: dict[Dim, list[_Place]] = {}
    for side, values in ((BEFORE, real_inputs(model)), (AFTER, list(model.graph.outputs))):
        for value in values:
            operand = free.graph.values.get(value.name or "")
            for k, axis in enumerate(operand.axes if operand is not None else ()):
                for dim in free.free(axis):
                    out.setdefault(dim, []).append(_Place(side, value.name or "", k, axis.size))
    return out


def _gain(free: Coupling, held: set[Dim], dim: Dim) -> int:
    """Return how many weight elements lie on a dim and on none of those held."""
    weights = [free.graph.weights[name] for name in {o.initializer for o in free.dims[dim].occurrences}]
    return sum(covered_elements(free, w, {*held, dim}) - covered_elements(free, w, held) for w in weights)


def _possible(model: ir.Model, free: Coupling, place: _Place) -> bool:
    """Return whether a matrix can stand between an axis and the inside, and costs little there.

    Numbers must be of a type that can be multiplied. An input that grows (a cache: two sizes are open, its length and
    the batch) would be multiplied whole in every run.
    """
    value = _outside(model, place)
    if place.side == BEFORE:
        fits = not value.is_graph_output() and sum(free.graph.values[place.name].dynamic) < 2
    else:
        fits = value.producer() is not None and sum(v is value for v in model.graph.outputs) == 1
    return fits and value.dtype in _TYPES and value.shape is not None


def _outside(model: ir.Model, place: _Place) -> ir.Value:
    """Return the input or output of a place."""
    values = model.graph.inputs if place.side == BEFORE else model.graph.outputs
    return next(v for v in values if v.name == place.name)


def _insert(model: ir.Model, place: _Place) -> Adapter:
    """Put the unit matrix between an input or output and the inside of a model, in place."""
    graph, before, outside = model.graph, place.side == BEFORE, _outside(model, place)
    taken = {v.name for g in model.graphs() for v in values_of(g)} | set(all_nodes(model))
    base = f"{place.name}/adapter"
    while any(str(name).startswith(base) for name in taken):
        base += "_"
    dtype = outside.dtype or ir.DataType.FLOAT
    unit = ir.tensor(np.eye(place.size, dtype=dtype.numpy()), dtype=dtype, name=f"{base}/matrix")
    matrix = add_constant(graph, f"{base}/matrix", unit, model.ir_version)
    nodes = _nodes(outside, matrix, place, base)
    last = nodes[-1].outputs[0]
    last.type, last.shape = outside.type, outside.shape
    inside = f"{base}/inside"
    if before:
        outside.replace_all_uses_with(last)
        nodes[0].replace_input_with(0, outside)
        last.name = inside
        made = matrix.producer()
        if made is not None:
            graph.insert_after(made, nodes)
        else:
            graph.insert_before(graph.node(0), nodes)
    else:
        graph.outputs[graph.outputs.index(outside)] = last
        outside.name, last.name = inside, place.name
        graph.extend(nodes)
    return Adapter(place.name, place.side, place.axis, inside, matrix.name or "", tuple(n.name or "" for n in nodes))


def _nodes(value: ir.Value, matrix: ir.Value, place: _Place, base: str) -> list[ir.Node]:
    """Return nodes that multiply a value by a matrix along an axis; the axis is the last one for that long."""
    assert value.shape is not None
    order = list(range(len(value.shape)))
    order[place.axis], order[-1] = order[-1], order[place.axis]
    turned = order != sorted(order)
    nodes = list[ir.Node]()
    for kind in [TRANSPOSE, MATMUL, TRANSPOSE] if turned else [MATMUL]:
        inputs = [value, matrix] if kind == MATMUL else [value]
        attributes = {"perm": order} if kind == TRANSPOSE else {}
        node = ir.node(kind, inputs, attributes, name=f"{base}/{len(nodes)}")
        value = node.outputs[0]
        value.name = f"{base}/{len(nodes)}/y"
        nodes.append(node)
    return nodes


def withdraw(model: ir.Model, adapters: Iterable[Adapter]) -> None:
    """Take adapters out of a model in place: inside and outside are one value again."""
    values, nodes = all_values(model), all_nodes(model)
    for adapter in adapters:
        inside, outside = values[adapter.inside], values[adapter.port]
        if adapter.side == BEFORE:
            inside.replace_all_uses_with(outside)
        else:
            model.graph.outputs[model.graph.outputs.index(outside)] = inside
            outside.name, inside.name = f"{adapter.inside}/gone", adapter.port
        model.graph.remove([nodes[name] for name in adapter.nodes], safe=True)
