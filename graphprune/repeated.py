"""Values that are one number everywhere: each use gets nodes of its own that make it, and equal ones are merged again.

An exporter makes the zero states of all layers at once, or once for all, and cuts them apart. That ties layers which
have nothing to do with each other.
"""

from __future__ import annotations

from itertools import count
from math import prod

import numpy as np
import onnx_ir as ir

from graphprune.model import constant_of
from graphprune.ops import FILLERS, REPEATERS

ORIGIN = "graphprune.repeated"
MARK = "__made"
_MOST_USES = 64


def separate(graph: ir.Graph) -> None:
    """Give each use of a repeated number a node of its own; readers come first, so whole chains are copied.

    Values with more than 64 uses stay shared, and so do those that leave the graph or are read inside bodies.
    """
    taken = {n.name for n in graph} | {o.name for n in graph for o in n.outputs} | set(graph.initializers)
    for node in reversed(_repeating(graph)):
        output = node.outputs[0]
        uses = list(output.uses())
        if output.is_graph_output() or len(uses) > _MOST_USES or any(n.graph is not graph for n, _ in uses):
            continue
        for reader, index in uses[1:]:
            copy = _copy(node, taken)
            graph.insert_after(node, copy)
            reader.replace_input_with(index, copy.outputs[0])


def merge(graph: ir.Graph) -> None:
    """Merge the copies that still read the same values and have the same attributes."""
    kept: dict[str, list[ir.Node]] = {}
    for node in list(graph):
        origin = node.metadata_props.pop(ORIGIN, None)
        group = kept.setdefault(origin or node.name or "", [])
        twin = next((n for n in group if _same(n, node)), None) if origin is not None else None
        if twin is None:
            group.append(node)
        else:
            node.outputs[0].replace_all_uses_with(twin.outputs[0])
            graph.remove(node, safe=True)


def _repeating(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes whose output is one floating-point number everywhere, in the order of the graph."""
    made: dict[ir.Value, None] = {}
    found = []
    for node in graph:
        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            continue
        first = node.inputs[0] if node.inputs else None
        fills = node.op_type in FILLERS and _is_float(node)
        if fills or (node.op_type in REPEATERS and first is not None and (first in made or _is_number(first))):
            made[node.outputs[0]] = None
            found.append(node)
    return found


def _is_float(node: ir.Node) -> bool:
    value = node.attributes.get("value")
    return value is None or value.as_tensor().dtype.is_floating_point()


def _is_number(value: ir.Value) -> bool:
    tensor = constant_of(value)
    return tensor is not None and tensor.dtype.is_floating_point() and prod(tensor.shape.numpy()) == 1


def _copy(node: ir.Node, taken: set[str | None]) -> ir.Node:
    name = next(n for k in count(1) if (n := f"{node.name}{MARK}{k}") not in taken and f"{n}.out" not in taken)
    taken.update((name, f"{name}.out"))
    copy = ir.node(node.op_type, list(node.inputs), dict(node.attributes), domain=node.domain, name=name)
    copy.metadata_props[ORIGIN] = node.name or ""
    old, new = node.outputs[0], copy.outputs[0]
    new.name, new.type = f"{name}.out", old.type
    new.shape = ir.Shape(old.shape) if old.shape is not None else None
    return copy


def _same(a: ir.Node, b: ir.Node) -> bool:
    return list(a.inputs) == list(b.inputs) and a.attributes.keys() == b.attributes.keys() and all(
        _equal(a.attributes[k], b.attributes[k]) for k in a.attributes
    )


def _equal(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type == b.type == ir.AttributeType.TENSOR:
        return np.array_equal(a.as_tensor().numpy(), b.as_tensor().numpy())
    return a.type == b.type and bool(a.value == b.value)
