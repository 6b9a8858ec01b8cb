"""Operators with bodies: a branch's outputs, a loop's states and what is stacked cross a border, axis by axis.

The nodes of bodies are traced like all others, captured values are the values they are; the rules here say what a
body's inputs and outputs have to do with those of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.axes import UNIT, Axis, Equation, Free, Pin, Same
from graphprune.ops.inference import Answer, Question
from graphprune.ops.registry import AxisRule, Body, Op, Operand, Row, normalise_axis, row

_STACKED = "one slot for every iteration"
_OTHER = "the other branch gives another number of axes"


@dataclass(frozen=True)
class BodyRule:
    """What sizes cross the border of an operator's bodies.

    `bodies` names the attributes; `enter` gives type and sizes of the inputs of each, `leave` those of the node's
    outputs from those of the bodies' outputs, `carried` how many leading inputs are states: an iteration hands them
    on, beginning with the body's output number `first_state` (inputs) and 0 or 1 (outputs). `taken` says which body
    runs if that is known, and `times` how often.
    """

    bodies: tuple[str, ...]
    enter: Callable[[Question], list[Answer]]
    leave: Callable[[Question, Sequence[Sequence[Answer]]], list[Answer]]
    states: Callable[[Question], list[tuple[int, int]]] = lambda asked: []
    taken: Callable[[Question], int | None] = lambda asked: None
    times: Callable[[Question], int] = lambda asked: 1


def join(a: Answer, b: Answer) -> Answer:
    """Return what holds for both of two values: sizes that differ are not known.

    >>> join((1, (3, 4)), (1, (3, 5)))
    (1, (3, None))
    """
    if a is None or b is None:
        return a or b
    if a[1] is None or b[1] is None or len(a[1]) != len(b[1]):
        return a[0] or b[0], None
    return a[0] or b[0], tuple(m if m == n else None for m, n in zip(a[1], b[1], strict=True))


# If


def _taken(asked: Question) -> int | None:
    seen = asked.inputs[0]
    return None if seen is None or seen.content is None else int(not np.asarray(seen.content).ravel()[0])


def _branch_outputs(asked: Question, bodies: Sequence[Sequence[Answer]]) -> list[Answer]:
    which = _taken(asked)
    return list(bodies[which]) if which is not None else [join(a, b) for a, b in zip(*bodies, strict=True)]


def branches(op: Op) -> Iterator[Equation]:
    """Outputs have the axes of both branches' outputs; one of another rank only where it is never taken."""
    condition = op.x(0)
    yield from (Pin(a, "a condition") for a in condition.axes)
    which = None if condition.value is None or not condition.fixed else int(not condition.value.ravel()[0])
    for k, body in enumerate(op.bodies):
        for y, inner in zip(op.outputs, body.outputs, strict=True):
            if y is None:
                continue
            if inner.rank_known and inner.rank == y.rank:
                yield from _same(inner, y)
            elif op.never or (which is not None and which != k):
                yield from (Free(a) for a in inner.axes)  # nothing comes out of it
            else:
                yield from (Pin(a, _OTHER) for a in (*inner.axes, *y.axes))


def _same(left: Operand, right: Operand) -> Iterator[Equation]:
    assert left.rank == right.rank
    for a, b in zip(left.axes, right.axes, strict=True):
        if a is UNIT or b is UNIT:
            yield from (Pin(x, "as long as one slot elsewhere") for x in (a, b) if x is not UNIT)
        else:
            yield Same(a, b)


# Loop


def _loop_enter(asked: Question) -> list[Answer]:
    return [(onnx.TensorProto.INT64, ()), (onnx.TensorProto.BOOL, ()), *map(asked.like, range(2, len(asked.inputs)))]


def _loop_states(asked: Question) -> list[tuple[int, int]]:
    return [(i, i - 1) for i in range(2, len(asked.inputs))]


def _trips(asked: Question) -> int | None:
    seen = asked.inputs[0]
    known = seen is not None and seen.content is not None
    return max(int(np.asarray(seen.content).ravel()[0]), 0) if known and seen is not None else None


def _loop_leave(asked: Question, bodies: Sequence[Sequence[Answer]]) -> list[Answer]:
    (inner,) = bodies
    states = len(asked.inputs) - 2
    carried = [join(asked.like(i + 2), inner[i + 1]) for i in range(states)]
    stacked = [None if a is None else (a[0], None if a[1] is None else (None, *a[1])) for a in inner[1 + states :]]
    return [*carried, *stacked]


