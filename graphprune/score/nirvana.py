"""NIRVANA: what keeps the tangent kernel that training by signs of gradients would see."""

from __future__ import annotations

import numpy as np

from graphprune.score.base import Parts, Request
from graphprune.score.gradients import OUTPUT, ByGradient, by_gradient, told


def criterion(request: Request) -> Parts:
    """Score indices by the sum of |w df/dw| over the elements that they own; f needs neither labels nor a loss.

    f is the mean of the logits, each at the position where it is largest, as in the authors' code; of outputs without
    positions it is their mean. Their shares of attention and MLP (gamma) are no part of the score: here the allocation
    decides.

    Source: NIRVANA: Structured Pruning Reimagined for Large Language Models Compression (arXiv 2509.14230),
    the saliency from the tangent kernel under Adam.
    """
    return told(request, by_gradient(request, (OUTPUT,), lambda w, s: np.abs(w * s[OUTPUT])))


NIRVANA = ByGradient(criterion, (OUTPUT,))
