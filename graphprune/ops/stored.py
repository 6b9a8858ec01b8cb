"""What a table of quantised weights is told: which operand holds integers, and which real numbers they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.ops.registry import Op, Operand

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """Input `weight` of a node holds quantised numbers.

    `real(arrays)` gets the content of `operands`, constants of the model by name (None where one is absent or made at
    run time, the weight itself first), and returns the real numbers: same sizes along every axis that may be pruned;
    where several lie in one element of the file, an axis more.
    """

    weight: int
    operands: tuple[Operand | None, ...]
    real: Callable[[Sequence[Array | None]], Array]


@dataclass(frozen=True)
class Around:
    """Who makes and who reads each value: what a rule may look at beyond its own node."""

    maker: Mapping[str, Op]
    readers: Mapping[str, Sequence[Op]]


StoredRule: TypeAlias = Callable[[Op, Around], Iterable[Stored]]


def dequantised(
    stored: Array, scale: Array | None, zero: Array | None, axis: int | None = None, block: int = 0
) -> Array:
    """Return (stored - zero) * scale as float32.

    `scale` and `zero` are scalars, vectors along `axis`, or have one number for every `block` of slots along `axis`.

    >>> dequantised(np.array([[1, 2]], np.int8), np.float32([2, 3]), None, axis=1).tolist()
    [[2.0, 6.0]]
    """
    real = np.asarray(stored).astype(np.float32)
    if zero is not None:
        real = real - _spread(zero, real, axis, block)
    if scale is not None:
        real = real * _spread(scale, real, axis, block)
    return real


def _spread(numbers: Array, over: Array, axis: int | None, block: int) -> Array:
    """Return scales or zero points in a form that broadcasts against what they belong to."""
    given = np.asarray(numbers).astype(np.float32)
    if given.size == 1:
        return given.reshape(())
    if axis is None:
        return given
    axis %= over.ndim
    if given.ndim == over.ndim and block:
        return np.repeat(given, block, axis=axis).take(range(over.shape[axis]), axis=axis)
    if given.ndim == over.ndim:
        return given
    return given.reshape([-1 if k == axis else 1 for k in range(over.ndim)])
