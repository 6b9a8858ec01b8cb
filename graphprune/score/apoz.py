"""APoZ: how often what layers read is not zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphprune.score.base import Parts, Request, Vector
from graphprune.score.data import by_consumers, completed

if TYPE_CHECKING:
    from graphprune.calibrate.statistics import Gram

_ROUNDING = 1e-12


def criterion(request: Request) -> Parts:
    """Score indices by one less their average percentage of zeros, over rows and columns, for each value read.

    A group whose indices are zero equally often (never, behind most smooth activations) is scored by l2.

    Source: Hu et al., Network Trimming (arXiv:1607.03250, 2016): the average percentage of zeros of a neuron behind
    its activation, which is what the next layer reads.
    """
    found = by_consumers(request, used)
    telling = {name: vectors if any(np.ptp(v) > _ROUNDING for v in vectors) else () for name, vectors in found.items()}
    return completed(request, telling, "have no layer that reads zeros more often from some indices than from others")


def used(gram: Gram) -> Vector:
    """Return the share of rows in which every column is not zero, shape [blocks, columns]."""
    return 1.0 - gram.zeros / max(gram.rows, 1)
