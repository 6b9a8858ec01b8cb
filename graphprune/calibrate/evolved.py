"""Images evolved until a classifier tells them apart: drawn ones are recombined, the surest of each class stay.

No gradients: parents and children compete by the model's answers alone, as in Nguyen, Yosinski and Clune, Deep neural
networks are easily fooled (CVPR 2015), but with structured changes and a bound on how sure an answer needs to be, so
that images go on to differ. Both sides of what is fitted and what is held back descend from the same ancestors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.answers import Shares, balanced, information
from graphprune.calibrate.images_made import Images, leaves, shapes, things

Asked: TypeAlias = Callable[[Images], Shares]
"""What the model says of images with pixels in 0..1."""

ROUNDS = 15
ANCESTORS = 5
"""Rounds in which all newcomers are drawn."""

_FOUNDERS = (things, shapes, things, leaves)  # of every four images
_SURE = 0.9  # answers that are surer than this are as good as each other
_LUCK = 1e-3
_CHANGED = 0.3  # how many children have another contrast

_KINDS = 4
_PASTED, _DRAWN, _ERASED = range(3)


@dataclass(frozen=True, eq=False)
class Evolved:
    """Images [n, channels, h, w] with pixels in 0..1, and the information of the answers about drawn and final ones."""

    images: Images
    before: float
    after: float


def evolve(
    asked: Asked, count: int, channels: int, size: tuple[int, int], *,
    rounds: tuple[int, int] = (ANCESTORS, ROUNDS),
    seed: int = 0,
) -> Evolved:
    """Return images that a classifier finds sure and evenly spread over its classes.

    `rounds` with drawn newcomers, then with children; each costs `count` answers, and so does the start. Memory: three
    times that of the images.
    """
    rng = np.random.default_rng([seed, count])
    images = founders(rng, count, channels, size)
    shares = asked(images)
    before = information(shares)
    for k in range(sum(rounds)):
        new = founders(rng, count, channels, size) if k < rounds[0] else recombined(images, rng)
        images, shares = _best(np.concatenate([images, new]), np.concatenate([shares, asked(new)]), count, rng)
    order = rng.permutation(len(images))
    return Evolved(images[order], before, information(shares))


def _best(images: Images, shares: Shares, count: int, rng: np.random.Generator) -> tuple[Images, Shares]:
    worth = np.minimum(shares, _SURE) + _LUCK * rng.random(shares.shape)
    chosen = balanced(worth, count)
    return images[chosen], shares[chosen]


def founders(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> Images:
    """Return drawn images with pixels in 0..1: things, shapes and leaves."""
    cuts = [round(k * count / len(_FOUNDERS)) for k in range(len(_FOUNDERS) + 1)]
    drawn = [d(rng, b - a, channels, size) for d, a, b in zip(_FOUNDERS, cuts, cuts[1:], strict=False) if b > a]
    out: Images = np.clip(np.concatenate(drawn), 0, 1).astype(np.float32)
    return out[rng.permutation(count)]


def recombined(images: Images, rng: np.random.Generator) -> Images:
    """Return one child of each image [n, channels, h, w]: a part of another, drawn or erased; or moved and stretched.

    >>> recombined(np.ones((3, 1, 8, 8), np.float32), np.random.default_rng(0)).shape
    (3, 1, 8, 8)
    """
    count, channels, height, width = images.shape
    kind = rng.integers(0, _KINDS, count)
    inside = _regions(rng, count, (height, width))
    out = images.copy()
    sources = {
        _PASTED: images[rng.permutation(count)], _DRAWN: things(rng, count, channels, (height, width)),
        _ERASED: np.zeros_like(images),
    }
    for which, source in sources.items():
        np.copyto(out, source, where=(inside & (kind == which)[:, None, None])[:, None])
    for k in np.flatnonzero(kind >= len(sources)):
        out[k] = _moved(out[k], rng)
    contrast = np.where(rng.random(count) < _CHANGED, rng.uniform(0.7, 1.3, count), 1.0).astype(np.float32)
    out *= contrast[:, None, None, None]
    return np.asarray(np.clip(out, 0, 1), np.float32)


def _regions(rng: np.random.Generator, count: int, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return one rectangle or ellipse per image, [n, h, w]."""
    at = rng.random((2, count, 1, 1), np.float32)
    radius = 0.1 + 0.5 * rng.random((2, count, 1, 1), np.float32)
    y = (np.arange(size[0], dtype=np.float32)[:, None] / size[0] - at[0]) / radius[0]
    x = (np.arange(size[1], dtype=np.float32)[None, :] / size[1] - at[1]) / radius[1]
    boxes = rng.random((count, 1, 1)) < 0.5
    return np.asarray(np.where(boxes, np.maximum(np.abs(x), np.abs(y)), x * x + y * y) < 1)


def _moved(image: Images, rng: np.random.Generator) -> Images:
    """Return an image [channels, h, w] stretched and shifted a little; what comes in is black."""
    out = image
    for axis in (1, 2):
        n = image.shape[axis]
        stretch, shift = rng.uniform(0.75, 1.3), rng.uniform(-0.15, 0.15) * n
        at = np.rint((np.arange(n) - n / 2) / stretch + n / 2 + shift).astype(np.int64)
        mask = ((at >= 0) & (at < n)).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        out = np.take(out, np.clip(at, 0, n - 1), axis) * mask.astype(np.float32)
    return out
