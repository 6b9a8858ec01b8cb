"""A copy of a model with random weights, for a proof where the model's own would hide a wrong group.

Weights that are all one value, or a last layer of zeros, look the same however they are permuted.
"""

from __future__ import annotations

from math import prod, sqrt

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.groups import Coupling, couple
from graphprune.model import add_constant, all_values, constant_of, set_constant
from graphprune.trace import trace
from graphprune.weights import Weight

_LARGEST = 300_000_000


def lively(model: ir.Model, coupling: Coupling, gain: float, seed: int = 0) -> tuple[ir.Model, Coupling] | None:
    """Return a normalised model with random numbers in the weights that lie on groups, and its coupling.

    Vectors are drawn from [0.5, 1.5] (they may be variances), the rest from a normal distribution that keeps the scale
    of activations, about, for a `gain` of 1. None where that would take too much memory.
    """
    weights = [w for w in coupling.graph.weights.values() if coupling.covered(w)]
    if sum(w.size for w in weights) > _LARGEST:
        return None
    out = model.clone()
    values = all_values(out)
    rng = np.random.default_rng(seed)
    for weight in weights:
        value = values[weight.name]
        if weight.quantised:
            set_constant(value, _narrow(value, rng))
            continue
        array = _drawn(weight, rng, gain)
        if not weight.filled:
            dtype = value.dtype or ir.DataType.FLOAT
            set_constant(value, ir.tensor(array.astype(dtype.numpy()), dtype=dtype))
            continue
        name = value.name or ""
        value.name = f"{name}/filled"
        made = add_constant(out.graph, name, ir.tensor(array), out.ir_version)
        value.replace_all_uses_with(made, replace_graph_outputs=True)
    graph = coupling.graph
    return out, couple(trace(out, graph.worlds, {p.name for p in graph.ports}.__contains__, graph.adapters))


def _drawn(weight: Weight, rng: np.random.Generator, gain: float) -> npt.NDArray[np.float32]:
    if sum(n > 1 for n in weight.shape) < 2:
        return rng.uniform(0.5, 1.5, weight.shape).astype(np.float32)
    scale = gain / sqrt(max(prod(weight.shape) / max(weight.shape), 1.0))
    drawn: npt.NDArray[np.float32] = rng.standard_normal(weight.shape, dtype=np.float32) * np.float32(scale)
    return drawn


def _narrow(value: ir.Value, rng: np.random.Generator) -> ir.TensorProtocol:
    """Return the numbers of a quantised weight, each in a random place: they keep their range and their type."""
    tensor = constant_of(value)
    assert tensor is not None
    array = tensor.numpy()
    return ir.tensor(rng.permutation(array.reshape(-1)).reshape(array.shape), dtype=tensor.dtype)
