"""What is known of a model from running it on samples: statistics of all consumers, and how to run it again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeVar

from graphprune.analysis import Analysis
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.shards import Asked, can_share, gather_over
from graphprune.calibrate.statistics import LIMIT, Stats, gather, sums_bytes
from graphprune.consumers import Consumers, consumers
from graphprune.errors import SessionError
from graphprune.reconstruct.shifts import with_places
from graphprune.scale import Pool
from graphprune.sizes import input_symbols

Progress = Callable[[str], None]
T = TypeVar("T")
_MOST = 32
_BYTES = 200_000_000
_BATCHES = 10


@dataclass(frozen=True)
class Knowledge:
    """Samples, who contracts what, and statistics of it; `batch` is how many samples go into one run.

    `turns` says by how much the block turns that a node ends, `labelled` has the samples with labels where there
    are any; `effort` is how much may be run to learn more, `pool` where. `apart`: fits are not made again from the
    samples that checked them too, so that what a model loses there is no smaller than elsewhere. Mutable only in what
    it remembers of what was computed from it.
    """

    samples: Samples
    consumers: Consumers
    stats: Stats
    batch: int
    seed: int
    turns: Mapping[str, float] = field(default_factory=dict)
    labelled: Samples | None = None
    effort: str = "medium"
    pool: Pool = field(default_factory=Pool)
    apart: bool = False
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned when it was first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]


def learn(
    analysis: Analysis, samples: Samples, *, limit: int = LIMIT, seed: int = 0, pool: Pool | None = None,
    progress: Progress = lambda text: None,
) -> Knowledge:
    """Run a model on samples once, or a few times where its statistics do not fit into `limit` bytes at once.

    >>> learn(analysis, samples).stats.samples  # doctest: +SKIP
    512

    The workers of a `pool` share the samples.

    Raises UsageError where samples do not fit the model or give numbers that are not finite.
    """
    found = _affordable(with_places(consumers(analysis.coupling), analysis.model), limit)
    batch = batch_of(analysis, found, samples)
    threads = threads_of(analysis)

    pool = pool or Pool()

    def run(batch: int) -> Stats:
        if not pool.alone and can_share(analysis.model):
            how = Asked(batch, seed, limit, analysis.looking.threads or 1)
            return gather_over(pool, analysis.model, found.found, samples, how, progress)
        return gather(
            analysis.model, found.found, samples, batch=batch, seed=seed, limit=limit, threads=threads,
            progress=progress,
        )

    try:
        stats = run(batch)
    except SessionError:
        if batch == 1:
            raise
        batch = 1  # a file may leave its batch open and yet take one sample only
        stats = run(batch)
    return Knowledge(samples, found, stats, batch, seed, pool=pool)


def _affordable(found: Consumers, limit: int) -> Consumers:
    """Return consumers without those whose sums alone do not fit into memory: they are left out, with the reason."""
    large = {
        c.node: f"its statistics would take {sums_bytes(c) / 1e9:.1f} GB (--memory)"
        for c in found.found if sums_bytes(c) > limit
    }
    return replace(
        found, found=tuple(c for c in found.found if c.node not in large), left_out={**found.left_out, **large}
    )


def threads_of(analysis: Analysis) -> int:
    """Return the threads to calibrate with: as asked for, but all cores by default, since nothing is timed here."""
    asked, timed = analysis.looking.threads, analysis.looking.runtime.threads
    if asked is not None:
        return asked
    return timed if timed > 1 else 0


def batch_of(analysis: Analysis, found: Consumers, samples: Samples) -> int:
    """Return how many samples to run at once: the model's own number, else what fits into 200 MB of activations.

    At least ten batches are made of the samples, so that there are some for each use (`parts.Parts`). Activations
    are what consumers read and what the model puts out, at the samples' sizes.
    """
    axes = samples.axes if samples.axes is not None else {n: 0 for n, s in input_symbols(analysis.model).items() if s}
    symbols = input_symbols(analysis.model)
    sizes = [symbols[n][k] for n, k in axes.items() if k < len(symbols.get(n, ()))]
    fixed = [n for n in sizes if isinstance(n, int)]
    if fixed or not sizes:
        return max(fixed, default=1)
    shapes = analysis.coupling.graph.worlds.natural.shapes
    kept = {c.data for c in found.found} | {v.name for v in analysis.model.graph.outputs}
    used = sum(4 * prod(shapes.get(name, ())) for name in kept if name) * sample_scale(analysis, samples)
    most = max(1, min(_MOST, int(_BYTES / max(used, 1))))
    return max(1, min(most, (samples.count or most * _BATCHES) // _BATCHES))


def macs_of_sample(analysis: Analysis, samples: Samples) -> float:
    """Return the multiply-accumulates of the dense model for one sample.

    >>> macs_of_sample(analysis, samples)  # doctest: +SKIP
    1.8e9
    """
    return analysis.dense.macs * sample_scale(analysis, samples)


def sample_scale(analysis: Analysis, samples: Samples) -> float:
    """Return how many times as much one sample is as the inputs that the model was looked at with: 32 for 512 tokens
    where that were 16.

    1 where there are no samples.
    """
    natural = analysis.coupling.graph.worlds.natural_inputs
    feed = next(iter(samples.batches(1)), {})
    found = [a.size / max(prod(natural[n]), 1) for n, a in feed.items() if natural.get(n) and a.size]
    return max(found, default=1.0)
