"""Search: what groups give up is varied, and whole models are pruned, refitted and run to see what that does.

The allocation by error curves adds up what single groups lose. Here it is where an evolution starts from, which keeps
to the same limits and looks at what outputs lose by all groups together (`allocate/evolve.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.accuracy import Deciding
from graphprune.allocate import Budget, Decide
from graphprune.allocate.evolve import Pace, evolve
from graphprune.allocate.knapsack import Levels, Task, filled, greedy
from graphprune.allocate.lagrange import relaxed
from graphprune.assembled import MEMORY, Candidates, Compared, compared
from graphprune.calibrate.knowledge import macs_of_sample, sample_scale
from graphprune.calibrate.samples import Feed, rows_of
from graphprune.confirming import settled
from graphprune.costs import CostModel
from graphprune.errors import TargetError
from graphprune.plan import PruningPlan
from graphprune.quality import nearer, searching_feeds, together
from graphprune.rewrite import Chosen
from graphprune.scale.candidates import cost_of

if TYPE_CHECKING:
    from graphprune.machine.known import Known

Progress = Callable[[str], None]
WORK = {"low": 0.0, "medium": 0.0, "high": 3e13}  # multiply-accumulates of all candidates: minutes on two cores
MOST = {"low": 0, "medium": 0, "high": 400}
_FEWEST = 16  # candidates, below which nothing is searched
_SAMPLES, _TOKENS = 256, 4096  # that candidates are compared on: samples, or rows of outputs where a sample has many
_PLANS = 3e11  # multiply-accumulates for which a plan of a few may be run, where that is more samples
_KEPT = 2e7  # numbers of its outputs then
_FEW = 4  # the first look is at this part of them
_SHARE = 0.4  # of all samples, what a candidate is run on in the mean
_LEVELS = (8, 32)  # of one group that are looked at: each is a refit of its readers
_REFITS = 5e12  # multiplications that all of them may take, down to the fewer levels
_SOLVED = 8  # solutions of a layer's system that one refit takes
_TIMED = 2
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Searched:
    """What a search found: `before` and `after` are divergences on its own samples, `samples` how many these are."""

    evaluations: int
    generations: int
    before: float
    after: float
    samples: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def improved(deciding: Deciding, plan: PruningPlan, budget: Budget, progress: Progress) -> PruningPlan:
    """Return a plan that costs no more than a budget permits and loses less at the outputs, if the effort permits any.

    `plan` is the one to start from, which meets the budget. What was found is in the new plan's `meta`, under
    "search": its divergences are of samples that results are not told by.

    >>> improved(deciding, plan, Budget(targets={"macs": 0.5}), print).meta["search"]["after"]  # doctest: +SKIP
    0.031
    """
    analysis, known = deciding.analysis, deciding.known
    feeds = searching_feeds(known, _feeds(deciding))
    samples = sum(rows_of(f, known.samples.axes) for f in feeds)
    evaluations = _affordable(deciding, samples)
    if evaluations < _FEWEST or not feeds:
        return plan
    posed = deciding.posed(budget)
    start = posed.levels({**{name: len(kept) for name, kept in plan.keep.items()}, **dict.fromkeys(plan.bypass, 0)})
    task = _thinned(posed.task, start, _levels(deciding))
    if not task.fits(start) or sum(len(o) > 1 for o in task.open) < 2:
        return plan

    def chosen(levels: Levels) -> Chosen:
        return deciding.plan(posed.counts(levels), budget).chosen(analysis.coupling)

    progress("search: running the dense model")
    candidates = Candidates(analysis, known, chosen, _runs(deciding, feeds), MEMORY)
    stages = tuple(dict.fromkeys((max(1, len(feeds) // _FEW), len(feeds))))
    pace = Pace(evaluations, stages, seed=known.seed)

    def told(done: int, least: float) -> None:
        progress(f"search: {done} of {evaluations} candidates, divergence {least:.4g}")

    found = evolve(task, start, candidates, pace, quickly, told)
    path, raised = list(found.path), filled(posed.task, found.levels)
    if raised != found.levels and (loss := candidates(raised, len(feeds))) < found.after:
        path.append((raised, loss))
    asked = len(feeds), WORK[known.effort]
    levels, after = path[settled(deciding, [x for x, _ in path], chosen, asked, progress)]
    said = Searched(found.evaluations, found.generations, found.before, after, samples)
    better = deciding.plan(posed.counts(levels), budget) if levels != start else plan
    return replace(better, meta={**better.meta, "search": said.record()})


def searched(decide: Decide, budget: Budget, costs: CostModel, progress: Progress) -> PruningPlan:
    """Return the plan for a budget, and a better one where errors decide and the effort permits to search for it."""
    plan = decide(budget, costs)
    if isinstance(decide, Deciding) and budget.allocation == "error":
        return improved(decide.counting(costs), plan, budget, progress)
    return plan


def less_lost(
    decide: Decide, plan: PruningPlan, budget: Budget, asked: tuple[float, Known], progress: Progress
) -> PruningPlan:
    """Return a plan by latency, or one by multiply-accumulates or by both, timed to be as fast, that loses less.

    Predicted times say which layers are worth narrowing, and are wrong by some percent for each; which error is the
    larger differs from model to model, so all are pruned, refitted and run. Where no other loses less by more than
    chance gives, the plan by latency stays. `asked` has the speed-up and what predicts latencies. With low effort, and
    for another machine, the given plan stays.
    """
    speedup, known = asked
    if not isinstance(decide, Deciding) or budget.allocation != "error":
        return plan
    if known.foreign or decide.known.effort == "low":
        return plan
    feeds = searching_feeds(decide.known, _feeds(decide, _PLANS))
    if not feeds:
        return plan
    plans = [plan, *_as_fast(decide, plan, budget, (speedup, known), progress)]
    if len(plans) == 1:
        return plan
    progress("comparing plans")
    chosen = [p.chosen(decide.analysis.coupling) for p in plans]
    made = Candidates(decide.analysis, decide.known, lambda levels: chosen[levels[0]], _runs(decide, feeds), MEMORY)
    found = [made.outputs((k,), len(feeds)) for k in range(len(plans))]
    least = min(range(len(plans)), key=lambda k: together(found[k]))
    return plans[least] if nearer(found[least], found[0]) else plan


def _as_fast(
    decide: Deciding, plan: PruningPlan, budget: Budget, asked: tuple[float, Known], progress: Progress
) -> Iterator[PruningPlan]:
    """Yield other plans by other prices that were measured to be as fast."""
    from graphprune.machine.counted import Counted
    from graphprune.machine.latency import Latency
    from graphprune.machine.mixed import Mixed
    from graphprune.speed import allocate_for_speed

    speedup, known = asked
    seen = [plan]
    for price in (Counted(), *((Mixed(known.latency),) if isinstance(known.latency, Latency) else ())):
        try:
            other = allocate_for_speed(
                decide.analysis, decide, budget, speedup, replace(known, latency=price), progress
            )
        except TargetError:
            continue
        if all(other.keep != p.keep or other.bypass != p.bypass for p in seen):
            seen.append(other)
            yield other


def faster(
    decide: Decide, plan: PruningPlan, budget: Budget, asked: tuple[float, Known], progress: Progress
) -> PruningPlan:
    """Return a plan as fast as one that was measured to be, and better, where the effort permits to search for it.

    `asked` has the speed-up and what predicts latencies. A better plan whose model is too slow is made anew for less
    predicted time, twice at most; then the given one stays.
    """
    from graphprune.speed import CLOSE, measured

    speedup, known = asked
    if not isinstance(decide, Deciding) or budget.allocation != "error":
        return plan
    costs = CostModel(decide.analysis.coupling, (known.latency,))
    counted, dense = decide.counting(costs), costs({}).of("latency")
    allowed, start = costs(plan.sizes_of(costs.coupling)).of("latency") / dense, plan
    for _ in range(_TIMED):
        limited = replace(budget, targets={**budget.targets, "latency": min(allowed * (1 + _ROUNDING), 1.0)})
        try:
            start = start if start is plan else counted(limited)
        except TargetError:
            break
        better = improved(counted, start, limited, progress)
        if "search" not in better.meta or better.keep == plan.keep:
            break
        reached = None if known.foreign else measured(decide.analysis, better)
        if reached is None or reached >= speedup * (1 - CLOSE):
            predicted = dense / costs(better.sizes_of(costs.coupling)).of("latency")
            told = {**plan.meta.get("speed", {}), "predicted": predicted, "measured": reached}
            return replace(better, meta={**plan.meta, **better.meta, "speed": told})
        progress(f"searched, but timed {reached:.2f}x: once more")
        allowed, start = allowed * reached / speedup, better
    return plan


def _runs(deciding: Deciding, feeds: Sequence[Feed]) -> list[Compared]:
    """Return batches, the first so many, with the dense model's outputs: it runs once for all who compare plans."""
    return deciding.known.once(("compared", len(feeds)), lambda: compared(deciding.analysis, feeds))


