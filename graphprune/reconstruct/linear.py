"""Inverses and solutions that never fail: where a matrix is singular, the damping grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float64]
Vector: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

_BASE = 256
_GROWTH = 10.0
_FIRST = 1e-10
_TIMES = 13
_NEAR = 1e-5


def mean_diagonal(matrix: Matrix) -> float:
    """Return the mean of the diagonal, 1 where that is no positive number: what dampings are fractions of."""
    found = float(np.trace(matrix)) / max(len(matrix), 1)
    return found if np.isfinite(found) and found > 0 else 1.0


def dampings(first: float) -> Iterator[float]:
    """Yield the dampings to try, fractions of the mean diagonal: the wanted one, then ten times more each.

    >>> list(dampings(0.01))[:3]
    [0.01, 0.1, 1.0]
    """
    yield first
    more = max(first * _GROWTH, _FIRST)
    for _ in range(_TIMES):
        yield more
        more *= _GROWTH


def damped(matrix: Matrix, damping: float) -> Matrix:
    """Return a copy with `damping` times its mean diagonal added to the diagonal."""
    out = np.array(matrix, np.float64)
    out[np.diag_indices_from(out)] += damping * mean_diagonal(matrix)
    return out


def spd_inverse(matrix: Matrix) -> Matrix:
    """Return the inverse of a symmetric positive definite matrix [n, n], by halves, so that nearly all is products.

    4/3 n^3 multiplications where a general inverse takes 8/3 n^3.

    Raises numpy.linalg.LinAlgError if the matrix is not positive definite to rounding.
    """
    n = len(matrix)
    if n <= _BASE:
        half = np.linalg.inv(np.linalg.cholesky(matrix))
        return np.asarray(half.T @ half)
    m = n // 2
    out = np.empty((n, n))
    first = spd_inverse(matrix[:m, :m])
    across = first @ matrix[:m, m:]
    second = spd_inverse(matrix[m:, m:] - matrix[m:, :m] @ across)
    moved = across @ second
    out[:m, :m] = first + moved @ across.T
    out[:m, m:] = -moved
    out[m:, :m] = -moved.T
    out[m:, m:] = second
    return out


def inverse(matrix: Matrix, damping: float) -> tuple[Matrix, float]:
    """Return the inverse of a damped symmetric matrix, and the damping that it took.

    The damping starts at what is asked for, and grows until the inverse is one: finite, and right for a probe.
    Raises nothing: at last the inverse of the diagonal is returned, for which the damping is infinite.

    >>> inverse(np.zeros((2, 2)), 0.0)[1] > 0
    True
    """
    probe = np.cos(np.arange(len(matrix), dtype=np.float64))
    with np.errstate(all="ignore"):
        for wanted in dampings(damping):
            whole = damped(matrix, wanted)
            try:
                found = spd_inverse(whole)
            except np.linalg.LinAlgError:
                continue
            left = whole @ (found @ probe) - probe
            if np.isfinite(found).all() and np.abs(left).max(initial=0.0) < _NEAR:
                return found, wanted
    diagonal = np.diagonal(matrix)
    usable = np.isfinite(diagonal) & (diagonal > 0)
    return np.diag(1 / np.where(usable, diagonal, mean_diagonal(matrix))), np.inf


def solve(matrix: Matrix, right: Matrix, damping: float) -> tuple[Matrix, float]:
    """Return (matrix + damping) ^ -1 right for a symmetric matrix [n, n], and the damping that it took.

    `damping` is absolute here; what it takes more is added in fractions of the mean diagonal. Raises nothing: where
    no damping helps, zeros are returned and the damping is infinite.
    """
    scale = mean_diagonal(matrix)
    on = np.diag_indices_from(matrix)
    with np.errstate(all="ignore"):
        for wanted in dampings(damping / scale):
            whole = np.array(matrix, np.float64)
            whole[on] += wanted * scale
            try:
                found = np.linalg.solve(whole, right)
            except np.linalg.LinAlgError:
                continue
            left = np.abs(whole @ found.sum(1) - right.sum(1)).max(initial=0.0)
            if np.isfinite(found).all() and left <= _NEAR * (np.abs(right.sum(1)).max(initial=0.0) + 1e-300):
                return np.asarray(found, np.float64), wanted * scale
    return np.zeros_like(right), np.inf
