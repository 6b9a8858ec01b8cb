"""Random scores: the baseline that every criterion has to beat."""

from __future__ import annotations

import zlib

import numpy as np

from graphprune.score.base import Parts, Request


def criterion(request: Request) -> Parts:
    """Score indices by uniform random numbers in [0, 1) that depend on the seed and the group's name alone."""

    def draw(name: str, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.random.default_rng([request.seed, zlib.crc32(name.encode())]).random(size)

    return Parts({g.name: (draw(g.name, g.size),) for g in request.groups})
