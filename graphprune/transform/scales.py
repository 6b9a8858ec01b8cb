"""Scales that stand behind a layer, one number for each channel, are put into its weights and what it adds."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.contents import rule_of
from graphprune.model import constant_of, set_constant
from graphprune.ops import ADD, AFFINE, FOLDS
from graphprune.ops.folds import Fold

Array: TypeAlias = npt.NDArray[Any]
Sizes: TypeAlias = "Mapping[str, tuple[int | None, ...]]"


def fold_scales(model: ir.Model, sizes: Sizes) -> None:
    """Fold multiplications of a layer's output by constants into the layer; a bias may be added in between.

    Weights of float types only, which nothing else reads, and scales that are finite and not zero.
    """
    for node in list(model.graph):
        found = _scaled(model, node)
        if found is None:
            continue
        scale, value = found
        added = value.producer()
        shift = _bias_behind(added)
        layer = value if shift is None or added is None else added.inputs[1 - shift]
        maker = layer.producer() if layer is not None else None
        rank = len(sizes.get(value.name or "", ()))
        if shift is not None and added is not None and not _fits(added.inputs[shift], scale):
            continue
        if maker is None or layer is None or not _alone(layer) or not rank or not _folded(model, maker, scale, rank):
            continue
        if shift is not None and added is not None:
            _multiply(added.inputs[shift], scale)
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)


def _scaled(model: ir.Model, node: ir.Node) -> tuple[Array, ir.Value] | None:
    """Return the factor by which a node multiplies a value that only it reads, and the value."""
    rule = rule_of(AFFINE, model, node)
    if rule is None or node.outputs[0].is_graph_output():
        return None
    for k in (0, 1):
        value, tensor = node.inputs[k], constant_of(node.inputs[1 - k])
        if value is None or tensor is None or not _alone(value) or tensor.dtype not in _FLOATS:
            continue
        factor, added = rule(tensor.numpy(), 1 - k)
        if np.isfinite(factor).all() and factor.all() and not np.any(added) and not (factor == 1).all():
            return np.asarray(factor), value
    return None


_FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.DOUBLE])


def _alone(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()


def _bias_behind(node: ir.Node | None) -> int | None:
    """Return which input of a node is a vector that it adds to a layer's output, None where it is no such node."""
    if node is None or node.op_type != ADD:
        return None
    for k in (0, 1):
        tensor, value = constant_of(node.inputs[k]), node.inputs[k]
        if tensor is not None and value is not None and _alone(value) and len(tensor.shape) <= 1:
            return k
    return None


def _fits(bias: ir.Value | None, scale: Array) -> bool:
    """Return whether a bias times a scale has no more numbers than the larger of the two."""
    tensor = constant_of(bias)
    assert tensor is not None
    sizes = tuple(tensor.shape.numpy())
    return prod(np.broadcast_shapes(sizes, scale.shape)) <= max(prod(sizes), scale.size)


def _folded(model: ir.Model, node: ir.Node, scale: Array, rank: int) -> bool:
    """Multiply the weight and the bias of a layer by a scale of its output's channels; return whether that is done."""
    rule = rule_of(FOLDS, model, node)
    weight = constant_of(node.inputs[1]) if rule is not None and len(node.inputs) > 1 else None
    if rule is None or weight is None or weight.dtype not in _FLOATS:
        return False
    fold = rule({k: a.value for k, a in node.attributes.items()}, len(weight.shape))
    if fold is None or scale.ndim > rank:
        return False
    vector = _per_channel(scale, fold, rank, weight.shape.numpy()[fold.along])
    bias = node.inputs[fold.bias] if fold.bias is not None and fold.bias < len(node.inputs) else None
    owned = [v for v in (node.inputs[fold.weight], bias) if v is not None]
    if vector is None or any(constant_of(v) is None or not _alone(v) for v in owned):
        return False
    shape = [-1 if k == fold.along else 1 for k in range(len(weight.shape))]
    _multiply(node.inputs[fold.weight], vector.reshape(shape))
    if bias is not None:
        _multiply(bias, vector)
    return True


def _per_channel(scale: Array, fold: Fold, rank: int, size: int) -> Array | None:
    """Return a scale as one number for each channel, None where it differs within one."""
    axis = fold.channel % rank
    shape = (1,) * (rank - scale.ndim) + scale.shape
    if any(n != 1 for k, n in enumerate(shape) if k != axis) or shape[axis] not in (1, size):
        return None
    return np.broadcast_to(scale.reshape(-1), (size,))


def _multiply(value: ir.Value | None, factor: Array) -> None:
    tensor = constant_of(value)
    assert value is not None and tensor is not None
    product = (tensor.numpy().astype(np.float64) * factor).astype(tensor.dtype.numpy())
    set_constant(value, ir.Tensor(np.ascontiguousarray(product), name=tensor.name))
