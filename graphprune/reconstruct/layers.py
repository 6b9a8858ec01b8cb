"""The layers of a pruned model as least-squares problems: which part of the dense matrix each of them still has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import leaves, slots
from graphprune.consumers import Consumer
from graphprune.groups import Coupling
from graphprune.model import add_constant, all_nodes, all_values, constant_of, set_constant
from graphprune.ops import ADD, DESIGNS, Design
from graphprune.reconstruct.shifts import place_of
from graphprune.rewrite import Chosen

Matrix = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One block on the diagonal of a pruned layer's matrix: from which dense block, which columns, which outputs."""

    block: int
    columns: Index
    outputs: Index


@dataclass(frozen=True)
class Layer:
    """A consumer in a pruned model.

    `design` is that of the pruned node, `parts` has one entry for each of its blocks. `touched` says whether any of
    its columns are gone.
    """

    consumer: Consumer
    design: Design
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    touched: bool

    @property
    def node(self) -> str:
        return self.consumer.node

    @property
    def biased(self) -> bool:
        """Whether something can be added to what it puts out."""
        return self.consumer.frozen or self.design.answers is not None or self.design.bias is not None

    @property
    def outputs(self) -> int:
        """Number of outputs of all blocks."""
        return sum(len(p.outputs) for p in self.parts)


def layer(consumer: Consumer, coupling: Coupling, chosen: Chosen, attributes: Mapping[str, object]) -> Layer | None:
    """Return what a choice of indices leaves of a consumer; None where the pruned node has no design.

    `attributes` are those of the pruned node.
    """
    weight = coupling.graph.weights[consumer.weight]
    axes = [coupling.expand(a) for a in weight.axes]
    kept = [
        slots(a, chosen) if any(d in chosen for d in leaves(a)) else np.arange(a.size) for a in axes
    ]
    shape = tuple(len(k) for k in kept)
    shapes = [o.shape if o is not None else () for o in consumer.op.inputs]
    shapes[consumer.design.weight] = shape
    rule = DESIGNS.get(consumer.op.domain, consumer.op.type, consumer.op.version)
    design = rule(attributes, shapes, consumer.design.weight) if rule is not None else None
    if design is None or not all(shape):
        return None
    numbers = np.arange(weight.size, dtype=np.float64).reshape(weight.shape)
    scale = float(consumer.design.matrix(np.ones(weight.shape)).flat[0])
    dense = consumer.design.matrix(numbers) / scale
    where = np.empty(weight.size, np.int64)
    where[np.rint(dense).astype(np.int64).ravel()] = np.arange(dense.size)
    left = np.rint(design.matrix(numbers[np.ix_(*kept)]) / scale).astype(np.int64)
    places = np.unravel_index(where[left], dense.shape)
    parts = tuple(
        Part(int(places[0][g, 0, 0]), places[1][g, :, 0].copy(), places[2][g, 0, :].copy()) for g in range(len(left))
    )
    return Layer(consumer, design, shape, parts, dense.shape[1] > left.shape[1])


def plain_attributes(node: ir.Node) -> dict[str, object]:
    """Return a node's attributes as plain values."""
    values = {k: a.value for k, a in node.attributes.items()}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def bias_of(node: ir.Node, layer: Layer) -> Matrix | None:
    """Return what a node of a pruned model adds to its outputs [blocks x outputs]; zeros where it adds nothing.

    None: what it adds is not the same for all rows (computed, or with a size for every row).
    """
    place, outputs = layer.design.bias, layer.outputs
    value = node.inputs[place] if place is not None and place < len(node.inputs) else None
    if value is None:
        return np.zeros(outputs)
    tensor = constant_of(value)
    if tensor is None or (tensor.size != 1 and tuple(tensor.shape.numpy())[-1:] != (tensor.size,)):
        return None
    if tensor.size not in (1, outputs):
        return None
    return np.broadcast_to(np.asarray(tensor.numpy(), np.float64).reshape(-1), (outputs,))


