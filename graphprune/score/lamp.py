"""LAMP: the share of an index in the energy of its weight, among the indices that are not smaller."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request, informative, over_weights
from graphprune.score.elements import elementwise
from graphprune.score.normalise import lamp_of_squares


def criterion(request: Request) -> Parts:
    """Score indices in each weight by their squared norm over the sum of all squared norms that are not smaller.

    The scores of different groups are comparable as they are, so use it with `normalise="none"` under one global
    threshold.

    Source: Lee et al., Layer-Adaptive Sparsity for the Magnitude-based Pruning (ICLR 2021), section 2, equation 1,
    with an index's part of the weight in the place of a single element. There equal elements are told apart by their
    places; here they have the same score, that of the first of them.
    """
    return over_weights(request, informative, elementwise(np.square, lamp_of_squares))
