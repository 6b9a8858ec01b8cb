"""Images that nobody took: shapes, things, dead leaves, 1/f and white noise; arrays [n, channels, height, width].

All are drawn for the whole batch at once and are of mean 0 and deviation 1 over many images, per channel, so that
contrast and brightness differ from image to image as they do in photographs. Structure is what counts: with shapes a
repaired network keeps 16 to 40 points more than with noise (docs).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Images: TypeAlias = npt.NDArray[np.float32]
Draw: TypeAlias = "Callable[[np.random.Generator, int, int, tuple[int, int]], Images]"

_SHAPES = (3, 14)  # how many shapes an image has, from and to
_BLACK, _BLACK_THINGS = 0.4, 0.9  # how many backgrounds are black
_MIRRORED = 0.5  # how many things are symmetric
_LEAVES = 60
_FINEST = 128  # pixels a side above which leaves are drawn at half the size
_MEASURED = 64  # images, of so many pixels a side, that tell mean and deviation of a kind
_PEPPER = 0x5EED


def images(kind: str, rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Return images of a kind: "shapes", "things", "leaves", "pink" or "noise".

    >>> images("shapes", np.random.default_rng(0), 2, 3, (32, 32)).shape
    (2, 3, 32, 32)

    Raises KeyError for another kind.
    """
    return standardised(DRAWN[kind](rng, count, channels, size), kind)


def standardised(pixels: Images, kind: str) -> Images:
    """Return pixels in 0..1 with mean 0 and deviation 1, if they are of a kind."""
    mean, deviation = level(kind, pixels.shape[1] > 1)
    out: Images = (pixels - np.float32(mean)) * np.float32(1 / deviation)
    return out


@lru_cache(maxsize=16)
def level(kind: str, coloured: bool) -> tuple[float, float]:
    """Return mean and deviation of the pixels of a kind, before they are standardised."""
    drawn = DRAWN[kind](np.random.default_rng(_PEPPER), _MEASURED, 3 if coloured else 1, (_MEASURED, _MEASURED))
    return float(drawn.mean()), float(drawn.std())


def colours(rng: np.random.Generator, count: int, channels: int) -> Images:
    """Return [count, channels] colours in 0..1: mostly grey, as channels of photographs rise and fall together."""
    light = rng.random((count, 1), np.float32)
    tint = 0.15 * rng.standard_normal((count, channels), np.float32) if channels > 1 else 0
    return np.clip(light + tint, 0, 1).astype(np.float32)


