"""Samples that are read or made once and kept in memory, as long as they are small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from graphprune.calibrate.samples import Feed, Samples

MOST_BYTES = 400_000_000


class _Memory:
    """What was read so far: all feeds once they are `whole`, none where they are too many."""

    def __init__(self, samples: Samples, most: int) -> None:
        self._samples, self._most = samples, most
        self._feeds: list[Feed] = []
        self._whole = False

    def open(self) -> Iterator[Feed]:
        if self._whole:
            yield from self._feeds
            return
        feeds: list[Feed] = []
        used = 0
        for feed in self._samples.open():
            used += sum(a.nbytes for a in feed.values())
            if used <= self._most:
                feeds.append(feed)
            else:
                feeds.clear()
            yield feed
        if used <= self._most:
            self._feeds, self._whole = feeds, True


def remembered(samples: Samples, most: int = MOST_BYTES) -> Samples:
    """Return the same samples, kept once they were read to their end, if they take at most `most` bytes.

    >>> import numpy as np
    >>> reads = []
    >>> once = remembered(Samples(lambda: iter([reads.append(1) or {"x": np.zeros(3)}]), 3, "noise"))
    >>> [len(list(once.open())) for _ in range(3)], len(reads)
    ([1, 1, 1], 1)
    """
    return replace(samples, open=_Memory(samples, most).open)