def write(
    model: ir.Model, node: ir.Node, layer: Layer, matrix: Sequence[Matrix] | None, shift: Sequence[Matrix] | None
) -> None:
    """Give a node of a pruned model a new weight, block by block, and add `shift` to what it adds.

    A bias is created where there is none: as an input of the node, else by a node behind it. Without a matrix the
    weight is left as it is.
    """
    if layer.consumer.frozen:
        place = place_of(node, layer.design, layer.outputs)
        if place is not None and shift is not None:
            _put(model, place.node, place.index, place.shifted(np.concatenate([s.ravel() for s in shift])))
        return
    value = node.inputs[layer.design.weight]
    assert value is not None
    dtype = value.dtype or ir.DataType.FLOAT
    nodes = all_nodes(model)
    sharing = [nodes[n] for n in layer.consumer.nodes if n in nodes]  # the others went with a branch
    if matrix is not None:
        array = np.ascontiguousarray(layer.design.weights(np.stack(matrix), layer.shape))
        _put(model, node, layer.design.weight, ir.tensor(array.astype(dtype.numpy()), dtype=dtype), sharing)
    if shift is not None:
        added = np.concatenate([s.ravel() for s in shift])
        for one in _apart(sharing, layer.design.bias):
            _add(model, one, layer, added, dtype, sharing)


def _apart(nodes: Sequence[ir.Node], index: int | None) -> list[ir.Node]:
    """Return nodes without those that share their bias with one before them."""
    found: dict[object, ir.Node] = {}
    for node in nodes:
        value = node.inputs[index] if index is not None and index < len(node.inputs) else None
        found.setdefault(value if value is not None else node, node)
    return list(found.values())


def _put(
    model: ir.Model, node: ir.Node, index: int, tensor: ir.TensorProtocol, sharing: Sequence[ir.Node] = ()
) -> None:
    """Set a constant input; one that nodes read which do not share in it is left to them."""
    value = node.inputs[index] if index < len(node.inputs) else None
    ours = value is not None and all(reader in (node, *sharing) and i == index for reader, i in value.uses())
    if value is not None and ours and constant_of(value) is not None and not value.is_graph_output():
        set_constant(value, tensor)
        return
    name = _free(model, f"{value.name if value is not None else node.name}__{node.name}.{index}")
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_constant(model.graph, name, tensor, model.ir_version))


def _add(
    model: ir.Model, node: ir.Node, layer: Layer, shift: Matrix, dtype: ir.DataType, sharing: Sequence[ir.Node]
) -> None:
    if not np.any(shift):
        return
    place = layer.design.bias
    if place is not None:
        before = bias_of(node, layer)
        if before is not None:
            _put(model, node, place, ir.tensor((before + shift).astype(dtype.numpy()), dtype=dtype), sharing)
            return
    if layer.design.answers is None:
        return
    _behind(model, node, layer, shift, dtype)


def _behind(model: ir.Model, node: ir.Node, layer: Layer, shift: Matrix, dtype: ir.DataType) -> None:
    """Add numbers to the outputs of a node that takes no bias: to the constant that is added next, if there is one."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        reader, index = uses[0]
        other = reader.inputs[1 - index] if reader.op_type == ADD and len(reader.inputs) == 2 else None
        tensor = constant_of(other)
        last = not layer.design.spatial
        if tensor is not None and last and tuple(tensor.shape.numpy())[-1:] == (tensor.size,) == shift.shape:
            array = np.asarray(tensor.numpy(), np.float64) + shift
            _put(model, reader, 1 - index, ir.tensor(array.astype(dtype.numpy()), dtype=dtype))
            return
    array = shift.reshape((-1,) + (1,) * layer.design.spatial).astype(dtype.numpy())
    free = _free(model, f"{node.name}.bias")
    constant = add_constant(model.graph, free, ir.tensor(array, dtype=dtype), model.ir_version)
    added = ir.node(ADD, [output, constant], name=f"{free}.add")
    added.outputs[0].name = f"{free}.added"
    added.outputs[0].type, added.outputs[0].shape = output.type, output.shape
    (node.graph or model.graph).insert_after(node, added)
    for reader, index in uses:
        reader.replace_input_with(index, added.outputs[0])
    if output.is_graph_output():
        _rename_output(model, output, added.outputs[0])


def _free(model: ir.Model, name: str) -> str:
    """Return a name that no value has, nor begins with."""
    taken = all_values(model)
    while any(n.startswith(name) for n in taken):
        name += "_"
    return name


def _rename_output(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    name = old.name
    old.name, new.name = f"{name}/plain", name
    for k, value in enumerate(list(model.graph.outputs)):
        if value is old:
            model.graph.outputs[k] = new

