"""How the scores of a group's occurrences become one: stacked vectors, shape [occurrences, size], to [size]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from graphprune.score.base import Vector

Aggregation: TypeAlias = Callable[[Vector], Vector]


def product(parts: Vector) -> Vector:
    """Return the product over occurrences as its k-th root, which has the same order and cannot overflow.

    >>> product(np.array([[1.0, 4.0], [1.0, 9.0]])).round(9).tolist()
    [1.0, 6.0]
    """
    with np.errstate(divide="ignore"):
        root: Vector = np.exp(np.log(parts).mean(axis=0))
    return root


AGGREGATIONS: Mapping[str, Aggregation] = {
    "sum": lambda parts: parts.sum(axis=0),
    "mean": lambda parts: parts.mean(axis=0),
    "max": lambda parts: parts.max(axis=0),
    "prod": product,
}
"""Ways to put together the scores that an index has in several weights."""
