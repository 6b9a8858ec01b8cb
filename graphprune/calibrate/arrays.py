"""Calibration data that is arrays already: a dict, an `.npz`, a folder of them; samples along the first axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.samples import Feed, Samples, Source, of_reader
from graphprune.calibrate.wanted import Wanted, numpy_of
from graphprune.errors import UsageError

Array = npt.NDArray[Any]
LABELS = "graphprune.labels"
"""The name that labels have beside the inputs of a feed."""

_BROKEN = (OSError, ValueError, EOFError, BadZipFile, NotImplementedError, RuntimeError)


class _Rows(Protocol):
    """An array of which rows can be had without the others."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, start: int, stop: int, axis: int) -> Array: ...


class _Held:
    """An array in memory."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def rows(self, start: int, stop: int, axis: int) -> Array:
        return self.array[(slice(None),) * axis + (slice(start, stop),)] if self.shape else self.array


class _Member:
    """An array in an `.npz`, of which rows are read as they are asked for; rising rows never read anything twice."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self.fortran, self.dtype = header(stream)
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        self.start = stream.tell()
        self.whole: Array | None = None

    def rows(self, start: int, stop: int, axis: int) -> Array:
        if axis or self.fortran or not self.shape or (start, stop) == (0, self.shape[0]):
            if self.whole is None:
                self.whole = self._read(0, prod(self.shape)).reshape(self.shape, order="F" if self.fortran else "C")
            return _Held(self.whole).rows(start, stop, axis)
        row = prod(self.shape[1:])
        return self._read(start * row, (stop - start) * row).reshape(stop - start, *self.shape[1:])

    def _read(self, first: int, count: int) -> Array:
        self.stream.seek(self.start + first * self.dtype.itemsize)
        content = self.stream.read(count * self.dtype.itemsize)
        if len(content) < count * self.dtype.itemsize:
            raise ValueError("it ends early")
        return np.frombuffer(content, self.dtype, count)


class _Cut(NamedTuple):
    """How one array is cut: `step` rows of `axis` a run; `drop` if the axis is not the model's."""

    axis: int
    step: int
    drop: bool

    def piece(self, array: _Rows, i: int) -> Array:
        found = array.rows(i * self.step, (i + 1) * self.step, self.axis)
        return found[0] if self.drop else found


@dataclass(frozen=True)
class _Cuts:
    """How arrays are cut into runs; those not in `cuts` are the same for all."""

    cuts: dict[str, _Cut]
    count: int

    def feed(self, arrays: Mapping[str, _Rows], i: int) -> dict[str, Array]:
        return {n: self.cuts[n].piece(a, i) if n in self.cuts else _whole(a) for n, a in arrays.items()}


def _whole(array: _Rows) -> Array:
    return array.rows(0, array.shape[0] if array.shape else 1, 0)


def open_arrays(given: Mapping[str, Any], wanted: Wanted, source: Source) -> Samples:
    """Return the samples in a dict of arrays; raises UsageError."""
    arrays: dict[str, _Rows] = {name: _Held(numpy_of(value)) for name, value in given.items()}
    where = "calibration data"
    cuts = _cuts(arrays, wanted, where)

    def read(items: Sequence[int]) -> Iterator[Feed]:
        return (wanted.complete(cuts.feed(arrays, i), f"{where}, sample {i}", i) for i in items)

    first = cuts.feed(arrays, 0)
    assumed = wanted.said(first, wanted.fit(first, f"{where}, sample 0"))
    return of_reader(range(cuts.count), read, source, assumed, wanted.axes)


