"""Repair without data: removed channels as combinations of kept ones, and channels that are alike merged into one.

Both know a channel by what produces it. With y_c = a_c (w_c . x - m_c) + b_c (a convolution and its normalisation,
a_c = gamma_c / sqrt(var_c + eps)), its row is a_c w_c and its offset b_c - a_c m_c.

    combinations   rows of removed channels by least squares from those of kept ones, and the consumer's weights of
                   the removed ones given to the kept ones in these shares: Lee, Kim and Choi, Training-free restoration
                   of pruned neural networks (LBYL, 2025): residual error and normalisation error of its loss, whose
                   minimum is in closed form; Bai et al., Unified data-free compression (UDFC, ICCV 2023): the same
                   assumption for pruned channels. What both leave to the activation is left here, too.
    folding        clusters of alike channels (k-means), each replaced by its mean, and the consumer's weights added up;
                   then the variance that averaging took is given back: Wang, Sikic, Thiele and Saukh, Forget the data
                   and fine-tuning! Just fold the network to compress (ICLR 2025): clustering, merging, and Fold-AR,
                   sqrt(N / (1 + (N - 1) r)) for N members of mean correlation r. It is put on gamma there and leaves
                   beta alone; where normalisations are folded (`folded.py`) nobody knows beta any more, and what
                   produces a channel is multiplied with its bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, pi

import numpy as np
import numpy.typing as npt

from graphprune.reconstruct.linear import Indices, Matrix, Vector, mean_diagonal, solve

_ROUNDS = 50


def produced(
    weight: Matrix, gamma: Vector, beta: Vector, mean: Vector, variance: Vector, *, epsilon: float = 1e-5
) -> tuple[Matrix, Vector]:
    """Return the rows [C, F] and offsets [C] of channels that a weight [C, F] and a batch normalisation produce."""
    scale = gamma / np.sqrt(variance + epsilon)
    return weight.reshape(len(weight), -1) * scale[:, None], beta - scale * mean


def combinations(
    rows: Matrix, offsets: Vector, kept: Indices, lam: float = 1e-3, offset_weight: float = 1.0
) -> Matrix:
    """Return the shares [P, K] in which kept channels stand in for removed ones, both in ascending order.

    Least of ||row_p - sum_j s_pj row_j||^2 + offset_weight (offset_p - sum_j s_pj offset_j)^2 + lam ||s_p||^2, where
    `lam` is a fraction of the mean square of the kept rows.

    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
    >>> combinations(rows, np.zeros(3), np.array([0, 1]), 0.0).round(6).tolist()
    [[2.0, 3.0]]
    """
    whole = np.hstack([rows, np.sqrt(offset_weight) * offsets[:, None]])
    gone = np.setdiff1d(np.arange(len(rows)), kept)
    if not len(gone) or not len(kept):
        return np.zeros((len(gone), len(kept)))
    gram = whole[kept] @ whole[kept].T
    return np.asarray(solve(gram, whole[kept] @ whole[gone].T, lam * mean_diagonal(gram))[0].T)


def taken_over(weight: npt.NDArray[np.float64], kept: Indices, shares: Matrix) -> npt.NDArray[np.float64]:
    """Return a consumer's weights [K, k, O] of the kept channels, with those of the removed ones added in shares.

    `weight` [C, k, O]: k columns for each channel (positions of a kernel), all of which get the same shares.
    """
    gone = np.setdiff1d(np.arange(len(weight)), kept)
    return np.asarray(weight[kept] + np.einsum("pj,pko->jko", shares, weight[gone]))


@dataclass(frozen=True, eq=False)
class Folding:
    """Clusters of channels: `labels[c]` is the cluster of channel c, `kept` the channel that stands for each.

    Clusters are numbered so that `kept` ascends.
    """

    labels: Indices
    kept: Indices

    def mean(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the mean of every cluster [K, ...] of values by channel [C, ...]: what produces the merged ones."""
        return np.asarray(self.total(rows) / self._counts().reshape((-1,) + (1,) * (rows.ndim - 1)))

    def total(self, weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum of every cluster [K, ...]: a consumer's weights of the merged channels."""
        out = np.zeros((len(self.kept), *weight.shape[1:]))
        np.add.at(out, self.labels, weight)
        return out

    def gains(self, rows: Matrix) -> Vector:
        """Return by what to multiply each merged channel [K], so that its variance is the mean of its members'.

        Covariances are taken from the channels' rows, as for white inputs. N members of equal variance and mean
        correlation r give sqrt(N / (1 + (N - 1) r)); at most sqrt(N), as if they were uncorrelated.
        """
        squares = self.mean(np.sum(rows**2, axis=1))
        merged = np.sum(self.mean(rows) ** 2, axis=1)
        most = self._counts()
        found = np.divide(squares, merged, out=np.ones_like(merged), where=merged > 0)
        return np.asarray(np.sqrt(np.clip(found, 1.0, most)))

    def _counts(self) -> Vector:
        return np.bincount(self.labels, minlength=len(self.kept)).astype(np.float64)


def fold(features: Matrix, count: int, seed: int = 0) -> Folding:
    """Return channels in `count` clusters of alike ones, by k-means on their features [C, F].

    Features are whatever says that channels are alike: their rows and offsets, with or without what consumes them.
    Centres start as k-means++ draws them with `seed`; no cluster is ever empty.

    >>> fold(np.array([[0.0], [5.0], [0.1], [5.1]]), 2).labels.tolist()
    [0, 1, 0, 1]
    """
    features = np.nan_to_num(features.astype(np.float64, copy=False), posinf=0.0, neginf=0.0)
    count = min(max(count, 1), len(features))
    centres = _start(features, count, np.random.default_rng(seed))
    labels = np.full(len(features), -1)
    for _ in range(_ROUNDS):
        far = _distances(features, centres)
        new = _owned(far)
        if (new == labels).all():
            break
        labels = new
        sizes = np.bincount(labels, minlength=count)[:, None]
        centres = np.zeros_like(centres)
        np.add.at(centres, labels, features)
        centres /= sizes
    far = _distances(features, centres)
    nearest = [int(m[np.argmin(far[m, k])]) for k in range(count) for m in [np.flatnonzero(labels == k)]]
    order = np.argsort(nearest, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return Folding(rank[labels], np.array(nearest, np.int64)[order])


def _start(features: Matrix, count: int, rng: np.random.Generator) -> Matrix:
    """Return the first centres [K, F], different channels: each next one drawn by its squared distance."""
    chosen = [int(rng.integers(len(features)))]
    far = np.sum((features - features[chosen[0]]) ** 2, axis=1)
    while len(chosen) < count:
        far[chosen] = 0.0
        if far.sum() > 0:
            chosen.append(int(rng.choice(len(features), p=far / far.sum())))
        else:
            chosen.append(int(np.setdiff1d(np.arange(len(features)), chosen)[0]))
        far = np.minimum(far, np.sum((features - features[chosen[-1]]) ** 2, axis=1))
    return np.array(features[chosen])


def _distances(features: Matrix, centres: Matrix) -> Matrix:
    """Return the squared distances [C, K]."""
    cross = features @ centres.T
    return np.asarray(np.sum(features**2, 1)[:, None] - 2 * cross + np.sum(centres**2, 1)[None])


def _owned(far: Matrix) -> Indices:
    """Return the nearest centre of each channel; a centre that is nobody's takes the channel farthest from its own."""
    labels = np.argmin(far, axis=1)
    for k in range(far.shape[1]):
        sizes = np.bincount(labels, minlength=far.shape[1])
        if not sizes[k]:
            own = np.where(sizes[labels] > 1, far[np.arange(len(far)), labels], -np.inf)
            labels[int(np.argmax(own))] = k
    return np.asarray(labels, np.int64)


def relu_moments(mean: Vector, deviation: Vector) -> tuple[Vector, Vector]:
    """Return E[max(z, 0)] and E[max(z, 0)^2] for z ~ N(mean, deviation^2), elementwise.

    What a batch normalisation knows of the inputs of the next layer: there mean = beta, deviation = |gamma|.

    >>> relu_moments(np.array([0.0]), np.array([1.0]))[1].tolist()
    [0.5]
    """
    spread = np.maximum(np.abs(deviation), 1e-30)
    ratio = mean / spread
    below = 0.5 * (1 + np.array([erf(r / 2**0.5) for r in ratio.ravel()]).reshape(ratio.shape))
    density = np.exp(-0.5 * np.minimum(ratio**2, 1e4)) / np.sqrt(2 * pi)
    first = mean * below + spread * density
    second = (mean**2 + spread**2) * below + mean * spread * density
    return np.maximum(first, 0.0), np.maximum(second, 0.0)
