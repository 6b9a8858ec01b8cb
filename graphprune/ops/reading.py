"""What operators tell of the values they read: moments that were measured in training, ranges, tables of rows.

With these a model says itself what its inputs look like: `MOMENTS` where mean and variance of a value are stored,
`AFFINE` how a normalisation inside of the graph is undone, `LOOKUPS` which table integers point into. `FLOORS` says
below which number all inputs give the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.ops.registry import Row, row

Array: TypeAlias = npt.NDArray[Any]
Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Moments:
    """Numbers of inputs: the data, and the constants that hold its mean and variance along axis 1 of the data."""

    data: int
    mean: int
    variance: int


@dataclass(frozen=True)
class Lookup:
    """Numbers of inputs: the table whose rows are picked, and the integers that pick them."""

    table: int
    indices: int


MomentRule: TypeAlias = "Callable[[Attributes], Moments | None]"
AffineRule: TypeAlias = "Callable[[Array, int], tuple[Array, Array]]"
"""Asked with the constant and which input it is; answers (a, b) of y = a x + b."""
LookupRule: TypeAlias = "Callable[[Attributes], Lookup | None]"
FloorRule: TypeAlias = "Callable[[Attributes, Array | None], float | None]"
"""Asked with attributes and the second input, if that is constant; None: there is no such number."""


def batch_norm(attributes: Attributes) -> Moments | None:
    """Running statistics, unless the node computes those of the batch instead."""
    return None if attributes.get("training_mode") else Moments(0, 3, 4)


def add(constant: Array, position: int) -> tuple[Array, Array]:
    """`x + c`."""
    return np.ones_like(constant), constant


def subtract(constant: Array, position: int) -> tuple[Array, Array]:
    """`x - c`, `c - x`."""
    one = np.ones_like(constant)
    return (one, -constant) if position == 1 else (-one, constant)


def multiply(constant: Array, position: int) -> tuple[Array, Array]:
    """`x c`."""
    return constant, np.zeros_like(constant)


def divide(constant: Array, position: int) -> tuple[Array, Array]:
    """`x / c`; `c / x` is not affine and answers nan."""
    if position != 1 or not np.all(constant):
        return np.full_like(constant, np.nan), np.full_like(constant, np.nan)
    return 1 / constant, np.zeros_like(constant)


def gather(attributes: Attributes) -> Lookup | None:
    """Rows of the first axis."""
    return Lookup(0, 1) if attributes.get("axis", 0) == 0 else None


def rectified(attributes: Attributes, second: Array | None) -> float | None:
    """Zero."""
    return 0.0


def clipped(attributes: Attributes, second: Array | None) -> float | None:
    """The lower limit: an input, in old files an attribute."""
    found = attributes.get("min") if second is None or second.size != 1 else second.ravel()[0]
    return float(found) if found is not None and np.isfinite(found) else None


MOMENTS: tuple[Row[MomentRule], ...] = (row(batch_norm, "BatchNormalization"),)
AFFINE: tuple[Row[AffineRule], ...] = (
    row(add, "Add"), row(subtract, "Sub"), row(multiply, "Mul"), row(divide, "Div"),
)  # fmt: skip
LOOKUPS: tuple[Row[LookupRule], ...] = (
    row(gather, "Gather"),
    row(lambda _: Lookup(2, 0), "EmbedLayerNormalization", domain="com.microsoft"),
)
FLOORS: tuple[Row[FloorRule], ...] = (row(rectified, "Relu"), row(clipped, "Clip"))
