"""A target of measured latency: allocate by predicted latency, time the real model, correct, until the clock agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphprune.allocate import Budget, Decide
from graphprune.costs import CostModel
from graphprune.errors import TargetError
from graphprune.execute import runnable
from graphprune.machine.known import Known
from graphprune.measure import speedup_of
from graphprune.plan import PruningPlan
from graphprune.rewrite import Chosen, arranged, rearranged
from graphprune.timed import clock_of

if TYPE_CHECKING:
    from graphprune.pipeline import Analysis

_MOST = 6
CLOSE = 0.03
_AIM = 1.015
_SECONDS = 2.0
_LEAST = 0.02
_WRONG = 0.08


@dataclass(frozen=True)
class Trial:
    """A model that was built and timed: what was allowed and what was predicted of the dense latency, and the truth."""

    allowed: float
    predicted: float
    speedup: float
    plan: PruningPlan

    def to_json(self) -> dict[str, float]:
        """Return the predicted and the measured speed-up."""
        return {"predicted": 1 / self.predicted, "measured": self.speedup}


def allocate_for_speed(
    analysis: Analysis, decide: Decide, budget: Budget, speedup: float, known: Known, progress: Callable[[str], None]
) -> PruningPlan:
    """Return the plan that removes least among those measured to be `speedup` times faster, to about 3 %.

    `budget` has what else is asked for. Every trial is a real model, timed against the dense one on this machine. What
    the prediction was wrong by moves the target of the next, and the model's profile mends the prediction where it was
    far off. Where the machine is another one, its prediction counts. At most six models are timed. Raises TargetError,
    with the fastest that was measured, if none gets there.
    """
    trials: list[Trial] = []
    low, high, allowed = 0.0, 1.0, 1 / (speedup * _AIM)
    while len(trials) < _MOST and high - low > _LEAST * allowed:
        costs = _costs(analysis, known)
        try:
            plan = decide(replace(budget, targets={**budget.targets, "latency": min(allowed, 1.0)}), costs)
        except TargetError:
            if known.foreign:
                raise
            low, allowed = max(low, allowed), (allowed + high) / 2
            continue
        predicted = costs(plan.sizes_of(analysis.coupling)).of("latency") / costs({}).of("latency")
        if known.foreign:
            return _told(Trial(allowed, predicted, 1 / predicted, plan), known, speedup, [])
        if any(t.plan.keep == plan.keep for t in trials):
            break
        trial = Trial(allowed, predicted, measured(analysis, plan), plan)
        trials.append(trial)
        progress(f"timed: {trial.speedup:.2f}x, predicted {1 / predicted:.2f}x")
        if 0 <= trial.speedup / speedup - 1 <= CLOSE:
            break
        if abs(trial.speedup * trial.predicted - 1) > _WRONG:
            known = known.refined(analysis, plan.sizes_of(analysis.coupling))
        allowed, low, high = _next(trials, analysis, known, speedup)
    enough = [t for t in trials if t.speedup >= speedup * (1 - CLOSE)]
    if not enough:
        best = max((t.speedup for t in trials), default=1.0)
        raise TargetError(
            f"a speed-up of {speedup:g} is out of reach here: the fastest model measured {best:.2f}x; "
            "ask for less, or lower --floor"
        )
    met = [t for t in enough if t.speedup >= speedup] or enough
    return _told(min(met, key=lambda t: t.speedup), known, speedup, trials)


def _next(
    trials: list[Trial], analysis: Analysis, known: Known, speedup: float
) -> tuple[float, float, float]:
    """Return what to allow next, and the bounds that trials have shown, all in what is predicted now."""
    costs = _costs(analysis, known)
    dense = costs({}).of("latency")
    now = [costs(t.plan.sizes_of(analysis.coupling)).of("latency") / dense for t in trials]
    wanted = 1 / (speedup * _AIM)
    low = max((p for p, t in zip(now, trials, strict=True) if t.speedup >= speedup), default=0.0)
    high = min((p for p, t in zip(now, trials, strict=True) if t.speedup < speedup), default=1.0)
    off = trials[-1].speedup * now[-1]  # predicted over measured latency
    step = wanted * off
    if low < high and not low < step < high and len(trials) > 1:
        step = (low + high) / 2
    return step, min(low, step), max(high, step)


def _costs(analysis: Analysis, known: Known) -> CostModel:
    return CostModel(analysis.coupling, (*analysis.costs.pricings, known.latency))


def measured(analysis: Analysis, plan: PruningPlan) -> float:
    """Return how many times faster the model of a plan runs than the dense one, both timed in turn."""
    return measured_of(analysis, plan.chosen(analysis.coupling))


def measured_of(analysis: Analysis, chosen: Chosen) -> float:
    """Return how many times faster the model with these indices left runs than the dense one."""
    pruned = rearranged(analysis.model, analysis.coupling, chosen)
    feed = analysis.reference.feeds[0]
    other = arranged(feed, analysis.coupling, chosen)
    runtime = analysis.looking.runtime
    with runnable(analysis.original, analysis.source) as dense, runnable(pruned) as candidate:
        return speedup_of((dense, feed), (candidate, other), runtime, _SECONDS, clock_of(runtime))


def _told(taken: Trial, known: Known, speedup: float, trials: list[Trial]) -> PruningPlan:
    """Return the plan of a trial with how its speed was found; none was timed for another machine."""
    said: Mapping[str, Any] = {
        "asked": speedup,
        "machine": str(known.table.where),
        "predicted": 1 / taken.predicted,
        "measured": taken.speedup if trials else None,
        "by": known.latency.by,
        "trials": [t.to_json() for t in trials],
        "remarks": list(known.remarks),
    }
    return replace(taken.plan, meta={**taken.plan.meta, "speed": said})
