"""Swaps: after greedy removal, exchange what is gone and what stays while that lowers the exact error.

Local search as in Meng et al., OSSCAR: one-shot structured pruning in vision and language models (ICML 2024): as many
indices as are taken out are put back. With B = H^-1 and P the removed columns, the error is
tr(W_P^T (B_PP)^-1 W_P); with M = (B_PP)^-1 and Q = M W_P, putting index r back lowers it by tr(Q_r^T (M_rr)^-1 Q_r).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.reconstruct.linear import Indices, Matrix, Vector, spd_inverse
from graphprune.reconstruct.obs import DAMPING, Group, prepared
from graphprune.reconstruct.removal import Blocks

_FALLS = 1e-9

Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Swapped:
    """What stays after swaps, ascending; the exact error, and what it was before; how many swaps were made."""

    kept: Indices
    error: float
    before: float
    swaps: int


def swaps(
    quadratics: Group, blocks: Sequence[Blocks], kept: Indices, rounds: int = 8, damping: float = DAMPING
) -> Swapped:
    """Return kept indices, as many as before, with an exact error that is no higher.

    A round takes out the indices that cost least and puts back those that save most, several at once (an eighth of
    the kept ones at first); a round that does not lower the error is undone, and half as many are tried next. At
    most `rounds` rounds.

    >>> found = swaps([q], [blocks], curve([q], [blocks]).kept(8))  # doctest: +SKIP
    """
    parts = [_Part(*problem) for problem in prepared(quadratics, blocks, damping)[0]]
    size = len(blocks[0])
    stay = np.zeros(size, bool)
    stay[kept] = True
    try:
        before = error = _error(parts, stay)
    except np.linalg.LinAlgError:
        return Swapped(np.flatnonzero(stay).astype(np.int64), np.inf, np.inf, 0)
    many = max(1, min(int(stay.sum()), int((~stay).sum())) // 8)
    made = 0
    for _ in range(rounds if stay.any() and not stay.all() else 0):
        try:
            moved = _exchange(parts, stay, many)
            lower = _error(parts, moved)
        except np.linalg.LinAlgError:
            break
        if lower < error * (1 - _FALLS):
            made += int((moved & ~stay).sum())
            stay, error = moved, lower
        elif many == 1:
            break
        else:
            many = max(1, many // 2)
    return Swapped(np.flatnonzero(stay).astype(np.int64), error, before, made)


class _Part:
    """One consumer: its damped inverse [C, C], its weights [C, O], and the columns of each index."""

    def __init__(self, inverse: Matrix, weight: Matrix, blocks: Blocks) -> None:
        self._inverse, self._weight = inverse, weight
        self._blocks = [np.asarray(b, np.int64) for b in blocks]

    def _gone(self, stay: Mask) -> tuple[Indices, Matrix]:
        """Return the removed columns P, and (B_PP)^-1.

        Raises numpy.linalg.LinAlgError where that is not positive.
        """
        none = np.zeros(0, np.int64)
        gone = np.concatenate([none, *(b for b, s in zip(self._blocks, stay, strict=True) if not s)])
        return gone, spd_inverse(self._inverse[np.ix_(gone, gone)])

    def error(self, stay: Mask) -> float:
        """Return the error of the refit to what stays."""
        gone, inverted = self._gone(stay)
        weight = self._weight[gone]
        return float(np.sum(weight * (inverted @ weight)))

    def losses(self, stay: Mask) -> Vector:
        """Return for each index that stays what its removal would cost in addition."""
        gone, inverted = self._gone(stay)
        spread = self._inverse[:, gone] @ inverted
        weight = self._weight - spread @ self._weight[gone]
        out = np.zeros(len(stay))
        for owners, rows in self._by_width(np.flatnonzero(stay)):
            blocks = self._inverse[rows[:, :, None], rows[:, None, :]]
            blocks -= spread[rows] @ self._inverse[rows[:, :, None], gone].transpose(0, 2, 1)
            out[owners] = _forms(blocks, weight[rows])
        return out

    def gains(self, stay: Mask) -> Vector:
        """Return for each index that is gone what putting it back would save."""
        gone, inverted = self._gone(stay)
        place = np.zeros(len(self._weight), np.int64)
        place[gone] = np.arange(len(gone))
        pull = inverted @ self._weight[gone]
        out = np.zeros(len(stay))
        for owners, rows in self._by_width(np.flatnonzero(~stay)):
            at = place[rows]
            out[owners] = _forms(inverted[at[:, :, None], at[:, None, :]], pull[at])
        return out

    def _by_width(self, indices: Indices) -> Iterator[tuple[Indices, Indices]]:
        """Yield indices that own equally many columns, and those columns [m, k]."""
        widths = np.array([len(self._blocks[c]) for c in indices], np.int64)
        for k in sorted({int(w) for w in widths} - {0}):
            owners = indices[widths == k]
            yield owners, np.stack([self._blocks[c] for c in owners])


def _forms(blocks: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> Vector:
    """Return tr(W^T D^-1 W) for each block D [m, k, k] and W [m, k, O]."""
    return np.asarray(np.einsum("cij,cji->c", np.linalg.inv(blocks), weight @ weight.transpose(0, 2, 1)))


def _error(parts: Sequence[_Part], stay: Mask) -> float:
    return sum(p.error(stay) for p in parts)


def _exchange(parts: Sequence[_Part], stay: Mask, many: int) -> Mask:
    """Return what stays once the cheapest are out and the most useful are back."""
    cost = sum((p.losses(stay) for p in parts), np.zeros(len(stay)))
    cost[~stay] = np.inf
    out: Mask = stay.copy()
    out[np.argsort(cost, kind="stable")[:many]] = False
    gain = sum((p.gains(out) for p in parts), np.zeros(len(stay)))
    gain[out] = -np.inf
    out[np.argsort(-gain, kind="stable")[:many]] = True
    return out
