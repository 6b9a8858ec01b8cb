"""Activation: how large what layers read is, whatever their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.score.base import Parts, Request, Vector
from graphprune.score.data import by_consumers, completed

if TYPE_CHECKING:
    from graphprune.calibrate.statistics import Gram


def criterion(request: Request) -> Parts:
    """Score indices by the mean of |x_j| over rows and over their columns j, for each value that layers read.

    Source: Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation (Minitron, NeurIPS
    2024), its importance of width. They look at neurons before the activation function, this at what the next layer
    reads. Of several ways to aggregate they end with the mean of absolute values over positions and the L2 norm of that
    over samples; here it is the mean over both, which needs one sum.
    """
    return completed(request, by_consumers(request, sizes))


def sizes(gram: Gram) -> Vector:
    """Return the mean absolute value of every column, shape [blocks, columns]."""
    return gram.absolute / max(gram.rows, 1)
