"""Lagrange multipliers: the bound is one, states fit, and both are near to what trying everything finds."""

from __future__ import annotations

from itertools import product as every

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.allocate.best import best
from graphprune.allocate.knapsack import Levels, Prices, Task, filled
from graphprune.allocate.lagrange import relaxed

Vector = np.ndarray


def separable(errors: list[Vector], costs: list[Vector], limits: Vector) -> Task:
    """Return a problem whose costs [levels, kinds] are a sum over groups."""

    def price(g: int):  # type: ignore[no-untyped-def]
        return lambda levels: costs[g][levels[0]]

    prices = Prices(np.zeros(len(limits)), [((g,), price(g)) for g in range(len(costs))], len(costs))
    return Task(tuple(errors), tuple(tuple(range(len(e))) for e in errors), prices, limits)


@st.composite
def problems(draw: st.DrawFn) -> Task:
    """Small problems with one to three kinds of cost, errors of any shape that falls."""
    kinds = draw(st.integers(1, 3))
    errors, costs = [], []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 5))
        falls = draw(st.lists(st.integers(0, 50), min_size=n, max_size=n))
        errors.append(np.cumsum(falls)[::-1].astype(float) - falls[0])
        steps = draw(st.lists(st.integers(1, 40), min_size=n * kinds, max_size=n * kinds))
        costs.append(np.cumsum(np.array(steps, float).reshape(n, kinds), axis=0))
    limits = np.array(draw(st.lists(st.integers(1, 400), min_size=kinds, max_size=kinds)), float)
    return separable(errors, costs, limits)


def brute(problem: Task) -> float | None:
    return min((problem.error(s) for s in every(*problem.open) if problem.fits(s)), default=None)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_bound_is_one_and_levels_fit(problem: Task) -> None:
    found, least = relaxed(problem), brute(problem)
    if least is None:
        assert found.levels is None
        return
    assert found.bound <= least + 1e-9
    if found.levels is not None:
        assert problem.fits(found.levels) and problem.error(found.levels) >= least - 1e-9
    if len(problem.limits) == 1:
        assert found.levels is not None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_convex_errors_leave_less_than_one_step_of_each_kind_open(seed: int, kinds: int) -> None:
    """Where curves are convex, multipliers lose at most as many steps as there are limits (Shapley, Folkman)."""
    rng = np.random.default_rng(seed)
    errors = [np.concatenate([np.cumsum(np.sort(rng.uniform(size=9)))[::-1], [0.0]]) for _ in range(30)]
    costs = [np.cumsum(rng.uniform(0.5, 1.5, (10, 1)) * np.ones((1, kinds)), axis=0) for _ in errors]
    errors = [np.interp(c[:, 0], np.linspace(0, c[-1, 0], 10), e) for e, c in zip(errors, costs, strict=True)]
    problem = separable(errors, costs, sum(c[-1] for c in costs) * rng.uniform(0.3, 0.8, kinds))
    found = relaxed(problem)
    assert found.levels is not None and problem.fits(found.levels)
    got = problem.error(filled(problem, found.levels))
    largest = max(float(-np.diff(e).min(initial=0.0)) for e in errors)
    assert found.bound <= problem.error(best(problem) or found.levels) + 1e-9
    assert got - found.bound <= (kinds + 1) * largest + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_shared_terms_are_linearised_until_the_state_fits(seed: int) -> None:
    """A chain of layers, the cost of each the product of the widths on both sides."""
    rng = np.random.default_rng(seed)
    widths = np.arange(1.0, 7.0)
    errors = tuple(np.sort(rng.exponential(size=6))[::-1] for _ in range(4))
    errors = tuple(e - e[-1] for e in errors)

    def price(levels: Levels) -> Vector:
        return np.array([np.prod(widths[list(levels)])])

    prices = Prices(np.zeros(1), [((k, k + 1), price) for k in range(3)], 4)
    problem = Task(errors, tuple(tuple(range(6)) for _ in range(4)), prices, np.array([108 * rng.uniform(0.2, 0.9)]))
    found, least = relaxed(problem), brute(problem)
    assert least is not None
    if found.levels is not None:
        chosen, raised = best(problem), filled(problem, found.levels)
        assert problem.fits(found.levels) and problem.error(found.levels) >= least - 1e-9
        assert chosen is not None and problem.error(chosen) <= problem.error(raised) + 1e-9


def test_what_has_no_state_has_no_levels_and_what_is_free_stays() -> None:
    errors, costs = [np.array([4.0, 0.0])], [np.array([[3.0], [5.0]])]
    assert relaxed(separable(errors, costs, np.array([2.0]))).levels is None
    whole = relaxed(separable(errors, costs, np.array([5.0])))
    assert whole.levels == (1,) and whole.bound == pytest.approx(0.0)