def quickly(task: Task) -> Levels | None:
    """Return a good state within the limits of a task, without dynamic programming."""
    found = relaxed(replace(task, open=task.coarse())).levels or greedy(task)
    return None if found is None else filled(task, found)


def _levels(deciding: Deciding) -> int:
    """Return how many levels of each group to look at: fewer where refits are much work."""
    known = deciding.known
    each = _SOLVED * sum(c.groups * c.width**3 for c in known.consumers.found if c.key in known.stats.fit)
    return int(np.clip(_REFITS / max(each, 1.0), *_LEVELS))


def _thinned(task: Task, start: Levels, most: int) -> Task:
    """Return a task with at most so many levels of each group, and the first state's."""
    out = []
    for levels, own in zip(task.open, start, strict=True):
        at = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), most)).round().astype(int))
        out.append(tuple(sorted({*(levels[i] for i in at), own})))
    return replace(task, open=tuple(out))


def _feeds(deciding: Deciding, work: float = 0.0) -> int:
    """Return how many batches candidates are compared on: fewer where a sample has many rows of outputs.

    With `work`, multiply-accumulates for which a model may be run on them: as many as that and memory permit, if more.
    """
    analysis, known = deciding.analysis, deciding.known
    shapes = analysis.coupling.graph.worlds.natural.shapes
    sizes = [shapes.get(str(o.name), ()) for o in analysis.model.graph.outputs]
    scale = sample_scale(analysis, known.samples)
    rows = max([prod(s[1:-1]) for s in sizes], default=1) * scale
    kept = _KEPT / max(sum(prod(s[1:]) for s in sizes) * scale, 1)
    free = min(work / max(macs_of_sample(analysis, known.samples), 1), kept)
    return max(1, round(min(_SAMPLES, max(_TOKENS / max(rows, 1), free)) * known.samples.each / known.batch))


def _affordable(deciding: Deciding, samples: int) -> int:
    """Return how many candidates the effort permits that are compared on so many samples."""
    analysis, known = deciding.analysis, deciding.known
    cost = cost_of(analysis, known, samples * _SHARE)
    return min(MOST[known.effort], int(WORK[known.effort] / cost))
