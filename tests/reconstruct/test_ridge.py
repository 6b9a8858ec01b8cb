"""Refits: against least squares on the rows themselves, and never against what check rows say."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.reconstruct import (
    FEW_ROWS,
    Moments,
    Quadratic,
    choose_strength,
    mean_replacement,
    refit,
    refit_asymmetric,
    refitted,
    repair,
    unchanged,
)
from graphprune.reconstruct.linear import inverse, solve, spd_inverse
from graphprune.reconstruct.ridge import strengths

Array = np.ndarray
RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((12, 12))
WEIGHT = RNG.standard_normal((12, 5))
KEPT = np.array([0, 2, 3, 5, 8, 11])
GONE = np.setdiff1d(np.arange(12), KEPT)


def rows(n: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((n, 12)) @ MIX / 4 + np.linspace(-1, 2, 12)


def layer(x: Array, biased: bool = True) -> Quadratic:
    return Quadratic(x.T @ x / len(x), x.mean(0), len(x), WEIGHT, biased=biased)


def moments(z: Array, y: Array) -> Moments:
    n = len(z)
    return Moments(z.T @ z / n, z.mean(0), z.T @ y / n, y.mean(0), float(np.sum(y**2) / n), n)


def mse(z: Array, weight: Array, bias: Array | float, y: Array) -> float:
    return float(np.sum((z @ weight + bias - y) ** 2) / len(z))


@pytest.mark.parametrize("biased", [True, False])
def test_a_refit_without_strength_is_least_squares(biased: bool) -> None:
    x = rows(400)
    y = x @ WEIGHT
    z = np.hstack([x[:, KEPT], np.ones((400, 1))]) if biased else x[:, KEPT]
    expected = np.linalg.lstsq(z, y, rcond=None)[0]
    found = refit(layer(x, biased), KEPT, 0.0)
    np.testing.assert_allclose(found.weight, expected[:6], atol=1e-9)
    np.testing.assert_allclose(found.bias, expected[6] if biased else 0, atol=1e-9)


def test_a_refit_solves_the_ridge_toward_the_old_weights() -> None:
    x = rows(300)
    for lam in (1e-3, 0.1, 5.0):
        centred = x[:, KEPT] - x[:, KEPT].mean(0)
        power = lam * np.mean(np.sum(centred**2, axis=0))
        design = np.vstack([centred, np.sqrt(power) * np.eye(6)])
        wanted = np.vstack([(x - x.mean(0)) @ WEIGHT, np.sqrt(power) * WEIGHT[KEPT]])
        found = refit(layer(x), KEPT, lam)
        np.testing.assert_allclose(found.weight, np.linalg.lstsq(design, wanted, rcond=None)[0], atol=1e-9)
        np.testing.assert_allclose(
            x[:, KEPT].mean(0) @ found.weight + found.bias, (x @ WEIGHT).mean(0), atol=1e-9
        )
        assert found.lam == pytest.approx(lam)


def test_a_strong_refit_is_bias_compensation() -> None:
    q = layer(rows(300))
    found = refit(q, KEPT, 1e12)
    np.testing.assert_allclose(found.weight, WEIGHT[KEPT], atol=1e-9)
    plain = unchanged(Moments.symmetric(q, KEPT), WEIGHT[KEPT])
    np.testing.assert_allclose(plain.bias, mean_replacement(q.mean, WEIGHT, KEPT), atol=1e-12)
    np.testing.assert_allclose(found.bias, q.mean[GONE] @ WEIGHT[GONE], atol=1e-8)
    assert plain.lam is None


def test_errors_told_by_moments_are_those_of_the_rows() -> None:
    x, z = rows(200), rows(200, 2)[:, KEPT]
    y = x @ WEIGHT + 0.3
    m = moments(z, y)
    weight, bias = RNG.standard_normal((6, 5)), RNG.standard_normal(5)
    assert m.error(weight, bias) == pytest.approx(mse(z, weight, bias, y), rel=1e-10)
    assert m.error(weight) == pytest.approx(mse(z, weight, 0.0, y), rel=1e-10)
    assert m.variance(True) == pytest.approx(float(np.sum(y.var(0))), rel=1e-10)
    assert m.variance(False) == pytest.approx(float(np.mean(np.sum(y**2, 1))), rel=1e-10)
    s = Moments.symmetric(layer(x), KEPT)
    assert s.error(weight, bias) == pytest.approx(mse(x[:, KEPT], weight, bias, x @ WEIGHT), rel=1e-10)


def test_moments_of_two_parts_are_those_of_the_whole() -> None:
    x, z = rows(250), rows(250, 2)[:, KEPT]
    y = x @ WEIGHT
    both = moments(z[:100], y[:100]).merged(moments(z[100:], y[100:]))
    whole = moments(z, y)
    for name in ("second", "mean", "cross", "target", "energy", "rows"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name), rtol=1e-10)


def test_an_asymmetric_refit_undoes_what_happened_before_it() -> None:
    x = rows(500)
    z = x[:, KEPT] * 0.5 + 0.2  # the pruned network gives other inputs
    y = x @ WEIGHT + np.arange(5.0)
    m = moments(z, y)
    found = refit_asymmetric(m.second, m.cross, (m.mean, m.target), WEIGHT[KEPT], 0.0)
    expected = np.linalg.lstsq(np.hstack([z, np.ones((500, 1))]), y, rcond=None)[0]
    np.testing.assert_allclose(np.vstack([found.weight, found.bias]), expected, atol=1e-8)
    assert m.error(found.weight, found.bias) < 0.9 * m.error(WEIGHT[KEPT], 0.0)


# ---- strengths


def test_with_many_rows_a_weak_strength_is_chosen_and_few_rows_want_a_strong_one() -> None:
    def chosen(n: int) -> float | None:
        fit, check = layer(rows(n, 3)), layer(rows(3000, 4))
        return choose_strength(Moments.symmetric(fit, KEPT), Moments.symmetric(check, KEPT), WEIGHT[KEPT])

    many, few = chosen(20000), chosen(5)
    assert many is not None and many <= 1e-2
    assert few is None or few > many


def test_no_refit_where_none_helps_on_check_rows() -> None:
    """Fitted on rows that say the opposite of the check rows."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 6))
    good = z @ WEIGHT[KEPT]
    fit, check = moments(z, -3 * good), moments(z, good)
    assert choose_strength(fit, check, WEIGHT[KEPT]) is None
    found = repair(fit, check, WEIGHT[KEPT])
    assert found.lam is None
    np.testing.assert_array_equal(found.weight, WEIGHT[KEPT])
    assert found.error <= found.plain


