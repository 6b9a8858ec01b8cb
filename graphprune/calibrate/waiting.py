"""Rows that wait until they are many: an update of a big sum costs the same for one row as for many."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = npt.NDArray[np.float32]


class Waiting:
    """Blocks of rows side by side, [..., n, C] each, joined once there are `enough` of them.

    >>> waiting = Waiting(3)
    >>> waiting.add(np.ones((2, 4))), [b.shape for b in waiting.add(np.ones((1, 4)))]
    ((), [(3, 4)])
    """

    def __init__(self, enough: int) -> None:
        self._enough = max(enough, 1)
        self._parts: list[tuple[Rows, ...]] = []
        self._rows = 0

    def add(self, *blocks: npt.NDArray[np.floating[Any]]) -> tuple[Rows, ...]:
        """Add a block of rows to each column of blocks; return what is to be summed up now: all of it, or nothing."""
        self._parts.append(tuple(np.ascontiguousarray(b, dtype=np.float32) for b in blocks))
        self._rows += blocks[0].shape[-2]
        return self.rest() if self._rows >= self._enough else ()

    def rest(self) -> tuple[Rows, ...]:
        """Return what waits still, nothing if nothing does."""
        found = tuple(b[0] if len(b) == 1 else np.concatenate(b, axis=-2) for b in zip(*self._parts, strict=True))
        self._parts, self._rows = [], 0
        return found


def enough_for(columns: int, most: int) -> int:
    """Return how many rows are worth an update of a sum with so many columns.

    >>> enough_for(64, 4096), enough_for(4608, 4096)
    (32, 2304)
    """
    return min(columns // 2, most)
