"""Weights: the constants of a model that stand for real numbers, in whatever type the file holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Axis
from graphprune.ops import Op

FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
_NO_NUMBERS = frozenset([ir.DataType.UNDEFINED, ir.DataType.BOOL, ir.DataType.STRING])
NARROW = frozenset(d for d in ir.DataType if d not in _NO_NUMBERS and d.bitwidth <= 16)
"""Types that quantised weights have."""


@dataclass(frozen=True)
class Weight:
    """A constant that stands for real numbers, which `read` returns.

    `filled`: one value, made by a node at a fixed size. `quantised`: the file holds narrower numbers.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    read: Callable[[], npt.NDArray[Any]] = field(repr=False)
    itemsize: float = 4
    filled: bool = False
    quantised: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)


def filling(op: Op, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[Any]]:
    """Return what reads the output of a node that makes one value everywhere."""
    value = op.attr("value")
    number = float(value.numpy().ravel()[0]) if value is not None else 0.0
    return lambda: np.broadcast_to(np.float32(number), shape)
