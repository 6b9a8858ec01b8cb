"""Recurrent layers of ai.onnx: LSTM, GRU and RNN.

Formulas and layouts are those of https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, concat, product
from graphprune.axes.equations import Letter
from graphprune.ops.gather import BoundRule
from graphprune.ops.inference import Answer, Question, ShapeRule
from graphprune.ops.registry import AxisRule, CostRule, Op, Operand, Row, ShapeOf, row
from graphprune.ops.sizes import RefitRule, attributes

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3
_ELEMENTWISE = frozenset(
    [
        "relu", "tanh", "sigmoid", "affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu",
        "softsign", "softplus",
    ]
)
_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)
_STEPS = "steps of a recurrence"
_DIRECTIONS = "directions of a recurrence"


def as_text(value: object) -> str:
    """Return a string attribute as text: files hold bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def gate_axis(gates: int, hidden: Axis) -> Axis:
    """Return the axis `(gates h)`, which a slice cuts into gates.

    >>> from graphprune.axes import Dim
    >>> gate_axis(4, Dim(8)).size
    32
    """
    return product(concat(*[UNIT] * gates), hidden)


def recurrent(op: Op, gates: int, *, turned: bool = False) -> Iterator[Equation]:
    """Say what every recurrent operator has in common, whatever its number of gates.

    W is `d (gates h) i` and R is `d (gates h) h`, or `turned`: `d i (gates h)` and `d h (gates h)`.
    """
    x, w, r = op.x(_X), op.x(_W), op.x(_R)
    rows, columns = (2, 1) if turned else (1, 2)
    hidden = r.axes[columns]
    stacked = gate_axis(gates, hidden)
    yield Letter("h", hidden)
    yield Pin(w.axes[0], _DIRECTIONS)
    yield from _equal(w.axes[0], r.axes[0])
    yield from _equal(w.axes[columns], x.axes[2])
    yield Use(_X, x.axes[2], Role.CONTRACTED)
    yield Use(_W, w.axes[columns], Role.CONTRACTED)
    for i, operand in ((_W, w), (_R, r)):
        yield Same(operand.axes[rows], stacked)
        yield Use(i, operand.axes[rows], Role.PRODUCED)
    yield Use(_R, hidden, Role.CONTRACTED, own=True)
    yield from _vectors(op, w.axes[0], stacked, hidden)
    yield from _states(op, w.axes[0], hidden)
    yield from _mixed(op, hidden)


def _equal(axis: Axis, *others: Axis) -> Iterator[Equation]:
    yield from (Same(axis, other) for other in others)


def _vectors(op: Op, directions: Axis, stacked: Axis, hidden: Axis) -> Iterator[Equation]:
    """Biases of W and then of R, and peepholes."""
    for i, axis in ((_B, concat(stacked, stacked)), (_P, gate_axis(_PEEPHOLES, hidden))):
        operand = op.input(i)
        if operand is not None:
            yield from _equal(directions, operand.axes[0])
            yield Same(operand.axes[1], axis)
            yield Use(i, operand.axes[1], Role.PRODUCED)


def _states(op: Op, directions: Axis, hidden: Axis) -> Iterator[Equation]:
    """Steps and samples of the input, of the output, and of the states before and after."""
    steps, batch = op.x(_X).axes[:2][:: -1 if op.attr("layout", 0) else 1]
    yield Pin(steps, _STEPS)
    lengths = op.input(_LENGTHS)
    if lengths is not None:
        yield from _equal(batch, lengths.axes[0])
    places = [(op.input(_H), _H), (op.input(_C), _C), *((y, None) for y in op.outputs[1:])]
    for operand, i in places:
        if operand is not None:
            yield from _state(op, operand, (directions, batch, hidden))
            if i is not None:
                yield Use(i, hidden, Role.CARRIED)
    y = op.output(0)
    if y is not None:
        order = (batch, steps, directions, hidden) if op.attr("layout", 0) else (steps, directions, batch, hidden)
        yield from (Same(a, b) for a, b in zip(order, y.axes, strict=True))


def _state(op: Op, operand: Operand, axes: tuple[Axis, Axis, Axis]) -> Iterator[Equation]:
    directions, batch, hidden = axes
    order = (batch, directions, hidden) if op.attr("layout", 0) else axes
    yield from (Same(a, b) for a, b in zip(order, operand.axes, strict=True))


def _mixed(op: Op, hidden: Axis) -> Iterator[Equation]:
    """Units may go only where each is computed from its own sums."""
    for name in op.attr("activations") or ():
        if as_text(name).lower() not in _ELEMENTWISE:
            yield Pin(hidden, f"the activation {as_text(name)!r} may mix units")


def lstm(op: Op) -> Iterator[Equation]:
    """`s b i, d (4 h) i, d (4 h) h, d (4 h + 4 h)?, b?, d b h?, d b h?, d (3 h)? -> s d b h, d b h, d b h`."""
    yield from recurrent(op, GATES["LSTM"])


def gru(op: Op) -> Iterator[Equation]:
    """`s b i, d (3 h) i, d (3 h) h, d (3 h + 3 h)?, b?, d b h? -> s d b h, d b h`."""
    yield from recurrent(op, GATES["GRU"])


def rnn(op: Op) -> Iterator[Equation]:
    """`s b i, d h i, d h h, d (h + h)?, b?, d b h? -> s d b h, d b h`."""
    yield from recurrent(op, GATES["RNN"])


AXES: tuple[Row[AxisRule], ...] = (row(lstm, "LSTM"), row(gru, "GRU"), row(rnn, "RNN"))

REFITS: tuple[Row[RefitRule], ...] = (row(attributes(hidden_size="h"), "LSTM", "GRU", "RNN"),)


def recurrent_cost(op: Op, shape: ShapeOf) -> int:
    """Both matrices once for each step and sample."""
    steps, batch = shape(op.x(_X))[:2]
    return steps * batch * (prod(shape(op.x(_W))) + prod(shape(op.x(_R))))


COSTS: tuple[Row[CostRule], ...] = (row(recurrent_cost, "LSTM", "GRU", "RNN"),)


def recurrent_shapes(asked: Question) -> list[Answer]:
    """Outputs of a layer: `s d b h` and `d b h`, or samples first where `layout` says so."""
    x, hidden = asked.shape(_X), asked.attributes.get("hidden_size")
    if x is None or len(x) != 3 or not hidden:
        return [None] * asked.outputs
    swapped = bool(asked.attributes.get("layout", 0))
    steps, batch = x[:2][:: -1 if swapped else 1]
    directions = 2 if as_text(asked.attributes.get("direction", "forward")) == "bidirectional" else 1
    state = (batch, directions, hidden) if swapped else (directions, batch, hidden)
    y = (batch, steps, directions, hidden) if swapped else (steps, *state)
    return [(asked.dtype(_X), y if k == 0 else state) for k in range(asked.outputs)]


SHAPES: tuple[Row[ShapeRule], ...] = (row(recurrent_shapes, "LSTM", "GRU", "RNN", until=6),)


def lengths_bound(op: Op) -> tuple[int, int]:
    """No sequence is longer than the number of steps."""
    return _LENGTHS, op.x(_X).shape[1 if op.attr("layout", 0) else 0] + 1


BOUNDS: tuple[Row[BoundRule], ...] = (row(lengths_bound, "LSTM", "GRU", "RNN"),)
