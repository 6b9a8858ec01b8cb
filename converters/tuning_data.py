"""What a model is tuned on: samples with the dense model's answers or labels, in memory where they fit, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.labelled import inputs_of, open_labelled
from graphprune.calibrate.samples import Feed, Samples, alike, joined, rows_of, taken
from graphprune.converters.augment import Change
from graphprune.converters.ranks import ALONE, Ranks
from graphprune.errors import UsageError

Array = Any
Answer = Callable[[Feed], Mapping[str, Array]]

_POOL = 0.25
"""The share of the memory that is shuffled at a time where samples are streamed: it is there up to three times."""



def open_tuning(model: ir.Model, chosen: Calibration, batch: int, labels: str | None, seed: int) -> Samples:
    """Return samples to tune on; with labels these stand in the same .npz under that key (`open_labelled`).

    >>> open_tuning(model, parse_calibration("train.npz"), 64, "labels", 0).count  # doctest: +SKIP
    60000
    """
    if labels is None:
        return chosen.open(model, batch=batch, seed=seed)
    return open_labelled(model, chosen, labels, seed, batch=batch)


@dataclass
class Batches:
    """Batches of feeds with answers, in another order each time; what fits into memory is asked for once.

    Where only the samples fit, answers are asked for batch by batch; where these do not fit either, they are streamed
    through a pool that is shuffled. `change` changes images each time. With several `ranks` a batch is `size` for
    each of them, and each takes its part of the same order.
    """

    samples: Samples
    answer: Answer
    size: int
    memory: float = 2e9
    seed: int = 0
    change: Change | None = None
    ranks: Ranks = ALONE
    _feeds: dict[str, Array] | None = None
    _answers: dict[str, Array] | None = None
    _streams: bool = field(default=False)

    def epoch(self, number: int) -> Iterator[tuple[Feed, Mapping[str, Array]]]:
        """Yield (feed, answers) once for all samples, shuffled by the seed and the number of the epoch."""
        if self._feeds is None and not self._streams:
            self._keep()
        random = np.random.default_rng([self.seed, number])
        if self._feeds is None:
            for feed in self._streamed(random):
                yield self._answered(self._mine(feed, random))
            return
        count = len(next(iter(self._feeds.values())))
        order = random.permutation(count)
        whole = self.size * self.ranks.world
        for k in range(0, count, whole):
            rows = order[k : k + whole]
            if self._answers is not None:
                yield {n: a[rows] for n, a in self._feeds.items()}, {n: a[rows] for n, a in self._answers.items()}
                continue
            yield self._answered(self._mine({n: a[rows] for n, a in self._feeds.items()}, random))

    def steps(self) -> int:
        """Return how many batches an epoch has."""
        whole: int = self.size * self.ranks.world
        if self.samples.count is not None:
            return max(-(-self.samples.count // whole), 1)
        return sum(1 for _ in self.samples.batches(whole))

    def _answered(self, feed: Feed) -> tuple[Feed, Mapping[str, Array]]:
        """Return a feed with answers; a process that has no part in a batch has none to ask for."""
        return feed, self.answer(inputs_of(feed)) if rows_of(feed, self.samples.axes) else {}

    def _mine(self, feed: Feed, random: np.random.Generator) -> Feed:
        """Return this process's samples of a batch, changed; all draw for the whole batch, so that all draw alike."""
        feed = feed if self.change is None else self.change(feed, random)
        count = rows_of(feed, self.samples.axes)
        if self.ranks.world == 1:
            return feed
        return taken(feed, range(*self.ranks.part(count)), self.samples.axes)

    def _streamed(self, random: np.random.Generator) -> Iterator[Feed]:
        """Yield batches out of a pool: where it is full, a random half of it goes."""
        whole, pool, taken_bytes = self.size * self.ranks.world, list[Feed](), 0.0
        for feed in self.samples.batches(whole):
            if pool and not alike(pool[0], feed, self.samples.axes):
                yield from self._shuffled(pool, random, 0)
                pool, taken_bytes = [], 0.0
            pool.append(feed)
            taken_bytes += sum(a.nbytes for a in feed.values())
            if taken_bytes > _POOL * self.memory:
                kept: list[Feed] = []
                yield from self._shuffled(pool, random, len(pool) // 2, kept)
                pool, taken_bytes = kept, sum(a.nbytes for f in kept for a in f.values())
        yield from self._shuffled(pool, random, 0)

    def _shuffled(
        self, pool: Sequence[Feed], random: np.random.Generator, stay: int, kept: list[Feed] | None = None
    ) -> Iterator[Feed]:
        """Yield the samples of a pool in another order, but for `stay` batches, which go into `kept`."""
        if len(pool) == 1 or not pool or not alike(pool[0], pool[0], self.samples.axes):
            yield from pool  # one feed is one sample, or there is nothing to mix
            return
        whole = self.size * self.ranks.world
        everything = joined(list(pool), self.samples.axes)
        count = rows_of(everything, self.samples.axes)
        order = random.permutation(count)
        for number, k in enumerate(range(0, count, whole)):
            part = taken(everything, order[k : k + whole].tolist(), self.samples.axes)
            if kept is not None and number < stay:
                kept.append(part)
            else:
                yield part

    def _keep(self) -> None:
        """Take what fits into memory: samples with answers, or samples; nothing if no axis counts those of all."""
        feeds: list[Feed] = []
        answers: list[Mapping[str, Array]] | None = [] if self.change is None and self.ranks.world == 1 else None
        room, more = self.memory, 0.0
        for feed in self.samples.batches(max(self.size, 256)):
            rows = rows_of(feed, self.samples.axes)
            room -= sum(a.nbytes for a in feed.values())
            if room < 0 or any(np.asarray(a).shape[:1] != (rows,) for a in feed.values()) or not _alike(feeds, feed):
                self._streams = True
                return
            feeds.append(feed)
            if answers is not None:
                got = self.answer(inputs_of(feed))
                more += sum(a.nbytes for a in got.values())
                fits = more < room and all(np.asarray(a).shape[:1] == (rows,) for a in got.values())
                answers = [*answers, got] if fits else None
        if not feeds:
            raise UsageError("there are no samples to tune on")
        self._feeds = _joined(feeds)
        self._answers = None if answers is None else _joined(answers)


def _alike(feeds: list[Feed], feed: Feed) -> bool:
    return not feeds or all(feeds[0][k].shape[1:] == a.shape[1:] for k, a in feed.items())


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
