"""A copy of the model in the form the later stages expect; the user's model is not touched.

Ensures: no calls of local functions, every node named, and no constant shared by uses that are tied only because an
exporter merged equal tensors or made one of zeros for all.
"""

from __future__ import annotations

from itertools import count
from math import prod

import numpy as np
import onnx_ir as ir

from graphprune import repeated
from graphprune.errors import ModelError
from graphprune.model import add_constant, constant_of, constants, unmapped, values_of
from graphprune.ops import CUTTERS

ORIGIN = "graphprune.shared"
COPY_MARK = "__use"
_BODY_MARK = "__body"
_UNIFORM_LIMIT = 1 << 22


def normalize(model: ir.Model) -> ir.Model:
    """Return a normalised copy that shares the tensors of the given model."""
    out = model.clone()
    if out.functions:
        from onnx_ir.passes.common import InlinePass

        try:
            out = InlinePass()(out).model
        except Exception as error:
            said = str(error).splitlines()[0][:200]
            raise ModelError(f"the model's functions cannot be inlined: {said}") from error
        out.functions.clear()
    for graph in out.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = unmapped(value.const_value)
    name_nodes(out)
    name_values(out)
    repeated.separate(out.graph)
    unshare(out)
    return out


def name_nodes(model: ir.Model) -> None:
    """Give nodes without a name, or with another node's, one of their own; nodes inside of bodies, too."""
    seen: set[str] = set()
    for graph in model.graphs():
        for i, node in enumerate(graph):
            if not node.name or node.name in seen:
                node.name = f"{node.op_type}_{i}"
            while node.name in seen:
                node.name += "_"
            seen.add(node.name)


def name_values(model: ir.Model) -> None:
    """Give values inside of bodies names that nothing else has: two branches may both call theirs `x`."""
    taken: set[str | None] = set()
    for graph in model.graphs():
        for value in dict.fromkeys(values_of(graph)):  # in old files an initializer is an input, too
            if value.name and value.name in taken:
                if value.const_value is not None:  # a tensor of the user's takes the name, too
                    value.const_value = _alias(value.const_value)
                value.name = _free_name(f"{value.name}{_BODY_MARK}", taken)
            taken.add(value.name)


def unshare(model: ir.Model) -> None:
    """Give every use of an accidentally shared constant a copy of its own.

    A tie is accidental where the tensor has at most one axis, or one value everywhere; tied matrices (embeddings,
    layers applied twice) stay tied.
    """
    taken = {v.name for graph in model.graphs() for v in values_of(graph)}
    for graph in list(model.graphs()):
        for value, tensor in list(constants(graph)):
            uses = list(value.uses())
            if len(uses) < 2 or value.is_graph_output() or not _accidental(tensor):
                continue
            whole = [u for u in uses if not _cuts(u)]
            for node, index in whole if len(whole) < len(uses) else whole[1:]:
                name = _free_name(f"{value.name}{COPY_MARK}", taken)
                copy = add_constant(graph, name, _alias(tensor), model.ir_version)
                copy.metadata_props[ORIGIN] = value.name or ""
                node.replace_input_with(index, copy)


def _cuts(use: tuple[ir.Node, int]) -> bool:
    """Return whether a use reads only a part: all such uses share one tensor, whose parts are told apart anyway."""
    return use[0].op_type in CUTTERS and use[1] == 0


def _free_name(base: str, taken: set[str | None]) -> str:
    """Return the base with the first number that makes it new."""
    name = next(n for k in count(1) if (n := f"{base}{k}") not in taken)
    taken.add(name)
    return name


def _alias(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the same content under a name of its own: writing a file names each tensor after its value."""
    return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _accidental(tensor: ir.TensorProtocol) -> bool:
    shape = tensor.shape.numpy()
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
    for graph in list(model.graphs()):
        _reshare(graph)
    repeated.merge(model.graph)


def _reshare(graph: ir.Graph) -> None:
    found = [(value, tensor, value.metadata_props.pop(ORIGIN, None)) for value, tensor in constants(graph)]
    kept: dict[str, list[ir.Value]] = {value.name or "": [value] for value, _, origin in found if origin is None}
    for value, tensor, origin in found:
        if origin is None:
            continue
        group = kept.setdefault(origin, [])
        for other in group:
            if _equal(constant_of(other), tensor):
                value.replace_all_uses_with(other)
                _drop(graph, value)
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
    elif value.name and value.name in graph.initializers:
        del graph.initializers[value.name]


