"""CroP: what changes the flow of gradients least, whichever way."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request
from graphprune.score.gradients import TIMES_GRADIENT, ByGradient, by_gradient, told


def criterion(request: Request) -> Parts:
    """Score indices by the sum of |w (H g)| over the elements that they own.

    As GraSP, but by the absolute value: the flow shall stay as it is, neither fall nor rise; and without a temperature.
    In their structured variant a channel has a factor of its own, and the score is the absolute value of the flow's
    derivative by it: about |sum of w (H g)|. Here absolute values of elements are added up, as for the other criteria.

    Source: Rachwan et al., Winning the Lottery Ahead of Time: Efficient Early Network Pruning (ICML 2022), CroP.
    """
    return told(request, by_gradient(request, (TIMES_GRADIENT,), lambda w, s: np.abs(w * s[TIMES_GRADIENT])))


CROP = ByGradient(criterion, (TIMES_GRADIENT,))
