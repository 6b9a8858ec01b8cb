"""Refits: the weights of what stays, so that the output is again what it was; from sufficient statistics only.

    symmetric     W'_K = (H_KK + lam I)^-1 (H_K: W + lam W_K)               inputs of the dense model
    asymmetric    W'_K = (E[z z^T] + lam I)^-1 (E[z y^T] + lam W_K)         inputs z of the model as pruned so far
    bias          b' = b + mu_P^T W_P                                       weights stay, removed inputs become means

All shrink toward the original weights, never toward zero: with lam -> infinity a refit is plain removal. With a bias
the moments are the centred ones, and b' = E[y] - E[z]^T W'_K.

Sources: ridge regression toward a prior mean: Hoerl and Kennard, Ridge regression (1970), and Frantar and Alistarh,
Optimal brain compression (NeurIPS 2022), for layers; asymmetric inputs: He et al., Channel pruning (ICCV 2017), whole
model pruning; bias compensation: An et al., FLAP (AAAI 2024). Mean replacement is the same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.reconstruct.linear import Indices, Matrix, Vector, mean_diagonal, solve
from graphprune.reconstruct.obs import Quadratic

LAMS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, fractions of the mean diagonal of the moment."""

FEW_ROWS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Strengths that are tried where there are fewer rows than columns."""

_CONSTANT = 1e-4


@dataclass(frozen=True, eq=False)
class Moments:
    """What a refit needs to know of the inputs z [K] that stay and the wanted outputs y [O].

    `second` = E[z z^T] [K, K], `mean` = E[z] [K], `cross` = E[z y^T] [K, O], `target` = E[y] [O], `energy` = E[y^2] [O]
    or its sum, over `rows` positions.
    """

    second: Matrix
    mean: Vector
    cross: Matrix
    target: Vector
    energy: Vector | float
    rows: int

    @staticmethod
    def symmetric(quadratic: Quadratic, kept: Indices) -> Moments:
        """Return the moments of the kept columns of a layer whose wanted outputs are its own, y = x W.

        y is without the layer's bias, so the bias of a refit is what is to be added to it.
        """
        h, w = quadratic.second, quadratic.weight.astype(np.float64, copy=False)
        pull = h @ w
        mean = np.asarray(quadratic.mean, np.float64)
        return Moments(
            h[np.ix_(kept, kept)], mean[kept], pull[kept], mean @ w, np.sum(w * pull, axis=0), quadratic.rows
        )

    def merged(self, other: Moments) -> Moments:
        """Return the moments over the rows of both."""
        rows = self.rows + other.rows
        a, b = self.rows / max(rows, 1), other.rows / max(rows, 1)
        return Moments(
            a * self.second + b * other.second,
            a * self.mean + b * other.mean,
            a * self.cross + b * other.cross,
            a * self.target + b * other.target,
            a * self.energy + b * other.energy,
            rows,
        )

    def error(self, weight: Matrix, bias: Vector | float = 0.0) -> float:
        """Return E||z W' + b' - y||^2, exactly, for weights [K, O] and a bias [O]."""
        return float(self.errors(weight, bias).sum())

    def errors(self, weight: Matrix, bias: Vector | float = 0.0) -> Vector:
        """Return the same output by output [O]."""
        shift = np.broadcast_to(np.asarray(bias, np.float64), self.target.shape)
        squares = np.sum(weight * (self.second @ weight), axis=0) - 2 * np.sum(weight * self.cross, axis=0)
        return np.asarray(squares + self.energies + 2 * shift * (self.mean @ weight - self.target) + shift**2)

    @property
    def energies(self) -> Vector:
        """E[y^2] of each output [O]; where only the sum is known, equal parts of it."""
        found = np.asarray(self.energy, np.float64)
        return found if found.ndim else np.full(len(self.target), float(found) / max(len(self.target), 1))

    def variance(self, biased: bool) -> float:
        """Return E||y - E y||^2, or E||y||^2 where not biased."""
        return float(self.energies.sum()) - float(self.target @ self.target) * biased

    def scale(self, biased: bool) -> float:
        """Return what errors are told as fractions of: the variance, but at least 1e-4 of the energy.

        An output that varies by less than a hundredth of its size is a constant, to which an error is compared.
        """
        found = max(self.variance(biased), _CONSTANT * float(self.energies.sum()))
        return found if np.isfinite(found) and found > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Refit:
    """New weights [K, O] and a bias [O] that is to be added to the old one; the strength that they were made with.

    `lam` is None where the weights are the old ones. `error` is what was measured on the rows that chose it, as a
    fraction of the output's energy, and `plain` the same for removal without any repair.
    """

    weight: Matrix
    bias: Vector
    lam: float | None
    error: float = float("nan")
    plain: float = float("nan")


def refit(quadratic: Quadratic, kept: Indices, lam: float) -> Refit:
    """Return the weights of the kept columns, refitted to the layer's own outputs; symmetric, with bias.

    `lam` is a fraction of the mean diagonal of the kept columns' moment.

    >>> q = Quadratic(np.ones((2, 2)), np.zeros(2), 9, np.array([[1.0], [2.0]]))  # two inputs that are the same
    >>> refit(q, np.array([0]), 0.0).weight.tolist()
    [[3.0]]

    Raises nothing: where the moment is singular, the strength grows.
    """
    return refitted(Moments.symmetric(quadratic, kept), quadratic.weight[kept], lam, quadratic.biased)


def refit_asymmetric(
    second: Matrix, cross: Matrix, means: tuple[Vector, Vector], weight: Matrix, lam: float, biased: bool = True
) -> Refit:
    """Return weights that turn the inputs z of the pruned model into the dense outputs y; [K, O].

    `second` = E[z z^T], `cross` = E[z y^T], `means` = (E[z], E[y]), `weight` the original weights of what stays.
    Where y has the layer's bias in it, the returned bias is the whole new one, else it is to be added.
    """
    return refitted(Moments(second, means[0], cross, means[1], 0.0, 0), weight, lam, biased)


def refitted(moments: Moments, weight: Matrix, lam: float, biased: bool = True) -> Refit:
    """Return the refit of given weights [K, O] to moments; `lam` is a fraction of the mean diagonal."""
    old = weight.astype(np.float64, copy=False)
    moment, pull = moments.second, moments.cross
    with np.errstate(invalid="ignore", over="ignore"):
        if biased:
            moment = moment - np.outer(moments.mean, moments.mean)
            pull = pull - np.outer(moments.mean, moments.target)
        change, used = solve(moment, pull - moment @ old, lam * mean_diagonal(moment))
    if not np.isfinite(used):
        return unchanged(moments, old, biased)
    new = old + change
    return Refit(new, _bias(moments, new, biased), used / mean_diagonal(moment))


def unchanged(moments: Moments, weight: Matrix, biased: bool = True) -> Refit:
    """Return bias compensation alone: removed inputs are replaced by their means, weights stay."""
    return Refit(weight, _bias(moments, weight, biased), None)


def mean_replacement(mean: Vector, weight: Matrix, kept: Indices) -> Vector:
    """Return what a bias gains when removed inputs become their means: mu_P^T W_P [O].

    >>> mean_replacement(np.array([1.0, 2.0]), np.array([[3.0], [4.0]]), np.array([0])).tolist()
    [8.0]
    """
    gone = np.setdiff1d(np.arange(len(mean)), kept)
    return np.asarray(mean[gone] @ weight[gone], np.float64)


def _bias(moments: Moments, weight: Matrix, biased: bool) -> Vector:
    if not biased:
        return np.zeros(len(moments.target))
    with np.errstate(invalid="ignore", over="ignore"):
        found = moments.target - moments.mean @ weight
    return np.where(np.isfinite(found), found, 0.0)


def strengths(moments: Moments, lams: Sequence[float] | None = None) -> tuple[float, ...]:
    """Return the strengths to try: stronger ones too where there are fewer rows than columns."""
    if lams is not None:
        return tuple(lams)
    return FEW_ROWS if moments.rows < len(moments.second) else LAMS
