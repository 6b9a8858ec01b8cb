"""CFSP: coarse, how much each block turns what flows through it; fine, how large what layers read is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from graphprune.axes import Dim, leaves
from graphprune.score.base import Parts, Request, Vector
from graphprune.score.data import by_consumers, completed
from graphprune.score.wanda import norms

if TYPE_CHECKING:
    from graphprune.calibrate.knowledge import Knowledge

_ROUNDING = 1e-6
_SLOPE = 128 * 1024 / 1e4  # of its authors: the angle is summed over 128 samples of 1,024 tokens and divided by 10,000


def criterion(request: Request) -> Parts:
    """Score indices so that under one global threshold every group keeps a share in proportion to its block's.

    Coarse: a block's share is sigmoid(13.1 (t - mean of t)), with t the angle over pi by which it turns what flows
    past it (`turns`). A group in no block counts as the average block. Fine: within a group indices are ranked by the
    norm ||x_j|| of what is read of them, the root of the mean square over rows. Its authors multiply that by relative
    weights, |W_ij| over the sum over the outputs i, averaged over these i; that is the same for all j.

    An index of rank r = 1, 2, ... of n gets share * n / r: with a threshold u the group keeps share / u of its
    indices, as far as there are so many (its authors pull all shares toward the mean instead, if the largest would ask
    for more). Without one global threshold only the ranks count.

    Source: Wang et al., CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation
    Information (COLING 2025), and its authors' code; there blocks are whole transformer layers, and only the inner
    width of their feed-forward parts is pruned.
    """
    assert request.known is not None
    found = completed(request, by_consumers(request, norms))
    share = shares(request.known)
    by_group = {
        g.name: (share.get(g.dim, 0.5) * g.size / _ranks(np.sum(found.by_group[g.name], axis=0)),)
        for g in request.groups
    }
    notes = found.notes
    if not share:
        notes = (*notes, "no group lies in a residual block: all have the same share")
    return Parts(by_group, notes, comparable=True)


def shares(known: Knowledge) -> Mapping[Dim, float]:
    """Return the share of every dim that lies in a block, in (0, 1); 0.5 is that of the average block."""
    if not known.turns:
        return {}
    middle = float(np.mean(list(known.turns.values())))
    found: dict[Dim, list[float]] = {}
    for c in known.consumers.found:
        if c.node in known.turns:
            for dim in dict.fromkeys(leaves(c.axis)):
                found.setdefault(dim, []).append(known.turns[c.node])
    return {dim: float(1 / (1 + np.exp(-_SLOPE * (np.mean(t) - middle)))) for dim, t in found.items()}


def _ranks(scores: Vector) -> Vector:
    """Return the rank of each score, 1 for the largest; equal ones, to rounding, share the mean of their ranks.

    >>> _ranks(np.array([1.0, 3.0, 2.0, 1.0])).tolist()
    [3.5, 1.0, 2.0, 3.5]
    """
    order = np.argsort(-scores, kind="stable")
    falls = -np.diff(scores[order]) > _ROUNDING * np.abs(scores).max(initial=0.0)
    class_of = np.concatenate([[0], np.cumsum(falls)])
    ranks = np.arange(1.0, len(scores) + 1)
    means = np.bincount(class_of, ranks) / np.bincount(class_of)
    out = np.empty(len(scores))
    out[order] = means[class_of]
    return out
