"""Torch rules of operators that sample feature maps between their positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule
from graphprune.ops.registry import Row, row

Floats = npt.NDArray[np.float64]


def resize(call: Call) -> Made:
    """Each axis by itself: a matrix of weights from old positions to new ones."""
    x = call.x(0)
    axes = [a % x.dim() for a in call.attr("axes") or range(x.dim())]
    roi, scales, sizes = _asked(call)
    regions = {a: (roi[k], roi[k + len(axes)]) for k, a in enumerate(axes)} if len(roi) == 2 * len(axes) else {}
    factors, outs = _extents(call, x, axes, scales, sizes)
    for a in axes:
        region = regions.get(a, (0.0, 1.0))
        if factors[a] != 1 or outs[a] != x.shape[a] or region != (0.0, 1.0):
            x = _along(call, x, a, (outs[a], factors[a]), region)
    return x


def _asked(call: Call) -> tuple[list[float], list[float] | None, list[int] | None]:
    """Return the region, the scales and the sizes asked for; opset 10 has scales only, as its second input."""
    if call.node.version < 11:
        return [], [float(v) for v in call.x(1).tolist()], None
    roi = [float(v) for v in call.x(1).reshape(-1).tolist()] if call.has(1) else []
    scales = [float(v) for v in call.x(2).reshape(-1).tolist()] if call.has(2) else []
    sizes = call.ints(3) if call.has(3) else []
    return roi, scales or None, sizes or None


def _extents(
    call: Call, x: Tensor, axes: list[int], scales: list[float] | None, sizes: list[int] | None
) -> tuple[dict[int, float], dict[int, int]]:
    """Return scale and size of every axis."""
    if sizes is None:
        factors = dict(zip(axes, scales or [], strict=True))
        return factors, {a: int(np.floor(x.shape[a] * f)) for a, f in factors.items()}
    ratios = [s / x.shape[a] for a, s in zip(axes, sizes, strict=True)]
    policy = call.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        one = min(ratios) if policy == "not_larger" else max(ratios)
        return dict.fromkeys(axes, one), {a: int(np.floor(x.shape[a] * one + 0.5)) for a in axes}
    return dict(zip(axes, ratios, strict=True)), dict(zip(axes, sizes, strict=True))


def _along(call: Call, x: Tensor, a: int, extent: tuple[int, float], region: tuple[float, float]) -> Tensor:
    size, (out, scale) = x.shape[a], extent
    at = _origins(str(call.attr("coordinate_transformation_mode", _default(call))), size, out, scale, region)
    outside = (at < 0) | (at > size - 1)
    cropped = call.attr("coordinate_transformation_mode") == "tf_crop_and_resize" and bool(outside.any())
    if call.attr("mode", "nearest") == "nearest":
        places = np.clip(_nearest(at, str(call.attr("nearest_mode", _rounding(call)))), 0, size - 1)
        y = x.index_select(a, torch.from_numpy(places.astype(np.int64)).to(x.device))
    else:
        weights = torch.from_numpy(_weights(call, at, size, scale)).to(x.device, x.dtype)
        y = torch.matmul(x.movedim(a, -1), weights.t()).movedim(-1, a)
    if cropped:
        shape = [out if k == a else 1 for k in range(x.dim())]
        mask = torch.from_numpy(outside).to(x.device).reshape(shape)
        y = torch.where(mask, torch.full_like(y, float(call.attr("extrapolation_value", 0.0))), y)
    return y


def _default(call: Call) -> str:
    return "half_pixel" if call.node.version >= 11 else "asymmetric"


def _rounding(call: Call) -> str:
    return "round_prefer_floor" if call.node.version >= 11 else "floor"


def _origins(mode: str, size: int, out: int, scale: float, region: tuple[float, float]) -> Floats:
    """Return where each new position lies among the old ones."""
    at = np.arange(out, dtype=np.float64)
    if mode == "align_corners":
        return at * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_crop_and_resize":
        start, end = region
        step = (end - start) / (out - 1) if out > 1 else 0.0
        return np.asarray((size - 1) * ((start if out > 1 else 0.5 * (start + end)) + at * step))
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(out)
    if mode == "half_pixel_symmetric":
        adjust = out / (scale * size)
        return size / 2 * (1 - adjust) + (at + 0.5) / scale - 0.5
    return (at + 0.5) / scale - 0.5


def _nearest(at: Floats, mode: str) -> Floats:
    rounding: dict[str, Callable[[Floats], Floats]] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }  # fmt: skip
    return rounding[mode](np.round(at, 6))


def _weights(call: Call, at: Floats, size: int, scale: float) -> Floats:
    """Return the matrix [new, old] of an interpolation; elements over an edge count for the edge."""
    cubic = call.attr("mode") == "cubic"
    stretch = max(1.0, 1 / scale) if call.attr("antialias", 0) else 1.0
    reach = int(np.ceil((2 if cubic else 1) * stretch))
    exclude = bool(call.attr("exclude_outside", 0)) or bool(call.attr("antialias", 0))
    first = np.floor(at).astype(int) - reach + 1
    out = np.zeros((len(at), size))
    for step in range(2 * reach):
        place = first + step
        distance = np.abs(at - place) / stretch
        weight = _cubic(distance, float(call.attr("cubic_coeff_a", -0.75))) if cubic else np.maximum(1 - distance, 0)
        if exclude:
            weight = np.where((place < 0) | (place >= size), 0.0, weight)
        np.add.at(out, (np.arange(len(at)), np.clip(place, 0, size - 1)), weight)
    if not cubic and not exclude:
        return out
    total = out.sum(1, keepdims=True)
    return out / np.where(total == 0, 1, total)


def _cubic(d: Floats, a: float) -> Floats:
    """Keys' cubic kernel (1981, equation 4)."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def upsample(call: Call) -> Made:
    """Sizes times scales; nearest or linear, from the corner."""
    x = call.x(0)
    scales = [float(v) for v in (call.x(1).tolist() if call.has(1) else call.attr("scales"))]
    for a, f in enumerate(scales):
        if f != 1:
            out = int(np.floor(x.shape[a] * f))
            at = np.arange(out) / f
            if call.attr("mode", "nearest") == "nearest":
                places = np.floor(np.round(at, 6)).astype(np.int64)
                x = x.index_select(a, torch.from_numpy(places).to(x.device))
            else:
                weights = torch.from_numpy(_weights(call, at, x.shape[a], f)).to(x.device, x.dtype)
                x = torch.matmul(x.movedim(a, -1), weights.t()).movedim(-1, a)
    return x


