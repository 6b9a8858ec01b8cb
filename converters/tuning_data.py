"""What a model is tuned on: samples with the dense model's answers or labels, in memory where they fit, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.given import open_data
from graphprune.calibrate.samples import Feed, Samples, rows_of
from graphprune.errors import UsageError

Array = Any
Answer = Callable[[Feed], Mapping[str, Array]]

LABELS = "graphprune.labels"
"""The name that labels have beside the inputs of a feed."""


def open_tuning(model: ir.Model, chosen: Calibration, batch: int, labels: str | None, seed: int) -> Samples:
    """Return samples to tune on; with labels these stand in the same .npz under that key.

    >>> open_tuning(model, parse_calibration("train.npz"), 64, "labels", 0).count  # doctest: +SKIP
    60000

    Raises UsageError where there is no such array, or not one label per sample.
    """
    if labels is None:
        return chosen.open(model, batch=batch, seed=seed)
    path = Path(str(chosen.data))
    if path.suffix != ".npz" or not path.is_file():
        raise UsageError(f"--labels {labels!r} is an array in the .npz of --data, which {path} is not")
    with np.load(path, allow_pickle=False) as file:
        if labels not in file.files:
            raise UsageError(f"{path}: has no array {labels!r}; there are {', '.join(file.files)}")
        arrays = {k: file[k] for k in file.files if k != labels}
        told = np.asarray(file[labels])
    samples = open_data(arrays, model, batch=batch, seed=seed, source=chosen.source)
    if told.ndim != 1 or told.dtype.kind not in "iu" or (samples.count or 0) != len(told):
        raise UsageError(f"{path}: {labels!r} is {told.dtype}{list(told.shape)}: give one whole number per sample")

    def opened() -> Iterator[Feed]:
        first = 0
        for feed in samples.open():
            rows = rows_of(feed, samples.axes)
            yield {**feed, LABELS: told[first : first + rows].astype(np.int64)}
            first += rows

    axes = None if samples.axes is None else {**samples.axes, LABELS: 0}
    return replace(samples, open=opened, axes=axes, pick=None)


@dataclass
class Batches:
    """Batches of feeds with answers, in another order each time; what fits into memory is asked for once."""

    samples: Samples
    answer: Answer
    size: int
    memory: float = 2e9
    seed: int = 0
    _kept: tuple[dict[str, Array], dict[str, Array]] | None = None
    _streams: bool = False

    def epoch(self, number: int) -> Iterator[tuple[Feed, Mapping[str, Array]]]:
        """Yield (feed, answers) once for all samples, shuffled by the seed and the number of the epoch."""
        if self._kept is None and not self._streams:
            self._keep()
        if self._kept is None:
            for feed in self.samples.batches(self.size):
                yield feed, self.answer(feed)
            return
        feeds, answers = self._kept
        count = len(next(iter(feeds.values())))
        order = np.random.default_rng([self.seed, number]).permutation(count)
        for k in range(0, count, self.size):
            rows = order[k : k + self.size]
            yield {n: a[rows] for n, a in feeds.items()}, {n: a[rows] for n, a in answers.items()}

    def steps(self) -> int:
        """Return how many batches an epoch has."""
        if self.samples.count is not None:
            return max(-(-self.samples.count // self.size), 1)
        return sum(1 for _ in self.samples.batches(self.size))

    def _keep(self) -> None:
        """Take everything into memory, unless it is too much or no axis counts the samples of all arrays."""
        feeds: list[Feed] = []
        answers: list[Mapping[str, Array]] = []
        taken = 0.0
        for feed in self.samples.batches(max(self.size, 256)):
            got = self.answer(feed)
            rows = rows_of(feed, self.samples.axes)
            arrays = [*feed.values(), *got.values()]
            taken += sum(a.nbytes for a in arrays)
            first = [np.asarray(a).shape[:1] for a in arrays]
            if taken > self.memory or any(s != (rows,) for s in first) or not _alike(feeds, feed):
                self._streams = True
                return
            feeds.append(feed)
            answers.append(got)
        if not feeds:
            raise UsageError("there are no samples to tune on")
        self._kept = (_joined(feeds), _joined(answers))


def _alike(feeds: list[Feed], feed: Feed) -> bool:
    return not feeds or all(feeds[0][k].shape[1:] == a.shape[1:] for k, a in feed.items())


def _joined(parts: list[Any]) -> dict[str, Array]:
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
