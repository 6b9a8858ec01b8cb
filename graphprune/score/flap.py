"""FLAP: how much what is read varies; what does not can be made up for by a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graphprune.score.base import Parts, Request, Vector
from graphprune.score.data import by_consumers, completed
from graphprune.score.normalise import gaussian

if TYPE_CHECKING:
    from graphprune.calibrate.statistics import Gram


def criterion(request: Request) -> Parts:
    """Score indices by Var(x_j) ||W_j||^2, added up over their columns j, as standard scores within each reader.

    Standard scores are comparable between layers, so use it with one global threshold. The bias that its authors add,
    W times the mean of what is no longer read, is `--repair bias`; other repairs contain it.

    Source: An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models (AAAI 2024): the
    metric WIFV, standardised for each layer. They remove whole attention heads, here single widths may go as well.
    Their code takes the variance around running means and deviations over n - 1; here both are exact, over n.
    """
    found = by_consumers(request, variances, energies)
    standard = {name: tuple(gaussian(v) for v in vectors) for name, vectors in found.items()}
    return completed(request, standard, standardise=gaussian)


def variances(gram: Gram) -> Vector:
    """Return the variance over rows of every column, shape [blocks, columns]."""
    rows = max(gram.rows, 1)
    squares = np.diagonal(gram.second, axis1=1, axis2=2) / rows
    return np.asarray(np.maximum(squares - np.square(gram.first / rows), 0.0))


def energies(matrix: npt.NDArray[Any]) -> Vector:
    """Return the sum over outputs of the squared weights of every column, shape [blocks, columns]."""
    wide = np.asarray(matrix, np.float64)
    return np.asarray(np.einsum("gco,gco->gc", wide, wide))
