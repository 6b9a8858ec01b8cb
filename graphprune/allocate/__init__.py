"""Allocation: which group gives up how much, so that a budget is met, and so which indices are removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from graphprune.allocate.align import alignment_of, allowed_sizes, detect_alignment
from graphprune.allocate.budget import Budget, limits_of, select, unreachable
from graphprune.allocate.error import kept_counts
from graphprune.allocate.gates import open_branches, settled
from graphprune.allocate.ladder import ALLOCATIONS, Ladder, Levels, Rule, ladders
from graphprune.allocate.precrop import PRECROP, best_scored, profile
from graphprune.allocate.search import fit
from graphprune.costs import CostModel, Costs
from graphprune.errors import NothingPrunable, UsageError
from graphprune.groups import Coupling
from graphprune.kinds import KINDS
from graphprune.plan import PruningPlan, header
from graphprune.score import Scores


class Decide(Protocol):
    """Makes a plan for a budget, by the costs of a model or by those given."""

    def __call__(self, budget: Budget, costs: CostModel | None = None) -> PruningPlan:
        """Return the plan; raises TargetError where the budget is out of reach."""


def allocate(coupling: Coupling, scores: Scores, costs: CostModel, budget: Budget) -> PruningPlan:
    """Return the plan that meets a budget: in every group the lowest-scored indices go.

    `uniform` keeps in each group the allowed count nearest to size * (1 - sparsity); of two equally near, the larger.
    `global` removes what lies below one threshold over the scores of all groups, and keeps the allowed counts
    nearest to that. `precrop` takes widths from the architecture alone (`precrop.py`). No group
    falls below the budget's floor. For targets, the lowest sparsity at which all of them hold is searched,
    then single groups are moved by a step until the cost is within 1 % below the target, where the groups' steps
    permit; it is never above.

    >>> plan = allocate(coupling, score(coupling), CostModel(coupling), Budget(targets={"macs": 0.5}))  # doctest: +SKIP

    Raises NothingPrunable if no group is left to prune, TargetError for a target below what floors and alignment
    permit, UsageError for unknown names, and for scores of another model.
    """
    if budget.allocation not in (*ALLOCATIONS, PRECROP):
        raise UsageError(f"no allocation named {budget.allocation!r}: choose {', '.join((*ALLOCATIONS, PRECROP))}")
    if not coupling.groups:
        raise NothingPrunable("nothing can be pruned: the model has no channel group")
    _check(coupling, scores)
    selection = select(coupling, budget)
    if not selection.groups:
        raise NothingPrunable("nothing can be pruned: include and exclude leave no channel group")
    if budget.allocation == PRECROP:
        counts = kept_counts(coupling, profile(coupling), costs, budget)
        return planned(coupling, best_scored(scores.by_group, counts), costs, _meta(scores, budget))
    rungs = ladders(coupling, selection, scores.by_group, budget)
    rule = ALLOCATIONS[budget.allocation](rungs)
    dense = costs({})
    levels = _fitted(rungs, rule, costs, dense, budget) if budget.targets else rule(budget.sparsity or 0.0)
    return _plan(rungs, levels, (dense, _at(rungs, levels, costs)), _meta(scores, budget))


def _check(coupling: Coupling, scores: Scores) -> None:
    for g in coupling.groups:
        found = scores.by_group.get(g.name)
        if found is None or found.shape != (g.size,):
            raise UsageError(f"the scores are of another model: group {g.name!r} has {g.size} indices, not those")


def _at(rungs: Sequence[Ladder], levels: Levels, costs: CostModel) -> Costs:
    return costs({x.group.dim: x.counts[i] for x, i in zip(rungs, levels, strict=True) if i < x.top})


def _fitted(rungs: Sequence[Ladder], rule: Rule, costs: CostModel, dense: Costs, budget: Budget) -> Levels:
    """Return the levels that meet a budget's targets."""
    limits = limits_of(budget, costs, dense)

    def load(levels: Levels) -> float:
        found = _at(rungs, levels, costs)
        return max((found.of(kind) / limit for kind, limit in limits.items()), default=0.0)

    levels = fit(rungs, rule, load)
    if levels is not None:
        return levels
    smallest = _at(rungs, rule(1.0), costs)
    kind = next(k for k, limit in limits.items() if smallest.of(k) > limit)
    reachable = smallest.of(kind) / dense.of(kind)
    raise unreachable(budget, kind, reachable, len(rungs))


def _plan(rungs: Sequence[Ladder], levels: Levels, costs: tuple[Costs, Costs], meta: dict[str, Any]) -> PruningPlan:
    keep, sizes = {}, {}
    for x, i in zip(rungs, levels, strict=True):
        if i < x.top:
            keep[x.group.name] = tuple(int(k) for k in np.sort(x.ranking()[: x.counts[i]]))
            sizes[x.group.name] = x.group.size
    dense, pruned = costs
    return PruningPlan(header(dense.to_json()), keep, sizes, {**meta, "costs": pruned.to_json()})


def planned(
    coupling: Coupling, keep: Mapping[str, Sequence[int]], costs: CostModel, meta: Mapping[str, Any],
    bypass: Collection[str] = (),
) -> PruningPlan:
    """Return the plan that keeps these indices of groups and bypasses branches; groups not named keep all.

    What lies inside of bypassed branches is not in the plan.

    >>> planned(coupling, {"conv1.weight:0": range(32)}, CostModel(coupling), {})  # doctest: +SKIP
    """
    groups = {g.name: g for g in coupling.groups}
    keep, bypass = settled(coupling, keep, bypass) if bypass else (keep, ())
    gates = {b.gate: 0 for b in coupling.branches.free if b.name in bypass} if bypass else {}
    after = costs({**{groups[name].dim: len(kept) for name, kept in keep.items()}, **gates})
    ordered = {g.name: tuple(sorted(int(i) for i in keep[g.name])) for g in coupling.groups if g.name in keep}
    sizes = {name: groups[name].size for name in ordered}
    return PruningPlan(header(costs({}).to_json()), ordered, sizes, {**meta, "costs": after.to_json()}, tuple(bypass))


def _meta(scores: Scores, budget: Budget) -> dict[str, Any]:
    return {
        "criterion": scores.criterion,
        "aggregate": scores.aggregate,
        "normalise": scores.normalise,
        "notes": list(scores.notes),
        "allocation": budget.allocation,
        "budget": budget.to_json(),
    }


__all__ = [
    "ALLOCATIONS",
    "KINDS",
    "Budget",
    "Decide",
    "alignment_of",
    "allocate",
    "allowed_sizes",
    "detect_alignment",
    "open_branches",
    "planned",
    "select",
]
