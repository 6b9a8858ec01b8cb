"""OBS: scores, greedy curves and swaps against least squares done directly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.reconstruct import Blocks, Curve, Quadratic, as_one, curve, scores, swaps

Array = np.ndarray


def problem(
    columns: int, outputs: int, seed: int = 0, biased: bool = True, offset: float = 0.5
) -> tuple[Quadratic, Array]:
    """A layer on 300 correlated rows; also the rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, columns)) @ rng.standard_normal((columns, columns)) / columns**0.5
    x += offset * rng.standard_normal(columns)
    weight = rng.standard_normal((columns, outputs)) * rng.uniform(0.2, 2, (columns, 1))
    return Quadratic(x.T @ x / 300, x.mean(0), 300, weight, biased=biased), x


def even(count: int, width: int) -> Blocks:
    return [np.arange(c * width, (c + 1) * width) for c in range(count)]


def direct(q: Quadratic, gone: Array, damping: float) -> float:
    """The error of the damped least-squares refit with these columns removed, as a fraction of the output's energy."""
    moment = q.second - np.outer(q.mean, q.mean) * q.biased
    energy = np.sum(q.weight * (moment @ q.weight)) if q.energy is None else q.energy
    moment = moment + damping * np.trace(moment) / len(moment) * np.eye(len(moment))
    stay = np.setdiff1d(np.arange(len(moment)), gone)
    change = -np.array(q.weight)
    pull = moment[np.ix_(stay, gone)] @ q.weight[gone]
    change[stay] = np.linalg.solve(moment[np.ix_(stay, stay)], pull) if len(stay) else 0
    return float(np.sum(change * (moment @ change)) / energy)


def total(quadratics: Sequence[Quadratic], blocks: Sequence[Blocks], gone: Sequence[int], damping: float) -> float:
    return sum(
        direct(q, np.concatenate([np.zeros(0, int), *(b[c] for c in gone)]), damping)
        for q, b in zip(quadratics, blocks, strict=True)
    )


def agrees(found: Curve, quadratics: Sequence[Quadratic], blocks: Sequence[Blocks], damping: float) -> None:
    for t in range(len(found.errors)):
        expected = total(quadratics, blocks, list(found.order[:t]), damping)
        assert found.errors[t] == pytest.approx(expected, abs=1e-8, rel=1e-8)


# ---- scores


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("count", "width", "outputs"), [(12, 1, 5), (6, 4, 5), (5, 9, 100)])
def test_a_score_is_the_error_of_removing_that_index_alone(count: int, width: int, outputs: int, biased: bool) -> None:
    q, _ = problem(count * width, outputs, biased=biased)
    found = scores([q], [even(count, width)], 1e-3)
    expected = [total([q], [even(count, width)], [c], 1e-3) for c in range(count)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_scores_of_several_consumers_add_up_as_fractions_of_their_energies() -> None:
    a, b = problem(12, 5, 1)[0], problem(24, 3, 2, biased=False)[0]
    both = scores([a, b], [even(12, 1), even(12, 2)])
    np.testing.assert_allclose(both, scores([a], [even(12, 1)]) + scores([b], [even(12, 2)]), rtol=1e-10)
    louder = Quadratic(b.second, b.mean, b.rows, 7 * b.weight, biased=False)
    np.testing.assert_allclose(both, scores([a, louder], [even(12, 1), even(12, 2)]), rtol=1e-10)


def test_an_offset_of_the_inputs_costs_nothing_where_a_bias_can_take_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6))
    weight = rng.standard_normal((6, 4))
    moved = x + np.array([50.0, 0, 0, 0, 0, 0])
    moments = [Quadratic(z.T @ z / 500, z.mean(0), 500, weight) for z in (x, moved)]
    np.testing.assert_allclose(*(scores([m], [even(6, 1)]) for m in moments), rtol=1e-8)
    without = Quadratic(moved.T @ moved / 500, moved.mean(0), 500, weight, biased=False)
    assert np.argmax(scores([without], [even(6, 1)])) == 0


