"""From a normalised ONNX graph to a program: nodes in order, each with its torch rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from graphprune.converters.torch_ops import TORCH
from graphprune.converters.torch_ops.registry import Node, Program, host_tensor
from graphprune.converters.trainable import known
from graphprune.errors import ModelError
from graphprune.model import constant_of

_SHOWN = 5


def program_of(model: ir.Model) -> Program:
    """Return a model's graph as a program; raises ModelError naming the operators that have no rule."""
    opsets = opsets_of(model)
    missing: dict[str, str] = {}
    for graph in model.graphs():
        for node in graph:
            if not is_constant(node) and known(TORCH, node, opsets) is None:
                missing.setdefault(f"{node.domain}.{node.op_type}".lstrip("."), node.name or "")
    if missing:
        shown = "; ".join(f"{kind} (node {name!r})" for kind, name in list(missing.items())[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ModelError(
            f"the model cannot become a torch module: no torch rule for {shown}{more}; quantised operators have none: "
            "give the model from before quantisation"
        )
    return _program(model.graph, opsets)


def watched(program: Program, names: Sequence[str]) -> Program:
    """Return a program with inner values among its outputs, behind its own."""
    more = tuple(n for n in names if n not in program.outputs)
    free = tuple(tuple(n for n in some if n not in more) for some in program.free)
    return replace(program, outputs=(*program.outputs, *more), free=free)


def opsets_of(model: ir.Model) -> dict[str, int]:
    """Return opset versions by domain, ai.onnx as the empty one."""
    return {("" if d == "ai.onnx" else d): v for d, v in model.opset_imports.items()}


def is_constant(node: ir.Node) -> bool:
    """Return whether a node is a constant that a program has among its values already."""
    return not node.inputs and len(node.outputs) == 1 and constant_of(node.outputs[0]) is not None


def _program(graph: ir.Graph, opsets: dict[str, int]) -> Program:
    nodes = [n for n in graph if not is_constant(n)]
    outputs = tuple(v.name or "" for v in graph.outputs)
    last: dict[str, int] = {}
    for k, node in enumerate(nodes):
        last.update(dict.fromkeys([*_read(node), *[o.name or "" for o in node.outputs]], k))
    own = {v.name for n in nodes for v in n.outputs} | {v.name for v in graph.inputs}
    free: list[list[str]] = [[] for _ in nodes]
    for name, k in last.items():
        if name in own and name not in outputs:
            free[k].append(name)
    inputs = tuple(v.name or "" for v in graph.inputs if v.name not in graph.initializers)
    return Program(inputs, outputs, tuple(_node(n, opsets) for n in nodes), tuple(tuple(f) for f in free))


def _read(node: ir.Node) -> list[str]:
    """Return all names that a node reads, those that its bodies take from outside included."""
    names = [v.name for v in node.inputs if v is not None and v.name]
    for graph in _graphs(node):
        for inner in graph:
            names += _read(inner)
        names += [v.name for v in graph.outputs if v.name]
    return names


def _graphs(node: ir.Node) -> list[ir.Graph]:
    found = []
    for a in node.attributes.values():
        if a.type == ir.AttributeType.GRAPH:
            found.append(a.as_graph())
        elif a.type == ir.AttributeType.GRAPHS:
            found += list(a.as_graphs())
    return found


def _node(node: ir.Node, opsets: dict[str, int]) -> Node:
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = known(TORCH, node, opsets)
    assert rule is not None
    read = {o.name for o in node.outputs if o.uses() or o.is_graph_output()}
    return Node(
        name=node.name or "",
        type=node.op_type,
        domain=domain,
        version=opsets.get(domain, 1),
        rule=rule,
        attributes={k: _attribute(a, opsets) for k, a in node.attributes.items()},
        inputs=tuple(v.name if v is not None and v.name else None for v in node.inputs),
        outputs=tuple(o.name if o.name in read else None for o in node.outputs),
        source=node,
    )


def _attribute(attribute: ir.Attr, opsets: dict[str, int]) -> Any:
    kind, value = attribute.type, attribute.value
    if kind == ir.AttributeType.GRAPH:
        return _program(attribute.as_graph(), opsets)
    if kind == ir.AttributeType.TENSOR:
        return host_tensor(attribute.as_tensor().numpy())
    if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(value)
    return value
