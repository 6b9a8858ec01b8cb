"""What makes a node take time: multiply-accumulates, bytes that go in and out, and which others it is like.

Rules see a node as a runtime's profile tells it: its operator and the shapes of its inputs and outputs, in which
constant matrices may be missing. What has no rule moves its inputs and outputs through memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from graphprune.ops import elementwise
from graphprune.ops.registry import Row, Table, row

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Seen:
    """A node as a profile tells it: element bytes and shapes of its inputs and outputs."""

    operator: str
    inputs: tuple[tuple[float, Shape], ...]
    outputs: tuple[tuple[float, Shape], ...]

    def shape(self, i: int) -> Shape:
        return self.inputs[i][1] if i < len(self.inputs) else ()

    @property
    def result(self) -> Shape:
        return self.outputs[0][1] if self.outputs else ()

    @property
    def moved(self) -> float:
        """Bytes of all inputs and outputs."""
        return sum(size * prod(shape) for size, shape in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Workload:
    """How much a node has to do.

    `family` is what it has in common with nodes that take time in the same way; `loads` are multiply-accumulates,
    bytes read and written, and bytes of constants that are read beside them.
    """

    family: str
    loads: tuple[float, float, float]


WorkloadRule: TypeAlias = Callable[[Seen], Workload]


def moving(seen: Seen) -> Workload:
    """Return the workload of what only moves its inputs and outputs through memory."""
    rank = max((len(shape) for _, shape in (*seen.inputs, *seen.outputs)), default=0)
    return Workload(f"{seen.operator}/{rank}", (0.0, seen.moved, 0.0))


def conv(weight: int) -> WorkloadRule:
    """Return the rule of convolutions whose weight is that input: alike are equal kernels, strides and grouping."""

    def rule(seen: Seen) -> Workload:
        x, w, y = seen.shape(0), seen.shape(weight), seen.result
        if len(w) < 3 or len(y) != len(w) or len(x) != len(w):
            return moving(seen)
        kernel = "x".join(map(str, w[2:]))
        stride = max(round(x[2] / max(y[2], 1)), 1)
        inner, first = w[1], x[1]
        grouping = "plain" if inner == first else "depthwise" if inner == 1 else "grouped"
        if first < 4:
            grouping = "first"
        small = "" if prod(y[2:]) > 1 else "/1"
        stored = seen.inputs[weight][0] * prod(w)
        loads = (float(prod(y) * prod(w[1:])), seen.moved - stored, stored)
        return Workload(f"{seen.operator}/{kernel}/{stride}/{grouping}{small}", loads)

    return rule


def transposed(seen: Seen) -> Workload:
    """Every input element times the weights that it is spread by."""
    x, w = seen.shape(0), seen.shape(1)
    if len(w) < 3:
        return moving(seen)
    stored = seen.inputs[1][0] * prod(w)
    return Workload(f"{seen.operator}/{'x'.join(map(str, w[2:]))}", (float(prod(x) * prod(w[1:])), seen.moved - stored,
                                                                     stored))  # fmt: skip


def matmul(seen: Seen) -> Workload:
    """Output elements times the contracted length; of a constant matrix, which profiles leave out, only the result."""
    a, y = seen.shape(0), seen.result
    if not a or not y:
        return moving(seen)
    others = [shape for _, shape in seen.inputs[1:] if len(shape) >= 2]
    macs = float(prod(y) * a[-1])
    rows, kind = prod(y[:-1]), f"product of {seen.inputs[0][0]:g} bytes"
    if others:
        return Workload(f"{kind}/two", (macs, seen.moved, 0.0))
    return Workload(f"{kind}/{_rows(rows)}", (macs, seen.moved, seen.inputs[0][0] * a[-1] * y[-1]))


def _rows(rows: int) -> str:
    return "vector" if rows == 1 else "few" if rows < 8 else "many"


def attention(seen: Seen) -> Workload:
    """Every query with every key: rows times rows times width, twice; what is projected before that is extra."""
    x, y = seen.shape(0), seen.result
    if len(x) < 3 or not y:
        return moving(seen)
    rows, width = x[-2], prod(y) / max(prod(y[:2]), 1)
    projected = float(prod(x) * seen.shape(1)[-1]) if len(seen.shape(1)) == 2 else 0.0
    return Workload(seen.operator, (2.0 * prod(x[:-2]) * rows * rows * width + projected, seen.moved, 0.0))


def recurrent(seen: Seen) -> Workload:
    """Every step multiplies by both weights, of shape [directions, gates * units, ...]."""
    x, w, r = seen.shape(0), seen.shape(1), seen.shape(2)
    if len(x) != 3 or len(w) != 3 or len(r) != 3:
        return moving(seen)
    stored = seen.inputs[1][0] * prod(w) + seen.inputs[2][0] * prod(r)
    return Workload(seen.operator, (float(x[0] * x[1] * (prod(w) + prod(r))), seen.moved - stored, stored))


WORKLOADS: Table[WorkloadRule] = Table(
    "workloads",
    [
        row(conv(1), "Conv", "FusedConv", "NhwcFusedConv", "ConvInteger"),
        row(conv(3), "QLinearConv"),
        row(transposed, "ConvTranspose"),
        row(
            matmul, "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
            "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulNBits", "GemmFastGelu",
        ),
        row(attention, "Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"),
        row(recurrent, "LSTM", "GRU", "RNN"),
    ],
)

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators whose output is the memory of their input."""

IN_PLACE = VIEWS | {"BatchNormalization", "Softmax"} | {name for r in elementwise.AXES for name in r.operators}
"""Operators that may write over an input of the same size that nobody else reads."""

ELEMENT: Mapping[str, float] = {
    "double": 8, "int64": 8, "uint64": 8, "float": 4, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2, "int16": 2,
    "uint16": 2, "int8": 1, "uint8": 1, "bool": 1, "float8e4m3fn": 1, "float8e5m2": 1, "int4": 0.5, "uint4": 0.5,
}
"""Bytes of an element, by the names of types in profiles."""


def workload(seen: Seen) -> Workload:
    """Return how much a node of a profile has to do.

    >>> workload(Seen("Conv", ((4, (1, 8, 6, 6)), (4, (16, 8, 1, 1))), ((4, (1, 16, 6, 6)),))).loads
    (4608.0, 3456.0, 512.0)
    """
    return (WORKLOADS.get("", seen.operator, 1) or moving)(seen)


__all__ = ["ELEMENT", "IN_PLACE", "VIEWS", "WORKLOADS", "Row", "Seen", "Workload", "workload"]