def test_repair_never_does_worse_on_check_rows_than_plain_removal() -> None:
    for seed in range(20):
        fit, check = (Moments.symmetric(layer(rows(n, seed + n)), KEPT) for n in (4 + seed, 30))
        found = repair(fit, check, WEIGHT[KEPT])
        assert found.error <= found.plain
        if found.lam is not None:
            again = refitted(fit, WEIGHT[KEPT], found.lam)
            assert check.error(again.weight, again.bias) / check.variance(True) == pytest.approx(found.error)
            both = refitted(fit.merged(check), WEIGHT[KEPT], found.lam)
            np.testing.assert_allclose(found.weight, both.weight)
            assert found.error < check.error(WEIGHT[KEPT], unchanged(fit, WEIGHT[KEPT]).bias) / check.variance(True)


def test_a_bias_that_hurts_is_not_used() -> None:
    z = np.random.default_rng(0).standard_normal((60, 6))
    y = z @ WEIGHT[KEPT]
    fit = moments(z, y + 100)  # a shift that the check rows know nothing of
    found = repair(fit, moments(z, y), WEIGHT[KEPT])
    assert found.lam is None and not found.bias.any() and found.error == found.plain


def test_without_a_bias_there_is_none() -> None:
    fit, check = (Moments.symmetric(layer(rows(n, n), False), KEPT) for n in (500, 300))
    found = repair(fit, check, WEIGHT[KEPT], biased=False)
    assert found.lam is not None and not found.bias.any() and found.error < found.plain


def test_fewer_rows_than_columns_try_stronger_refits() -> None:
    few, many = (Moments.symmetric(layer(rows(n)), KEPT) for n in (5, 50))
    assert strengths(few) == FEW_ROWS and max(strengths(few)) > max(strengths(many))
    assert strengths(few, [0.5]) == (0.5,)


# ---- singular and broken


def test_inputs_that_are_the_same_or_never_vary_are_no_obstacle() -> None:
    x = rows(100)
    x[:, 2] = x[:, 0]
    x[:, 3] = 1.0
    q = layer(x)
    for lam in (0.0, 1e-3):
        found = refit(q, KEPT, lam)
        assert np.isfinite(found.weight).all() and np.abs(found.weight).max() < 1e3
        plain = unchanged(Moments.symmetric(q, KEPT), WEIGHT[KEPT])
        m = Moments.symmetric(q, KEPT)
        assert m.error(found.weight, found.bias) < m.error(plain.weight, plain.bias)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_with_no_numbers_leave_the_weights(value: float) -> None:
    x = rows(50)
    m = Moments.symmetric(layer(x), KEPT)
    broken = Moments(np.full((6, 6), value), m.mean, m.cross, m.target, m.energy, m.rows)
    found = repair(broken, m, WEIGHT[KEPT])
    assert found.lam is None
    np.testing.assert_array_equal(found.weight, WEIGHT[KEPT])
    nothing = Moments(broken.second, np.full(6, value), m.cross, m.target, m.energy, m.rows)
    assert np.isfinite(refitted(nothing, WEIGHT[KEPT], 0.1).bias).all()


@pytest.mark.parametrize("n", [1, 7, 256, 257, 600])
def test_the_inverse_by_halves_is_the_inverse(n: int) -> None:
    a = np.random.default_rng(n).standard_normal((n, n + 5))
    a = a @ a.T / n + 1e-3 * np.eye(n)
    np.testing.assert_allclose(spd_inverse(a) @ a, np.eye(n), atol=1e-8)
    found, used = inverse(a, 0.0)
    assert used == 0
    np.testing.assert_allclose(found, found.T, atol=1e-9 * np.abs(found).max())


def test_a_singular_inverse_takes_more_damping_and_a_broken_one_all() -> None:
    found, used = inverse(np.ones((4, 4)), 0.0)
    assert 0 < used <= 1e-4
    np.testing.assert_allclose(found @ (np.ones((4, 4)) + used * np.eye(4)), np.eye(4), atol=1e-4)
    found, used = inverse(np.array([[2.0, np.nan], [np.nan, 4.0]]), 0.1)
    assert used == np.inf
    np.testing.assert_allclose(found, np.diag([0.5, 0.25]))
    x, used = solve(np.full((2, 2), np.nan), np.ones((2, 1)), 0.0)
    assert used == np.inf and not x.any()
