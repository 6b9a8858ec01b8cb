"""The best state that is found: greedy steps, Lagrange multipliers and dynamic programming, each with its own luck."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphprune.allocate.knapsack import Levels, Task, Vector, filled, greedy, programmed
from graphprune.allocate.lagrange import relaxed

_ROUNDS = 12
_TINY = 1e-9


def best(task: Task) -> Levels | None:
    """Return levels within the limits with the least summed error that is found; None where nothing is within them.

    Greedy steps first, then Lagrange multipliers, then dynamic programming around what they give; the better of all
    states that fit counts, of equals the earlier.
    """
    levels = greedy(task)
    if levels is None:
        return None
    found = filled(task, levels)
    other = relaxed(replace(task, open=task.coarse())).levels
    if other is not None:
        found = _better(task, found, filled(task, other))
    around, room, seen = found, 1.0, set[Levels]()
    weights = _binding(task, found)
    for _ in range(_ROUNDS):
        state = programmed(task, around, weights, room)
        if state is None:
            break
        used = task.prices.total(state) / task.limits
        if task.fits(state):
            found = _better(task, found, filled(task, state))
        else:
            room *= min(1.0, 1 / float(weights @ used)) * (1 - 1e-4)
            weights = weights * np.where(used > 1, 1.5, 1.0)
            weights /= weights.sum()
        if state in seen and task.fits(state):
            break
        seen.add(state)
        around = state
    return found


def _better(task: Task, found: Levels, other: Levels) -> Levels:
    return other if task.error(other) < task.error(found) * (1 - _TINY) else found


def _binding(task: Task, levels: Levels) -> Vector:
    """Return by how much each kind of cost counts at first: those near to their limits."""
    used = task.prices.total(levels) / task.limits
    near = (used >= 0.95 * used.max()).astype(np.float64)
    return np.asarray(near / near.sum())
