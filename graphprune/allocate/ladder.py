"""Ladders: the counts that each group may keep, and the rules that pick one of them for a given sparsity."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.allocate.align import allowed, places
from graphprune.allocate.budget import Budget, Selection
from graphprune.groups import ChannelGroup, Coupling
from graphprune.score import Vector

Levels: TypeAlias = tuple[int, ...]
"""For each ladder the position of the count that is kept; the last position keeps all."""

Rule: TypeAlias = Callable[[float], Levels]
"""What to keep at a sparsity in [0, 1]; higher sparsities never keep more."""


@dataclass(frozen=True)
class Ladder:
    """One group with the counts that it may keep, ascending, and its scores; `fixed`: a sparsity of its own."""

    group: ChannelGroup
    counts: tuple[int, ...]
    scores: Vector
    fixed: float | None = None

    @property
    def top(self) -> int:
        return len(self.counts) - 1

    def ranking(self) -> npt.NDArray[np.int64]:
        """Return the indices from the most to the least important; of equals the first is the more important."""
        return np.argsort(-self.scores, kind="stable")

    def nearest(self, wanted: float) -> int:
        """Return the position of the allowed count nearest to a wanted one; of two equally near, the larger.

        >>> Ladder(group, (4, 8, 12), scores).nearest(6)  # doctest: +SKIP
        1
        """
        i = bisect_left(self.counts, wanted)
        if i == 0 or (i < len(self.counts) and self.counts[i] - wanted <= wanted - self.counts[i - 1]):
            return i
        return i - 1


def ladders(coupling: Coupling, selection: Selection, scores: Mapping[str, Vector], budget: Budget) -> list[Ladder]:
    """Return the ladders of the selected groups; no count lies below the budget's floor."""
    found = places(selection.groups, coupling)
    out = []
    for g in selection.groups:
        least = max(g.least, ceil(budget.floor * g.size - 1e-9))
        counts = tuple(n for n in allowed(g.size, found.get(g.dim, ()), budget.align) if n >= least)
        out.append(Ladder(g, counts, scores[g.name], selection.fixed.get(g.name)))
    return out


def uniform(rungs: Sequence[Ladder]) -> Rule:
    """Return the rule that removes the same fraction of every group, to the nearest allowed count."""

    def rule(sparsity: float) -> Levels:
        return tuple(x.nearest(x.group.size * (1 - (sparsity if x.fixed is None else x.fixed))) for x in rungs)

    return rule


def one_threshold(rungs: Sequence[Ladder]) -> Rule:
    """Return the rule that removes the lowest scores of all groups taken together, to the nearest allowed counts.

    The best indices of each group, as many as its smallest allowed count, are never removed.
    """
    own = uniform(rungs)
    pool = [(i, x) for i, x in enumerate(rungs) if x.fixed is None]
    scores = [-np.sort(-x.scores)[x.counts[0] :] for _, x in pool]
    owner = np.repeat([i for i, _ in pool], [len(s) for s in scores]).astype(np.int64)
    order = owner[np.argsort(np.concatenate([np.zeros(0), *scores]), kind="stable")]
    total = sum(x.group.size for _, x in pool)

    def rule(sparsity: float) -> Levels:
        removed = np.bincount(order[: round(sparsity * total)], minlength=len(rungs))
        levels = list(own(0.0))
        for i, x in pool:
            levels[i] = x.nearest(x.group.size - int(removed[i]))
        return tuple(levels)

    return rule


ALLOCATIONS: Mapping[str, Callable[[Sequence[Ladder]], Rule]] = {"uniform": uniform, "global": one_threshold}
"""Who gives up how much at a sparsity."""
