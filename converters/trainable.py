"""Which constants of a model training may change, told from what reads them and from what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import prod
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphprune.converters.torch_ops.roles import (
    ANGLES,
    CONTRACTED,
    FIXED,
    LOOKED_UP,
    SCALED,
    STATISTICS,
    WEIGHTS,
)
from graphprune.ops.registry import Table
from graphprune.weights import FLOATS

T = TypeVar("T")

WEIGHT, FROZEN, OPEN, STATISTIC = "weight", "frozen", "open", "statistic"
_LARGEST = 1e4
"""Numbers above this in what is added are those of a mask."""
_STEPS = 8
_LOOKS = 1 << 22


@dataclass(frozen=True)
class Choice:
    """What the user says: patterns of names that are frozen or trained against what is found out."""

    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()


def known(table: Table[T], node: ir.Node, opsets: dict[str, int]) -> T | None:
    """Ask a table about a node."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return table.get(domain, node.op_type, opsets.get(domain, 1))


@dataclass
class Roles:
    """What the constants of a model are: weights, statistics of normalisations, or frozen."""

    opsets: dict[str, int]
    choice: Choice = field(default_factory=Choice)
    _made: dict[ir.Value, bool] = field(default_factory=dict)

    def of(self, value: ir.Value, tensor: ir.TensorProtocol) -> str:
        """Return WEIGHT, STATISTIC or FROZEN for a constant."""
        name = value.name or ""
        if tensor.dtype not in FLOATS:
            return FROZEN
        found = dict.fromkeys(self._uses(value, 0))
        if STATISTIC in found:
            return STATISTIC
        for patterns, role in ((self.choice.frozen, FROZEN), (self.choice.trained, WEIGHT)):
            if any(fnmatch(name, p) for p in patterns):
                return role
        if WEIGHT in found:
            return WEIGHT
        if FROZEN in found:  # compared, or counted: regions of a mask, say
            return FROZEN
        return WEIGHT if OPEN in found and _is_weight(tensor) else FROZEN

    def _uses(self, value: ir.Value, depth: int) -> Iterator[str]:
        for node, index in value.uses():
            yield from self._use(node, index, value, depth)

    def _use(self, node: ir.Node, index: int, value: ir.Value, depth: int) -> Iterator[str]:
        if index in (known(STATISTICS, node, self.opsets) or ()):
            yield STATISTIC
        elif index in (known(FIXED, node, self.opsets) or ()):
            yield FROZEN
        elif self._constant(node) and depth < 4 * _STEPS:
            for output in node.outputs:
                yield from self._uses(output, depth + 1)
        elif index in (known(WEIGHTS, node, self.opsets) or ()):
            axis = (known(CONTRACTED, node, self.opsets) or {}).get(index)
            yield FROZEN if axis is not None and _thin(value, axis) else WEIGHT
        elif index == known(LOOKED_UP, node, self.opsets):
            yield OPEN if _rank(value) >= 2 else FROZEN
        elif self._is_table(node, value) or self._leads_to_angles(node, 0):
            yield FROZEN
        else:
            yield OPEN

    def _constant(self, node: ir.Node) -> bool:
        """Return whether a node reads constants only."""
        return all(v is None or self._is_constant(v) for v in node.inputs) and not _bodies(node)

    def _is_constant(self, value: ir.Value) -> bool:
        if value not in self._made:
            producer = value.producer()
            self._made[value] = value.const_value is not None if producer is None else self._constant(producer)
        return self._made[value]

    def _is_table(self, node: ir.Node, value: ir.Value) -> bool:
        """Factors along several axes are tables (angles, masks, windows); inputs are normalised by fixed numbers."""
        if known(SCALED, node, self.opsets) and _rank(value) >= 2:
            return True
        others = [v for v in node.inputs if v is not None and v is not value]
        return _rank(value) < 2 and any(v.is_graph_input() for v in others)

    def _leads_to_angles(self, node: ir.Node, depth: int) -> bool:
        """Return whether a sine or a cosine follows with nothing but simple steps between."""
        for output in node.outputs:
            for reader, _ in output.uses():
                if known(ANGLES, reader, self.opsets):
                    return True
                simple = len(reader.outputs) == 1 and not known(WEIGHTS, reader, self.opsets)
                if simple and depth < _STEPS and not _bodies(reader) and self._leads_to_angles(reader, depth + 1):
                    return True
        return False


def _bodies(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _sizes(value: ir.Value) -> list[int]:
    return [int(s) if isinstance(s, int) else 0 for s in value.shape] if value.shape is not None else []


def _rank(value: ir.Value) -> int:
    """Return how many axes have more than one element."""
    return sum(s != 1 for s in _sizes(value))


def _thin(value: ir.Value, axis: int) -> bool:
    """Return whether a product sums over one element: an outer product with frequencies, no layer."""
    sizes = _sizes(value)
    return len(sizes) >= 2 and sizes[axis] == 1


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    """Return whether a constant looks like a weight: more than one number, no mask, no table of sines."""
    shape = tensor.shape.numpy()
    if prod(shape) < 2:
        return False
    if prod(shape) > _LOOKS:
        return True
    array = np.asarray(tensor.numpy()).astype(np.float64)
    largest = np.abs(array).max() if np.isfinite(array).all() else np.inf
    if largest > _LARGEST:
        return False
    first = array.reshape(-1, array.shape[-1])[0]
    waves = array.ndim >= 2 and largest <= 1 + 1e-6 and bool(np.isin(np.round(first, 6), (0.0, 1.0)).all())
    return not (waves and array.shape[0] > 1 and bool(np.ptp(array) > 0))