_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(call: Call) -> Made:
    """Feature maps at the points of a grid."""
    x, grid, mode = call.x(0), call.x(1), str(call.attr("mode", "bilinear"))
    padding, corners = call.attr("padding_mode", "zeros"), bool(call.attr("align_corners", 0))
    return F.grid_sample(x, grid.to(x.dtype), _MODES.get(mode, mode), padding, corners)


def affine_grid(call: Call) -> Made:
    """The points of a grid after an affine map."""
    return F.affine_grid(call.x(0), call.ints(1) or [], bool(call.attr("align_corners", 0)))


def roi_align(call: Call) -> Made:
    """Means (or maxima) of samples in a grid of bins for each region."""
    x, rois, batch = call.x(0), call.x(1), call.x(2).long()
    high, wide = int(call.attr("output_height", 1)), int(call.attr("output_width", 1))
    scale, ratio = float(call.attr("spatial_scale", 1.0)), int(call.attr("sampling_ratio", 0))
    mode = call.attr("coordinate_transformation_mode", "half_pixel" if call.node.version >= 16 else "output_half_pixel")
    boxes = rois * scale - (0.5 if mode == "half_pixel" else 0.0)
    out = []
    for box, sample in zip(boxes, batch.tolist(), strict=True):
        size = box[2:] - box[:2]
        size = size if mode == "half_pixel" else size.clamp(min=1.0)
        bins = size / torch.tensor([wide, high], dtype=x.dtype, device=x.device)
        counts = [ratio, ratio] if ratio > 0 else [max(int(np.ceil(v)), 1) for v in bins.tolist()]
        xs, ys = (
            box[k] + (torch.arange(n * c, device=x.device).to(x.dtype) + 0.5) * bins[k] / c
            for k, (n, c) in enumerate(zip((wide, high), counts, strict=True))
        )
        samples = _bilinear(x[sample], ys, xs, call.attr("mode", "avg") == "max")
        if samples.dim() == 3:
            grid = samples.reshape(-1, high, counts[1], wide, counts[0])
            out.append(grid.mean((2, 4)))
        else:
            grid = samples.reshape(4, -1, high, counts[1], wide, counts[0])
            out.append(grid.amax((0, 3, 5)))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1], high, wide)


def _bilinear(x: Tensor, ys: Tensor, xs: Tensor, apart: bool) -> Tensor:
    """Return a map [c, y, x] at all pairs of positions; beyond one element outside it is zero."""
    parts = []
    for at, size in ((ys, x.shape[1]), (xs, x.shape[2])):
        inside = ((at >= -1) & (at <= size)).to(x.dtype)
        at = at.clamp(min=0)
        low = at.detach().floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = torch.where(low >= size - 1, torch.zeros_like(at), at - low)
        parts.append((low, high, (1 - share) * inside, share * inside))
    (y0, y1, a0, a1), (x0, x1, b0, b1) = parts
    corners = [
        x[:, p][:, :, q] * (a[:, None] * b[None])
        for p, a in ((y0, a0), (y1, a1)) for q, b in ((x0, b0), (x1, b1))
    ]
    return torch.stack(corners) if apart else corners[0] + corners[1] + corners[2] + corners[3]


RULES: tuple[Row[TorchRule], ...] = (
    row(resize, "Resize"),
    row(upsample, "Upsample"),
    row(grid_sample, "GridSample"),
    row(grid_sample, "GridSample", domain=MICROSOFT),
    row(affine_grid, "AffineGrid"),
    row(roi_align, "RoiAlign"),
)
