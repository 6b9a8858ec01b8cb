"""Data that can be read only once, kept in a temporary folder so that it can be read again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable

import numpy as np

from graphprune.calibrate.folder import Folder
from graphprune.calibrate.samples import Feed, Samples, Source, rows_of
from graphprune.calibrate.wanted import Array, Wanted, by_rows
from graphprune.errors import UsageError

_LEFT_FREE = 2_000_000_000  # bytes of disk


class Spool:
    """Feeds on disk, one `.npy` per input; removed when nobody refers to them any more, at the latest at exit."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._folder = Folder()
        self.names: list[tuple[str, ...]] = []
        self.folder = self._folder.path

    def add(self, feed: Feed) -> None:
        """Write a feed; raises UsageError when the disk is nearly full."""
        for k, array in enumerate(feed.values()):
            text = array.dtype.kind == "O"
            np.save(self.folder / f"{len(self.names)}_{k}.npy", array.astype(str) if text else array)
        self.names.append(tuple(feed))
        if shutil.disk_usage(self.folder).free < _LEFT_FREE:
            raise UsageError(
                f"calibration data: {len(self.names)} feeds filled the disk of {self.folder.parent}: limit their number"
            )

    def feed(self, i: int) -> Feed:
        """Return a feed, memory-mapped."""
        return {name: self._array(i, k, name) for k, name in enumerate(self.names[i])}

    def _array(self, i: int, k: int, name: str) -> Array:
        array: Array = np.load(self.folder / f"{i}_{k}.npy", mmap_mode="r")
        dtype = next(s.dtype for s in self.wanted.specs if s.name == name)
        if dtype.kind == "O":
            return array.astype(object)
        return array if array.dtype == dtype else array.view(dtype)  # bfloat16 comes back as two bytes without a name


def spooled(feeds: Iterable[Feed], wanted: Wanted, source: Source, assumed: Callable[[], tuple[str, ...]]) -> Samples:
    """Read feeds once and return samples that can be read again; `assumed` is asked when all are read."""
    spool = Spool(wanted)
    rows: list[int] = []
    for feed in feeds:
        spool.add(feed)
        rows.append(rows_of(feed, wanted.axes))
    return by_rows(rows, spool.feed, wanted, source, assumed())
