"""Evolution over states that fit: one group goes down some levels, another up, and what was measured decides.

Sums over groups say little about what several of them do together; here whole states are measured. Every generation
changes the best state so far in several ways, measures all of them on few samples, the better ones on more, and the
best of these against their parent on all. Changes are large at first and small at the end. Half of them are drawn
blindly, half are the least lossy of some by the errors of groups, which are brought nearer to what was measured
with every state (a ridge regression on factors of groups); a few of each generation are what the solver makes of these.

Sources: Sieberling et al., EvoPress (ICML 2025, arXiv 2410.14649), algorithm 1: level switches, growing samples, one
parent; Tyr (arXiv 2503.09657): from coarse to fine. Factors of groups are our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from graphprune.allocate.knapsack import Levels, Task, Vector, filled

Fitness: TypeAlias = Callable[[Levels, int], float]
"""What a state loses, measured on so many samples, the same ones first."""

Solve: TypeAlias = Callable[[Task], "Levels | None"]
"""Returns a state within the limits of a task."""

_SWITCHES = 3
_DRAWN = 4
_TRIES = 20
_KEEP = 3  # of a generation, measured on more samples
_PULL = 1.0  # toward the factors that errors have before anything is measured, in units of one measured state
_FACTOR = (0.05, 20.0)
_FEWEST = 3  # measured states before the solver is asked
_BLIND = 0.5
_HALVED = 4
_SOLVED = 3  # states of a generation that the solver gives, the first by the factors as they are
_DOUBT = 0.5  # in the logarithm of a factor
_LEAST = 1e-300


@dataclass(frozen=True)
class Pace:
    """How long and how finely to search.

    `evaluations` is the number of states that may be measured, `offspring` how many changes a generation has,
    `samples` on how many samples they are measured, growing. `coarsest` is the first change of a group, as a fraction
    of its levels; it is halved three times.
    """

    evaluations: int
    samples: tuple[int, ...]
    offspring: int = 8
    coarsest: float = 0.125
    seed: int = 0


@dataclass(frozen=True)
class Evolved:
    """The states that were the best so far, with what they lose on all samples, and how many were measured.

    The first of `path` is the one that the search started from, the last the best.
    """

    path: tuple[tuple[Levels, float], ...]
    evaluations: int
    generations: int

    @property
    def levels(self) -> Levels:
        return self.path[-1][0]

    @property
    def before(self) -> float:
        return self.path[0][1]

    @property
    def after(self) -> float:
        return self.path[-1][1]


def evolve(
    task: Task, start: Levels, fitness: Fitness, pace: Pace, solve: Solve = lambda task: None,
    told: Callable[[int, float], None] = lambda evaluations, least: None,
) -> Evolved:
    """Return the best state that is found from `start`, which must fit; it never loses more than `start`.

    `solve` proposes states by errors of groups that are corrected by what was measured; `told` hears how far it is.
    The same arguments give the same answer.

    >>> evolve(task, start, lambda levels, samples: measured(levels), Pace(100, (2, 8))).after  # doctest: +SKIP
    0.012
    """
    seen = _Seen(fitness, pace.evaluations)
    search = _Search(task, pace, solve, seen, _Factors(task), np.random.default_rng(pace.seed))
    path, generations = [(start, seen(start, pace.samples[-1]))], 0
    search.factors.learn(*path[0])
    while seen.left > 0:
        step = pace.coarsest / 2 ** int(_HALVED * (1 - seen.left / max(pace.evaluations, 1)))
        parent, least = path[-1]
        proposed = list(search.offspring(parent, step))
        if not proposed:
            break
        winner = search.selected(proposed, parent)
        generations += 1
        loss = seen(winner, pace.samples[-1])
        if loss < least:
            path.append((winner, loss))
        told(pace.evaluations - seen.left, path[-1][1])
    return Evolved(tuple(path), pace.evaluations - seen.left, generations)


class _Seen:
    """Measures states, and counts those that are new; local to one search."""

    def __init__(self, fitness: Fitness, most: int) -> None:
        self._fitness, self._most = fitness, most
        self._known: dict[tuple[Levels, int], float] = {}
        self.states: set[Levels] = set()

    @property
    def left(self) -> int:
        return self._most - len(self.states)

    def __call__(self, levels: Levels, samples: int) -> float:
        key = (levels, samples)
        if key not in self._known:
            self.states.add(levels)
            found = float(self._fitness(levels, samples))
            self._known[key] = found if np.isfinite(found) else np.inf
        return self._known[key]


@dataclass(frozen=True)
class _Search:
    """What one search works with; mutable in what it has seen, learnt and drawn."""

    task: Task
    pace: Pace
    solve: Solve
    seen: _Seen
    factors: _Factors
    rng: np.random.Generator

    def selected(self, proposed: Sequence[Levels], parent: Levels) -> Levels:
        """Return the best of some states: all are measured on few samples, ever fewer on ever more.

        What few samples say is told relative to their parent's loss on the same ones.
        """
        left, samples = list(proposed), self.pace.samples
        scale = self.seen(parent, samples[-1]) / max(self.seen(parent, samples[0]), _LEAST)
        for k, number in enumerate(samples):
            losses = {x: self.seen(x, number) for x in left}
            if k == 0:
                for state, loss in losses.items():
                    self.factors.learn(state, loss * scale)
            left = sorted(left, key=losses.__getitem__)[: max(1, _KEEP - k)]
        return left[0]

    def offspring(self, parent: Levels, step: float) -> Iterator[Levels]:
        """Yield new states near to a parent, and those that the solver finds; as many as may still be measured."""
        number = min(self.pace.offspring, self.seen.left)
        corrected = replace(self.task, errors=self.factors.errors())
        found: set[Levels] = set()

        def new(state: Levels | None) -> bool:
            return state is not None and state not in self.seen.states and state not in found

        for k in range(min(_SOLVED, number) if self.factors.states >= _FEWEST else 0):
            doubt = np.exp(self.rng.normal(0, _DOUBT, len(self.task.errors)) * (k > 0))
            errors = tuple(e * f for e, f in zip(corrected.errors, doubt, strict=True))
            state = self.solve(replace(self.task, errors=errors))
            if state is not None and new(state) and self.task.fits(state):
                found.add(state)
                yield state
        for _ in range(_TRIES * number):
            if len(found) >= number:
                return
            several = 1 if self.rng.random() < _BLIND else _DRAWN
            drawn = [_changed(self.task, parent, step, self.rng) for _ in range(several)]
            states = [s for s in drawn if s is not None and new(s)]
            if states:
                state = min(states, key=corrected.error)
                found.add(state)
                yield state


def _changed(task: Task, parent: Levels, step: float, rng: np.random.Generator) -> Levels | None:
    """Return a state within the limits in which one to three groups went up and others down for them."""
    state = list(parent)
    movable = [g for g, choices in enumerate(task.open) if len(choices) > 1]
    if len(movable) < 2:
        return None
    held: set[int] = set()
    for _ in range(min(int(rng.integers(1, _SWITCHES + 1)), int(rng.integers(1, _SWITCHES + 1)))):
        up = int(rng.choice(movable))
        to = _moved(task.open[up], state[up], step)
        if to is None or up in held:
            continue
        state[up] = to
        held.add(up)
    used = task.prices.total(state)
    lowered: set[int] = set()
    while held and (used > task.limits).any():
        down = [g for g in movable if g not in held and _moved(task.open[g], state[g], -step) is not None]
        if not down:
            return None
        g = int(rng.choice(down))
        to = _moved(task.open[g], state[g], -step)
        assert to is not None
        used = used + task.prices.change(state, g, to)
        state[g] = to
        lowered.add(g)
    return _raised(task, state, used, lowered, rng) if held else None


def _raised(task: Task, state: list[int], used: Vector, lowered: set[int], rng: np.random.Generator) -> Levels:
    """Use up what is left: what was lowered too far comes back by single levels, then others rise, in random order."""
    back = sorted(lowered)
    others = [g for g in range(len(state)) if g not in lowered]
    for g in (*rng.permutation(back).astype(int), *rng.permutation(others).astype(int)):
        while (to := _moved(task.open[g], state[g], 0.0)) is not None:
            more = task.prices.change(state, g, to)
            if (used + more > task.limits).any():
                break
            state[g], used = to, used + more
    return filled(task, tuple(state))


def _moved(choices: Sequence[int], level: int, step: float) -> int | None:
    """Return the level a fraction of all of a group's above another (below, if negative), at least one; or None."""
    at = choices.index(level)
    steps = max(1, round(abs(step) * len(choices)))
    to = min(at + steps, len(choices) - 1) if step >= 0 else max(at - steps, 0)
    return choices[to] if to != at else None


