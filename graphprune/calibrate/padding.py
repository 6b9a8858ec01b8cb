"""Padding in sequences: rows that a model is told to look away from say nothing about what its layers read."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.samples import Feed
from graphprune.inputs import plain

Array = npt.NDArray[Any]
Real = npt.NDArray[np.bool_]
_OTHER_MASKS = re.compile(r"bias|pad|additive|query|global|decoder|causal")


def real_tokens(feed: Feed) -> Real | None:
    """Return which tokens [samples, length] are no padding, by the feed's attention mask; None where all are real.

    >>> real_tokens({"attention_mask": np.array([[1, 1, 0]])}).tolist()
    [[True, True, False]]
    """
    masks = [
        a for n, a in feed.items() if "mask" in plain(n) and not _OTHER_MASKS.search(plain(n)) and np.ndim(a) == 2
    ]
    if len(masks) != 1 or not np.isin(masks[0], (0, 1)).all():
        return None
    real = np.asarray(masks[0], bool)
    return real if real.any() and not real.all() else None


def real_rows(x: Array, real: Real | None, key: tuple[Any, ...], positions: Callable[[int], Array]) -> Real | None:
    """Return which rows of a matrix product's data x are of real tokens; None where all are, or nothing tells.

    `key` and `positions` are the design's and the sampler's, which the rows were taken with.
    """
    if real is None or key[0] not in ("rows", "gemm"):
        return None
    if x.ndim == 2:
        return real.ravel() if len(x) == real.size and key != ("gemm", True) else None
    if x.ndim < 3 or x.shape[:2] != real.shape:
        return None
    wide: Real = np.repeat(real, prod(x.shape[2:-1]), axis=1)
    return wide[:, positions(wide.shape[1])].ravel()
