"""Torch rules of reductions, softmax and its kind, running sums, and what is found along an axis."""

from __future__ import annotations

from collections.abc import Callable

import torch

from graphprune.converters.torch_ops.registry import Call, Made, Tensor, TorchRule, axis_of
from graphprune.ops.registry import Row, row

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def reduced(function: Reduce) -> TorchRule:
    """Axes are an input in newer opsets; none means all, or, where the attribute says so, nothing."""

    def rule(call: Call) -> Made:
        x, axes = call.x(0), call.ints(1, "axes")
        if not axes and call.attr("noop_with_empty_axes", 0):
            return function(x.unsqueeze(-1), (x.dim(),), False)
        over = tuple(a % x.dim() for a in axes) if axes and x.dim() else tuple(range(x.dim()))
        return function(x, over, bool(call.attr("keepdims", 1))) if over else function(x.unsqueeze(0), (0,), False)

    return rule


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    count = x.numel() // max(_sum(x, axes, keep).numel(), 1)
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _extreme(largest: bool) -> Reduce:
    def function(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return _extreme(largest)(x.to(torch.uint8), axes, keep).to(torch.bool)
        if any(x.shape[a] == 0 for a in axes):
            info = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
            worst = -float("inf") if x.is_floating_point() else info.min
            best = float("inf") if x.is_floating_point() else info.max
            return torch.full_like(x.sum(axes, keep, dtype=x.dtype), worst if largest else best)
        return torch.amax(x, axes, keep) if largest else torch.amin(x, axes, keep)

    return function


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for a in sorted(axes, reverse=True):
        x = torch.prod(x, a, keep, dtype=x.dtype)
    return x


def _norm(p: int) -> Reduce:
    def function(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.is_floating_point():
            return torch.linalg.vector_norm(x, p, axes, keep)
        return _sum(x.abs() ** p, axes, keep) if p == 1 else (x * x).sum(axes, keep).sqrt().to(x.dtype)

    return function


def _squares(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), axes, keep).to(x.dtype)


def softmax(call: Call) -> Made:
    """Over one axis."""
    return torch.softmax(call.x(0), int(call.attr("axis", -1)))


def log_softmax(call: Call) -> Made:
    """Over one axis."""
    return torch.log_softmax(call.x(0), int(call.attr("axis", -1)))


def hardmax(call: Call) -> Made:
    """One at the first largest element, else zero."""
    x, axis = call.x(0), int(call.attr("axis", -1))
    return torch.zeros_like(x).scatter(axis, _arg(x, axis, True, False).unsqueeze(axis), 1.0)


def flattened(rule: Callable[[Tensor, int], Tensor]) -> TorchRule:
    """Before opset 13: over all axes from the given one on, as one."""

    def old(call: Call) -> Made:
        x = call.x(0)
        axis = axis_of(call, x.dim(), 1)
        rows = 1
        for s in x.shape[:axis]:
            rows *= s
        return rule(x.reshape(rows, -1), 1).reshape(x.shape)

    return old


def _hard(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, _arg(x, axis, True, False).unsqueeze(axis), 1.0)


def _arg(x: Tensor, axis: int, largest: bool, last: bool) -> Tensor:
    """Return the first or the last of the places that hold the extreme value."""
    x = x.flip(axis) if last else x
    best = torch.amax(x, axis, True) if largest else torch.amin(x, axis, True)
    found = torch.argmax((x == best).to(torch.uint8), axis)
    return x.shape[axis] - 1 - found if last else found


def arg(largest: bool) -> TorchRule:
    """Where the extreme value is."""

    def rule(call: Call) -> Made:
        x = call.x(0)
        axis = axis_of(call, x.dim())
        found = _arg(x, axis, largest, bool(call.attr("select_last_index", 0)))
        return found.unsqueeze(axis) if call.attr("keepdims", 1) else found

    return rule


def top_k(call: Call) -> Made:
    """The k largest or smallest; of equal ones the first."""
    x = call.x(0)
    k = int(call.number(1, "k"))
    axis = axis_of(call, x.dim(), -1)
    values, at = torch.sort(x, dim=axis, descending=bool(call.attr("largest", 1)), stable=True)
    return values.narrow(axis, 0, k), at.narrow(axis, 0, k)


def running(function: Callable[..., Tensor], nothing: int) -> TorchRule:
    """Over an axis, from either end, with or without the element itself."""

    def rule(call: Call) -> Made:
        x, axis = call.x(0), int(call.number(1))
        x = x.flip(axis) if call.attr("reverse", 0) else x
        if call.attr("exclusive", 0):
            head = torch.full_like(x.narrow(axis, 0, 1), nothing)
            x = torch.cat([head, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = function(x, axis, dtype=x.dtype)
        return y.flip(axis) if call.attr("reverse", 0) else y

    return rule


_REDUCE: dict[str, Reduce] = {
    "ReduceSum": _sum, "ReduceMean": _mean, "ReduceMax": _extreme(True), "ReduceMin": _extreme(False),
    "ReduceProd": _product, "ReduceL1": _norm(1), "ReduceL2": _norm(2), "ReduceSumSquare": _squares,
    "ReduceLogSum": _log_sum, "ReduceLogSumExp": _log_sum_exp,
}  # fmt: skip

RULES: tuple[Row[TorchRule], ...] = (
    *[row(reduced(f), o) for o, f in _REDUCE.items()],
    row(flattened(torch.softmax), "Softmax", until=12),
    row(softmax, "Softmax", since=13),
    row(flattened(torch.log_softmax), "LogSoftmax", until=12),
    row(log_softmax, "LogSoftmax", since=13),
    row(flattened(_hard), "Hardmax", until=12),
    row(hardmax, "Hardmax", since=13),
    row(arg(True), "ArgMax"),
    row(arg(False), "ArgMin"),
    row(top_k, "TopK"),
    row(running(torch.cumsum, 0), "CumSum"),
    row(running(torch.cumprod, 1), "CumProd"),
)
