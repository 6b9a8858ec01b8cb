"""Mean and deviation that made-up inputs are given: from the model's first normalisation, its type, or by custom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.contents import Content
from graphprune.calibrate.known import Probe, first_response
from graphprune.calibrate.samples import Feed
from graphprune.inputs import plain

Array: TypeAlias = npt.NDArray[Any]
Vector: TypeAlias = npt.NDArray[np.float64]

# Of pixels in 0..1: photographs' mean and deviation over large collections (those of ImageNet, rounded).
_PIXEL_MEAN, _PIXEL_DEVIATION = 0.45, 0.25
_BYTE = 255.0
_RAW_WAVE = 0.1
_LEAST, _MOST = 0.05, 20.0
_MOST_CHANNELS = 8
_PULL = 0.03


@dataclass(frozen=True)
class Range:
    """Mean per channel and deviation of an input as the model takes it, limits where it has any, and why."""

    mean: Vector
    deviation: Vector
    low: float | None
    high: float | None
    why: str

    def applied(self, drawn: Array, content: Content) -> Array:
        """Give numbers of mean 0 and deviation 1 this range, and the input's type."""
        shape = [1] * drawn.ndim
        if content.channel is not None and max(self.mean.size, self.deviation.size) > 1:
            shape[content.channel] = -1
        mean = self.mean.astype(np.float32).reshape(shape if self.mean.size > 1 else [1] * drawn.ndim)
        deviation = self.deviation.astype(np.float32).reshape(shape if self.deviation.size > 1 else [1] * drawn.ndim)
        out = drawn * deviation + mean
        if self.low is not None:
            out = np.clip(out, self.low, self.high)
        return (np.rint(out) if content.dtype.kind in "iu" else out).astype(content.dtype)

    def times(self, contrast: float) -> Range:
        """Return a range of another deviation."""
        return replace(self, deviation=self.deviation * contrast) if contrast != 1 else self


def usual(c: Content, shape: tuple[int, ...]) -> Range:
    """Return the range that the input's type and the graph's first steps tell, or mean 0 and deviation 1."""
    one, none = np.ones(1), np.zeros(1)
    whole = c.dtype.kind in "iu"
    limit = float(min(_BYTE, np.iinfo(c.dtype).max)) if whole else None
    if c.normalised and np.any(c.shift != 0):
        # The model maps -1..1 where it subtracts as much as it scales by; else it wants mean 0 and deviation 1.
        unit = 0.5 if c.shift.size == c.scale.size == 1 and abs(abs(float(c.shift[0])) - 1) < 0.02 else 1.0
        low, high = (0.0, limit) if limit is not None else (None, None)
        return Range(-c.shift / c.scale, np.abs(unit / c.scale), low, high, "range undone from the model's own steps")
    if c.what == "image" and (whole or c.normalised):
        top = limit if limit is not None else float(np.abs(1 / c.scale).max())
        why = f"pixels in 0..{top:g}, mean {_PIXEL_MEAN * top:.3g}, deviation {_PIXEL_DEVIATION * top:.3g}"
        return Range(one * _PIXEL_MEAN * top, one * _PIXEL_DEVIATION * top, 0.0, top, why)
    if c.what == "wave" and not plain(c.name).endswith("_values_"):
        return Range(none, one * _RAW_WAVE, -1.0, 1.0, "in -1..1, deviation 0.1, as recordings are")
    return Range(none, one, None, None, "mean 0 and deviation 1, as nothing in the model says which")


def fitted(probe: Probe, c: Content, start: Range, made: Feed) -> Range:
    """Return mean and deviation with which the first value of known moments has these, as well as possible.

    `made` is a batch under the range `start`. The value must be affine in the input (a convolution with a BatchNorm
    behind it); where it is not, `start` is returned. The deviation is stretched by the median of sqrt(known / seen
    variance) over channels, the means are the least-squares solution of sum_k mean_k gain_k + offset = known, in units
    of the known deviation, drawn a little to those of `start`.
    """
    if c.dtype.kind != "f":
        return start
    x = made[c.name]
    channels = x.shape[c.channel] if c.channel is not None else 1
    if channels > _MOST_CHANNELS:
        return start
    seen = first_response(probe, c.name, made, [_plane(x, c.channel, k) for k in range(channels)])
    if seen is None:
        return start
    offset, gains, _, variance = seen
    name = next(iter(probe.known))
    true_mean, true_variance = probe.known[name]
    alive = (variance > 1e-10 * variance.max(initial=1e-30)) & (true_variance > 1e-10 * true_variance.max())
    if not alive.any():
        return start
    stretch = float(np.exp(np.median(0.5 * np.log(true_variance[alive] / variance[alive]))))
    stretch = float(np.clip(stretch, _LEAST, _MOST))
    weight = 1 / np.sqrt(true_variance[alive])
    target = (true_mean - offset)[alive]
    pull = _PULL * float(np.sqrt(alive.sum()))
    a = np.vstack([gains[alive] * weight[:, None], pull * np.eye(channels)])
    b = np.concatenate([target * weight, pull * np.broadcast_to(start.mean, channels)])
    solved = np.linalg.lstsq(a, b, rcond=None)[0]
    deviation = start.deviation * stretch
    solved = np.clip(solved, start.mean - 3 * deviation.max(), start.mean + 3 * deviation.max())
    values, spread = (", ".join(f"{n:.3g}" for n in numbers) for numbers in (solved, np.unique(deviation)))
    why = f"mean {values} and deviation {spread} fitted to {name!r}"
    return replace(start, mean=solved, deviation=deviation, why=why)


def _plane(x: Array, channel: int | None, k: int) -> Array:
    if channel is None:
        return np.ones_like(x)
    plane = np.zeros_like(x)
    plane[(slice(None),) * channel + (k,)] = 1
    return plane
