"""Time models over a grid of providers, threads and batch sizes, in one way everywhere; what cannot run is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from graphprune import writing
from graphprune.analysis import Analysis, analyse
from graphprune.bench import fitted
from graphprune.errors import GraphPruneError, RuntimeUnavailable, SessionError, UsageError
from graphprune.measure import Comparison, race
from graphprune.memory import peak_memory_mb
from graphprune.model import load
from graphprune.options import Looking
from graphprune.runtime import Feeds, Runtime, resolve_provider
from graphprune.sizes import BATCH, Shapes, input_symbols

COLUMNS = (
    "provider", "threads", "batch", "model", "median_ms", "p10_ms", "p90_ms", "p99_ms", "rounds", "items_per_second",
    "speedup", "noise_band", "faster_beyond_noise", "peak_memory_mb", "skipped",
)
"""Of the CSV file, in this order."""


@dataclass(frozen=True)
class Grid:
    """What to time at: every combination. A batch of None leaves that to the inputs.

    >>> len(Grid(("cpu",), (1, 2), (1, 8)).cells)
    4

    Raises `UsageError` where there is nothing to combine.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: tuple[int, ...] = (1,)
    batches: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        if not (self.providers and self.threads and self.batches):
            raise UsageError("a grid needs at least one provider, one number of threads and one batch size")

    @property
    def cells(self) -> list[tuple[Runtime, int | None]]:
        """Every combination, batch sizes innermost."""
        both = product(self.providers, self.threads, self.batches)
        return [(Runtime(provider, threads), batch) for provider, threads, batch in both]


def bench_models(
    models: Sequence[Path], looking: Looking, grid: Grid, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what `bench --json` prints: for each cell and model percentiles, throughput, speed against the first
    model with the noise band, and peak memory.

    `seconds` is about how long each cell is timed. Where there are several cells, one that cannot run is a row of
    `skipped` with the reason; raises a GraphPruneError where none can.
    """
    names = _names(models)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    opened = _Opened(models, looking, several=len(grid.batches) > 1)
    failed: GraphPruneError | None = None
    for k, (runtime, batch) in enumerate(grid.cells):
        where = f"{runtime.provider}, threads {runtime.threads}" + (f", batch {batch}" if batch else "")
        label = f"timing ({where}; {k + 1} of {len(grid.cells)})" if len(grid.cells) > 1 else "timing"
        cell = {"provider": runtime.provider, "threads": runtime.threads, "batch": batch}
        try:
            resolve_provider(runtime.provider)
            feeds, items = opened.at(batch, progress)
            progress(label)
            found = race(list(zip(map(str, models), feeds, strict=True)), runtime, seconds)
            progress(f"{label}: memory")
            peaks = [peak_memory_mb(path, own, runtime) for path, own in zip(models, feeds, strict=True)]
        except (RuntimeUnavailable, SessionError, UsageError) as error:
            if len(grid.cells) == 1:
                raise
            failed = failed or error
            skipped.append({**cell, "skipped": str(error)})
        else:
            named = zip(names, found, peaks, strict=True)
            rows += [{**cell, "batch": items, **_row(name, one, items), "peak_memory_mb": p} for name, one, p in named]
    if failed is not None and not rows:
        raise failed
    return {"models": rows, "skipped": skipped, "inputs": opened.shapes, "assumed": opened.assumed}


def _row(name: str, found: Comparison, items: int) -> dict[str, Any]:
    """Return the numbers of one model in one cell; the first model is compared with itself."""
    timing = found.after
    return {
        "model": name,
        **asdict(timing),
        "items_per_second": items / timing.median_ms * 1e3 if timing.median_ms else None,
        "speedup": found.speedup,
        "noise_band": found.noise_band,
        "faster_beyond_noise": found.significant and found.speedup > 1,
    }


def _names(models: Sequence[Path]) -> list[str]:
    """Return the paths as given; one given again is `path (2)`, so that a model can be timed against itself.

    >>> _names([Path("a.onnx"), Path("a.onnx")])
    ['a.onnx', 'a.onnx (2)']
    """
    paths = [str(m) for m in models]
    earlier = [paths[:k].count(p) for k, p in enumerate(paths)]
    return [f"{p} ({n + 1})" if n else p for p, n in zip(paths, earlier, strict=True)]


class _Opened:
    """Inputs for all models at each batch size, made when first asked for."""

    def __init__(self, models: Sequence[Path], looking: Looking, several: bool) -> None:
        self.models, self.looking, self.several = models, looking, several
        self.known: dict[int | None, tuple[list[Feeds], int]] = {}
        self.shapes: Shapes = {}
        self.assumed: list[str] = []
        if several and looking.inputs:
            raise UsageError("--inputs gives one batch: give no more than one --batch with it")

    def at(self, batch: int | None, progress: Callable[[str], None]) -> tuple[list[Feeds], int]:
        """Return inputs of each model, and how many items they have; raises UsageError for a batch that is fixed."""
        if batch not in self.known:
            analysis = analyse(self.models[0], replace(self.looking, batch=batch), progress)
            feed = analysis.reference.feeds[0]
            items = items_of(analysis, feed)
            if self.several and items != batch:
                raise UsageError(f"{self.models[0].name} takes a batch of {items}, not {batch}")
            self.known[batch] = [feed, *[fitted(feed, load(path)) for path in self.models[1:]]], items
            if not self.shapes:
                self.shapes = {name: tuple(a.shape) for name, a in feed.items()}
                self.assumed = list(analysis.assumed)
        return self.known[batch]


def items_of(analysis: Analysis, feed: Feeds) -> int:
    """Return how many items one run computes: the size of an axis called batch, else the leading size of all inputs.

    1 where inputs have no leading size in common.
    """
    symbols = input_symbols(analysis.original)
    named = [
        feed[name].shape[k]
        for name, sizes in symbols.items()
        for k, size in enumerate(sizes)
        if name in feed and isinstance(size, str) and BATCH.search(size)
    ]
    leading = {np.shape(a)[0] for a in feed.values() if np.ndim(a)}
    return int(named[0] if named else leading.pop() if len(leading) == 1 else 1)


def as_csv(record: Mapping[str, Any]) -> str:
    """Return a bench as CSV with a header, one line for each model and cell; skipped cells have a reason."""
    return writing.as_csv((*record["models"], *record["skipped"]), COLUMNS)


def numbers(texts: Sequence[str] | None, option: str, least: int) -> Iterator[int]:
    """Yield the whole numbers of an option that is repeated or has commas, each once; raises UsageError.

    >>> list(numbers(["1,2", "4"], "--threads", 0))
    [1, 2, 4]
    """
    for text in words(texts):
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise UsageError(f"{option} {text}: give whole numbers of at least {least}, such as {option} 1,2,4")
        yield int(text)


def words(texts: Sequence[str] | None) -> list[str]:
    """Return the words of an option that is repeated or has commas, each once.

    >>> words(["cpu,cuda", "cpu"])
    ['cpu', 'cuda']
    """
    return list(dict.fromkeys(w.strip() for text in texts or () for w in text.split(",") if w.strip()))
