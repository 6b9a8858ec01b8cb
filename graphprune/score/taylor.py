"""Taylor expansion of first and second order: the squared change of the loss if a channel's weights were zero."""

from __future__ import annotations

import numpy as np

from graphprune.axes import reduce
from graphprune.score.base import Parts, Request, Vector, informative
from graphprune.score.gradients import MEAN, PARTS, TIMES_WEIGHTS, ByGradient, by_gradient, told


def first_order(request: Request) -> Parts:
    """Score indices by (sum of g w)^2 over the elements that they own in a weight, averaged over parts of the samples.

    Parts, 16 or fewer, stand for the authors' mini-batches: the mean gradient of a trained model is about 0, that of a
    batch is not.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), the importance of
    a set of parameters by the first-order expansion, as their gates behind a filter have it; on weights their code adds
    up (g w)^2 of single elements, the other way that the paper names.
    """
    assert request.gradients is not None
    parts = request.gradients.parts
    found: dict[str, list[Vector]] = {g.name: [] for g in request.groups}
    for group in request.groups:
        for o in informative(request.coupling, group):
            slots = parts.get((o.initializer, o.axis))
            if slots is not None:
                axis = request.coupling.expand(request.coupling.graph.weights[o.initializer].axes[o.axis])
                squares = [np.square(reduce(axis, row)[group.dim]) for row in slots]
                found[group.name].append(np.mean(squares, axis=0))
    return told(request, {name: tuple(vectors) for name, vectors in found.items()})


def second_order(request: Request) -> Parts:
    """Score indices by (sum of g w - w (H w) / 2)^2 over the elements that they own in a weight.

    H w is the Hessian of the mean loss times all weights, from a second derivative, so no approximation of H.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), the
    second-order expansion with the row of the Hessian times the parameters. Their code takes gates and the diagonal.
    """
    stats = (MEAN, TIMES_WEIGHTS)
    return told(request, by_gradient(request, stats, lambda w, s: w * s[MEAN] - w * s[TIMES_WEIGHTS] / 2, np.square))


FIRST = ByGradient(first_order, (PARTS,))
SECOND = ByGradient(second_order, (MEAN, TIMES_WEIGHTS))
