"""Evolution: every state fits, none is worse than the first, and errors of groups that mislead are seen through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.allocate.best import best
from graphprune.allocate.evolve import Evolved, Pace, evolve
from graphprune.allocate.knapsack import Levels, Prices, Task

GROUPS, LEVELS = 8, 16


def chain(seed: int, share: float = 0.5, kinds: int = 1) -> Task:
    """A chain of layers, the cost of each the product of the widths on both sides; errors of convex curves."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(GROUPS):
        falls = np.sort(rng.exponential(size=LEVELS - 1) ** 2)[::-1] * rng.uniform(0.1, 3)
        errors.append(np.concatenate([np.cumsum(falls[::-1])[::-1], [0.0]]))
    widths, scale = np.arange(1, LEVELS + 1.0), rng.uniform(0.5, 2, (GROUPS, kinds))

    def price(k: int):  # type: ignore[no-untyped-def]
        return lambda levels: scale[k] * np.prod([widths[i] for i in levels])

    prices = Prices(np.zeros(kinds), [((k, k + 1), price(k)) for k in range(GROUPS - 1)], GROUPS)
    top = prices.total([LEVELS - 1] * GROUPS)
    return Task(tuple(errors), tuple(tuple(range(LEVELS)) for _ in range(GROUPS)), prices, top * share)


class Measured:
    """What a state really loses: errors times factors that nobody knows, more where neighbours lose, and noise."""

    def __init__(self, task: Task, seed: int, spread: float = 1.2) -> None:
        self.task, self.seed = task, seed
        self.factors = np.exp(np.random.default_rng([seed, 1]).normal(0, spread, GROUPS))
        self.asked: list[tuple[Levels, int]] = []

    def true(self, levels: Levels) -> float:
        parts = np.array([f * e[i] for f, e, i in zip(self.factors, self.task.errors, levels, strict=True)])
        return float(parts.sum() + 0.1 * np.sqrt(parts[:-1] * parts[1:]).sum())

    def __call__(self, levels: Levels, samples: int) -> float:
        self.asked.append((levels, samples))
        same = np.random.default_rng([self.seed, samples]).normal(0, 0.3 / np.sqrt(samples))
        own = np.random.default_rng([*levels, samples]).normal(0, 0.05 / np.sqrt(samples))
        return self.true(levels) * (1 + same) * (1 + own)

    def ideal(self) -> float:
        errors = tuple(e * f for e, f in zip(self.task.errors, self.factors, strict=True))
        task = Task(errors, self.task.open, self.task.prices, self.task.limits)
        return self.true(best(task) or ())


def searched(task: Task, fitness: Measured, evaluations: int, solver: bool = False) -> Evolved:
    start = best(task)
    assert start is not None
    pace = Pace(evaluations, (2, 8))
    return evolve(task, start, fitness, pace, best) if solver else evolve(task, start, fitness, pace)


@pytest.mark.parametrize("seed", range(2))
def test_errors_that_mislead_are_seen_through(seed: int) -> None:
    """Most of what factors cost is found again: by switches alone with many states, with the solver with few."""
    task = chain(seed)
    fitness = Measured(task, seed)
    start = fitness.true(best(task) or ())
    blind, led = searched(task, fitness, 200), searched(task, fitness, 60, solver=True)
    lost = start - fitness.ideal()
    assert lost > 0.1 * start
    assert fitness.true(blind.levels) < start - 0.5 * lost
    assert fitness.true(led.levels) < start - 0.6 * lost


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 0.9), st.integers(1, 3))
def test_states_fit_and_nothing_gets_worse(seed: int, share: float, kinds: int) -> None:
    task = chain(seed, share, kinds)
    fitness = Measured(task, seed)
    found = searched(task, fitness, 24, solver=seed % 2 == 0)
    assert all(task.fits(levels) for levels, _ in fitness.asked)
    assert found.after <= found.before and found.evaluations <= 24
    assert len({levels for levels, _ in fitness.asked}) == found.evaluations
    assert found == searched(task, fitness, 24, solver=seed % 2 == 0)


def test_few_samples_come_first_and_few_states_see_many() -> None:
    task = chain(0)
    fitness = Measured(task, 0)
    searched(task, fitness, 80)
    by_samples = {n: len({levels for levels, samples in fitness.asked if samples == n}) for n in (2, 8)}
    assert by_samples[8] < by_samples[2] / 2


def test_a_search_that_can_change_nothing_ends() -> None:
    task = chain(0, share=1.0)
    alone = Task(task.errors, tuple((LEVELS - 1,) for _ in range(GROUPS)), task.prices, task.limits)
    top = (LEVELS - 1,) * GROUPS
    found = evolve(alone, top, lambda levels, samples: 1.0, Pace(50, (1,)))
    assert found.levels == top and found.evaluations == 1 and found.generations == 0


def test_losses_that_are_no_numbers_are_lost() -> None:
    task = chain(1)
    start = best(task)
    assert start is not None
    found = evolve(task, start, lambda levels, samples: 1.0 if levels == start else float("nan"), Pace(30, (1, 2)))
    assert found.levels == start and found.after == 1.0
