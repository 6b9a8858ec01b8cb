"""Build a model in which each dim keeps chosen indices: a part of them (pruning) or all in another order (proof)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.adapters import withdraw
from graphprune.axes import Axis, Dim, Role, Use, kept_size, leaves, slots
from graphprune.groups import Coupling
from graphprune.model import add_constant, all_nodes, all_values, constant_of, set_constant
from graphprune.normalize import reshare
from graphprune.ops import REFITS
from graphprune.ops.sizes import Shrunk
from graphprune.rewrite.patch import Patcher
from graphprune.transform.bypass import bypass, silenced

Chosen: TypeAlias = Mapping[Dim, npt.NDArray[np.int64]]
"""Which indices each dim keeps, in which order; dims that are absent keep all. The gate of a bypassed branch: none."""


def rearranged(model: ir.Model, coupling: Coupling, chosen: Chosen) -> ir.Model:
    """Return a copy of a normalised model whose dims keep only the chosen indices.

    Weights are sliced lazily, when the copy is written or run; the given model is not touched.
    """
    out = model.clone()
    view = _View(coupling, chosen)
    values = all_values(out)
    for name, operand in coupling.graph.constants.items():
        if any(view.touched(a) for a in operand.axes):
            index = [view.index(a) for a in operand.axes]
            if name in coupling.graph.counts:
                index = [None if i is None else np.arange(len(i)) for i in index]
            _slice(values[name], index)
    _refit(out, coupling, view)
    for name, operand in coupling.graph.values.items():
        if name in values and any(view.shrunk(a) for a in operand.axes):
            pairs = zip(operand.axes, operand.dynamic, strict=True)
            _restate(values[name], [None if not view.shrunk(a) else -1 if d else view.size(a) for a, d in pairs])
    bypass(out, all_nodes(out), coupling.branches.closed(chosen))
    withdraw(out, [a for a in coupling.graph.adapters if not chosen.keys() & set(coupling.idle[a.matrix])])
    reshare(out)
    drop_unused(out)
    return out


def sizes_now(coupling: Coupling, chosen: Chosen) -> dict[str, tuple[int | None, ...]]:
    """Return the sizes of all values that are known after a choice; None: a size that depends on the input."""
    view = _View(coupling, chosen)
    return {
        name: tuple(None if d else view.size(a) for a, d in zip(o.axes, o.dynamic, strict=True))
        for name, o in coupling.graph.values.items() if o.rank_known
    }


def kept_index(coupling: Coupling, chosen: Chosen, name: str) -> tuple[npt.NDArray[np.int64] | None, ...]:
    """Return for every axis of a value or a constant which of its slots stay after a choice, None where all do."""
    view = _View(coupling, chosen)
    operand = coupling.graph.constants.get(name) or coupling.graph.values[name]
    return tuple(view.index(a) for a in operand.axes)


class _View:
    """Answers about axes under one choice; remembers them."""

    def __init__(self, coupling: Coupling, chosen: Chosen) -> None:
        self.coupling = coupling
        self.chosen = chosen
        self.sizes = {d: len(c) for d, c in chosen.items()}
        self.index = lru_cache(maxsize=None)(self._index)
        self.size = lru_cache(maxsize=None)(self._size)

    def touched(self, axis: Axis) -> bool:
        return any(d in self.chosen for d in leaves(self.coupling.expand(axis)))

    def shrunk(self, axis: Axis) -> bool:
        return self.size(axis) != axis.size

    def _size(self, axis: Axis) -> int:
        return kept_size(self.coupling.expand(axis), self.sizes)

    def _index(self, axis: Axis) -> npt.NDArray[np.int64] | None:
        return slots(self.coupling.expand(axis), self.chosen) if self.touched(axis) else None

    def slots(self, axis: Axis) -> list[int]:
        got = self.index(axis)
        return list(range(axis.size)) if got is None else got.tolist()

    def before(self, axis: Axis, slot: int) -> int:
        got = self.index(axis)
        return slot if got is None else int((got < slot).sum())


def _slice(value: ir.Value, index: list[npt.NDArray[np.int64] | None]) -> None:
    tensor = constant_of(value)
    assert tensor is not None
    shape = [n if i is None else len(i) for n, i in zip(tensor.shape.numpy(), index, strict=True)]
    set_constant(value, ir.LazyTensor(_taker(tensor, index), tensor.dtype, ir.Shape(shape), name=value.name))


def _taker(tensor: ir.TensorProtocol, index: list[npt.NDArray[np.int64] | None]) -> Callable[[], ir.TensorProtocol]:
    """Return what reads a tensor and keeps the indexed slots, the axis that shrinks most first."""

    def take() -> ir.TensorProtocol:
        array = tensor.numpy()
        order = sorted(
            (k for k, i in enumerate(index) if i is not None), key=lambda k: len(index[k]) / array.shape[k]  # type: ignore[arg-type]
        )
        for k in order:
            array = np.take(array, index[k], axis=k)  # type: ignore[arg-type]
        return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name)

    return take


def _refit(model: ir.Model, coupling: Coupling, view: _View) -> None:
    """Ask the refit rule of every node whose operands shrink, and carry out what it answers."""
    nodes = all_nodes(model)
    resized = {name for name, o in coupling.graph.values.items() if any(view.shrunk(a) for a in o.axes)}
    patcher = Patcher(model, coupling.graph.worlds, resized)
    for op in coupling.graph.ops:
        rule = REFITS.get(op.domain, op.type, op.version)
        operands = [o for o in (*op.inputs, *op.outputs) if o is not None]
        if rule is None or not any(view.shrunk(a) for o in operands for a in o.axes):
            continue
        now = Shrunk(view.size, view.before, view.slots, coupling.graph.letters.get(op.name, {}))
        for change in rule(op, now):
            patcher.apply(nodes[op.name], op, change)


def _restate(value: ir.Value, sizes: list[int | None]) -> None:
    """Correct the sizes that the file states for a value; -1 marks one that changed and depends on the input."""
    if value.shape is not None and len(value.shape) == len(sizes) and not value.is_initializer():
        pairs = zip(value.shape, sizes, strict=True)
        value.shape = ir.Shape([n if s is None else None if s < 0 else s for n, s in pairs])
    elif value.shape is not None and len(value.shape) != len(sizes):
        value.shape = None


def drop_unused(model: ir.Model) -> None:
    """Remove the nodes and constants of a model that nothing needs."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    lengths = {node: len(node.inputs) for graph in model.graphs() for node in graph}
    RemoveUnusedNodesPass()(model)
    for graph in model.graphs():
        for node in graph:
            node.resize_inputs(lengths[node])  # the pass cuts absent inputs off at the end; some must be written