def test_inputs_that_never_vary_cost_nothing_and_change_nothing() -> None:
    q, x = problem(8, 5)
    x = np.hstack([x, np.zeros((300, 1)), np.full((300, 1), 3.0)])
    weight = np.vstack([q.weight, np.ones((2, 5))])
    wide = Quadratic(x.T @ x / 300, x.mean(0), 300, weight)
    found = scores([wide], [even(10, 1)], 0.0)
    assert found[8:].tolist() == [0, 0]
    np.testing.assert_allclose(found[:8], scores([q], [even(8, 1)], 0.0), rtol=1e-8)
    assert set(curve([wide], [even(10, 1)]).order[:2]) == {8, 9}


# ---- curves


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize(("count", "width", "outputs"), [(24, 1, 5), (10, 4, 6), (40, 1, 90)])
def test_the_curve_is_the_error_of_the_refit_at_every_width(count: int, width: int, outputs: int, step: int) -> None:
    q, _ = problem(count * width, outputs)
    found = curve([q], [even(count, width)], step, 0, 1e-3)
    assert sorted(found.order) == list(range(count)) and found.damping == 1e-3
    agrees(found, [q], [even(count, width)], 1e-3)
    assert (np.diff(found.errors) >= 0).all() and found.errors[0] == 0


def test_the_curve_of_many_columns_settles_and_shrinks_and_is_still_exact() -> None:
    q, _ = problem(280, 20)
    for step in (1, 8):
        found = curve([q], [even(70, 4)], step, 1, 1e-2)
        for t in (1, 36, 37, 50, 69):
            assert found.errors[t] == pytest.approx(total([q], [even(70, 4)], list(found.order[:t]), 1e-2), abs=1e-8)


def test_greedy_takes_the_cheapest_each_time() -> None:
    q, _ = problem(9, 4)
    order = curve([q], [even(9, 1)], 1, 0, 1e-3).order
    for t in range(8):
        left = [c for c in range(9) if c not in order[:t]]
        errors = {c: direct(q, np.array([*order[:t], c]), 1e-3) for c in left}
        assert order[t] == min(errors, key=lambda c: errors[c])


def test_consumers_of_unequal_blocks_and_columns_of_nobody_go_together() -> None:
    a, b = problem(12, 5, 1)[0], problem(17, 30, 2, biased=False)[0]
    shared = Quadratic(a.second, a.mean, a.rows, np.random.default_rng(5).standard_normal((12, 3)))
    one = [np.array([2 * c, 2 * c + 1]) for c in range(5)]  # columns 10 and 11 are nobody's
    two = [np.array([16, 3]), np.array([5]), np.zeros(0, int), np.array([0, 1, 2]), np.array([7, 8, 9])]
    group, blocks = [a, shared, b], [one, one, two]
    for step in (1, 2):
        found = curve(group, blocks, step, 0, 1e-3)
        agrees(found, group, blocks, 1e-3)


def test_groups_of_one_convolution_are_fractions_of_the_whole() -> None:
    parts = [problem(8, 3, seed)[0] for seed in range(4)]
    group = as_one(parts)
    found = curve(group, [even(8, 1)] * 4, 1, 0, 1e-6)
    assert found.errors[-1] == pytest.approx(1, abs=1e-2)
    energies = [np.sum(q.weight * (m @ q.weight)) for q in parts for m in [q.second - np.outer(q.mean, q.mean)]]
    assert [q.energy for q in group] == pytest.approx([sum(energies)] * 4)


def test_two_that_are_the_same_do_not_go_in_one_step() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 8))
    x[:, 1] = x[:, 0] + 1e-6 * rng.standard_normal(400)
    q = Quadratic(x.T @ x / 400, x.mean(0), 400, np.diag([5.0, 5.0, 1, 1, 1, 1, 1, 1]))
    order = list(curve([q], [even(8, 1)], 4, 1, 1e-4).order)
    assert len({0, 1} & set(order[:4])) == 1


def test_at_least_as_many_stay_as_are_asked_for() -> None:
    q, _ = problem(12, 5)
    found = curve([q], [even(12, 1)], 5, 3)
    assert len(found.order) == 9 and len(found.errors) == 10
    assert found.kept(12).tolist() == list(range(12))
    assert set(found.kept(4)) == set(range(12)) - set(found.order[:8])
    widths, errors = found.by_width()
    assert widths.tolist() == list(range(3, 13)) and errors[-1] == 0
    assert found.error(5) == errors[2] and found.error(1) == errors[0]


