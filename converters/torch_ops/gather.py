"""Torch rules of operators that read or write at positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule, axis_of
from graphprune.ops.registry import Row, row

_WRITES = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(at: Tensor, size: int) -> Tensor:
    at = at.long()
    return torch.where(at < 0, at + size, at)


def gather(call: Call) -> Made:
    """*a n *b, *i -> *a *i *b."""
    x, at = call.x(0), call.x(1)
    axis = axis_of(call, x.dim())
    at = _positive(at, x.shape[axis])
    if axis == 0 and x.dim() == 2:
        return F.embedding(at, x)
    return x.index_select(axis, at.reshape(-1)).reshape((*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]))


def table(call: Call) -> Made:
    """The rows of a table."""
    return F.embedding(_positive(call.x(1), call.x(0).shape[0]), call.x(0))


def gather_elements(call: Call) -> Made:
    """Along one axis, at each place a position of its own."""
    x = call.x(0)
    axis = axis_of(call, x.dim())
    return torch.gather(x, axis, _positive(call.x(1), x.shape[axis]))


def gather_nd(call: Call) -> Made:
    """The last axis of the indices counts through the first axes of the data."""
    x, at = call.x(0), call.x(1).long()
    batch = int(call.attr("batch_dims", 0))
    if not batch:
        return x[tuple(at.unbind(-1))] if at.shape[-1] else x.expand(*at.shape[:-1], *x.shape)
    shared = x.shape[:batch]
    flat_x, flat_at = x.reshape(-1, *x.shape[batch:]), at.reshape(-1, *at.shape[batch:])
    samples = torch.arange(flat_x.shape[0], device=x.device).reshape(-1, *[1] * (flat_at.dim() - 2))
    places = [samples.expand(flat_at.shape[:-1]), *flat_at.unbind(-1)]
    picked = flat_x[tuple(places)]
    return picked.reshape((*shared, *picked.shape[1:]))


def scatter_elements(call: Call) -> Made:
    """Along one axis, written, added, multiplied, or the larger or smaller stays."""
    x, updates = call.x(0), call.x(2)
    axis = axis_of(call, x.dim())
    at, how = _positive(call.x(1), x.shape[axis]), call.attr("reduction", "none")
    if how == "none":
        return x.scatter(axis, at, updates.to(x.dtype))
    return x.scatter_reduce(axis, at, updates.to(x.dtype), _WRITES[how], include_self=True)


def scatter_nd(call: Call) -> Made:
    """Slices are written where the indices say, or added, multiplied, or the larger or smaller stays."""
    x, at, updates = call.x(0), call.x(1).long(), call.x(2)
    how, depth = call.attr("reduction", "none"), at.shape[-1]
    if how == "none":
        return x.index_put(tuple(at.unbind(-1)), updates.to(x.dtype)) if depth else updates.reshape(x.shape)
    rows = torch.zeros(at.shape[:-1], dtype=torch.int64, device=x.device)
    for k, size in enumerate(x.shape[:depth]):
        rows = rows * size + _positive(at[..., k], size)
    flat = x.reshape(-1, *x.shape[depth:])
    index = rows.reshape(-1, *[1] * (x.dim() - depth)).expand(-1, *x.shape[depth:])
    values = updates.to(x.dtype).reshape(-1, *x.shape[depth:])
    return flat.scatter_reduce(0, index, values, _WRITES[how], include_self=True).reshape(x.shape)


def one_hot(call: Call) -> Made:
    """One value at each position, another elsewhere."""
    at, depth, values = call.x(0), int(call.number(1)), call.x(2)
    axis = int(call.attr("axis", -1))
    axis = axis + at.dim() + 1 if axis < 0 else axis
    on = _positive(at, depth).unsqueeze(axis) == torch.arange(depth, device=at.device).reshape(
        *[depth if k == axis else 1 for k in range(at.dim() + 1)]
    )
    return torch.where(on, values[1], values[0])


def non_zero(call: Call) -> Made:
    """One row per axis."""
    x = call.x(0)
    return torch.nonzero(x).t().contiguous() if x.dim() else torch.nonzero(x.reshape(1))[:, :0].t()


def compress(call: Call) -> Made:
    """What a condition is true for, along an axis or of all elements."""
    x, on = call.x(0), call.x(1)
    axis = call.attr("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, int(axis))
    return x.index_select(axis, torch.nonzero(on[: x.shape[axis]]).reshape(-1))


def tensor_scatter(call: Call) -> Made:
    """New positions of a cache are written, around the end where it is circular."""
    cache, update, at = call.x(0), call.x(1), call.maybe(2)
    axis = axis_of(call, cache.dim(), -2)
    n, start = update.shape[axis], at if at is not None else torch.zeros(cache.shape[0], dtype=torch.int64)
    places = start.to(cache.device)[:, None] + torch.arange(n, device=cache.device)
    if call.attr("mode", "linear") == "circular":
        places = places % cache.shape[axis]
    shape = [cache.shape[0] if k == 0 else n if k == axis else 1 for k in range(cache.dim())]
    return cache.scatter(axis, places.reshape(shape).expand(update.shape), update)


RULES: tuple[Row[TorchRule], ...] = (
    row(gather, "Gather"),
    row(table, "TorchEmbedding", domain=MICROSOFT),
    row(gather_elements, "GatherElements"),
    row(gather_nd, "GatherND"),
    row(gather_nd, "GatherND", domain=MICROSOFT),
    row(scatter_elements, "ScatterElements", "Scatter"),
    row(scatter_nd, "ScatterND"),
    row(one_hot, "OneHot"),
    row(non_zero, "NonZero"),
    row(compress, "Compress"),
    row(tensor_scatter, "TensorScatter"),
)
