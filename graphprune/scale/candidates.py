"""What candidates cost at the outputs: models are pruned and refitted here, and run wherever a pool says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from graphprune.analysis import Analysis
from graphprune.calibrate.knowledge import Knowledge, macs_of_sample, threads_of
from graphprune.calibrate.samples import Feed
from graphprune.calibrate.shards import can_share, packed
from graphprune.consumers import Consumers
from graphprune.execute import session
from graphprune.quality import Comparison
from graphprune.reconstruct.mend import mend
from graphprune.rewrite import Chosen, arranged, rearranged
from graphprune.runtime import Runtime, open_session, run

_OPENING = 500  # multiply-accumulates that one weight costs when a model is built and opened

Runs = Sequence[tuple[Feed, Mapping[str, Any]]]
"""Feeds, with what the dense model gives for them."""


def cost_of(analysis: Analysis, known: Knowledge, samples: float) -> float:
    """Return the multiply-accumulates that it takes to build a candidate, at most, and to run it on so many samples.

    >>> cost_of(analysis, known, 16)  # doctest: +SKIP
    2.7e9
    """
    running = macs_of_sample(analysis, known.samples) * samples
    return running + _OPENING * analysis.dense.parameters + 1


def losses(analysis: Analysis, known: Knowledge, candidates: Iterable[Chosen], runs: Runs) -> Iterator[float | None]:
    """Yield, for each candidate in order, what the outputs lose when only these indices stay.

    The readers of what is pruned are refitted, each by itself. Losses are `Divergence.loss`, summed over outputs; None
    where no output can be compared. The workers of `known.pool` run the models.

    >>> list(losses(analysis, known, [{dim: np.arange(8)}], runs))  # doctest: +SKIP
    [0.003]
    """
    pool, threads = known.pool, threads_of(analysis)
    if pool.alone or analysis.coupling.graph.ports or not can_share(analysis.model):
        for chosen in candidates:

            def arrange(arrays: Mapping[str, Any], chosen: Chosen = chosen) -> Mapping[str, Any]:
                return arranged(arrays, analysis.coupling, chosen)

            yield _loss(session(built(analysis, known, chosen), Runtime(threads=threads)), runs, arrange)
        return
    yield from pool.in_order(
        _loss_of, (packed(built(analysis, known, chosen)) for chosen in candidates),
        _Shared(list(runs), analysis.looking.threads or 1),
    )


def built(analysis: Analysis, known: Knowledge, chosen: Chosen) -> ir.Model:
    """Return the model with these indices left, the readers of what was pruned refitted."""
    coupling = analysis.coupling
    readers = Consumers(tuple(c for dim in chosen for c in known.consumers.by_dim.get(dim, ())), {})
    pruned = rearranged(analysis.model, coupling, chosen)
    mend(analysis.model, pruned, coupling, chosen, replace(known, consumers=readers), mode="symmetric")
    return pruned


@dataclass(frozen=True)
class _Shared:
    runs: Runs
    threads: int


def _loss_of(shared: _Shared, model: bytes) -> float | None:
    """Run a model that was sent here."""
    return _loss(open_session(model, Runtime(threads=shared.threads)), shared.runs, lambda arrays: arrays)


def _loss(opened: Any, runs: Runs, arrange: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> float | None:
    compared = Comparison()
    for feed, dense in runs:
        compared.add(arrange(dense), run(opened, arrange(feed)), feed)
    return compared.loss
