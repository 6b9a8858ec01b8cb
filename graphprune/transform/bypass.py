"""Bypass branches of a model: the sum that a branch ends in goes on without it, and what only it needed is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphprune.model import add_constant
from graphprune.ops import ADD, IDENTITY, MULTIPLY
from graphprune.transform.branches import Branch


def bypass(model: ir.Model, nodes: Mapping[str, ir.Node], closed: Iterable[Branch]) -> None:
    """Take branches out of a model in place; `nodes` are its nodes by name.

    Values keep their names: where a sum has one summand left, a node hands that on. Nodes that nothing needs any more
    stay where they are; `rearranged` drops them.
    """
    sums: dict[str, list[Branch]] = {}
    for branch in closed:
        sums.setdefault(branch.join.name, []).append(branch)
    for name, branches in sums.items():
        _without(model, nodes[name], branches)


def _without(model: ir.Model, node: ir.Node, branches: list[Branch]) -> None:
    """Replace a sum by what it is without branches; of a sum of nothing but branches the last one is no branch."""
    dropped = {b.summand for b in branches}
    residual = branches[0].residual
    left = [k for k in residual.summands if k not in dropped]
    if len(dropped) > 1:  # a plain sum of many
        _totals(model, node, {0: tuple(left)})
        return
    instead = residual.without(branches[0].summand)
    parts = [None if p is None else _part(model, node, p) for p in instead.inputs]
    _totals(model, node, instead.totals)
    if not parts:
        return
    node.resize_inputs(len(parts))
    for k, value in enumerate(parts):
        node.replace_input_with(k, value)
    for key, number in instead.attributes.items():
        node.attributes[key] = ir.AttrFloat32(key, number)


def _totals(model: ir.Model, node: ir.Node, totals: Mapping[int, tuple[int, ...]]) -> None:
    """Make outputs of a node sums of its inputs, under their own names."""
    for k, part in totals.items():
        old = node.outputs[k]
        source = _part(model, node, part)
        made = ir.node(IDENTITY, [source], name=node.name if len(node.outputs) == 1 else f"{node.name}/total")
        new, name = made.outputs[0], old.name
        old.name = f"{name}/summed"
        new.name, new.type, new.shape = name, old.type, old.shape
        new.metadata_props.update(old.metadata_props)
        made.metadata_props.update(node.metadata_props)
        (node.graph or model.graph).insert_before(node, made)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    if totals and not any(o.uses() or o.is_graph_output() for o in node.outputs):
        (node.graph or model.graph).remove(node, safe=True)


def _part(model: ir.Model, node: ir.Node, part: tuple[int, ...]) -> ir.Value:
    """Return the sum of some inputs of a node."""
    values = [node.inputs[k] for k in part]
    total = values[0]
    assert total is not None
    for k, value in enumerate(values[1:]):
        made = ir.node(ADD, [total, value], name=f"{node.name}/plus_{part[k + 1]}_{len(model.graph)}")
        made.outputs[0].name = f"{made.name}_out"
        made.outputs[0].type, made.outputs[0].shape = total.type, total.shape
        (node.graph or model.graph).insert_before(node, made)
        total = made.outputs[0]
    return total


def silenced(model: ir.Model, nodes: Mapping[str, ir.Node], closed: Iterable[Branch]) -> None:
    """Multiply what branches give by zero, in place: what a bypass must equal (the masking oracle)."""
    for branch in closed:
        node = nodes[branch.join.name]
        value = node.inputs[branch.summand]
        assert value is not None
        dtype = value.dtype or ir.DataType.FLOAT
        name = f"{branch.name}.silent{branch.summand}"
        zero = add_constant(model.graph, name, ir.tensor(np.zeros((), dtype.numpy()), dtype=dtype), model.ir_version)
        product = ir.node(MULTIPLY, [value, zero], name=f"{name}.mul")
        product.outputs[0].name, product.outputs[0].type = f"{name}.out", value.type
        (node.graph or model.graph).insert_before(node, product)
        node.replace_input_with(branch.summand, product.outputs[0])
