"""A copy of the model in the form the later stages expect; the user's model is not touched.

Ensures: no calls of local functions, every node named, and no constant shared by uses that are tied only because an
exporter merged equal tensors.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from graphprune.model import add_constant, constant_of, constants

ORIGIN = "graphprune.shared"
COPY_MARK = "__use"
_UNIFORM_LIMIT = 1 << 22


def normalize(model: ir.Model) -> ir.Model:
    """Return a normalised copy that shares the tensors of the given model."""
    out = model.clone()
    if out.functions:
        from onnx_ir.passes.common import InlinePass

        out = InlinePass()(out).model
    name_nodes(out.graph)
    unshare(out)
    return out


def name_nodes(graph: ir.Graph) -> None:
    """Give nodes without a name, or with another node's, one of their own."""
    seen: set[str] = set()
    for i, node in enumerate(graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        while node.name in seen:
            node.name += "_"
        seen.add(node.name)


def unshare(model: ir.Model) -> None:
    """Give every use of an accidentally shared constant a copy of its own.

    A tie is accidental where the tensor has at most one axis, or one value everywhere; tied matrices (embeddings,
    layers applied twice) stay tied.
    """
    graph = model.graph
    for value, tensor in list(constants(graph)):
        uses = list(value.uses())
        if len(uses) < 2 or value.is_graph_output() or not _accidental(tensor):
            continue
        for k, (node, index) in enumerate(uses[1:]):
            if node.graph is not graph:
                continue
            copy = add_constant(graph, f"{value.name}{COPY_MARK}{k + 1}", _alias(tensor), model.ir_version)
            copy.metadata_props[ORIGIN] = value.name or ""
            node.replace_input_with(index, copy)


def _alias(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the same content under a name of its own: writing a file names each tensor after its value."""
    return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape), name=tensor.name)


def _accidental(tensor: ir.TensorProtocol) -> bool:
    shape = [int(n) for n in tensor.shape]
    if prod(shape) <= 1:
        return False
    if sum(n > 1 for n in shape) <= 1:
        return True
    if prod(shape) > _UNIFORM_LIMIT or tensor.dtype == ir.DataType.STRING:
        return False
    array = tensor.numpy()
    first = array.reshape(-1)[:64]
    return bool((first == first[0]).all() and (array == first[0]).all())


def reshare(model: ir.Model) -> None:
    """Merge again the copies made by `unshare` that ended up equal, so that the file does not grow."""
    kept: dict[str, list[ir.Value]] = {}
    for value, tensor in list(constants(model.graph)):
        origin = value.metadata_props.pop(ORIGIN, None)
        group = kept.setdefault(origin or value.name or "", [])
        if origin is None:
            group.insert(0, value)
            continue
        for other in group:
            if _equal(constant_of(other), tensor):
                value.replace_all_uses_with(other)
                _drop(model.graph, value)
                break
        else:
            group.append(value)


def _equal(a: ir.TensorProtocol | None, b: ir.TensorProtocol) -> bool:
    if a is b:
        return True
    return (
        a is not None
        and tuple(a.shape) == tuple(b.shape)
        and a.dtype == b.dtype
        and np.array_equal(a.numpy(), b.numpy())
    )


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    node = value.producer()
    if node is not None:
        graph.remove(node, safe=True)
    elif value.name in graph.initializers:
        del graph.initializers[value.name]


