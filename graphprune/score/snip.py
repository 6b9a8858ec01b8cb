"""SNIP: how much the loss changes if connections are weakened."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request
from graphprune.score.gradients import MEAN, ByGradient, by_gradient, told


def criterion(request: Request) -> Parts:
    """Score indices by the sum of |g w| over the elements that they own, g the gradient of the mean loss.

    That is |dL / dc| for a factor c = 1 on every connection. The authors divide by the sum over the whole network,
    which changes no order. Single connections go there, channels here: their sums.

    Source: Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity (ICLR 2019), the
    connection sensitivity.
    """
    return told(request, by_gradient(request, (MEAN,), lambda w, s: np.abs(w * s[MEAN])))


SNIP = ByGradient(criterion, (MEAN,))