def masked(model: ir.Model, coupling: Coupling, chosen: Chosen) -> ir.Model:
    """Return a copy in which the slots that pruning would remove are zero wherever they are contracted.

    What bypassed branches give is multiplied by zero.

    For dims that are not normalised over this computes what the pruned model computes (the second oracle).
    """
    out = model.clone()
    view = _View(coupling, chosen)
    nodes = all_nodes(out)
    silenced(out, nodes, coupling.branches.closed(chosen))
    done: set[tuple[str, int, int]] = set()
    for op in coupling.graph.ops:
        made = (coupling.graph.sources, coupling.graph.constants)
        constant = {i for i, o in enumerate(op.inputs) if o is None or any(o.name in names for names in made)}
        for use in coupling.graph.uses.get(op.name, ()):
            operand = op.input(use.operand)
            if use.role is not Role.CONTRACTED or operand is None:
                continue
            if use.operand in constant and len(constant) < len(op.inputs) and not use.own:
                continue
            if not view.touched(use.axis):
                continue
            part = {d for d in leaves(coupling.expand(use.axis)) if d in chosen}
            named = any(a is use.axis for a in operand.axes)
            for k, axis in enumerate(operand.axes):
                meant = axis is use.axis if named else part <= set(leaves(coupling.expand(axis)))
                if meant and (op.name, use.operand, k) not in done:
                    done.add((op.name, use.operand, k))
                    _mask(out, nodes[op.name], use, operand.shape, k, view.slots(axis))
    return out


def _mask(model: ir.Model, node: ir.Node, use: Use, shape: tuple[int, ...], axis: int, kept: list[int]) -> None:
    """Put a node before a node's operand that makes the slots of an axis zero which are not kept."""
    value = node.inputs[use.operand]
    assert value is not None
    mask = np.zeros([n if k == axis else 1 for k, n in enumerate(shape)], dtype=np.float32)
    mask[tuple(kept if k == axis else 0 for k in range(len(shape)))] = 1
    dtype = value.dtype or ir.DataType.FLOAT
    name = f"{node.name}.mask{use.operand}.{axis}"

    def constant(suffix: str, array: npt.NDArray[np.generic], kind: ir.DataType) -> ir.Value:
        tensor = ir.tensor(array.astype(kind.numpy()), dtype=kind)
        return add_constant(model.graph, name + suffix, tensor, model.ir_version)

    if dtype.is_integer():
        zero = node.inputs[use.zero] if use.zero is not None and use.zero < len(node.inputs) else None
        zero = zero if zero is not None else constant(".zero", np.zeros(()), dtype)
        product = ir.node("Where", [constant("", mask, ir.DataType.BOOL), value, zero], name=name + ".where")
    else:
        product = ir.node("Mul", [value, constant("", mask, dtype)], name=name + ".mul")
    product.outputs[0].name = name + ".out"
    product.outputs[0].type = value.type
    (node.graph or model.graph).insert_before(node, product)
    node.replace_input_with(use.operand, product.outputs[0])
