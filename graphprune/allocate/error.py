"""Allocation by error: every group has a curve of error against width, and the sum of errors is to be least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.allocate.best import best
from graphprune.allocate.budget import Budget, limits_of, select, unreachable
from graphprune.allocate.exchange import exchanged
from graphprune.allocate.gates import gate_ladders
from graphprune.allocate.knapsack import Levels, Prices, Task
from graphprune.allocate.ladder import Ladder, ladders
from graphprune.costs import CostModel, Costs, Term
from graphprune.errors import NothingPrunable, UsageError
from graphprune.groups import Coupling
from graphprune.kinds import COUNTED, kind_of

Vector: TypeAlias = npt.NDArray[np.float64]

Curves: TypeAlias = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
"""By the names of groups: widths, and the error at each of them; in between it is interpolated."""

_ROUNDING = 0.5
_EXACT = 1e-9
_WORST = 1e12


def kept_counts(
    coupling: Coupling, curves: Curves, costs: CostModel, budget: Budget, losses: Mapping[str, float] | None = None
) -> dict[str, int]:
    """Return how many indices each group keeps, so that a budget is met with the least summed error.

    Counts are those that alignment, floor and each group's least number allow. A group that `include` and `exclude`
    leave out, or that has no curve, keeps all; one with a sparsity of its own (`sparsities`) gets that. Targets are
    never exceeded; all of them hold. A sparsity, in place of targets, is the fraction of indices that go, over all
    groups together. Errors have to be comparable between groups; where a curve rises with the width it is flattened.

    `losses` are the errors of branches that may be bypassed for targets, by name: their counts are 0 (bypassed) or 1.
    What is inside of a bypassed branch costs nothing more.

    >>> kept_counts(coupling, {"a:0": ([8, 64], [0.5, 0.0])}, CostModel(coupling), budget)  # doctest: +SKIP
    {'a:0': 32}

    Raises NothingPrunable if no group is left to prune, TargetError for a target below what floors and alignment
    permit, UsageError for a curve of a group that the model does not have, and for unknown names.
    """
    problem = posed(coupling, curves, costs, budget, losses)
    rungs, task = problem.rungs, problem.task
    levels = best(task)
    if levels is None:
        lowest = costs({x.group.dim: x.counts[o[0]] for x, o in zip(rungs, task.open, strict=True)})
        dense = costs({})
        kind = next(k for k, kept in budget.targets.items() if lowest.of(k) > kept * dense.of(k))
        raise unreachable(budget, kind, lowest.of(kind) / dense.of(kind), len(rungs))
    counts = {g.name: g.size for g in coupling.groups}
    return counts | problem.counts(exchanged(task, levels))


@dataclass(frozen=True)
class Posed:
    """A budget as a task: the counts that each group may keep, and what they lose and cost."""

    rungs: Sequence[Ladder]
    task: Task

    def counts(self, levels: Levels) -> dict[str, int]:
        """Return how many indices the groups keep at these levels."""
        return {x.group.name: x.counts[i] for x, i in zip(self.rungs, levels, strict=True)}

    def levels(self, counts: Mapping[str, int]) -> Levels:
        """Return the levels nearest to these counts; groups that are not named keep all."""
        return tuple(x.nearest(counts.get(x.group.name, x.group.size)) for x in self.rungs)


def posed(
    coupling: Coupling, curves: Curves, costs: CostModel, budget: Budget, losses: Mapping[str, float] | None = None
) -> Posed:
    """Return the task that `kept_counts` solves; raises as it does, but for targets that cannot be reached."""
    known = {g.name for g in coupling.groups}
    if not set(curves) <= known:
        raise UsageError(f"the error curves are of another model: no group {min(set(curves) - known)!r}")
    selection = select(coupling, budget)
    if not selection.groups:
        raise NothingPrunable("nothing can be pruned: the model has no channel group, or all are left out")
    rungs = ladders(coupling, selection, {g.name: np.zeros(g.size) for g in coupling.groups}, budget)
    if losses and budget.targets:
        rungs += gate_ladders(coupling, losses)
        curves = {**curves, **{name: ([0, 1], [loss, 0.0]) for name, loss in losses.items()}}
    return Posed(rungs, _task(rungs, curves, costs, budget))


def _task(rungs: Sequence[Ladder], curves: Curves, costs: CostModel, budget: Budget) -> Task:
    errors = tuple(_errors(x, curves) for x in rungs)
    choices = tuple(_open(x, curves, budget) for x in rungs)
    if not budget.targets:
        return Task(errors, choices, *_by_indices(rungs, choices, budget.sparsity or 0.0))
    dense = costs({})
    allowed = limits_of(budget, costs, dense)
    columns = [c for kind, limit in allowed.items() for c in costs.columns_of(kind) if _may_bind(c, limit, dense)]
    if not columns:
        return Task(errors, choices, *_by_indices(rungs, choices, 0.0))
    limits = np.array([_limit(kind, allowed[kind]) for c in columns for kind in [kind_of(c)]])
    terms = _terms(rungs, costs.terms, columns)
    top = np.sum([price(tuple(rungs[g].top for g in members)) for members, price in terms], axis=0)
    constant = np.array([dense.by_column[c] for c in columns], np.float64) - top
    whole = all(kind in COUNTED for kind in allowed)
    return Task(errors, choices, Prices(constant, terms, len(rungs)), limits, whole)


def _may_bind(column: str, limit: float, dense: Costs) -> bool:
    """Return whether a column can be above its limit: that of one place cannot where the dense model is below it."""
    return column == kind_of(column) or dense.by_column[column] > limit


def _limit(kind: str, allowed: float) -> float:
    """Return a limit that sums can be held against: bytes are rounded at the end, real numbers as they are added."""
    if kind in COUNTED:
        return allowed - _ROUNDING * (kind == "bytes")
    return allowed * (1 + _EXACT)


def _errors(ladder: Ladder, curves: Curves) -> Vector:
    """Return the error at each allowed count, falling with the count, 0 for all."""
    if ladder.group.name not in curves:
        return np.zeros(len(ladder.counts))
    widths, values = (np.asarray(v, np.float64) for v in curves[ladder.group.name])
    if widths.shape != values.shape or not len(widths):
        raise UsageError(f"the error curve of {ladder.group.name!r} needs as many errors as widths, and at least one")
    order = np.argsort(widths, kind="stable")
    finite = np.nan_to_num(values[order], nan=_WORST, posinf=_WORST, neginf=0.0)
    found = np.interp(np.array(ladder.counts, np.float64), widths[order], finite)
    return np.asarray(np.maximum.accumulate(found[::-1])[::-1])


def _open(ladder: Ladder, curves: Curves, budget: Budget) -> tuple[int, ...]:
    """Return the levels that a group may take."""
    if ladder.fixed is not None:
        return (ladder.nearest(ladder.group.size * (1 - ladder.fixed)),)
    if ladder.group.name not in curves or (budget.sparsity is None and not budget.targets):
        return (ladder.top,)
    return tuple(range(len(ladder.counts)))


def _by_indices(
    rungs: Sequence[Ladder], choices: Sequence[tuple[int, ...]], sparsity: float
) -> tuple[Prices, Vector]:
    """Return prices where every index costs the same, and how many of them may stay."""

    def count(ladder: Ladder) -> Callable[[Levels], Vector]:
        return lambda levels: np.array([ladder.counts[levels[0]]], np.float64)

    free = [g for g, o in enumerate(choices) if len(o) > 1]
    wanted = round((1 - sparsity) * sum(rungs[g].group.size for g in free))
    smallest = sum(rungs[g].counts[0] for g in free)
    terms = [((g,), count(rungs[g])) for g in free]
    return Prices(np.zeros(1), terms, len(rungs)), np.array([max(wanted, smallest, 1)], np.float64)


def _terms(
    rungs: Sequence[Ladder], terms: Sequence[Term], columns: Sequence[str]
) -> list[tuple[tuple[int, ...], Callable[[Levels], Vector]]]:
    """Return the terms of the costs as functions of levels; those that no group here moves are left out."""
    index = {x.group.dim: g for g, x in enumerate(rungs)}

    def priced(term: Term, members: tuple[int, ...]) -> Callable[[Levels], Vector]:
        def price(levels: Levels) -> Vector:
            sizes = {rungs[g].group.dim: rungs[g].counts[i] for g, i in zip(members, levels, strict=True)}
            found = term.price(sizes)
            return np.array([found.get(c, 0.0) for c in columns])

        return price

    out = []
    for term in terms:
        members = tuple(index[d] for d in term.dims if d in index)
        if members:
            out.append((members, priced(term, members)))
    return out
