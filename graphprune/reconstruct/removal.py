"""Removal: the inverse and the weights of one consumer while indices of a group go; mutable, local to one call.

The inverse is not brought up to date at every removal: the vectors that are to be subtracted from it are collected,
and subtracted many at a time, as a product of matrices. What is needed meanwhile (single columns, the blocks on the
diagonal) is computed from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.reconstruct.linear import Indices, Matrix, Vector

_PENDING = 144
_PANEL = 512
_SHRINK = 0.8

Blocks: TypeAlias = Sequence[Indices]
"""For each index of a group the columns that it owns; none at all is allowed."""


@dataclass(eq=False)
class _Bucket:
    """The indices that own `width` columns each: rows `start` ... of the state, in the order of `owners`."""

    start: int
    width: int
    owners: Indices
    alive: npt.NDArray[np.bool_]
    diagonal: npt.NDArray[np.float64]  # [m, k, k], the blocks of the inverse

    @property
    def stop(self) -> int:
        return self.start + self.width * len(self.owners)

    def view(self, matrix: Matrix) -> npt.NDArray[np.float64]:
        """Return the bucket's rows of a matrix [n, p] as [m, k, p]."""
        return matrix[self.start : self.stop].reshape(len(self.owners), self.width, -1)


class Removal:
    """What stays of a consumer, refitted, after each removal.

    `inverse` [C, C] is overwritten; `weight` [C, O] is copied. `blocks[c]` are the columns of index c.
    """

    def __init__(self, inverse: Matrix, weight: Matrix, blocks: Blocks) -> None:
        self._size = len(blocks)
        widths = np.array([len(b) for b in blocks], np.int64)
        order, self._buckets = [], []
        at = 0
        for k in sorted({int(w) for w in widths} - {0}):
            owners = np.flatnonzero(widths == k).astype(np.int64)
            order += [np.asarray(blocks[int(c)], np.int64) for c in owners]
            self._buckets.append(_Bucket(at, k, owners, np.ones(len(owners), bool), np.zeros((0, k, k))))
            at += k * len(owners)
        owned = np.concatenate([np.zeros(0, np.int64), *order])
        if len(np.unique(owned)) < len(owned):
            raise ValueError("two indices own the same column")
        free = np.setdiff1d(np.arange(len(weight)), owned)
        places = np.concatenate([owned, free])
        straight = bool((places == np.arange(len(places))).all())
        self._inverse = inverse if straight else inverse[np.ix_(places, places)]
        self._weight = weight[places]
        self._pending = np.zeros((len(weight), 0))
        self._alive = np.ones(len(weight), bool)
        for b in self._buckets:
            rows = self._rows(b)
            b.diagonal = self._inverse[rows[:, :, None], rows[:, None, :]]

    @staticmethod
    def _rows(bucket: _Bucket) -> Indices:
        """Return the rows of every index of a bucket, [m, k]."""
        return np.arange(bucket.start, bucket.stop).reshape(-1, bucket.width)

    def _place(self, indices: Sequence[int] | Indices) -> list[Indices]:
        """Return the rows of some indices; none for one that owns nothing here."""
        found: dict[int, Indices] = {}
        for b in self._buckets:
            where = {int(c): i for i, c in enumerate(b.owners)}
            for c in indices:
                if (i := where.get(int(c))) is not None:
                    first = b.start + i * b.width
                    found[int(c)] = np.arange(first, first + b.width)
        return [found.get(int(c), np.zeros(0, np.int64)) for c in indices]

    def scores(self) -> Vector:
        """Return tr(W_c^T ([H^-1]_cc)^-1 W_c) for every index c; 0 for those that are gone or own nothing.

        Raises numpy.linalg.LinAlgError where a block is positive no longer.
        """
        out = np.zeros(self._size)
        for b in self._buckets:
            weight = b.view(self._weight)
            if b.width == 1:
                found = np.einsum("cko,cko->c", weight, weight) / b.diagonal[:, 0, 0]
            else:
                found = np.einsum("cij,cji->c", np.linalg.inv(b.diagonal), weight @ weight.transpose(0, 2, 1))
            found = np.where(b.alive, found, 0.0)
            if not (np.isfinite(found).all() and (found >= 0).all()):
                raise np.linalg.LinAlgError("the inverse is not positive")
            out[b.owners] = found
        return out

    def remove(self, indices: Sequence[int]) -> Vector:
        """Remove indices one after the other, and return by how much each of them raised the error.

        Raises numpy.linalg.LinAlgError where what is left of the inverse is not positive.
        """
        places = self._place(indices)
        rows = np.concatenate([np.zeros(0, np.int64), *places])
        if not len(rows):
            return np.zeros(len(indices))
        columns = self._inverse[:, rows] - self._pending @ self._pending[rows].T
        half = np.linalg.inv(np.linalg.cholesky(columns[rows]))
        vectors = columns @ half.T
        vectors[~self._alive] = 0.0
        change = half @ self._weight[rows]
        self._weight -= vectors @ change
        self._weight[rows] = 0.0
        for b in self._buckets:
            part = b.view(vectors)
            b.diagonal -= part @ part.transpose(0, 2, 1)
        self._alive[rows] = False
        for b in self._buckets:
            b.alive = self._alive[b.start : b.stop : b.width].copy()
            b.diagonal[~b.alive] = np.eye(b.width)
        self._pending = np.concatenate([self._pending, vectors], axis=1)
        if self._pending.shape[1] >= _PENDING:
            self._settle()
        ends = np.cumsum([len(p) for p in places])
        total = np.concatenate([[0.0], np.cumsum(np.sum(change**2, axis=1))])
        if not np.isfinite(total[-1]):
            raise np.linalg.LinAlgError("the error is no number")
        return np.diff(total[np.concatenate([[0], ends])])

    def part(self, indices: Indices) -> Removal:
        """Return the same problem restricted to some indices: what goes among them does not depend on the others."""
        places = self._place(indices)
        rows = np.concatenate([np.zeros(0, np.int64), *places])
        pending = self._pending[rows]
        ends = np.cumsum([0, *(len(p) for p in places)])
        blocks = [np.arange(a, b) for a, b in pairwise(ends)]
        return Removal(self._inverse[np.ix_(rows, rows)] - pending @ pending.T, self._weight[rows], blocks)

    def _settle(self) -> None:
        """Subtract what is pending from the inverse, and drop the rows of what is gone where they are many."""
        for at in range(0, len(self._inverse), _PANEL):
            panel, after = slice(at, at + _PANEL), slice(at + _PANEL, None)
            self._inverse[panel, at:] -= self._pending[panel] @ self._pending[at:].T
            self._inverse[after, panel] = self._inverse[panel, after].T
        self._pending = np.zeros((len(self._inverse), 0))
        if self._alive.mean() >= _SHRINK:
            return
        stay = np.flatnonzero(self._alive)
        self._inverse = self._inverse[np.ix_(stay, stay)]
        self._weight = self._weight[stay]
        self._pending = np.zeros((len(stay), 0))
        self._alive = np.ones(len(stay), bool)
        at = 0
        for b in self._buckets:
            b.owners, b.diagonal = b.owners[b.alive], b.diagonal[b.alive]
            b.start, b.alive = at, np.ones(len(b.owners), bool)
            at = b.stop
