"""LLM-Pruner's importance of groups: by elements, and by vectors."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request
from graphprune.score.gradients import MEAN, SQUARES, ByGradient, by_gradient, told


def by_elements(request: Request) -> Parts:
    """Score indices by the sum of |g w - F w^2 / 2| over their elements, F the mean of squared gradients of samples.

    Over a group's weights the authors take the sum, product, maximum or the last: `--aggregate`. Their formula adds up
    squared gradients of samples beside the gradient of the whole set; their code takes means of both, and so does this.

    Source: Ma, Fang, Wang, LLM-Pruner: On the Structural Pruning of Large Language Models (NeurIPS 2023), section 3.2,
    element-wise importance with the diagonal of the Hessian by the Fisher information.
    """
    return told(
        request, by_gradient(request, (MEAN, SQUARES), lambda w, s: np.abs(w * s[MEAN] - w * w * s[SQUARES] / 2))
    )


def by_vectors(request: Request) -> Parts:
    """Score indices by |sum of g w| over the elements that they own in a weight.

    Source: as `by_elements`, vector-wise importance of first order.
    """
    return told(request, by_gradient(request, (MEAN,), lambda w, s: w * s[MEAN], np.abs))


ELEMENTS = ByGradient(by_elements, (MEAN, SQUARES))
VECTORS = ByGradient(by_vectors, (MEAN,))