def open_npz(files: Sequence[Path], wanted: Wanted, source: Source, labels: str | None = None) -> Samples:
    """Return the samples in `.npz` files, one after the other; raises UsageError naming the file.

    `labels` is an array of one whole number per sample, which goes into every feed under the name LABELS.
    """
    cuts: list[_Cuts] = []
    assumed: tuple[str, ...] = ()
    for path in files:
        with _Opened(path) as everything:
            arrays = _inputs(everything, labels)
            cuts.append(_cuts(arrays, wanted, str(path)))
            if labels is not None:
                _agree(everything, labels, cuts[-1].count, path)
            if not assumed:
                first = cuts[-1].feed(arrays, 0)
                assumed = wanted.said(first, wanted.fit(first, f"{path}, sample 0"))
    starts = np.cumsum([0, *(c.count for c in cuts)])

    def read(items: Sequence[int]) -> Iterator[Feed]:
        todo = iter(items)
        item = next(todo, None)
        while item is not None:
            at = int(np.searchsorted(starts, item, side="right")) - 1
            with _Opened(files[at]) as everything:
                arrays = _inputs(everything, labels)
                while item is not None and item < starts[at + 1]:
                    i = int(item - starts[at])
                    feed = wanted.complete(cuts[at].feed(arrays, i), f"{files[at]}, sample {i}", item)
                    told = {LABELS: everything[labels].rows(i, i + 1, 0).astype(np.int64)} if labels is not None else {}
                    yield {**feed, **told}
                    item = next(todo, None)

    axes = wanted.axes if labels is None else {**wanted.axes, LABELS: 0}
    return of_reader(range(int(starts[-1])), read, source, assumed, axes)


def _inputs(arrays: Mapping[str, _Rows], labels: str | None) -> Mapping[str, _Rows]:
    return {name: a for name, a in arrays.items() if name != labels}


def _agree(arrays: Mapping[str, _Rows], labels: str, count: int, path: Path) -> None:
    """Raise UsageError where labels are not one whole number per sample."""
    if labels not in arrays:
        raise UsageError(f"{path}: has no array {labels!r}; there are {', '.join(arrays)}")
    told = arrays[labels]
    if told.dtype.kind not in "iu" or told.shape != (count,):
        raise UsageError(f"{path}: {labels!r} is {told.dtype}{list(told.shape)}: give one whole number per sample")


class _Opened:
    """The arrays of an `.npz` while it is open; what is wrong with the file becomes a UsageError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack = ExitStack()

    def __enter__(self) -> Mapping[str, _Rows]:
        try:
            archive = self.stack.enter_context(ZipFile(self.path))
            return {_name(info): _Member(self.stack.enter_context(archive.open(info))) for info in archive.infolist()}
        except _BROKEN as error:
            self.stack.close()
            raise UsageError(f"{self.path}: is not an .npz file of arrays ({error})") from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stack.close()
        if isinstance(error, _BROKEN):
            raise UsageError(f"{self.path}: cannot be read: {error}") from error


def _name(info: ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _cuts(arrays: Mapping[str, _Rows], wanted: Wanted, where: str) -> _Cuts:
    """Find the samples in arrays; raises UsageError where they disagree on how many there are."""
    known = {name: a for name, a in arrays.items() if name in wanted.symbols}
    cuts = {name: cut for name, a in known.items() if (cut := _cut(name, a.shape, wanted)) is not None}
    counts: dict[str, int] = {}
    for name, cut in cuts.items():
        rows = known[name].shape[cut.axis]
        if rows % cut.step:
            raise UsageError(
                f"{where}: input {name!r} has {rows} samples, the model takes {cut.step} at a time: give a multiple"
            )
        counts[name] = rows // cut.step
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise UsageError(f"{where}: the arrays have different numbers of samples along their first axis: {told}")
    count = next(iter(counts.values()), 1)
    if not count:
        raise UsageError(f"{where}: is empty: {next(iter(counts))!r} has no samples")
    return _Cuts(cuts, count)


def _cut(name: str, shape: tuple[int, ...], wanted: Wanted) -> _Cut | None:
    """Return how one array is cut, None if all of it goes into every run."""
    rank, want = wanted.rank(name), wanted.symbols[name]
    if rank is None:
        return _Cut(0, 1, False) if shape else None
    if len(shape) == rank + 1:
        return _Cut(0, 1, True)
    if len(shape) != rank or not rank:
        return None
    if name in wanted.axes:
        return _Cut(wanted.axes[name], 1, False)
    step = want[0]
    return _Cut(0, step, False) if isinstance(step, int) and step != shape[0] else None