class _Factors:
    """By what the errors of each group are to be multiplied, so that their sums are near to what was measured."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._rows: list[Vector] = []
        self._losses: list[float] = []
        self.values: Vector = np.ones(len(task.errors))

    @property
    def states(self) -> int:
        return len(self._losses)

    def learn(self, levels: Levels, loss: float) -> None:
        """Take in what a state was measured to lose."""
        if not np.isfinite(loss):
            return
        self._rows.append(np.array([e[i] for e, i in zip(self._task.errors, levels, strict=True)]))
        self._losses.append(loss)
        rows, losses = np.array(self._rows), np.array(self._losses)
        whole = max(float(losses.sum()), _LEAST) / max(float(rows.sum()), _LEAST)
        weights = 1 / np.maximum(losses, _LEAST)  # relative errors count
        scaled, rest = rows * (weights * whole)[:, None], losses * weights - (rows.sum(1) * whole) * weights
        pull = _PULL * np.maximum(np.square(scaled).mean(0), 1e-12)
        change = np.linalg.solve(scaled.T @ scaled + np.diag(pull), scaled.T @ rest)
        self.values = whole * np.clip(1 + change, *_FACTOR)

    def errors(self) -> tuple[Vector, ...]:
        """Return the corrected errors of all groups."""
        return tuple(e * f for e, f in zip(self._task.errors, self.values, strict=True))
