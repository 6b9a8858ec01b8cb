"""Which levels of all groups together cost little enough and lose least: greedy steps, and dynamic programming.

A level is a position in a group's list of counts, ascending; errors are summed over groups. Costs are no sum over
groups (a convolution's depend on two), so greedy steps look at what each step saves where the others are now, and the
dynamic programming works on costs linearised around a state, again and again until the state stays.

Sources: marginal analysis: Fox, Discrete optimization via marginal analysis (1966); dynamic programming over a budget
in 10,000 buckets: Frantar and Alistarh, SPDY (ICML 2022), algorithm 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Levels: TypeAlias = tuple[int, ...]
Vector: TypeAlias = npt.NDArray[np.float64]

BUCKETS = 10_000
_COARSE = 64
_REACH = 8
_TINY = 1e-9


class Prices:
    """Costs of levels, by column: a constant and a sum of terms, each of which depends on some groups.

    A term is the groups that it depends on, and a function from their levels to a cost of each kind. Mutable only in
    what it remembers.
    """

    def __init__(
        self, constant: Vector, terms: Sequence[tuple[tuple[int, ...], Callable[[Levels], Vector]]], groups: int
    ) -> None:
        self._constant = constant
        self._terms = list(terms)
        self._by_group: list[list[int]] = [[] for _ in range(groups)]
        for t, (members, _) in enumerate(self._terms):
            for g in members:
                self._by_group[g].append(t)
        self._known: dict[tuple[int, Levels], Vector] = {}

    def _of(self, term: int, levels: Levels) -> Vector:
        found = self._known.get((term, levels))
        if found is None:
            found = self._known[term, levels] = self._terms[term][1](levels)
        return found

    def total(self, levels: Sequence[int]) -> Vector:
        """Return the costs of a state, one for each kind."""
        parts = (self._of(t, tuple(levels[g] for g in members)) for t, (members, _) in enumerate(self._terms))
        return np.asarray(sum(parts, self._constant))

    def change(self, levels: Sequence[int], group: int, to: int) -> Vector:
        """Return what the costs change by when one group moves to another level."""
        out = np.zeros_like(self._constant)
        for t in self._by_group[group]:
            members = self._terms[t][0]
            before = tuple(levels[g] for g in members)
            after = tuple(to if g == group else levels[g] for g in members)
            out += self._of(t, after) - self._of(t, before)
        return out


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked for: `errors[g][level]`, falling with the level; `limits` of the costs, one for each column.

    Costs are compared with their limits as they are. `whole`: they are whole numbers.

    `open[g]` are the levels that the group may take, ascending.
    """

    errors: tuple[Vector, ...]
    open: tuple[tuple[int, ...], ...]
    prices: Prices
    limits: Vector
    whole: bool = True

    def error(self, levels: Sequence[int]) -> float:
        return float(sum(e[i] for e, i in zip(self.errors, levels, strict=True)))

    def fits(self, levels: Sequence[int]) -> bool:
        return bool((self.prices.total(levels) <= self.limits).all())

    def coarse(self) -> tuple[tuple[int, ...], ...]:
        """Return at most 64 of the open levels of each group, the lowest and the highest among them."""
        out = []
        for levels in self.open:
            at = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), _COARSE)).round().astype(int))
            out.append(tuple(levels[i] for i in at))
        return tuple(out)


