"""Statistics over many workers: each runs the model on a part of the samples, and the sums are added up.

Parts are whole chunks, after which one process alone settles its sums, too: so the result is the same but for the
rounding of sums in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

import onnx
import onnx_ir as ir

from graphprune.calibrate.folder import Folder
from graphprune.calibrate.parts import Parts
from graphprune.calibrate.samples import Feed, Samples, rows_of
from graphprune.calibrate.statistics import (
    Gram,
    Key,
    Place,
    Reading,
    Stats,
    Watched,
    add_batch,
    chunk_of,
    park,
    passes_of,
    reading_of,
    settle,
)
from graphprune.consumers import Consumer
from graphprune.errors import UsageError
from graphprune.model import EMBED_LIMIT, embedded, has_external_data, tensor_bytes
from graphprune.scale import Pool

Progress = Callable[[str], None]
Shard = tuple[int, list[Feed]]
"""The number of the first batch, and the batches."""


@dataclass(frozen=True)
class Asked:
    """How samples are run: how many at once, the seed of the places looked at, bytes of sums at a time, threads."""

    batch: int
    seed: int
    limit: int
    threads: int


@dataclass(frozen=True)
class _Shared:
    """What every worker needs: the model, what is read of it, when sums are settled, and what each batch is for."""

    model: bytes
    readings: Sequence[Reading]
    asked: Asked
    chunk: int
    parts: Parts


def can_share(model: ir.Model) -> bool:
    """Return whether a model can be sent to workers: it has to fit into one file."""
    return tensor_bytes(model) < EMBED_LIMIT


def packed(model: ir.Model) -> bytes:
    """Return a model with all its weights as bytes."""
    whole = embedded(model) if has_external_data(model) else model
    return bytes(ir.to_proto(whole).SerializeToString())


def gather_over(
    pool: Pool, model: ir.Model, consumers: Sequence[Consumer], samples: Samples, asked: Asked,
    progress: Progress = lambda text: None,
) -> Stats:
    """Do what `statistics.gather` does, by the workers of a pool.

    >>> gather_over(Pool(2), model, consumers, samples, Asked(16, 0, LIMIT, 1)).samples  # doctest: +SKIP
    512

    A worker's sums take as much memory as those of one process alone. Raises UsageError as `gather` does.
    """
    by_key = {c.key: c for c in consumers}
    parked = Folder()
    fit: dict[Key, Gram] = {}
    check: dict[Key, Gram] = {}
    seen = told = 0
    passes = list(passes_of(list(by_key.values()), asked.limit))
    chunk, parts = chunk_of(samples, asked.batch), Parts.of(samples, asked.batch)
    data = packed(model)
    for k, part in enumerate(passes):
        shared = _Shared(data, [reading_of(c, samples) for c in part], asked, chunk, parts)
        numbers = _Counted(_shards(samples, asked.batch, chunk, pool.size()), samples, parts)
        for sums in pool.in_order(_summed, numbers, shared):
            for into, more in zip((fit, check), sums, strict=True):
                _merge(into, more)
            progress(f"statistics, pass {k + 1} of {len(passes)}: {numbers.rows} samples")
        seen, told = numbers.rows, numbers.told
        if len(passes) > 1:
            park(part, fit, check, parked.path / str(k))
    if by_key and not seen:
        raise UsageError("calibration: there are no samples")
    return Stats(fit, check, seen, parked, told)


class _Counted:
    """Shards, with the number of samples that have been handed out, and of those to tell results by."""

    def __init__(self, shards: Iterator[Shard], samples: Samples, parts: Parts) -> None:
        self._shards, self._axes, self._parts, self.rows, self.told = shards, samples.axes, parts, 0, 0

    def __iter__(self) -> Iterator[Shard]:
        for first, feeds in self._shards:
            for number, feed in enumerate(feeds, first):
                rows = rows_of(feed, self._axes)
                self.rows, self.told = self.rows + rows, self.told + (rows if self._parts(number) == "told" else 0)
            yield first, feeds


def _shards(samples: Samples, batch: int, chunk: int, workers: int) -> Iterator[Shard]:
    """Cut samples into whole chunks, as few as keep all workers busy: what comes back of each is large."""
    size = chunk
    if samples.count is not None:
        chunks = ceil(ceil(samples.count / batch) / chunk)
        size = chunk * ceil(chunks / workers)
    batches, first = iter(samples.batches(batch)), 0
    while feeds := list(islice(batches, size)):
        yield first, feeds
        first += len(feeds)


def _summed(shared: _Shared, shard: Shard) -> tuple[dict[Key, Gram], dict[Key, Gram]]:
    """Sum up the rows of one shard."""
    model = ir.from_proto(onnx.load_from_string(shared.model))
    watched = Watched(model, [s.name for r in shared.readings for s in r.sources], shared.asked.threads)
    fit: dict[Key, Gram] = {}
    check: dict[Key, Gram] = {}
    first, feeds = shard
    for number, feed in enumerate(feeds, first):
        if (use := shared.parts(number)) != "told":
            add_batch(fit if use == "fit" else check, shared.readings, watched, feed, Place(shared.asked.seed, number))
        if (number + 1) % shared.chunk == 0:
            settle(fit, check)
    settle(fit, check)
    return fit, check


def _merge(into: dict[Key, Gram], more: dict[Key, Gram]) -> None:
    for key, gram in more.items():
        if key in into:
            into[key].merge(gram)
        else:
            into[key] = gram
