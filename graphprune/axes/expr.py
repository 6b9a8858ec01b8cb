"""Axis expressions: `Axis ::= Dim | Sum(Axis, ...) | Product(Axis, ...)`.

A Product is written outermost first, like C order; a Sum is a concatenation. The fused axis of three
projections with 12 heads of width 64 is `(3 h d)`, a half-split rotary head axis is `(h (r + r))`.

Laws (see tests/properties): Sum and Product are associative, size 1 is the unit of Product, and
`(a + b) c = a c + b c`, but `c (a + b)` is not `c a + c b`: trees stay trees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_ids = itertools.count()


class Dim:
    """A factor of an axis whose indices are kept or removed as one; equal only to itself."""

    __slots__ = ("label", "serial", "size")

    def __init__(self, size: int, label: str = "") -> None:
        self.size = size
        self.label = label
        self.serial = next(_ids)

    def __repr__(self) -> str:
        return f"Dim({self.size}, {self.label or self.serial!r})"


class _Compound:
    __slots__ = ("parts", "size")
    parts: tuple[Axis, ...]
    size: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.parts!r}"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, _Compound) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.parts))


class Sum(_Compound):
    """A concatenation of axes; build it with `concat`."""

    __slots__ = ()

    def __init__(self, parts: tuple[Axis, ...]) -> None:
        self.parts = parts
        self.size = sum(p.size for p in parts)


class Product(_Compound):
    """A flattened product of axes, outermost first; build it with `product`."""

    __slots__ = ()

    def __init__(self, parts: tuple[Axis, ...]) -> None:
        self.parts = parts
        self.size = prod(p.size for p in parts)


Axis: TypeAlias = Dim | Sum | Product

UNIT = Product(())
"""The axis of size one: nothing to choose, the neutral element of `product`."""

ZERO = Sum(())
"""The empty axis: the neutral element of `concat`."""


def fresh(size: int, label: str = "") -> Axis:
    """Return a new unknown axis of a size; sizes 0 and 1 have nothing unknown.

    >>> fresh(1) is UNIT
    True
    """
    if size == 1:
        return UNIT
    return Dim(size, label) if size > 0 else ZERO


def product(*factors: Axis) -> Axis:
    """Return the product of axes, outermost first, flattened and without units.

    >>> a, b = Dim(2), Dim(3)
    >>> product(a, UNIT, b).size
    6
    """
    flat: list[Axis] = []
    for f in factors:
        if isinstance(f, Product):
            flat.extend(f.parts)
        else:
            flat.append(f)
    if any(f.size == 0 for f in flat):
        return ZERO
    if len(flat) == 1:
        return flat[0]
    return Product(tuple(flat)) if flat else UNIT


def concat(*parts: Axis) -> Axis:
    """Return the concatenation of axes, flattened and without empty ones.

    >>> a, b = Dim(2), Dim(3)
    >>> concat(a, ZERO, b).size
    5
    """
    flat: list[Axis] = []
    for p in parts:
        if isinstance(p, Sum):
            flat.extend(p.parts)
        else:
            flat.append(p)
    if len(flat) == 1:
        return flat[0]
    return Sum(tuple(flat)) if flat else ZERO


def leaves(axis: Axis) -> Iterator[Dim]:
    """Yield the dims of an axis in order, repeated as they occur."""
    if isinstance(axis, Dim):
        yield axis
    else:
        for p in axis.parts:
            yield from leaves(p)


def slots(axis: Axis, chosen: Mapping[Dim, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return the slots of an axis that remain, in order, when each dim keeps the `chosen` indices.

    A dim that is not in `chosen` keeps all of its indices. Choosing a permutation permutes the axis.

    >>> h, d = Dim(2), Dim(3)
    >>> slots(product(h, d), {d: np.array([2, 0])}).tolist()
    [2, 0, 5, 3]
    """
    if isinstance(axis, Dim):
        got = chosen.get(axis)
        return np.arange(axis.size, dtype=np.int64) if got is None else got
    if isinstance(axis, Sum):
        offset, out = 0, []
        for p in axis.parts:
            out.append(slots(p, chosen) + offset)
            offset += p.size
        return np.concatenate(out) if out else np.zeros(0, dtype=np.int64)
    index = np.zeros(1, dtype=np.int64)
    for p in axis.parts:
        index = (index[:, None] * p.size + slots(p, chosen)[None, :]).ravel()
    return index


def owners(axis: Axis, dim: Dim) -> npt.NDArray[np.int64]:
    """Return for each slot of an axis the index of a dim that it goes with, -1 where it goes with none.

    Where two factors of a product are the dim, it is the larger of both indices.

    >>> a, b = Dim(2), Dim(3)
    >>> owners(Sum((product(a, b), Dim(1))), b).tolist()
    [0, 1, 2, 0, 1, 2, -1]
    """
    if isinstance(axis, Dim):
        return np.arange(axis.size, dtype=np.int64) if axis is dim else np.full(axis.size, -1, np.int64)
    if isinstance(axis, Sum):
        return np.concatenate([np.zeros(0, np.int64), *(owners(p, dim) for p in axis.parts)])
    found = np.full(1, -1, np.int64)
    for p in axis.parts:
        found = np.maximum(found[:, None], owners(p, dim)[None, :]).ravel()
    return found


def keep(axis: Axis, keeps: Mapping[Dim, npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Return which slots of an axis remain, given a keep vector for each dim (absent: all kept).

    >>> a, b = Dim(2), Dim(3)
    >>> keep(product(a, b), {a: np.array([True, False])}).tolist()
    [True, True, True, False, False, False]
    """
    out = np.zeros(axis.size, dtype=np.bool_)
    out[slots(axis, {d: np.flatnonzero(k) for d, k in keeps.items()})] = True
    return out


def kept_size(axis: Axis, sizes: Mapping[Dim, int]) -> int:
    """Return the size of an axis when each dim in `sizes` has that size and the others their own.

    >>> h, d = Dim(12), Dim(64)
    >>> kept_size(product(h, d), {h: 6})
    384
    """
    if isinstance(axis, Dim):
        return sizes.get(axis, axis.size)
    inner = (kept_size(p, sizes) for p in axis.parts)
    return sum(inner) if isinstance(axis, Sum) else prod(inner)


def reduce(axis: Axis, scores: npt.NDArray[np.float64]) -> dict[Dim, npt.NDArray[np.float64]]:
    """Add up slot scores onto the dims that own the slots: the adjoint of `keep`.

    `scores` has shape [axis.size]; the result has a vector of shape [dim.size] for each dim.

    >>> h, d = Dim(2), Dim(3)
    >>> reduce(product(h, d), np.arange(6.0))[h].tolist()
    [3.0, 12.0]
    """
    out: dict[Dim, npt.NDArray[np.float64]] = {}
    _reduce_into(axis, scores, out)
    return out


def _reduce_into(axis: Axis, scores: npt.NDArray[np.float64], out: dict[Dim, npt.NDArray[np.float64]]) -> None:
    if isinstance(axis, Dim):
        out[axis] = out[axis] + scores if axis in out else scores
    elif isinstance(axis, Sum):
        offset = 0
        for p in axis.parts:
            _reduce_into(p, scores[offset : offset + p.size], out)
            offset += p.size
    else:
        grid = scores.reshape([p.size for p in axis.parts])
        for i, p in enumerate(axis.parts):
            _reduce_into(p, grid.sum(axis=tuple(j for j in range(grid.ndim) if j != i)), out)