def loop(op: Op) -> Iterator[Equation]:
    """States keep their axes from one iteration to the next; what is stacked gets an axis in front."""
    (body,) = op.bodies
    states = len(op.inputs) - 2
    yield from (Pin(a, "a condition") for o in (*op.inputs[:2], *body.inputs[:2], body.outputs[0]) if o for a in o.axes)
    for i in range(states):
        yield from _state(op.x(i + 2), body.inputs[i + 2], body.outputs[i + 1], op.output(i))
    for inner, y in zip(body.outputs[1 + states :], op.outputs[states:], strict=True):
        if y is not None:
            yield Pin(y.axes[0], _STACKED)
            yield from (Same(a, b) for a, b in zip(inner.axes, y.axes[1:], strict=True))


def _state(start: Operand, before: Operand, after: Operand, end: Operand | None) -> Iterator[Equation]:
    for other in (before, after, end):
        if other is not None and other is not start:
            yield from _same(start, other)
    yield from (Free(a) for a in start.axes)


# Scan


def _scanned(asked: Question) -> tuple[int, int]:
    """Return how many states and how many scanned inputs a node has."""
    number = int(asked.attributes["num_scan_inputs"])
    return len(asked.inputs) - number, number


def _given(attributes: object, number: int) -> list[int]:
    return [int(v) for v in attributes] if isinstance(attributes, Sequence) else [0] * number


def _scan_enter(asked: Question) -> list[Answer]:
    states, number = _scanned(asked)
    axes = _given(asked.attributes.get("scan_input_axes"), number)
    out = [asked.like(i) for i in range(states)]
    for k, axis in enumerate(axes):
        shape = asked.shape(states + k)
        at = normalise_axis(axis, len(shape)) if shape is not None else 0
        out.append((asked.dtype(states + k), None if shape is None else (*shape[:at], *shape[at + 1 :])))
    return out


def _scan_times(asked: Question) -> int | None:
    states, number = _scanned(asked)
    shape, axis = asked.shape(states), _given(asked.attributes.get("scan_input_axes"), number)[0]
    return None if shape is None else shape[axis]


def _scan_leave(asked: Question, bodies: Sequence[Sequence[Answer]]) -> list[Answer]:
    (inner,) = bodies
    states, _ = _scanned(asked)
    out = [join(asked.like(i), inner[i]) for i in range(states)]
    axes = _given(asked.attributes.get("scan_output_axes"), len(inner) - states)
    for answer, axis in zip(inner[states:], axes, strict=True):
        if answer is None or answer[1] is None:
            out.append(answer)
            continue
        at = normalise_axis(axis, len(answer[1]) + 1)
        out.append((answer[0], (*answer[1][:at], _scan_times(asked), *answer[1][at:])))
    return out


def scan(op: Op) -> Iterator[Equation]:
    """States keep their axes; scanned inputs lose an axis, stacked outputs get one."""
    (body,) = op.bodies
    number = int(op.attr("num_scan_inputs"))
    states = len(op.inputs) - number
    for i in range(states):
        yield from _state(op.x(i), body.inputs[i], body.outputs[i], op.output(i))
    axes = _given(op.attr("scan_input_axes"), number)
    for k, axis in enumerate(axes):
        yield from _slice(op.x(states + k), body.inputs[states + k], axis, "walked along, slot by slot")
    axes = _given(op.attr("scan_output_axes"), len(op.outputs) - states)
    for y, inner, axis in zip(op.outputs[states:], body.outputs[states:], axes, strict=True):
        if y is not None:
            yield from _slice(y, inner, axis, _STACKED)


def _slice(whole: Operand, part: Operand, axis: int, reason: str) -> Iterator[Equation]:
    at = normalise_axis(axis, whole.rank)
    yield Pin(whole.axes[at], reason)
    rest: list[Axis] = [*whole.axes[:at], *whole.axes[at + 1 :]]
    yield from (Same(a, b) for a, b in zip(rest, part.axes, strict=True))


AXES: tuple[Row[AxisRule], ...] = (row(branches, "If"), row(loop, "Loop"), row(scan, "Scan", since=9))

BODIES: tuple[Row[BodyRule], ...] = (
    row(BodyRule(("then_branch", "else_branch"), lambda asked: [], _branch_outputs, taken=_taken), "If"),
    row(BodyRule(("body",), _loop_enter, _loop_leave, _loop_states, times=lambda q: _trips(q) or 1), "Loop"),
    row(
        BodyRule(
            ("body",), _scan_enter, _scan_leave, lambda q: [(i, i) for i in range(_scanned(q)[0])],
            times=lambda q: _scan_times(q) or 1,
        ),
        "Scan",
        since=9,
    ),
)

__all__ = ["AXES", "BODIES", "Body", "BodyRule", "join"]
