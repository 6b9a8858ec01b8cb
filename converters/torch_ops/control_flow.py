"""Torch rules of operators with bodies, and of sequences and optional values."""

from __future__ import annotations

from typing import Any

import torch

from graphprune.converters.torch_ops.registry import Call, Made, Tensor, TorchRule, axis_of
from graphprune.ops.registry import Row, row


def branch(call: Call) -> Made:
    """One of two bodies."""
    taken = bool(call.x(0).reshape(-1)[0].item())
    return tuple(call.run("then_branch" if taken else "else_branch", []))


def loop(call: Call) -> Made:
    """A body is repeated: states go round, other outputs are stacked."""
    most = int(call.number(0)) if call.has(0) else None
    going = bool(call.number(1)) if call.has(1) else True
    states = list(call.values[2:])
    stacks: list[list[Tensor]] = []
    program, k = call.attr("body"), 0
    while going and (most is None or k < most):
        made = call.run("body", [torch.tensor(k, dtype=torch.int64), torch.tensor(going), *states])
        going = bool(made[0].reshape(-1)[0].item())
        states, scanned = made[1 : 1 + len(states)], made[1 + len(states) :]
        stacks = stacks or [[] for _ in scanned]
        for stack, value in zip(stacks, scanned, strict=True):
            stack.append(value)
        k += 1
    if not stacks:
        stacks = [[] for _ in program.outputs[1 + len(states) :]]
    return (*states, *[torch.stack(s) if s else torch.zeros(0) for s in stacks])


def scan(call: Call) -> Made:
    """A body runs over slices of inputs (opset 9 and newer)."""
    given, count = list(call.values), int(call.attr("num_scan_inputs"))
    return _scanned(call, given[: len(given) - count], given[len(given) - count :], _Directions(call, count))


class _Directions:
    """Which axes are scanned, which way, and where outputs are stacked."""

    def __init__(self, call: Call, count: int) -> None:
        outs = len(call.attr("body").outputs)
        self.axes = list(call.attr("scan_input_axes") or [0] * count)
        self.reverse = list(call.attr("scan_input_directions") or [0] * count)
        self.out_axes = list(call.attr("scan_output_axes") or [0] * outs)
        self.out_reverse = list(call.attr("scan_output_directions") or [0] * outs)


def _scanned(call: Call, states: list[Any], inputs: list[Tensor], way: _Directions) -> tuple[Any, ...]:
    steps = inputs[0].shape[way.axes[0]]
    stacks: list[list[Tensor]] = []
    for k in range(steps):
        slices = [
            x.select(a, steps - 1 - k if r else k) for x, a, r in zip(inputs, way.axes, way.reverse, strict=True)
        ]
        made = call.run("body", [*states, *slices])
        states, scanned = made[: len(states)], made[len(states) :]
        stacks = stacks or [[] for _ in scanned]
        for stack, value in zip(stacks, scanned, strict=True):
            stack.append(value)
    outs = [
        torch.stack(s[::-1] if way.out_reverse[k] else s, way.out_axes[k]) for k, s in enumerate(stacks)
    ]
    return (*states, *outs)


def scan_batched(call: Call) -> Made:
    """As of opset 8: every sample by itself, its length the first input."""
    given, count = list(call.values[1:]), int(call.attr("num_scan_inputs"))
    way = _Directions(call, count)
    way.reverse = list(call.attr("directions") or [0] * count)
    results = [
        _scanned(call, [v[n] for v in given[: len(given) - count]], [v[n] for v in given[len(given) - count :]], way)
        for n in range(given[-1].shape[0])
    ]
    return tuple(torch.stack(list(parts)) for parts in zip(*results, strict=True))


def construct(call: Call) -> Made:
    """A list of the inputs."""
    return call.tensors()


def insert(call: Call) -> Made:
    """An element is put before a position, or at the end."""
    out = list(call.raw(0))
    at = int(call.number(2)) if call.has(2) else len(out)
    out.insert(at + len(out) if at < 0 else at, call.x(1))
    return out


def element(call: Call) -> Made:
    """One element of a list."""
    return call.raw(0)[int(call.number(1))]


def erase(call: Call) -> Made:
    """A list without one element."""
    out = list(call.raw(0))
    out.pop(int(call.number(1)) if call.has(1) else -1)
    return out


def join(call: Call) -> Made:
    """The elements of a list along an axis, which may be a new one."""
    axis = int(call.attr("axis"))
    return torch.stack(call.raw(0), axis) if call.attr("new_axis", 0) else torch.cat(call.raw(0), axis)


def cut(call: Call) -> Made:
    """A list of parts of one value."""
    x = call.x(0)
    axis = axis_of(call, x.dim())
    if not call.has(1):
        parts = torch.split(x, 1, axis)
        return [p if call.attr("keepdims", 1) else p.squeeze(axis) for p in parts]
    sizes = call.ints(1) or []
    return list(torch.split(x, sizes if call.x(1).dim() else sizes[0], axis))


def each(call: Call) -> Made:
    """A body runs for each element of a list."""
    first = call.raw(0)
    others = list(call.values[1:])
    made = [
        call.run("body", [v, *[o[k] if isinstance(o, list) else o for o in others]]) for k, v in enumerate(first)
    ]
    return tuple(list(column) for column in zip(*made, strict=True))


def present(call: Call) -> Made:
    """Whether an optional value is there."""
    return torch.tensor(call.has(0))


RULES: tuple[Row[TorchRule], ...] = (
    row(branch, "If"),
    row(loop, "Loop"),
    row(scan_batched, "Scan", until=8),
    row(scan, "Scan", since=9),
    row(lambda call: [], "SequenceEmpty"),
    row(construct, "SequenceConstruct"),
    row(insert, "SequenceInsert"),
    row(element, "SequenceAt"),
    row(erase, "SequenceErase"),
    row(lambda call: torch.tensor(len(call.raw(0))), "SequenceLength"),
    row(join, "ConcatFromSequence"),
    row(cut, "SplitToSequence"),
    row(each, "SequenceMap"),
    row(lambda call: call.raw(0), "Optional", "OptionalGetElement"),
    row(present, "OptionalHasElement"),
)