def _flat(a: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give one number per image the shape of an image."""
    return a[:, None, None]


def _centres(pixels: int, shorter: int) -> Images:
    out: Images = (((np.arange(pixels) + 0.5) * 2 - pixels) / shorter).astype(np.float32)
    return out


class _Grid:
    """Coordinates from -1 to 1 along the shorter side, moved and turned per image without a full array of each."""

    def __init__(self, size: tuple[int, int]) -> None:
        shorter = max(min(size), 1)
        self.y, self.x = _centres(size[0], shorter), _centres(size[1], shorter)
        self.reach = float(self.y[-1]), float(self.x[-1])

    def along(self, angle: Images, cx: Images, cy: Images, length: Images) -> Images:
        """Return [n, h, w]: the distance from (cx, cy) along a direction, in units of `length`."""
        s: Images = (np.sin(angle) / length).astype(np.float32)
        c: Images = (np.cos(angle) / length).astype(np.float32)
        out: Images = _flat(s) * (self.y[None, :, None] - _flat(cy)) + _flat(c) * (self.x[None, None, :] - _flat(cx))
        return out

    def places(self, rng: np.random.Generator, count: int, spread: float) -> tuple[Images, Images]:
        """Return random centres, of which the outermost lie `spread` times as far out as the border."""
        at = (2 * rng.random((2, count), np.float32) - 1) * np.float32(spread)
        return at[0] * np.float32(self.reach[1]), at[1] * np.float32(self.reach[0])


def _paint(
    rng: np.random.Generator, canvas: Images, grid: _Grid, radius: tuple[Images, Images], active: npt.NDArray[np.bool_]
) -> None:
    """Paint one rectangle or ellipse on every active image, flat or with waves along one direction."""
    count, channels = canvas.shape[:2]
    one = rng.random((4, count), np.float32)
    waves = rng.random((3, count), np.float32)
    cx, cy = grid.places(rng, count, 0.9)
    colour = colours(rng, count, channels)
    # Half of the shapes are upright, as most made things are.
    angle = np.where(one[0] < 0.5, 0, one[1] * np.float32(np.pi)).astype(np.float32)
    u = grid.along(angle, cx, cy, radius[0])
    v = grid.along(angle + np.float32(np.pi / 2), cx, cy, radius[1])
    inside = np.where(_flat(one[2]) < 0.5, np.maximum(np.abs(u), np.abs(v)), u * u + v * v) < 1
    inside &= active[:, None, None]
    shaded = one[3] < 0.5
    if not shaded.any():
        np.copyto(canvas, colour[:, :, None, None], where=inside[:, None])
        return
    frequency = np.exp(1 + 2.5 * waves[0], dtype=np.float32)
    amplitude = np.where(shaded, 0.4 * waves[1], 0).astype(np.float32)
    wave = _flat(amplitude) * np.sin(_flat(frequency) * (u + np.float32(0.3) * v) + _flat(6.3 * waves[2]))
    for k in range(channels):
        np.copyto(canvas[:, k], _flat(colour[:, k]) + wave, where=inside)


def _background(rng: np.random.Generator, count: int, channels: int, grid: _Grid, black: float = _BLACK) -> Images:
    """Return plain backgrounds, some of them black, a third with a gradient."""
    colour = colours(rng, count, channels)
    one = rng.random((3, count), np.float32)
    colour *= (one[0] >= black)[:, None]
    slope = np.where(one[1] < 1 / 3, 0.4, 0).astype(np.float32)
    zero = np.zeros(count, np.float32)
    ramp = _flat(slope) * grid.along(6.3 * one[2], zero, zero, zero + 1)
    out: Images = (colour[:, :, None, None] + ramp[:, None]).astype(np.float32)
    return out


def shapes(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Draw overlapping rectangles and ellipses with flat and sinusoidal shading on plain backgrounds."""
    return np.clip(_shapes(rng, count, channels, size, _BLACK), 0, 1)


def things(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Draw shapes as in `shapes`, nearly all on black, half of the images symmetric: a letter, a garment, an organ."""
    canvas = _shapes(rng, count, channels, size, _BLACK_THINGS)
    half, which = size[1] // 2, rng.random(count) < _MIRRORED
    canvas[which, :, :, size[1] - half :] = canvas[which, :, :, :half][..., ::-1]
    return np.clip(canvas, 0, 1)


def _shapes(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int], black: float) -> Images:
    grid = _Grid(size)
    canvas = _background(rng, count, channels, grid, black)
    many = rng.integers(*_SHAPES, count)
    for k in range(_SHAPES[1]):
        # From large to small, so that early ones are not lost.
        largest = np.float32(0.9 * 0.85**k)
        radius = 0.06 + largest * rng.random((2, count), np.float32)
        _paint(rng, canvas, grid, (radius[0], radius[1]), k < many)
    return canvas


def leaves(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Draw dead leaves: shapes that cover each other, radii by the power law that makes images of any scale alike."""
    half = max(size) > _FINEST
    small = (-(-size[0] // 2), -(-size[1] // 2)) if half else size
    grid = _Grid(small)
    canvas = _background(rng, count, channels, grid)
    low, high = 0.08, 1.2
    everyone = np.ones(count, bool)
    for _ in range(_LEAVES):
        # The density r^-3 between low and high, by its inverse distribution function.
        radius = (low**-2 - rng.random(count, np.float32) * (low**-2 - high**-2)) ** np.float32(-0.5)
        flatness = 0.5 + 0.5 * rng.random(count, np.float32)
        _paint(rng, canvas, grid, (radius, radius * flatness), everyone)
    np.clip(canvas, 0, 1, out=canvas)
    return canvas.repeat(2, 2).repeat(2, 3)[:, :, : size[0], : size[1]] if half else canvas


def pink(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Draw noise whose amplitude falls as 1/f, as that of photographs does; channels mostly alike."""
    fy, fx = np.fft.fftfreq(size[0]).astype(np.float32), np.fft.rfftfreq(size[1]).astype(np.float32)
    f = np.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2)
    fall = np.float32(1) / np.maximum(f, np.float32(1 / max(size)))
    white = rng.standard_normal((count, 1 + (channels if channels > 1 else 0), *size), np.float32)
    spectrum = np.fft.rfft2(white)
    spectrum *= fall / np.sqrt(np.mean(fall**2))
    noise = np.fft.irfft2(spectrum, s=size).astype(np.float32)
    return noise[:, :1] + np.float32(0.3) * noise[:, 1:] if channels > 1 else noise


def noise(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Draw white Gaussian noise."""
    return rng.standard_normal((count, channels, *size), np.float32)


DRAWN: dict[str, Draw] = {"shapes": shapes, "things": things, "leaves": leaves, "pink": pink, "noise": noise}


def laid_out(images: Images, channel: int | None, shape: tuple[int, ...]) -> Images:
    """Return images [n, channels, h, w] in an input's layout: with its channels where it has them, or without."""
    if channel is None or len(shape) == 3:
        return images.reshape(shape)
    return np.moveaxis(images, 1, channel).reshape(shape)


def measures(shape: tuple[int, ...], channel: int | None) -> tuple[int, int, tuple[int, int]]:
    """Return samples, channels and size of the images in an input of some shape; frames count as samples.

    >>> measures((8, 32, 40, 3), 3)
    (8, 3, (32, 40))
    """
    *outer, height, width = (n for k, n in enumerate(shape) if k != channel)
    return prod(outer), shape[channel] if channel is not None else 1, (height, width)
