"""Criteria that give every element of a weight a score and add these up: the shared, blockwise summation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import reduce
from graphprune.score.base import Measure, Place, Vector, check_finite
from graphprune.weights import Weight

Element: TypeAlias = Callable[[Vector, Vector], object]
"""`element(block, out)` writes the scores of a block of elements into `out`, which may be the block itself."""

_BLOCK = 1 << 16


def elementwise(element: Element, finish: Callable[[Vector], Vector] = lambda v: v) -> Measure:
    """Return the measure that adds up element scores over all that an index owns in a weight, then applies `finish`.

    >>> l2 = elementwise(np.square, np.sqrt)
    """

    def measure(weight: Weight, array: npt.NDArray[Any], places: tuple[Place, ...]) -> list[Vector]:
        axes = sorted({p.axis for p in places})
        with np.errstate(over="ignore", invalid="ignore"):
            sums = uniform_sums(array, axes, element) if weight.filled else slot_sums(array, axes, element)
        check_finite(weight, sums.values())
        by_axis = {p.axis: reduce(p.expression, sums[p.axis]) for p in places}
        return [finish(by_axis[p.axis][p.dim]) for p in places]

    return measure


def slot_sums(array: npt.NDArray[Any], axes: Iterable[int], element: Element) -> dict[int, Vector]:
    """Add up the element scores of an array onto the slots of some of its axes, all in one pass.

    The result has a vector of shape [array.shape[k]] for each axis k. Arithmetic is float64 in blocks of about
    65,536 elements, whatever the array's type, so no copy of the array is made; slots with equal content get
    exactly equal sums.

    >>> slot_sums(np.array([[1, -2], [3, 4]], np.float32), [0, 1], np.abs)[1].tolist()
    [4.0, 6.0]
    """
    shape = array.shape
    out = {k: np.zeros(shape[k]) for k in axes}
    if not array.size or not out:
        return out
    cut = next(k for k in range(len(shape)) if prod(shape[k + 1 :]) <= _BLOCK)
    rows = max(1, _BLOCK // prod(shape[cut + 1 :]))
    for lead in np.ndindex(*shape[:cut]):
        part = array[lead]
        for start in range(0, shape[cut], rows):
            block = np.array(part[start : start + rows], dtype=np.float64, order="C")
            element(block, block)
            _add(out, block, (*lead, start))
    return out


def _add(out: dict[int, Vector], block: Vector, at: tuple[int, ...]) -> None:
    """Add a block's sums; `at` is where it lies: its index on the axes before it, then its first row."""
    cut, start = len(at) - 1, at[-1]
    for k, total in out.items():
        if k < cut:
            total[at[k]] += block.sum()
        elif k == cut:
            total[start : start + len(block)] += block.reshape(len(block), -1).sum(axis=1)
        else:
            before, size = prod(block.shape[: k - cut]), block.shape[k - cut]
            total += block.reshape(before, -1).sum(axis=0).reshape(size, -1).sum(axis=1)


def uniform_sums(array: npt.NDArray[Any], axes: Iterable[int], element: Element) -> dict[int, Vector]:
    """Return what `slot_sums` returns for an array that repeats one value, without spelling it out.

    >>> uniform_sums(np.broadcast_to(np.float32(-2), (3, 5)), [0], np.abs)[0].tolist()
    [10.0, 10.0, 10.0]
    """
    value = np.zeros(1)
    if array.size:
        value[0] = array[(0,) * array.ndim]
        element(value, value)
    return {k: np.full(array.shape[k], value[0] * (array.size // max(1, array.shape[k]))) for k in axes}
