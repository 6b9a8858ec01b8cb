"""Lagrangian relaxation: limits become prices, and every group chooses its level for itself.

With multipliers m >= 0 the least of error + m (cost - limit) splits into one choice for each group. Its value is a
lower bound of what any state within the limits loses, for all multipliers; the best bound is that of the convex hulls.
One limit: bisection, the state changes only where a hull has a corner. Several: subgradient steps first.

Sources: Everett, Generalized Lagrange multiplier method (Operations Research 1963); Fisher, The Lagrangian relaxation
method for solving integer programming problems (Management Science 1981), sections 3 and 4: bound, subgradient steps
of Polyak's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphprune.allocate.knapsack import Levels, Task, Vector

_ROUNDS = 4
_HALVINGS = 50
_DOUBLINGS = 60
_STEPS = 120
_STUCK = 10
_CLOSER = 1e-4
_TINY = 1e-12  # of a limit: rounding; whether a state fits is asked of the task itself


@dataclass(frozen=True)
class Relaxed:
    """What a relaxation found: levels within the limits (None: it found none), and a bound from below of the error.

    The bound holds for all states within the limits where costs are a sum over groups; where several groups share a
    term it is that of costs linearised around the highest levels, and no more than a guess.
    """

    levels: Levels | None
    bound: float


@dataclass(frozen=True, eq=False)
class _Split:
    """Costs as a sum over groups, exact next to one state: `prices[g]` [levels, kinds], in units of the limits."""

    errors: tuple[Vector, ...]
    prices: tuple[npt.NDArray[np.float64], ...]
    room: Vector

    def choose(self, multipliers: Vector) -> tuple[list[int], float, Vector]:
        """Return the choice of each group, the bound that it gives, and how far costs are above what there is."""
        picks, value, used = [], 0.0, -self.room
        for errors, prices in zip(self.errors, self.prices, strict=True):
            lagrangian = errors + prices @ multipliers
            k = int(lagrangian.argmin())
            picks.append(k)
            value += float(lagrangian[k])
            used = used + prices[k]
        return picks, value - float(multipliers @ self.room), used


def relaxed(task: Task) -> Relaxed:
    """Return levels by Lagrange multipliers, and the bound that they give.

    Where terms of the costs belong to several groups, costs are linearised again around what was found, some times.

    >>> prices = Prices(np.zeros(1), [((g,), lambda at: np.array([at[0]])) for g in range(2)], 2)
    >>> task = Task((np.array([3.0, 1.0]), np.array([9.0, 0.0])), ((0, 1), (0, 1)), prices, np.array([1.0]))
    >>> relaxed(task)
    Relaxed(levels=(0, 1), bound=3.0)
    """
    around: Levels = tuple(levels[-1] for levels in task.open)
    room, bound = np.ones(len(task.limits)), None
    best: Levels | None = None
    for _ in range(_ROUNDS):
        split = _split(task, around, room)
        picks, found = _solved(split)
        bound = found if bound is None else bound
        if picks is None:
            break
        state = tuple(levels[k] for levels, k in zip(task.open, picks, strict=True))
        used = task.prices.total(state)
        if (used <= task.limits).all() and (best is None or task.error(state) < task.error(best)):
            best = state
        if state == around:
            break
        around = state
        room = room * np.minimum(1.0, task.limits / np.maximum(used, 1e-300) * (1 - _CLOSER * (used > task.limits)))
    return Relaxed(best, float("inf") if bound is None else bound)


def _split(task: Task, around: Levels, room: Vector) -> _Split:
    prices = tuple(
        np.array([task.prices.change(around, g, i) for i in levels]).reshape(len(levels), -1) / task.limits
        for g, levels in enumerate(task.open)
    )
    errors = tuple(task.errors[g][list(levels)] for g, levels in enumerate(task.open))
    return _Split(errors, prices, room - task.prices.total(around) / task.limits)


def _solved(split: _Split) -> tuple[list[int] | None, float]:
    """Return the best choice within the room that multipliers give, None where none is, and the highest bound."""
    kinds = len(split.room)
    picks, bound, over = split.choose(np.zeros(kinds))
    if (over <= _TINY).all():
        return picks, bound
    if any(sum(float(p[:, k].min()) for p in split.prices) > split.room[k] + _TINY for k in range(kinds)):
        return None, float("inf")
    direction, bound = _ascended(split, bound) if kinds > 1 else (np.ones(1), bound)
    found, more = _along(split, direction)
    if found is None and kinds > 1:
        found, other = _along(split, np.ones(kinds))
        more = max(more, other)
    return found, max(bound, more)


def _along(split: _Split, direction: Vector) -> tuple[list[int] | None, float]:
    """Return the choice at the smallest multiple of a direction that is within the room, and the highest bound."""
    low, high, bound = 0.0, 1e-6, -np.inf
    found: list[int] | None = None
    for _ in range(_DOUBLINGS):
        picks, value, over = split.choose(direction * high)
        bound = max(bound, value)
        if (over <= _TINY).all():
            found = picks
            break
        low, high = high, high * 4
    for _ in range(_HALVINGS if found is not None else 0):
        middle = (low + high) / 2
        picks, value, over = split.choose(direction * middle)
        bound = max(bound, value)
        if (over <= _TINY).all():
            high, found = middle, picks
        else:
            low = middle
    return found, bound


def _ascended(split: _Split, bound: float) -> tuple[Vector, float]:
    """Return multipliers of a high bound, reached by subgradient steps, and that bound."""
    start, value = _along(split, np.ones(len(split.room)))
    above = _lost(split, start) if start is not None else sum(float(e.max()) for e in split.errors)
    now = best = np.zeros(len(split.room))
    bound, length, still = max(bound, value), 1.0, 0
    highest = -np.inf
    for _ in range(_STEPS):
        _, value, over = split.choose(now)
        if value > highest:
            highest, best, still = value, now, 0
        else:
            still += 1
            if still >= _STUCK:
                length, still, now = length / 2, 0, best
        gradient = np.where((now <= 0) & (over < 0), 0.0, over)
        square = float(gradient @ gradient)
        if square <= 0:
            break
        now = np.maximum(now + length * max(above - value, 0.0) / square * gradient, 0.0)
    return (best if best.any() else np.ones(len(best))), max(bound, highest)


def _lost(split: _Split, picks: Sequence[int]) -> float:
    return sum(float(e[k]) for e, k in zip(split.errors, picks, strict=True))
