"""Inputs to calibrate with: a stream of feeds that can be read again, cut into batches, split and thinned out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from graphprune.errors import UsageError

Feed: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""One array per input name, as one run of the model takes them."""
Source: TypeAlias = Literal["in-distribution", "out-of-distribution", "synthetic", "noise"]
T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """Inputs to calibrate with, readable more than once: `open()` yields feeds in order.

    >>> samples = Samples(lambda: iter([{"x": np.zeros((5, 3))}]), 5, "noise")
    >>> [feed["x"].shape for feed in samples.batches(2)]
    [(2, 3), (2, 3), (1, 3)]

    `count` is the number of samples in all, None if only reading tells. `assumed` says in sentences what was assumed.
    `axes` has the axis that counts samples for each input that has one; the other inputs are the same for every
    sample of a feed. None stands for axis 0 of every input. Where no input has such an axis (a model whose batch is
    fixed) a whole feed is one sample. `pick`, where there is one, reads only the samples of these (rising) indices. Of
    `each` samples that follow each other the first is the caller's own, and the others are made from it; a choice of
    samples counts them all as the caller's.
    """

    open: Callable[[], Iterator[Feed]]
    count: int | None
    source: Source
    assumed: tuple[str, ...] = ()
    axes: Mapping[str, int] | None = None
    pick: Callable[[Sequence[int]], Samples] | None = None
    each: int = 1

    def batches(self, size: int) -> Iterator[Feed]:
        """Yield feeds of at most `size` samples; those whose other sizes differ are not put together."""
        if size < 1:
            raise UsageError(f"a batch of {size} samples: give 1 or more")
        held: list[Feed] = []
        room = size
        for feed in self.open():
            start, count = 0, rows_of(feed, self.axes)
            while start < count:
                if held and (not room or not alike(held[0], feed, self.axes)):
                    yield joined(held, self.axes)
                    held, room = [], size
                end = min(start + room, count)
                held.append(feed if end - start == count else taken(feed, range(start, end), self.axes))
                room, start = room - (end - start), end
        if held:
            yield joined(held, self.axes)

    def split(self, fraction: float, seed: int = 0) -> tuple[Samples, Samples]:
        """Return the samples to fit on and the `fraction` held back; the same for the same seed.

        One sample is held back out of every 1 / `fraction` that follow each other, so that both parts see all of
        sorted data. With 2 samples or more neither part is empty, with one sample nothing is held back.
        """
        if not 0 < fraction < 1:
            raise UsageError(f"a fraction of {fraction:g} cannot be held back: give a number between 0 and 1")
        count = self.count
        if count is not None and count < 2:
            return self, self._chosen(lambda i: False, 0)
        stride = 1 / fraction
        held = None
        if count is not None:
            held = min(max(round(count * fraction), 1), count - 1)
            stride = count / held

        def is_held(i: int) -> bool:
            stratum = int((i + 1e-9) / stride)
            first, end = ceil(stratum * stride - 1e-9), ceil((stratum + 1) * stride - 1e-9)
            if not first <= i < end:  # rounding
                return False
            return first + int(np.random.default_rng([seed, stratum]).integers(end - first)) == i

        fit = self._chosen(lambda i: not is_held(i), None if held is None or count is None else count - held)
        return fit, self._chosen(is_held, held)

    def limited(self, most: int, seed: int = 0) -> Samples:
        """Return at most this many samples, evenly spaced; the first ones where the number is not known."""
        if most < 1:
            raise UsageError(f"{most} calibration samples are asked for: give 1 or more")
        if self.count is None:
            return self._chosen(lambda i: i < most, None, most)
        if self.count <= most:
            return self
        wanted = frozenset(evenly(self.count, most, seed))
        return self._chosen(lambda i: i in wanted, most)

    def _chosen(self, wanted: Callable[[int], bool], count: int | None, end: int | None = None) -> Samples:
        """Return the samples whose index is `wanted`; none is at `end` or behind it."""
        if self.pick is not None and self.count is not None:
            return self.pick([i for i in range(self.count) if wanted(i)])

        def opened() -> Iterator[Feed]:
            first = 0
            for feed in self.open() if count != 0 else ():
                rows = rows_of(feed, self.axes)
                keep = [k for k in range(rows) if wanted(first + k)]
                if keep:
                    yield feed if len(keep) == rows else taken(feed, keep, self.axes)
                first += rows
                if end is not None and first >= end:
                    break

        return replace(self, open=opened, count=count, pick=None, each=1)


