"""Statistics of what layers read: sums over rows in one streaming pass, nothing that grows with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.folder import Folder, parked
from graphprune.calibrate.padding import real_rows, real_tokens
from graphprune.calibrate.parts import Parts
from graphprune.calibrate.samples import Feed, Samples, rows_of
from graphprune.calibrate.waiting import Rows, Waiting, enough_for
from graphprune.consumers import Consumer, Source
from graphprune.errors import UsageError
from graphprune.execute import session
from graphprune.model import all_values
from graphprune.runtime import Runtime, run

Key = tuple[object, ...]
Progress = Callable[[str], None]
Sums: TypeAlias = npt.NDArray[np.float64]
_POSITIONS = 64
_ROWS_PER_COLUMN = 4
_TOKENS_PER_COLUMN = 16  # of a matrix product: rows without patches cost less than the run that gives them
_BLOCK = 4096
_CHUNKS = 8  # of the batches of one pass, after which sums are settled
_CHUNK = 16  # batches of one, where only reading tells how many there are
LIMIT = 2_000_000_000


class Gram:
    """Sums over rows x, in float64: `second` = sum of x x^T [groups, C, C]; sums of x, of |x| and of x = 0 [groups, C].

    >>> gram = Gram.empty(1, 2)
    >>> gram.add(np.array([[[1.0, 0.0], [-3.0, 2.0]]]))
    >>> gram.first.tolist(), gram.absolute.tolist(), gram.zeros.tolist(), gram.second[0].tolist()
    ([[-2.0, 2.0]], [[4.0, 2.0]], [[0.0, 1.0]], [[10.0, -6.0], [-6.0, 4.0]])
    """

    def __init__(self, second: Sums, first: Sums, absolute: Sums, zeros: Sums) -> None:
        self._second, self.first, self.absolute, self.zeros, self.rows = second, first, absolute, zeros, 0
        self._waiting = Waiting(enough_for(second.shape[-1], _BLOCK))

    @classmethod
    def empty(cls, groups: int, columns: int) -> Gram:
        first, absolute, zeros = np.zeros((3, groups, columns))
        return cls(np.zeros((groups, columns, columns)), first, absolute, zeros)

    @property
    def second(self) -> Sums:
        self._sum_up(self._waiting.rest())
        return self._second

    def add(self, rows: npt.NDArray[np.floating]) -> None:
        """Add rows [groups, n, C]: products in float32 blocks of 4,096 rows, sums in float64."""
        for start in range(0, rows.shape[1], _BLOCK):
            block = rows[:, start : start + _BLOCK]
            self.first += block.sum(axis=1, dtype=np.float64)
            self.zeros += block.shape[1] - np.count_nonzero(block, axis=1)
            self.absolute += np.abs(block).sum(axis=1, dtype=np.float64)
            self._sum_up(self._waiting.add(block))
        self.rows += rows.shape[1]

    def settle(self) -> None:
        """Sum up what waits to be more: what follows is then added to sums that do not depend on how it is cut."""
        self._sum_up(self._waiting.rest())

    def merge(self, other: Gram) -> None:
        """Add the sums of other rows."""
        self.settle()
        self._second += other.second
        for own, more in ((self.first, other.first), (self.absolute, other.absolute), (self.zeros, other.zeros)):
            own += more
        self.rows += other.rows

    def park(self, path: Path) -> None:
        """Keep `second` in a file from now on, to be read only; nothing can be added any more."""
        self._second = parked(path, self.second)

    def _sum_up(self, blocks: tuple[Rows, ...]) -> None:
        for block in blocks:
            self._second += np.matmul(block.transpose(0, 2, 1), block)


@dataclass(frozen=True)
class Stats:
    """Sums over rows by consumer key, of the part to fit and of the part that fits are checked by.

    `samples` is the number of all, `told` that of those which are in neither; `parked` holds the sums' files.
    """

    fit: Mapping[Key, Gram]
    check: Mapping[Key, Gram]
    samples: int
    parked: Folder | None = None
    told: int = 0


@dataclass(frozen=True)
class Sampler:
    """Which output positions of a batch are looked at: the same for every model that is asked for the same batch."""

    seed: int
    batch: int
    most: int

    def __call__(self, number: int) -> npt.NDArray[np.int64]:
        if number <= self.most:
            return np.arange(number)
        rng = np.random.default_rng([self.seed, self.batch, number])
        return np.sort(rng.choice(number, self.most, replace=False))


def positions_wanted(columns: int, samples: int, per_column: int = _ROWS_PER_COLUMN) -> int:
    """Return at how many places of each sample rows are taken: 64, more where columns would outnumber rows.

    >>> positions_wanted(576, 512), positions_wanted(4608, 64)
    (64, 288)
    """
    return max(_POSITIONS, ceil(per_column * columns / max(samples, 1)))


def sampler_of(consumer: Consumer, samples: Samples, seed: int, batch: int) -> Sampler:
    """Return at which places of a batch a consumer's rows are taken; matrix products get more of them."""
    per_column = _TOKENS_PER_COLUMN if consumer.design.key[0] == "rows" else _ROWS_PER_COLUMN
    return Sampler(seed, batch, positions_wanted(consumer.width, samples.count or 256, per_column))


def chunk_of(samples: Samples, batch: int) -> int:
    """Return after how many batches sums are settled: whoever adds up whole chunks gets the same sums.

    >>> chunk_of(Samples(lambda: iter(()), 512, "noise"), 16)
    4
    """
    return _CHUNK if samples.count is None else max(1, ceil(ceil(samples.count / batch) / _CHUNKS))


