"""Torch rules of operators that move elements: reshapes, transposes, concatenations, cuts, padding."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.conv import torch_pads
from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule, axis_of
from graphprune.ops.registry import Row, row


def reshape(call: Call) -> Made:
    """Zero copies a size, -1 takes what is left."""
    x, shape = call.x(0), call.ints(1, "shape") or []
    if not call.attr("allowzero", 0):
        shape = [x.shape[k] if s == 0 and k < x.dim() else s for k, s in enumerate(shape)]
    return x.reshape(shape)


def flatten(call: Call) -> Made:
    """All axes before and all from the given one become one each."""
    x = call.x(0)
    axis = axis_of(call, x.dim(), 1)
    before = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(before, -1) if x.numel() else x.reshape(before, int(np.prod(x.shape[axis:], dtype=np.int64)))


def squeeze(call: Call) -> Made:
    """Axes of size one go."""
    x, axes = call.x(0), call.ints(1, "axes")
    gone = {a % x.dim() for a in axes} if axes is not None else {k for k, s in enumerate(x.shape) if s == 1}
    return x.reshape([s for k, s in enumerate(x.shape) if k not in gone])


def unsqueeze(call: Call) -> Made:
    """Axes of size one come; they are counted in the result."""
    x, axes = call.x(0), call.ints(1, "axes") or []
    for a in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(a)
    return x


def transpose(call: Call) -> Made:
    """Axes in another order; the reverse one by default."""
    x = call.x(0)
    return x.permute(call.attr("perm") or list(reversed(range(x.dim()))))


def concat(call: Call) -> Made:
    """One axis is the sum of the inputs'."""
    return torch.cat(call.tensors(), int(call.attr("axis", 1)))


def split(call: Call) -> Made:
    """Sizes are given, or as equal as they can be."""
    x, sizes = call.x(0), call.ints(1, "split")
    axis = axis_of(call, x.dim())
    if sizes is None:
        parts = int(call.attr("num_outputs", len(call.node.outputs)))
        chunk = -(-x.shape[axis] // parts)
        sizes = [min(chunk, max(x.shape[axis] - k * chunk, 0)) for k in range(parts)]
    return tuple(torch.split(x, sizes, axis))


def slices(call: Call) -> Made:
    """Starts, ends and steps are inputs since opset 10; steps may go back."""
    x = call.x(0)
    starts, ends = call.ints(1, "starts") or [], call.ints(2, "ends") or []
    axes = call.ints(3, "axes")
    steps = call.ints(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=False):
        n = x.shape[axis]
        first, last, step = slice(start, None if step < 0 and end < -n else end, step).indices(n)
        if step == 1:
            x = x.narrow(axis, first, max(last - first, 0))
        elif step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(first, max(last, first), step),)]
        else:
            x = x.index_select(axis, torch.arange(first, last, step, device=x.device) if first > last else _none(x))
    return x


def _none(x: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device=x.device)


def expand(call: Call) -> Made:
    """Both shapes broadcast."""
    x, shape = call.x(0), call.ints(1) or []
    sizes = [1] * (len(shape) - x.dim()) + list(x.shape)
    wide = [1] * (len(sizes) - len(shape)) + shape
    return x.expand([b if a == 1 else a for a, b in zip(sizes, wide, strict=True)])


def tile(call: Call) -> Made:
    """Axes are repeated."""
    return call.x(0).repeat(call.ints(1, "repeats") or [])


def tile_once(call: Call) -> Made:
    """One axis is repeated (opset 1)."""
    x, times, axis = call.x(0), int(call.number(1)), int(call.number(2))
    return x.repeat([times if k == axis else 1 for k in range(x.dim())])


