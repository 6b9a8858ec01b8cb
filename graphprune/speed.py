"""A target of measured latency: allocate by MACs, time the real model, correct, until the clock agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphprune.allocate import Budget
from graphprune.errors import TargetError
from graphprune.execute import runnable
from graphprune.measure import compare_latency
from graphprune.plan import PruningPlan
from graphprune.rewrite import arranged, rearranged

if TYPE_CHECKING:
    from graphprune.pipeline import Analysis

_ROUNDS = 8
_CLOSE = 0.03
_SECONDS = 1.0


@dataclass(frozen=True)
class _Trial:
    fraction: float
    speedup: float
    plan: PruningPlan


def allocate_for_speed(
    analysis: Analysis, decide: Callable[[Budget], PruningPlan], budget: Budget, speedup: float,
    progress: Callable[[str], None],
) -> PruningPlan:
    """Return the plan that keeps most MACs among those measured to be `speedup` times faster, to about 3 %.

    `decide` makes a plan for a budget. Every trial is a real model, timed against the dense one on this machine. Raises
    TargetError, with the fastest that was measured, if none gets there.
    """
    trials: list[_Trial] = []
    low, high, fraction = 0.0, 1.0, 1 / speedup
    while len(trials) < _ROUNDS:
        try:
            trial = _try(analysis, decide, budget, fraction)
        except TargetError:
            low, fraction = fraction, (fraction + high) / 2
            if high - low < 0.02 or (trials and fraction >= min(t.fraction for t in trials)):
                break
            continue
        if any(t.plan.keep == trial.plan.keep for t in trials):
            break
        trials.append(trial)
        progress(f"timed: {trial.speedup:.2f}x with {fraction:.0%} of the MACs")
        if abs(trial.speedup / speedup - 1) <= _CLOSE:
            break
        if trial.speedup >= speedup:
            low = max(low, fraction)
        else:
            high = min(high, fraction)
        step = fraction * trial.speedup / speedup
        fraction = step if low < step < high else (low + high) / 2
    enough = [t for t in trials if t.speedup >= speedup * (1 - _CLOSE)]
    if not enough:
        best = max((t.speedup for t in trials), default=1.0)
        raise TargetError(
            f"a speed-up of {speedup:g} is out of reach here: the fastest model measured {best:.2f}x; "
            "ask for less, or lower --floor"
        )
    return max(enough, key=lambda t: t.fraction).plan


def _try(analysis: Analysis, decide: Callable[[Budget], PruningPlan], budget: Budget, fraction: float) -> _Trial:
    plan = decide(replace(budget, targets={"macs": fraction}))
    chosen = plan.chosen(analysis.coupling)
    pruned = rearranged(analysis.model, analysis.coupling, chosen)
    feed = analysis.reference.feeds[0]
    other = arranged(feed, analysis.coupling, chosen)
    with runnable(analysis.original, analysis.source) as dense, runnable(pruned) as candidate:
        timing = compare_latency(dense, candidate, feed, other, analysis.looking.runtime, _SECONDS)
    return _Trial(fraction, timing.speedup, plan)
