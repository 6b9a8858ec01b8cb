"""Types and sizes of outputs where onnx's own inference has no answer: contributed operators, gaps in its schemas.

A rule sees element type, sizes and small content of every input, and answers with type and sizes of every output;
None stands for what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.ops.registry import Row, row

Sizes: TypeAlias = "tuple[int | None, ...]"
Answer: TypeAlias = "tuple[int, Sizes | None] | None"
"""Element type (onnx's number) and sizes of one output."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of an input: element type (0: unknown), sizes, and content where it is small and known."""

    dtype: int
    shape: tuple[int, ...] | None
    content: npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A node whose outputs are asked for; absent optional inputs are None."""

    inputs: tuple[Seen | None, ...]
    attributes: Mapping[str, Any]
    outputs: int

    def dtype(self, i: int = 0) -> int:
        """Return the element type of an input, 0 where it is absent or unknown."""
        seen = self.inputs[i] if i < len(self.inputs) else None
        return seen.dtype if seen is not None else 0

    def shape(self, i: int = 0) -> tuple[int, ...] | None:
        """Return the sizes of an input, None where it is absent or they are unknown."""
        seen = self.inputs[i] if i < len(self.inputs) else None
        return seen.shape if seen is not None else None

    def content(self, i: int = 0) -> npt.NDArray[Any] | None:
        """Return the content of an input, None where it is absent or unknown."""
        seen = self.inputs[i] if i < len(self.inputs) else None
        return seen.content if seen is not None else None

    def like(self, i: int = 0) -> Answer:
        """Return the answer that an output has type and sizes of an input."""
        return self.dtype(i), self.shape(i)


ShapeRule: TypeAlias = Callable[[Question], "list[Answer]"]


def like_first(asked: Question) -> list[Answer]:
    """The first output has type and sizes of the first input."""
    return [asked.like(0)]


def broadcast_first(*inputs: int) -> ShapeRule:
    """Return the rule that the first output has the sizes to which these inputs broadcast.

    >>> broadcast_first(0, 1)(Question((Seen(1, (2, 1)), Seen(1, (3,))), {}, 1))
    [(1, (2, 3))]
    """

    def rule(asked: Question) -> list[Answer]:
        shapes = [asked.shape(i) for i in inputs if i < len(asked.inputs) and asked.inputs[i] is not None]
        if any(s is None for s in shapes):
            return [(asked.dtype(0), None)]
        return [(asked.dtype(0), np.broadcast_shapes(*[s for s in shapes if s is not None]))]

    return rule


def not_known(asked: Question) -> list[Answer]:
    """Sizes depend on data, or are not told."""
    return [None] * asked.outputs


SHAPES: tuple[Row[ShapeRule], ...] = (row(like_first, "GroupNormalization"),)
