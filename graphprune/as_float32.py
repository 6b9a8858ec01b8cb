"""A copy of a model that computes in float32, for element types that onnxruntime has no kernels for.

Knows no operators: every tensor of a wide or narrow float type, every type that is stated, and every attribute that
names such a type becomes float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.model import constants

_OTHERS = frozenset([ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT16])
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")


def other_floats(model: ir.Model) -> list[str]:
    """Return the names of the float types other than float32 that a model's weights and inputs have.

    >>> other_floats(bfloat16_model)  # doctest: +SKIP
    ['bfloat16']
    """
    found = {t.dtype for graph in model.graphs() for _, t in constants(graph)}
    found.update(v.dtype for graph in model.graphs() for v in graph.inputs if v.dtype is not None)
    return sorted(d.name.lower() for d in found & _OTHERS)


def as_float32(model: ir.Model) -> ir.Model:
    """Return a copy whose floats are all float32; tensors are converted when they are read."""
    out = model.clone()
    for graph in out.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _tensor(value.const_value)
        _restate([*graph.inputs, *graph.initializers.values()])
        _convert_nodes(graph)
    for function in out.functions.values():
        _restate(function.inputs)
        for body in (function.graph, *function.graph.subgraphs()):
            _restate(body.inputs)
            _convert_nodes(body)
        for name, attribute in list(function.attributes.items()):
            function.attributes[name] = _attribute(attribute)
    return out


def as_float32_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return inputs for such a copy."""
    wanted = {np.dtype(d.numpy()) for d in _OTHERS}
    return {k: a.astype(np.float32) if a.dtype in wanted else a for k, a in arrays.items()}


def _convert_nodes(graph: ir.Graph) -> None:
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            node.attributes[name] = _attribute(attribute)
        _restate(node.outputs)


def _restate(values: Iterable[ir.Value]) -> None:
    for value in values:
        if value.type is not None:
            value.type = _type(value.type)


def _type(given: Any) -> Any:
    """Return a tensor, sequence or optional type with float32 inside in place of the others."""
    if isinstance(given, (ir.SequenceType, ir.OptionalType)):
        return type(given)(_type(given.elem_type))
    if getattr(given, "dtype", None) in _OTHERS:
        return type(given)(ir.DataType.FLOAT)
    return given


def _tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _OTHERS:
        return tensor

    def read() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)

    return ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.is_ref():
        return attribute
    name, kind, value = attribute.name, attribute.type, attribute.value
    if kind == ir.AttributeType.TENSOR:
        return ir.AttrTensor(name, _tensor(value))
    if kind == ir.AttributeType.TENSORS:
        return ir.AttrTensors(name, [_tensor(t) for t in value])
    if kind == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and value in {int(d) for d in _OTHERS}:
        return ir.AttrInt64(name, int(ir.DataType.FLOAT))
    return attribute
