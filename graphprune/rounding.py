"""What a change as small as rounding does to a model that rounds to a grid.

Quantised operators turn a difference of 1e-7 into a whole unit where a number lies at the edge between two units, and
later layers carry that on. How much comes of it is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphprune.execute import Outputs
from graphprune.model import constant_of, constants, set_constant
from graphprune.ops import QUANTISED, ROUND_TRIP, ROUNDERS

SMALL = 1e-6
"""The relative change of every number: about the rounding of a sum of some hundred float32 products."""

_FEW = 8


def rounds(model: ir.Model) -> bool:
    """Return whether some operator of a model rounds activations to a grid of integers."""
    return any(node.op_type in ROUNDERS for node in model.graph.all_nodes())


def is_quantised(model: ir.Model) -> bool:
    """Return whether a model has quantised weights or activations."""
    return any(node.op_type in QUANTISED for node in model.graph.all_nodes())


def smoothed(model: ir.Model) -> ir.Model | None:
    """Return a copy in which what is quantised and read back at once, by one scale, is passed on as it is.

    It has the same nodes and weights, but for those that only round. None where there is nothing of that kind.
    """
    out = model.clone()
    found = False
    for graph in out.graphs():
        for node in graph:
            source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            pair = source is not None and (source.op_type, node.op_type) == (ROUND_TRIP.quantise, ROUND_TRIP.read)
            if not pair or source is None or not (_one_scale(source) and _one_scale(node)):
                continue
            found = True
            node.op_type, node.domain = ROUND_TRIP.nothing, ""
            node.attributes.clear()
            node.replace_input_with(0, source.inputs[0])
            node.resize_inputs(1)
    return out if found else None


def _one_scale(node: ir.Node) -> bool:
    tensor = constant_of(node.inputs[1])
    return tensor is not None and tensor.size == 1 and tensor.dtype == ir.DataType.FLOAT


def disturbed(model: ir.Model, seed: int) -> ir.Model:
    """Return a copy whose real constants differ by a factor of up to 1e-6 from 1, at random.

    Constants of at most eight elements stay: they may be sizes or factors of sizes.
    """
    out = model.clone()
    for graph in out.graphs():
        for k, (value, tensor) in enumerate(list(constants(graph))):
            if tensor.dtype == ir.DataType.FLOAT and tensor.size > _FEW:
                set_constant(value, _moved(tensor, [seed, k]))
    return out


def _moved(tensor: ir.TensorProtocol, seed: Sequence[int]) -> ir.TensorProtocol:
    def read() -> ir.TensorProtocol:
        return ir.Tensor(_times(tensor.numpy(), seed), name=tensor.name)

    return ir.LazyTensor(read, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def disturbed_arrays(arrays: Outputs, seed: int) -> Outputs:
    """Return inputs of which the real numbers differ by a factor of up to 1e-6 from 1, at random.

    >>> disturbed_arrays({"ids": np.array([3])}, 0)["ids"].tolist()
    [3]
    """
    return {k: _times(a, [seed, i]) if a.dtype == np.float32 else a for i, (k, a) in enumerate(arrays.items())}


def _times(array: np.ndarray, seed: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
    factor = 1 + SMALL * np.random.default_rng(seed).uniform(-1, 1, array.shape)
    return np.asarray(array * factor, dtype=array.dtype)
