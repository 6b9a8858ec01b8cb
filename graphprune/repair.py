"""Repair as a stage of the pipeline: which kind, how much of it, and how far the outputs are off before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, cast

import onnx_ir as ir

from graphprune.analysis import Analysis, Progress, silent
from graphprune.calibrate.knowledge import Knowledge, macs_of_sample, threads_of
from graphprune.calibrate.parts import CHECK
from graphprune.calibrate.samples import Feed
from graphprune.groups import Coupling
from graphprune.options import Calibrating, Repair
from graphprune.quality import Divergence, measure, nearer, told_feeds
from graphprune.reconstruct.folded import mend_by_folding
from graphprune.reconstruct.mend import Mended, Mode, Watch, mend
from graphprune.reconstruct.unseen import mend_by_weights
from graphprune.repaired import Look, Repaired, layers_record, repair_record
from graphprune.rewrite import Chosen, arranged

_CORRECTIONS = {"low": (1, 4), "medium": (3, 32), "high": (10**6, 10**6)}  # fewest and most, by effort
_CORRECTION_WORK = 1e12  # multiply-accumulates that they may cost: half a minute on two cores
_SHARE = 0.75  # of a run of both models over all samples, what a correction in the middle of a graph costs
_TOO_FEW = 0.2  # affordable ones, below which none is made
_ROUNDS = 2
_LOOKS = 4  # parts of the corrections after which outputs are compared
_BATCHES = 16  # that one comparison runs
_LOOK_WORK = 2e11  # multiply-accumulates that comparisons in between may cost, unless effort is high: seconds

UNSEEN: Mapping[str, Callable[[ir.Model, Coupling, Chosen], list[Mended]]] = {
    "weights": mend_by_weights,
    "fold": mend_by_folding,
}
"""The kinds of repair that nothing is run for."""

Repairing: TypeAlias = "Callable[[Analysis, ir.Model, Chosen, Progress], dict[str, Any]]"
"""Repairs a pruned model in place, and returns what a report says of it."""


def repair(
    analysis: Analysis, pruned: ir.Model, chosen: Chosen, known: Knowledge, asked: Calibrating, progress: Progress
) -> Repaired:
    """Repair a pruned model in place, and measure its outputs before and after.

    A layer is repaired as far as samples that were left out of its fit confirm it.
    """

    def looked() -> tuple[Divergence, ...]:
        progress("comparing outputs")
        return divergences(analysis, pruned, chosen, told_feeds(known))

    often = asked.effort == "high" or look_work(analysis, known) * (_LOOKS - 1) <= _LOOK_WORK

    def watch(done: int, corrections: int) -> bool:
        if done in (0, corrections) or (often and done * _LOOKS // corrections > (done - 1) * _LOOKS // corrections):
            stage = f"after correction {done} of {corrections}" if done else "after symmetric repair"
            seen.append(Look(stage, looked()))
        return nearer(seen[-1].outputs, seen[1].outputs)

    seen = [Look("before repair", looked())]
    mode: Repair = asked.repair if asked.repair != "auto" else _best(known)
    layers: list[Mended] = []
    if mode in UNSEEN:
        layers = UNSEEN[mode](pruned, analysis.coupling, chosen)
    elif mode != "none":
        layers = mended(analysis, pruned, chosen, known, asked.effort, mode=mode, progress=progress, watch=watch)
    first = seen[1] if len(seen) > 1 else None
    if first is None:
        seen += [Look(f"after {mode} repair", looked())] if layers else []
    elif seen[-1] is not first and not nearer(seen[-1].outputs, first.outputs):
        seen.append(replace(first, stage="corrections taken back"))
        mode = "symmetric"
    return Repaired(tuple(layers), tuple(seen), mode)


def mended(
    analysis: Analysis, pruned: ir.Model, chosen: Chosen, known: Knowledge, effort: str, *,
    mode: Repair | None = None, progress: Progress = silent, watch: Watch = lambda done, corrections: True,
) -> list[Mended]:
    """Repair a pruned model in place, as much as an effort permits; by default in the mode that the samples allow."""
    return mend(
        analysis.model, pruned, analysis.coupling, chosen, known, mode=cast(Mode, mode or _best(known)),
        threads=threads_of(analysis), corrections=_corrections(analysis, known, effort),
        rounds=_rounds(analysis, known, effort), progress=progress, watch=watch,
    )


def mending_work(analysis: Analysis, known: Knowledge, effort: str) -> float:
    """Return how many multiply-accumulates the corrections take of `mended`."""
    passes = min(_corrections(analysis, known, effort), len(known.consumers.found)) * (
        1 + _rounds(analysis, known, effort)
    )
    return passes * _SHARE * macs_of_sample(analysis, known.samples) * known.stats.samples


def repairing_unseen(mode: Repair, remark: str) -> Repairing:
    """Return what repairs by weights alone (`UNSEEN`), where there is nothing to learn from running a model."""

    def repairing(analysis: Analysis, pruned: ir.Model, chosen: Chosen, progress: Progress) -> dict[str, Any]:
        progress("repairing by weights")
        layers = UNSEEN[mode](pruned, analysis.coupling, chosen)
        said = f"{remark}; repaired by weights alone" if remark and layers else remark
        return {**repair_record(None, None, said), "repair": {**layers_record(mode, layers), "notes": []}}

    return repairing


def divergences(
    analysis: Analysis, pruned: ir.Model, chosen: Chosen, feeds: Iterable[Feed]
) -> tuple[Divergence, ...]:
    """Return how far each output of a pruned model is from the dense model's, on the first 16 of some batches."""

    def arrange(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        return arranged(arrays, analysis.coupling, chosen)

    return tuple(measure(analysis.model, pruned, feeds, arrange, threads_of(analysis)))


def look_work(analysis: Analysis, known: Knowledge) -> float:
    """Return how many multiply-accumulates one comparison of the outputs takes, of both models together."""
    stats = known.stats
    told = stats.told or (stats.samples / CHECK if stats.check else stats.samples)
    return 2.0 * macs_of_sample(analysis, known.samples) * min(_BATCHES * known.batch, told)


def _best(known: Knowledge) -> Repair:
    """Return how to repair: one layer after the other; outputs are matched to data only, never to what is made up."""
    return "matched" if known.samples.source == "in-distribution" else "sequential"


def _affordable(analysis: Analysis, known: Knowledge) -> float:
    macs = macs_of_sample(analysis, known.samples) * known.stats.samples
    return _CORRECTION_WORK / max(_SHARE * macs, 1.0)


def _corrections(analysis: Analysis, known: Knowledge, effort: str) -> int:
    """Return how many layers to correct: both models run over all samples for each of them.

    None where one alone would cost five times what they may (a language model on long texts), but with high effort.
    """
    affordable = _affordable(analysis, known)
    fewest, most = _CORRECTIONS[effort]
    return max(fewest, min(most, int(affordable))) if affordable > _TOO_FEW or effort == "high" else 0


def _rounds(analysis: Analysis, known: Knowledge, effort: str) -> int:
    """Return how often to fit each layer again to what passes the rectifier behind it."""
    layers = min(len(known.consumers.found), _CORRECTIONS[effort][1])
    plenty = _affordable(analysis, known) >= (1 + _ROUNDS) * layers
    return _ROUNDS if effort == "high" or (effort == "medium" and plenty) else 0