@dataclass(frozen=True)
class Reading:
    """How rows are made of what a consumer reads: all that another process has to know of it.

    `rows` and `kind` are the design's, `most` is that of the sampler.
    """

    key: Key
    sources: tuple[Source, ...]
    rows: Callable[[npt.NDArray[Any], Callable[[int], npt.NDArray[Any]]], npt.NDArray[Any]]
    kind: Key
    most: int


def reading_of(consumer: Consumer, samples: Samples) -> Reading:
    """Return how a consumer's rows are made."""
    most = sampler_of(consumer, samples, 0, 0).most
    return Reading(consumer.key, consumer.sources, consumer.design.rows, consumer.design.key, most)


def add_batch(into: dict[Key, Gram], readings: Sequence[Reading], watched: Watched, feed: Feed, at: Place) -> None:
    """Run a model on one batch and add the rows of every reading; raises UsageError where they are not finite."""
    values = watched(feed)
    real = real_tokens(feed)
    for r, source in [(one, s) for one in readings for s in one.sources]:
        x = values[source.name]
        if not np.isfinite(x).all():
            raise UsageError(f"calibration: value {source.name!r} is not finite in batch {at.batch}")
        sampler = Sampler(at.seed, at.batch, r.most)
        rows = r.rows(source.real(x), sampler)
        there = real_rows(x, real, r.kind, sampler)
        rows = rows if there is None else rows[:, there]
        into.setdefault(r.key, Gram.empty(rows.shape[0], rows.shape[2])).add(rows)


class Place(NamedTuple):
    """Which batch it is, and the seed that decides with it at which places rows are taken."""

    seed: int
    batch: int


def settle(*sums: Mapping[Key, Gram]) -> None:
    """End a chunk."""
    for part in sums:
        for gram in part.values():
            gram.settle()


class Watched:
    """A model run with inner values as outputs."""

    def __init__(self, model: ir.Model, names: Iterable[str], threads: int = 0) -> None:
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        widened = model.clone()
        values = all_values(widened)
        inputs = {v.name for v in widened.graph.inputs}
        self.names = list(dict.fromkeys(names))
        self.given = [n for n in self.names if n in inputs]
        asked = [n for n in self.names if n not in inputs]
        widened.graph.outputs.clear()
        widened.graph.outputs.extend(values[n] for n in asked)
        for n in asked:
            values[n].shape = None
        if asked:
            RemoveUnusedNodesPass()(widened)
        self.asked = asked
        self.session = session(widened, Runtime(threads=threads)) if asked else None

    def __call__(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """Return the values for one feed; inputs are returned as they are."""
        got = dict(run(self.session, feed, self.asked)) if self.session is not None else {}
        return {**got, **{n: np.asarray(feed[n]) for n in self.given}}


def gather(
    model: ir.Model,
    consumers: Sequence[Consumer],
    samples: Samples,
    *,
    batch: int = 16,
    seed: int = 0,
    limit: int = LIMIT,
    threads: int = 0,
    progress: Progress = lambda text: None,
) -> Stats:
    """Run a model on samples and sum up rows for every consumer's key.

    Memory for sums stays below `limit` bytes: where they are more, the samples are run several times, for some
    consumers each, and sums that are done are kept in files that go when nobody needs them. Raises UsageError where
    there are no samples or numbers that are not finite.
    """
    by_key = {c.key: c for c in consumers}
    parked = Folder()
    fit: dict[Key, Gram] = {}
    check: dict[Key, Gram] = {}
    seen = told = 0
    part_of = Parts.of(samples, batch)
    chunk = chunk_of(samples, batch)
    passes = list(passes_of(list(by_key.values()), limit))
    for k, part in enumerate(passes):
        readings = [reading_of(c, samples) for c in part]
        watched = Watched(model, [s.name for r in readings for s in r.sources], threads)
        seen = told = 0
        for number, feed in enumerate(samples.batches(batch)):
            progress(f"statistics, pass {k + 1} of {len(passes)}: {seen} samples")
            if (use := part_of(number)) != "told":
                add_batch(fit if use == "fit" else check, readings, watched, feed, Place(seed, number))
            if (number + 1) % chunk == 0:
                settle(fit, check)
            rows = rows_of(feed, samples.axes)
            seen, told = seen + rows, told + (rows if use == "told" else 0)
        if len(passes) > 1:
            park(part, fit, check, parked.path / str(k))
    if by_key and not seen:
        raise UsageError("calibration: there are no samples")
    return Stats(fit, check, seen, parked, told)


def park(consumers: Sequence[Consumer], fit: dict[Key, Gram], check: dict[Key, Gram], path: Path) -> None:
    """Put the sums of some consumers, which are done, into files whose names begin with a path."""
    for name, sums in (("fit", fit), ("check", check)):
        for j, c in enumerate(c for c in consumers if c.key in sums):
            sums[c.key].park(path.with_name(f"{path.name}_{j}_{name}.npy"))


def passes_of(consumers: list[Consumer], limit: int) -> Iterator[list[Consumer]]:
    """Split consumers into lists whose sums fit into memory, two sums each."""
    part: list[Consumer] = []
    used = 0
    for c in consumers:
        need = sums_bytes(c)
        if part and used + need > limit:
            yield part
            part, used = [], 0
        part.append(c)
        used += need
    if part:
        yield part


def sums_bytes(consumer: Consumer) -> int:
    """Return how much the sums of a consumer take, those to fit to and those to check by."""
    return 2 * 8 * consumer.groups * consumer.width**2