def pad(call: Call) -> Made:
    """A constant, or the input's own elements: repeated at the edge, mirrored, or from the other end."""
    x, pads = call.x(0), call.ints(1, "pads") or call.ints(-1, "paddings") or []
    axes = [a % x.dim() for a in call.ints(3) or range(len(pads) // 2)]
    front, behind = [0] * x.dim(), [0] * x.dim()
    for k, a in enumerate(axes):
        front[a], behind[a] = pads[k], pads[k + len(axes)]
    mode = call.attr("mode", "constant")
    if mode == "constant":
        value = call.number(2, "value", 0.0)
        return F.pad(x, torch_pads(front, behind), value=value or 0.0)
    for a in range(x.dim()):
        if front[a] or behind[a]:
            x = x.index_select(a, _sources(x.shape[a], front[a], behind[a], mode).to(x.device))
    return x


def _sources(size: int, front: int, behind: int, mode: str) -> Tensor:
    """Return which element stands at each place of a padded axis."""
    at = np.arange(-front, size + behind)
    if mode == "edge":
        at = np.clip(at, 0, size - 1)
    elif mode == "wrap":
        at = at % size
    else:
        around = max(2 * (size - 1), 1)
        at = np.abs((at + size - 1) % around - (size - 1)) if size > 1 else np.zeros_like(at)
    return torch.from_numpy(at.astype(np.int64))


def depth_to_space(call: Call) -> Made:
    """n (b b c) y x -> n c (y b) (x b), or with the channels outside."""
    x, b = call.x(0), int(call.attr("blocksize"))
    n, c, h, w = x.shape
    if call.attr("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(call: Call) -> Made:
    """n c (y b) (x b) -> n (b b c) y x, or with the channels outside."""
    x, b = call.x(0), int(call.attr("blocksize"))
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if call.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b * b, h // b, w // b)


def trilu(call: Call) -> Made:
    """A triangle of the last two axes stays."""
    k = int(call.number(1, default=0))
    return torch.triu(call.x(0), k) if call.attr("upper", 1) else torch.tril(call.x(0), k)


def reverse_sequence(call: Call) -> Made:
    """The first elements of each sample in reverse order."""
    x, lengths = call.x(0), call.x(1)
    batch, time = int(call.attr("batch_axis", 1)), int(call.attr("time_axis", 0))
    at = torch.arange(x.shape[time], device=x.device)
    at = torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)
    index = at if batch < time else at.t()
    return torch.gather(x, time, index.reshape(*index.shape, *[1] * (x.dim() - 2)).expand(x.shape))


def center(call: Call) -> Made:
    """Axes are cut or padded on both sides."""
    x, wanted = call.x(0), call.ints(1) or []
    axes = call.ints(-1, "axes") or list(range(x.dim()))
    front, behind = [0] * x.dim(), [0] * x.dim()
    for a, size in zip(axes, wanted, strict=True):
        missing = size - x.shape[a]
        front[a] = missing // 2 if missing > 0 else -((-missing) // 2)
        behind[a] = missing - front[a]
    return F.pad(x, torch_pads(front, behind))


def expand_dims(call: Call) -> Made:
    """An axis of size one comes."""
    return call.x(0).unsqueeze(int(call.number(1)))


RULES: tuple[Row[TorchRule], ...] = (
    row(reshape, "Reshape"),
    row(flatten, "Flatten"),
    row(squeeze, "Squeeze"),
    row(unsqueeze, "Unsqueeze"),
    row(transpose, "Transpose"),
    row(concat, "Concat"),
    row(split, "Split"),
    row(slices, "Slice"),
    row(expand, "Expand"),
    row(tile_once, "Tile", until=5),
    row(tile, "Tile", since=6),
    row(pad, "Pad"),
    row(pad, "Pad", domain=MICROSOFT),
    row(depth_to_space, "DepthToSpace"),
    row(space_to_depth, "SpaceToDepth"),
    row(trilu, "Trilu"),
    row(trilu, "Trilu", domain=MICROSOFT),
    row(reverse_sequence, "ReverseSequence"),
    row(center, "CenterCropPad"),
    row(expand_dims, "ExpandDims", domain=MICROSOFT),
)
