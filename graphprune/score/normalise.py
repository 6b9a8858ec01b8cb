"""How scores are made comparable between groups: one group's vector, shape [size], to another of that shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from graphprune.score.base import Vector

Normalisation: TypeAlias = Callable[[Vector], Vector]


def lamp_of_squares(squares: Vector) -> Vector:
    """Return each square over the sum of all squares that are not smaller; zeros stay zero.

    >>> lamp_of_squares(np.array([4.0, 1.0, 1.0])).round(3).tolist()
    [1.0, 0.167, 0.167]

    Source: Lee et al., Layer-Adaptive Sparsity for the Magnitude-based Pruning (ICLR 2021), section 2, equation 1.
    """
    ascending = np.sort(squares)
    not_smaller = np.cumsum(ascending[::-1])[::-1]
    return _over(squares, not_smaller[np.searchsorted(ascending, squares)])


def lamp(scores: Vector) -> Vector:
    """Return the LAMP share of each score: w^2 over the sum of all w'^2 that are not smaller."""
    largest = np.abs(scores).max(initial=0.0)
    return lamp_of_squares(np.square(_over(scores, largest)))


def gaussian(scores: Vector) -> Vector:
    """Return scores with mean 0 and standard deviation 1; equal scores become 0.

    >>> gaussian(np.array([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    deviation = 0.0 if (scores == scores[:1]).all() else scores.std()
    return _over(scores - scores.mean(), deviation)


def _over(scores: Vector, by: Vector | float) -> Vector:
    """Divide; what is divided by zero becomes zero."""
    by = np.broadcast_to(by, scores.shape)
    return np.divide(scores, by, out=np.zeros(scores.shape), where=by != 0)


NORMALISATIONS: Mapping[str, Normalisation] = {
    "none": lambda scores: scores,
    "sum": lambda scores: _over(scores, scores.sum()),
    "mean": lambda scores: _over(scores, scores.mean()),
    "max": lambda scores: _over(scores, scores.max()),
    "gaussian": gaussian,
    "lamp": lamp,
}
"""Ways to make the scores of different groups comparable."""
