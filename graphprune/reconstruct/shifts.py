"""Where what quantised layers add can be corrected without quantising anything again.

Their weights stay as they are; what the channels that went gave on average is added to what is added anyway: to a bias
of real numbers or of integers in a known unit, at the node, or behind it once integers have become real numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.consumers import Consumer, Consumers
from graphprune.model import all_nodes, constant_of
from graphprune.ops import ADD, MOVERS, ROUND_TRIP, SCALERS, Design

_MOST = 2**31 - 1  # biases of integers have 32 bits

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Input `index` of a node is added to `outputs` numbers, in this unit; `content` is what it is now."""

    node: ir.Node
    index: int
    unit: Matrix
    content: npt.NDArray[np.generic]

    def shifted(self, shift: Matrix) -> ir.TensorProtocol:
        """Return the constant with something added to it; integers are rounded."""
        added = self.content.astype(np.float64) + (shift / self.unit).reshape(self.content.shape)
        kind = self.content.dtype
        if kind.kind == "i":
            added = np.clip(np.rint(added), -_MOST, _MOST)
        return ir.tensor(added.astype(kind))


def with_places(found: Consumers, model: ir.Model) -> Consumers:
    """Return consumers of which those that are not fitted anew know whether what they add can be corrected."""
    nodes = all_nodes(model)

    def told(c: Consumer) -> Consumer:
        if not c.frozen:
            return c
        blocks, _, outputs = c.design.matrix(np.broadcast_to(np.float32(0), c.op.x(c.design.weight).shape)).shape
        return replace(c, shifted=place_of(nodes[c.node], c.design, blocks * outputs) is not None)

    return replace(found, found=tuple(map(told, found.found)))


def place_of(node: ir.Node, design: Design, outputs: int) -> Place | None:
    """Return where a shift of a node's real outputs can be written; None where nothing constant is added to them."""
    if design.bias is None:
        return _behind(node, design, outputs)
    value = node.inputs[design.bias] if design.bias < len(node.inputs) else None
    units = _product(node, design.units, outputs)
    if units is None:
        return None
    if value is None:
        kind = np.int32 if design.units else np.float32
        return Place(node, design.bias, units, np.zeros(outputs, kind))
    tensor, maker = constant_of(value), value.producer()
    if tensor is not None:
        return Place(node, design.bias, units, tensor.numpy()) if tensor.size == outputs else None
    if maker is None or maker.op_type != ROUND_TRIP.read or design.units:
        return None
    tensor, unit = constant_of(maker.inputs[0]), _product(maker, (1,), outputs)
    if tensor is None or unit is None or tensor.size != outputs or tensor.dtype != ir.DataType.INT32:
        return None
    return Place(maker, 0, unit, tensor.numpy())


def _product(node: ir.Node, inputs: Sequence[int], outputs: int) -> Matrix | None:
    """Return the product of constant inputs for every output, 1 where there are none; None where one is no constant."""
    found = np.ones(outputs)
    for i in inputs:
        tensor = constant_of(node.inputs[i])
        if tensor is None or tensor.size not in (1, outputs):
            return None
        found = found * np.asarray(tensor.numpy(), np.float64).ravel()
    return found


def _behind(node: ir.Node, design: Design, outputs: int) -> Place | None:
    """Follow the way of integers to real numbers up to the constant that is added to them."""
    value = node.outputs[0]
    while len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        reader, index = uses[0]
        if reader.op_type in SCALERS and design.integers is not None:
            value = reader.outputs[0]
            continue
        other = reader.inputs[1 - index] if reader.op_type == ADD and len(reader.inputs) == 2 else None
        return _added(reader, 1 - index, other, outputs, design.spatial) if other is not None else None
    return None


def _added(reader: ir.Node, index: int, value: ir.Value, outputs: int, spatial: int) -> Place | None:
    """Return the place of real numbers along the outputs' axis, as they are, or given that shape by a node."""
    tensor, maker = constant_of(value), value.producer()
    shape = tuple(tensor.shape.numpy()) if tensor is not None else ()
    if tensor is None and maker is not None and maker.op_type in MOVERS and len(maker.inputs) == 2:
        reader, index = maker, 0
        tensor, wanted = (constant_of(v) for v in maker.inputs)
        shape = tuple(np.asarray(wanted.numpy()).ravel().tolist()) if wanted is not None else ()
    if tensor is None or tensor.size != outputs or not tensor.dtype.is_floating_point():
        return None
    axis, rest = shape[-1 - spatial : len(shape) - spatial], shape[len(shape) - spatial :]
    fits = axis in ((outputs,), (-1,)) and rest == (1,) * spatial
    return Place(reader, index, np.ones(outputs), tensor.numpy()) if fits else None
