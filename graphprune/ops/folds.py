"""Where the numbers of a layer lie that belong to one channel of its output: a scale behind it can be put into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from graphprune.ops.registry import Row, row

Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Fold:
    """Output channels: axis `along` of input `weight`, all of input `bias` (None: there is none); axis `channel` of
    the output, counted from the front, or from the back where it is negative."""

    weight: int
    along: int
    bias: int | None
    channel: int


FoldRule: TypeAlias = "Callable[[Attributes, int], Fold | None]"
"""Asked with the attributes and the rank of input 1."""


def conv(attributes: Attributes, rank: int) -> Fold | None:
    """`(g o) i *k, (g o)? -> n (g o) *t`."""
    return Fold(1, 0, 2, 1) if rank > 2 else None


def conv_transpose(attributes: Attributes, rank: int) -> Fold | None:
    """`i o *k, o? -> n o *t`, without groups."""
    return Fold(1, 1, 2, 1) if rank > 2 and attributes.get("group", 1) == 1 else None


def gemm(attributes: Attributes, rank: int) -> Fold | None:
    """`k n` or `n k`."""
    return Fold(1, 0 if attributes.get("transB", 0) else 1, 2, -1)


def matmul(attributes: Attributes, rank: int) -> Fold | None:
    """`k n -> *b n`."""
    return Fold(1, 1, None, -1) if rank == 2 else None


FOLDS: tuple[Row[FoldRule], ...] = (
    row(conv, "Conv"), row(conv_transpose, "ConvTranspose"), row(gemm, "Gemm"), row(matmul, "MatMul"),
)  # fmt: skip