def test_equal_indices_go_by_number_and_runs_agree() -> None:
    q = Quadratic(np.eye(6), np.zeros(6), 10, np.ones((6, 2)))
    assert curve([q], [even(6, 1)], 1, 0).order.tolist() == [0, 1, 2, 3, 4, 5]
    assert curve([q], [even(6, 1)], 3, 0).order.tolist() == [0, 1, 2, 3, 4, 5]
    p, _ = problem(40, 7)
    first, second = (curve([p], [even(10, 4)], 2) for _ in range(2))
    assert (first.order == second.order).all() and (first.errors == second.errors).all()


@pytest.mark.parametrize("bad", ["zeros", "nan", "negative", "inf", "rank one", "huge"])
def test_moments_that_are_none_never_raise(bad: str) -> None:
    n = 6
    second = {
        "zeros": np.zeros((n, n)),
        "nan": np.where(np.eye(n) > 0, 1.0, 0.1) * np.where(np.arange(n) == 2, np.nan, 1.0),
        "negative": -np.eye(n) + 0.1,
        "inf": np.where(np.arange(n) == 1, np.inf, np.eye(n)),
        "rank one": np.outer(np.arange(1, n + 1), np.arange(1, n + 1)).astype(float),
        "huge": np.eye(n) * 1e300,
    }[bad]
    q = Quadratic(second, np.zeros(n), 3, np.ones((n, 4)))
    for damping in (0.0, 1e-2):
        found = curve([q], [even(n, 1)], 1, 1, damping)
        assert np.isfinite(found.errors).all()
        assert np.isfinite(scores([q], [even(n, 1)], damping)).all()
        kept = np.arange(3)
        assert len(swaps([q], [even(n, 1)], kept, damping=damping).kept) == 3


def test_blocks_that_overlap_or_differ_in_number_are_refused() -> None:
    q, _ = problem(4, 2)
    with pytest.raises(ValueError, match="own the same column"):
        curve([q], [[np.array([0, 1]), np.array([1, 2])]])
    with pytest.raises(ValueError, match="blocks of all indices"):
        curve([q, q], [even(4, 1), even(2, 2)])
    with pytest.raises(ValueError, match="blocks of all indices"):
        scores([q, q], [even(4, 1)])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 3), st.integers(1, 12), st.integers(1, 5))
def test_any_curve_is_exact(seed: int, count: int, width: int, outputs: int, step: int) -> None:
    q, _ = problem(count * width, outputs, seed)
    agrees(curve([q], [even(count, width)], step, 0, 1e-2), [q], [even(count, width)], 1e-2)


# ---- swaps


@pytest.mark.parametrize("width", [1, 3])
def test_swaps_never_raise_the_error_and_say_it_exactly(width: int) -> None:
    better = 0
    for seed in range(12):
        q, _ = problem(12 * width, 4, seed)
        blocks = even(12, width)
        kept = curve([q], [blocks], 1, 1, 1e-3).kept(5)
        found = swaps([q], [blocks], kept, damping=1e-3)
        gone = np.setdiff1d(np.arange(12), found.kept)
        assert len(found.kept) == 5 and found.error <= found.before
        assert found.before == pytest.approx(total([q], [blocks], np.setdiff1d(np.arange(12), kept), 1e-3), rel=1e-8)
        assert found.error == pytest.approx(total([q], [blocks], gone, 1e-3), rel=1e-8)
        assert (found.swaps > 0) == (found.error < found.before)
        better += found.error < found.before
    assert better  # greedy alone is not best on all of these


def test_swaps_repair_a_bad_choice() -> None:
    q, _ = problem(10, 4, 1)
    cost = {k: direct(q, np.setdiff1d(np.arange(10), k), 1e-3) for k in combinations(range(10), 4)}
    worst = np.array(max(cost, key=lambda k: cost[k]))
    found = swaps([q], [even(10, 1)], worst, 20, 1e-3)
    ranks = sorted(cost.values())
    assert found.error <= ranks[len(ranks) // 20] < found.before
    assert swaps([q], [even(10, 1)], worst, 0, 1e-3).kept.tolist() == worst.tolist()


def test_swaps_of_all_or_nothing_are_none() -> None:
    q, _ = problem(6, 4)
    assert swaps([q], [even(6, 1)], np.arange(6)).kept.tolist() == list(range(6))
    assert swaps([q], [even(6, 1)], np.zeros(0, int)).kept.tolist() == []
