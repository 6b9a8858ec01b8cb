"""FPGM: how far an index lies from all the others; what is near the geometric median can be replaced by the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.axes import Axis, Dim, Sum
from graphprune.score.base import Parts, Place, Request, Vector, check_finite, informative, over_weights
from graphprune.weights import Weight

_TILE = 512
_COLUMNS = 2048


def criterion(request: Request) -> Parts:
    """Score indices by the sum of the Euclidean distances of their part of each weight to all others' parts.

    Source: He et al., Filter Pruning via Geometric Median (CVPR 2019), where the median is sought among the filters
    themselves: the least sum goes first. Distances come from Gram matrices, tile by tile, which costs (indices)^2 times
    the elements of one index.
    """
    return over_weights(request, informative, _measure)


def _measure(weight: Weight, array: npt.NDArray[Any], places: tuple[Place, ...]) -> list[Vector]:
    if weight.filled:
        return [np.zeros(p.dim.size) for p in places]
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = [distance_sums(array, p.axis, owned(p.expression, p.dim)) for p in places]
    check_finite(weight, vectors)
    return vectors


def owned(axis: Axis, dim: Dim) -> npt.NDArray[np.int64]:
    """Return the slots of an axis that each index of a dim owns, shape [dim.size, slots per index].

    >>> from graphprune.axes import product
    >>> h, d = Dim(2), Dim(3)
    >>> owned(product(h, d), d).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    owner = _owners(axis, dim)
    order = np.argsort(owner, kind="stable")
    return order[int((owner < 0).sum()) :].reshape(dim.size, -1)


def _owners(axis: Axis, dim: Dim) -> npt.NDArray[np.int64]:
    """Return for each slot the index of the dim that owns it, or -1."""
    if isinstance(axis, Dim):
        return np.arange(axis.size) if axis is dim else np.full(axis.size, -1)
    if isinstance(axis, Sum):
        return np.concatenate([_owners(p, dim) for p in axis.parts])
    out = np.full(1, -1)
    for p in axis.parts:
        inner = np.broadcast_to(_owners(p, dim), (len(out), p.size))
        out = np.where(out[:, None] >= 0, out[:, None], inner).ravel()
    return out


def distance_sums(array: npt.NDArray[Any], axis: int, slots: npt.NDArray[np.int64]) -> Vector:
    """Return for each row of `slots` (shape [n, m], slots of `axis`) its summed distance to all other rows, shape [n].

    >>> distance_sums(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]), 0, np.array([[0], [1], [2]])).tolist()
    [5.0, 10.0, 5.0]
    """
    out = np.zeros(len(slots))
    starts = range(0, len(slots), _TILE)
    for i in starts:
        a = _rows(array, axis, slots[i : i + _TILE])
        for j in starts:
            if j < i:
                continue
            b = a if j == i else _rows(array, axis, slots[j : j + _TILE])
            distances = _distances(a, b)
            out[i : i + _TILE] += distances.sum(axis=1)
            if j > i:
                out[j : j + _TILE] += distances.sum(axis=0)
    return out


def _rows(array: npt.NDArray[Any], axis: int, slots: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return all that some indices own, shape [indices, elements of an index], in the array's own type."""
    taken = np.take(array, slots.ravel(), axis=axis)
    return np.moveaxis(taken, axis, 0).reshape(len(slots), -1)


def _distances(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Vector:
    """Return the distance of each row of `a` to each of `b`, from sums of products in float64."""
    squares = np.zeros((len(a), len(b)))
    of_a, of_b = np.zeros(len(a)), np.zeros(len(b))
    for start in range(0, a.shape[1], _COLUMNS):
        x = a[:, start : start + _COLUMNS].astype(np.float64)
        y = x if b is a else b[:, start : start + _COLUMNS].astype(np.float64)
        squares -= 2.0 * (x @ y.T)
        of_a += np.einsum("ij,ij->i", x, x)
        of_b += np.einsum("ij,ij->i", y, y)
    squares += of_a[:, None] + of_b[None, :]
    np.maximum(squares, 0.0, out=squares)
    if b is a:
        np.fill_diagonal(squares, 0.0)
    return np.sqrt(squares, out=squares)