def of_items(
    items: Sequence[T],
    load: Callable[[T], Feed],
    source: Source,
    assumed: tuple[str, ...] = (),
    axes: Mapping[str, int] | None = None,
) -> Samples:
    """Return samples that are loaded one by one, each a feed of one sample, when they are read.

    >>> of_items([1, 2, 3], lambda i: {"x": np.full((1, 2), i)}, "synthetic").limited(1).count
    1
    """
    return of_reader(items, lambda some: (load(item) for item in some), source, assumed, axes)


def of_reader(
    items: Sequence[T],
    read: Callable[[Sequence[T]], Iterator[Feed]],
    source: Source,
    assumed: tuple[str, ...] = (),
    axes: Mapping[str, int] | None = None,
) -> Samples:
    """Return samples that `read` yields for items in order, one feed of one sample each; it may keep a file open."""

    def pick(indices: Sequence[int]) -> Samples:
        return of_reader([items[i] for i in indices], read, source, assumed, axes)

    return Samples(lambda: read(items), len(items), source, assumed, axes, pick)


def evenly(count: int, most: int, seed: int = 0) -> list[int]:
    """Return at most `most` of the indices below `count`, evenly spaced, from a start that `seed` decides.

    >>> evenly(3, 5), len(evenly(100, 10))
    ([0, 1, 2], 10)
    """
    if count <= most:
        return list(range(count))
    start = float(np.random.default_rng(seed).random())
    return [int((k + start) * count / most) for k in range(most)]


def describe(samples: Samples) -> dict[str, Any]:
    """Return what a report says of calibration data: where from, how many, what was assumed.

    >>> describe(Samples(lambda: iter(()), 5, "noise", ("x: standard normal",)))
    {'source': 'noise', 'samples': 5, 'assumed': ['x: standard normal']}
    """
    return {"source": samples.source, "samples": samples.count, "assumed": list(samples.assumed)}


def axis_of(name: str, array: npt.NDArray[Any], axes: Mapping[str, int] | None) -> int | None:
    """Return the axis of an input that counts samples, None if there is none."""
    if axes is not None:
        return axes.get(name)
    return 0 if array.ndim else None


def rows_of(feed: Feed, axes: Mapping[str, int] | None) -> int:
    """Return how many samples a feed holds; raises UsageError where its inputs disagree.

    >>> rows_of({"x": np.zeros((4, 3)), "rate": np.array(1)}, None)
    4
    """
    sizes = {n: a.shape[k] for n, a in feed.items() if (k := axis_of(n, a, axes)) is not None}
    for (one, size), (other, another) in pairwise(sizes.items()):
        if size != another:
            raise UsageError(f"inputs hold different numbers of samples: {one!r} {size}, {other!r} {another}")
    return next(iter(sizes.values()), 1)


def taken(feed: Feed, rows: Sequence[int], axes: Mapping[str, int] | None) -> Feed:
    """Return the samples of these rows."""
    part = slice(rows.start, rows.stop) if isinstance(rows, range) and rows.step == 1 else list(rows)

    def cut(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        axis = axis_of(name, array, axes)
        return array if axis is None else array[(slice(None),) * axis + (part,)]

    return {name: cut(name, array) for name, array in feed.items()}


def alike(one: Feed, other: Feed, axes: Mapping[str, int] | None) -> bool:
    """Return whether two feeds can be put together: the same inputs, of the same sizes but for the samples."""
    if one.keys() != other.keys() or (axes is not None and not axes.keys() & one.keys()):
        return False
    for name, a in one.items():
        b, axis = other[name], axis_of(name, a, axes)
        if a.ndim != b.ndim or a.dtype != b.dtype:
            return False
        if axis is None and not np.array_equal(a, b):
            return False
        if any(n != m for k, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if k != axis):
            return False
    return True


def joined(feeds: Sequence[Feed], axes: Mapping[str, int] | None) -> Feed:
    """Put feeds together along the axes that count samples."""
    if len(feeds) == 1:
        return feeds[0]

    def together(name: str, first: npt.NDArray[Any]) -> npt.NDArray[Any]:
        axis = axis_of(name, first, axes)
        return first if axis is None else np.concatenate([f[name] for f in feeds], axis)

    return {name: together(name, array) for name, array in feeds[0].items()}