def greedy(task: Task) -> Levels | None:
    """Return the levels reached by the step that adds least error for what it saves, again and again; or None.

    Steps go along the lower convex hull of each group's errors. Only kinds of cost that are still above their limit
    count as saved. What a step saves is computed again before it is taken.
    """
    hulls = [_hull(task.errors[g], levels) for g, levels in enumerate(task.coarse())]
    at = [len(h) - 1 for h in hulls]
    levels = [h[-1] for h in hulls]
    used = task.prices.total(levels)
    above = used > task.limits
    heap: list[tuple[float, int]] = []

    def ratio(g: int) -> float:
        to = hulls[g][at[g] - 1]
        saved = -task.prices.change(levels, g, to)
        worth = float(np.sum(saved[above] / task.limits[above]))
        more = float(task.errors[g][to] - task.errors[g][levels[g]])
        return more / worth if worth > 0 else np.inf

    def start() -> list[tuple[float, int]]:
        found = [(ratio(g), g) for g in range(len(hulls)) if at[g] > 0]
        heapq.heapify(found)
        return found

    if above.any():
        heap = start()
    while above.any():
        if not heap:
            return None
        g = heapq.heappop(heap)[1]
        now = (ratio(g), g)
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        to = hulls[g][at[g] - 1]
        used = used + task.prices.change(levels, g, to)
        levels[g] = to
        at[g] -= 1
        still = used > task.limits
        if (still != above).any():
            above = still
            heap = start()
        elif at[g] > 0:
            heapq.heappush(heap, (ratio(g), g))
    return tuple(levels)


def _hull(errors: Vector, levels: Sequence[int]) -> list[int]:
    """Return the levels on the lower convex hull of error against level, the lowest and the highest among them."""
    out: list[int] = []
    for level in levels:
        while len(out) >= 2:
            a, b = out[-2], out[-1]
            if (errors[b] - errors[a]) * (level - a) < (errors[level] - errors[a]) * (b - a):
                break
            out.pop()
        out.append(level)
    return out


def filled(task: Task, levels: Levels) -> Levels:
    """Return a state that fits, raised: the steps up that gain most for their cost, while they fit."""
    state = list(levels)
    used = task.prices.total(state)
    while True:
        found: tuple[float, int, int] | None = None
        for g, choices in enumerate(task.open):
            higher = [i for i in choices if i > state[g]][:_REACH]
            for to in higher:
                gain = float(task.errors[g][state[g]] - task.errors[g][to])
                if gain <= 0:
                    continue
                more = task.prices.change(state, g, to)
                if (used + more > task.limits).any():
                    break
                worth = gain / max(float(np.sum(more / task.limits)), 1e-15)
                if found is None or worth > found[0]:
                    found = (worth, g, to)
        if found is None:
            return tuple(state)
        _, g, to = found
        used = used + task.prices.change(state, g, to)
        state[g] = to


def programmed(task: Task, around: Levels, weights: Vector, room: float = 1.0) -> Levels | None:
    """Return the levels of least error within the limits, for costs linearised around a state; None if none are.

    Costs of several kinds are one, weighted: the sum of weight * cost / limit is at most `room`. Where costs are whole
    numbers and the limit is at most 10,000, and are a sum over groups, the result is the best there is.
    """
    per = weights / task.limits
    base = float(per @ task.prices.total(around))
    coarse = task.coarse()
    prices = [np.array([per @ task.prices.change(around, g, i) for i in levels]) for g, levels in enumerate(coarse)]
    least = [float(p.min()) for p in prices]
    free = room * float(weights.sum()) - base - sum(least)
    if free < -_TINY:
        return None
    whole = task.whole and len(per) == 1 and task.limits[0] <= BUCKETS
    unit = float(per[0]) if whole else max(free, 1e-12) / BUCKETS
    capacity = int(free / unit + 1e-6)
    lowest = np.zeros(capacity + 1)
    choices = []
    for g, levels in enumerate(coarse):
        sizes = np.rint((prices[g] - least[g]) / unit).astype(np.int64)
        reached = np.full(capacity + 1, np.inf)
        choice = np.zeros(capacity + 1, np.int64)
        for k in range(len(levels) - 1, -1, -1):
            if sizes[k] > capacity:
                continue
            tried = lowest[: capacity + 1 - sizes[k]] + task.errors[g][levels[k]]
            part = slice(int(sizes[k]), None)
            better = tried < reached[part]
            reached[part][better] = tried[better]
            choice[part][better] = k
        lowest = reached
        choices.append((choice, sizes))
    state = []
    left = capacity
    for (choice, sizes), levels in zip(reversed(choices), reversed(coarse), strict=True):
        k = int(choice[left])
        state.append(levels[k])
        left -= int(sizes[k])
    return tuple(reversed(state))
