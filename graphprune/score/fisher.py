"""The diagonal of the Hessian, by the Fisher information: what the loss rises by near a minimum."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request
from graphprune.score.gradients import SQUARES, ByGradient, by_gradient, told


def criterion(request: Request) -> Parts:
    """Score indices by the sum of w^2 F / 2 over the elements that they own, F the mean square of gradients of
    samples.

    With labels F is the empirical Fisher's diagonal; without them labels are drawn from the model's own answers, which
    makes it the Fisher's.

    Theis et al. give a whole feature map one factor and square the derivative by it, sample by sample: (sum of g w)^2,
    which `taylor` has for parts of the samples. Here elements count on their own, as on a diagonal.

    Source: LeCun, Denker, Solla, Optimal Brain Damage (NIPS 1989), the saliency, with the diagonal of the Fisher
    information in place of the Hessian's, as in Theis et al., Faster gaze prediction with dense networks and Fisher
    pruning (2018).
    """
    return told(request, by_gradient(request, (SQUARES,), lambda w, s: np.square(w) * s[SQUARES] / 2))


FISHER = ByGradient(criterion, (SQUARES,))
