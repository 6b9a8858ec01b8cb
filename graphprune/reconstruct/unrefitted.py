"""Error against width where weights stay as they are: what goes is lost, but for its mean where a bias can take it up.

A consumer y = x W loses sum over c in S of x_c W_c. With M = E[x x^T] * (W W^T), element by element, the error of
removing the set S is the sum of M over S x S: what indices lose together counts, and what cancels does not. The set is
grown greedily. With a bias that is corrected E[x x^T] is centred (bias compensation: An et al., Fluctuation-based
adaptive structured pruning for large language models, AAAI 2024, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.reconstruct.linear import Indices, Matrix
from graphprune.reconstruct.obs import Curve, Quadratic


def unrefitted(quadratics: Sequence[Quadratic], blocks: Sequence[Sequence[Indices]], least: int = 1) -> Curve:
    """Return the greedy curve of a group whose consumers are not fitted anew; errors are fractions of their energies.

    `blocks[j][i]` are the columns of consumer j that index i owns.

    >>> one = Quadratic(np.eye(3), np.zeros(3), 9, np.array([[3.0], [1.0], [2.0]]))
    >>> found = unrefitted([one], [[np.array([i]) for i in range(3)]])
    >>> found.order.tolist(), [round(float(e), 3) for e in found.errors]
    ([1, 2], [0.0, 0.071, 0.357])
    """
    size = len(blocks[0])
    lost = np.zeros((size, size))
    for quadratic, own in zip(quadratics, blocks, strict=True):
        lost += _lost(quadratic, own)
    alone, together = np.diagonal(lost).copy(), np.zeros(size)
    there = np.ones(size, bool)
    order, errors = [], [0.0]
    for _ in range(max(size - max(least, 1), 0)):
        more = np.where(there, alone + 2 * together, np.inf)
        index = int(np.argmin(more))
        order.append(index)
        errors.append(max(errors[-1] + float(more[index]), 0.0))
        there[index] = False
        together += lost[index]
    return Curve(np.array(order, np.int64), np.maximum.accumulate(errors), size, 0.0)


def _lost(quadratic: Quadratic, own: Sequence[Indices]) -> Matrix:
    """Return the error of every pair of indices for one consumer, as a fraction of its energy."""
    moment, weight = quadratic.living()
    columns = np.concatenate(own)
    each = np.repeat(np.arange(len(own)), [len(c) for c in own])
    pairs = moment[np.ix_(columns, columns)] * (weight[columns] @ weight[columns].T)
    rows = np.zeros((len(own), len(columns)))
    np.add.at(rows, each, pairs)
    found = np.zeros((len(own), len(own)))
    np.add.at(found, each, rows.T)
    return found / quadratic.scale(moment, weight)
