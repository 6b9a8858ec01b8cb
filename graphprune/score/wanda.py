"""Wanda: weights times the norms of what they are multiplied with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graphprune.score.base import Parts, Request, Vector
from graphprune.score.data import by_consumers, completed

if TYPE_CHECKING:
    from graphprune.calibrate.statistics import Gram


def criterion(request: Request) -> Parts:
    """Score indices by the mean over outputs i of |W_ij| ||x_j||, added up over their columns j, for each reader.

    ||x_j|| is the root of the mean square over rows, so that layers of many rows count no more than others.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models (ICLR 2024), for single
    weights; for whole columns by the mean over outputs, as in the code of An et al., FLAP (AAAI 2024): the metric WIFN
    of their baseline Wanda-sp.
    """
    return completed(request, by_consumers(request, norms, mean_sizes))


def norms(gram: Gram) -> Vector:
    """Return the root mean square of every column, shape [blocks, columns]."""
    squares = np.diagonal(gram.second, axis1=1, axis2=2)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0) / max(gram.rows, 1)))


def mean_sizes(matrix: npt.NDArray[Any]) -> Vector:
    """Return the mean over outputs of the absolute weights of every column, shape [blocks, columns]."""
    return np.asarray(np.abs(matrix).mean(axis=2, dtype=np.float64))
