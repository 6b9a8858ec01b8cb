"""Exchanges: one group is moved, the others make up for it; kept where the summed error falls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphprune.allocate.knapsack import Levels, Task, filled

_NEAR = 3
_REACH = 8
_MOST = 400
_WORK = 2000
_FALLS = 1e-9


def exchanged(task: Task, levels: Levels) -> Levels:
    """Return a state that fits and loses no more than a given one that does.

    Every group is moved to its three next levels on both sides; the others are then lowered until the costs fit, and
    raised while they do. Groups with large steps come first: most room is left by them. At most 400 moves are tried,
    fewer where there are more than five groups, for each of which a move takes longer.
    """
    left = min(_MOST, _WORK // max(len(levels), 1))
    better = True
    while better:
        better = False
        for g in _by_step(task, levels):
            for to in _nearest(task.open[g], levels[g]):
                if left <= 0:
                    return levels
                left -= 1
                state = _made_up(task, levels, g, to)
                if state is not None and task.error(state) < task.error(levels) * (1 - _FALLS):
                    levels, better = state, True
                    break
    return levels


def _by_step(task: Task, levels: Levels) -> list[int]:
    """Return the groups that can move, those whose next step changes the costs most first."""
    steps = {}
    for g, choices in enumerate(task.open):
        for to in _nearest(choices, levels[g])[:1]:
            steps[g] = float(np.abs(task.prices.change(levels, g, to) / task.limits).sum())
    return sorted(steps, key=lambda g: (-steps[g], g))


def _nearest(choices: tuple[int, ...], level: int) -> list[int]:
    """Return the levels next to one, the nearest first."""
    above = [i for i in choices if i > level][:_NEAR]
    below = [i for i in choices if i < level][-_NEAR:]
    return sorted(above + below, key=lambda i: (abs(i - level), i))


def _made_up(task: Task, levels: Levels, group: int, to: int) -> Levels | None:
    """Return a state that fits with one group held at a level; None where none is found."""
    held = replace(task, open=tuple((to,) if g == group else o for g, o in enumerate(task.open)))
    state = _lowered(held, tuple(to if g == group else i for g, i in enumerate(levels)))
    return None if state is None else filled(held, state)


def _lowered(task: Task, levels: Levels) -> Levels | None:
    """Return a state lowered until it fits, by the steps that lose least for what is still to be saved."""
    state = list(levels)
    used = task.prices.total(state)
    while (used > task.limits).any():
        over = np.maximum(used - task.limits, 0.0)
        found: tuple[float, int, int] | None = None
        for g, choices in enumerate(task.open):
            for to in [i for i in choices if i < state[g]][-_REACH:]:
                saved = np.minimum(-task.prices.change(state, g, to), over)
                worth = float(np.sum(saved / task.limits))
                if worth <= 0:
                    continue
                loss = float(task.errors[g][to] - task.errors[g][state[g]]) / worth
                if found is None or loss < found[0]:
                    found = (loss, g, to)
        if found is None:
            return None
        _, g, to = found
        used = used + task.prices.change(state, g, to)
        state[g] = to
    return tuple(state)
