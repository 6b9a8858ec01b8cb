"""L1: the sum of the absolute values of all that an index owns in a weight (Li et al. 2017, section 3.1)."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request, informative, over_weights
from graphprune.score.elements import elementwise


def criterion(request: Request) -> Parts:
    """Score indices by the L1 norm of their part of each weight.

    Source: Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), section 3.1.
    """
    return over_weights(request, informative, elementwise(np.abs))
