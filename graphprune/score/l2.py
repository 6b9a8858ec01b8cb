"""L2: the Euclidean norm of all that an index owns in a weight."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request, informative, over_weights
from graphprune.score.elements import elementwise


def criterion(request: Request) -> Parts:
    """Score indices by the L2 norm of their part of each weight: squares are added up, then the root is taken.

    Source: He et al., Soft Filter Pruning (IJCAI 2018), section 3.2, equation 2 with p = 2.
    """
    return over_weights(request, informative, elementwise(np.square, np.sqrt))
