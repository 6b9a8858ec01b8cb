"""Where damage starts: how much of what was asked for could go before outputs of the repaired model are damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphprune.allocate import Budget
from graphprune.calibrate.knowledge import Knowledge, threads_of
from graphprune.errors import GraphPruneError
from graphprune.quality import told_feeds
from graphprune.reconstruct.mend import mend
from graphprune.repair import UNSEEN, Repairing, divergences, look_work
from graphprune.rewrite import Chosen, rearranged

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.analysis import Analysis, Progress
    from graphprune.plan import PruningPlan

Decide = Callable[[Budget], "PruningPlan"]
_TRIES = 4
_WORK = 1e13  # multiplications that all tries together may cost: minutes on two cores
_PASSES = 8  # solutions of a layer's system that one repair takes, with cross-products


@dataclass(frozen=True)
class Onset:
    """The most that was found not to damage the outputs; `budget` asks for it, as `--sparsity` or `--target` do.

    `macs` and `params` are the fractions that are kept then. All of them are None where even the least that was tried
    does damage. `least` is the gentlest budget that was found to damage; `repair` is what was repaired by.
    """

    budget: Mapping[str, float] | None
    macs: float | None
    params: float | None
    least: Mapping[str, float]
    repair: str

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        found = dict(self.budget) if self.budget is not None else None
        damaged_at = dict(self.least)
        return {
            "budget": found, "macs": self.macs, "params": self.params, "damaged_at": damaged_at, "repair": self.repair
        }


def telling_onset(
    repairing: Repairing, known: Knowledge, budget: Budget, decider: Callable[[], Decide]
) -> Repairing:
    """Return a repair that says, where outputs are damaged in spite of it, how much could go without damage."""

    def told(analysis: Analysis, pruned: ir.Model, chosen: Chosen, progress: Progress) -> dict[str, Any]:
        done = repairing(analysis, pruned, chosen, progress)
        if not done["divergence"] or not done["divergence"]["damaged"]:
            return done
        sizes = {dim: len(kept) for dim, kept in chosen.items()}
        asked = budget
        if budget.targets:  # a speed-up was met by other MACs than were asked for first
            asked = replace(budget, targets=_reached(analysis, budget, sizes))
        found = onset(analysis, known, decider(), asked, _cheapest(done["repair"]["mode"]), progress)
        return {**done, "divergence": {**done["divergence"], "onset": found.record() if found else None}}

    return told


def _cheapest(mode: str) -> str:
    """Return the repair to search with: instead of the one in order, the one layer by layer, which is much cheaper."""
    return "symmetric" if mode in ("sequential", "matched") else mode


def onset(
    analysis: Analysis, known: Knowledge, decide: Decide, budget: Budget, repair: str, progress: Progress
) -> Onset | None:
    """Search by bisection for the most of a damaging budget that leaves outputs undamaged on samples held back.

    Every try is a plan, rewritten and repaired (`repair` is none, bias or symmetric); what repair in order gives may be
    a little better, so the answer is on the safe side. There are at most four tries, fewer for large models, and none
    (None is returned) where not even two are affordable.

    >>> onset(analysis, known, decide, Budget(sparsity=0.9), "symmetric", progress).budget  # doctest: +SKIP
    {'sparsity': 0.39375}
    """
    tries = min(_TRIES, int(_WORK / max(_cost(analysis, known), 1.0)))
    if tries < 2:
        return None
    low, high = 0.0, 1.0
    found: PruningPlan | None = None
    for number in range(1, tries + 1):
        progress(f"looking for where damage starts, {number} of {tries}")
        share = (low + high) / 2
        try:
            plan = decide(eased(budget, share))
            damaged = _damaged(analysis, known, plan.chosen(analysis.coupling), repair)
        except GraphPruneError:  # no plan for so little: alignment has too few steps
            break
        low, high, found = (low, share, found) if damaged else (share, high, plan)
    least = _asked(eased(budget, high))
    if found is None:
        return Onset(None, None, None, least, repair)
    after = analysis.costs(found.sizes_of(analysis.coupling))
    macs, params = (after.of(k) / max(analysis.dense.of(k), 1) for k in ("macs", "params"))
    return Onset(_asked(eased(budget, low)), macs, params, least, repair)


def eased(budget: Budget, share: float) -> Budget:
    """Return a budget that asks for a share of what another asks to remove.

    >>> eased(Budget(targets={"macs": 0.5}), 0.5).targets
    {'macs': 0.75}
    """
    if budget.sparsity is not None:
        return replace(budget, sparsity=budget.sparsity * share)
    return replace(budget, targets={k: 1 - (1 - kept) * share for k, kept in budget.targets.items()})


def _asked(budget: Budget) -> dict[str, float]:
    return {"sparsity": budget.sparsity} if budget.sparsity is not None else dict(budget.targets)


def _reached(analysis: Analysis, budget: Budget, sizes: Mapping[Any, int]) -> dict[str, float]:
    after = analysis.costs(sizes)
    return {k: min(max(after.of(k) / max(analysis.dense.of(k), 1), 1e-9), 1.0) for k in budget.targets}


def _damaged(analysis: Analysis, known: Knowledge, chosen: Chosen, repair: str) -> bool:
    """Return whether a pruned model's outputs are damaged after a cheap repair."""
    pruned = rearranged(analysis.model, analysis.coupling, chosen)
    if repair in UNSEEN:
        UNSEEN[repair](pruned, analysis.coupling, chosen)
    elif repair != "none":
        mend(
            analysis.model, pruned, analysis.coupling, chosen, known, mode="bias" if repair == "bias" else "symmetric",
            threads=threads_of(analysis),
        )
    return any(d.damaged for d in divergences(analysis, pruned, chosen, told_feeds(known)))


def _cost(analysis: Analysis, known: Knowledge) -> float:
    """Return about how many multiplications one try takes."""
    solving = sum(c.groups * c.width**3 for c in known.consumers.found if c.key in known.stats.fit)
    return _PASSES * solving + look_work(analysis, known)
