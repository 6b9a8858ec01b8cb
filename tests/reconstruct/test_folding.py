"""Repair without data: exact where channels are copies or combinations, and honest least squares elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.reconstruct.folding import combinations, fold, produced, relu_moments, taken_over

Array = np.ndarray
RNG = np.random.default_rng(0)


def test_rows_and_offsets_are_what_normalisation_makes_of_a_weight() -> None:
    weight, x = RNG.standard_normal((4, 3, 2)), RNG.standard_normal((9, 6))
    gamma, beta, mean, variance = (RNG.uniform(0.5, 2, 4) for _ in range(4))
    rows, offsets = produced(weight, gamma, beta, mean, variance, epsilon=1e-3)
    y = x @ weight.reshape(4, -1).T
    np.testing.assert_allclose(x @ rows.T + offsets, gamma * (y - mean) / np.sqrt(variance + 1e-3) + beta)


def test_a_channel_that_is_a_combination_is_replaced_exactly() -> None:
    rows, offsets = RNG.standard_normal((5, 12)), RNG.standard_normal(5)
    mix = RNG.standard_normal((2, 5))
    rows, offsets = np.vstack([rows, mix @ rows]), np.concatenate([offsets, mix @ offsets])
    order = RNG.permutation(7)
    rows, offsets = rows[order], offsets[order]
    kept = np.flatnonzero(order < 5)
    weight = RNG.standard_normal((7, 9, 4))
    x = RNG.standard_normal((20, 9, 12))  # the same channels at nine positions
    channels = x @ rows.T + offsets
    dense = np.einsum("nkc,cko->no", channels, weight)
    shares = combinations(rows, offsets, kept, 0.0)
    pruned = np.einsum("nkc,cko->no", channels[:, :, kept], taken_over(weight, kept, shares))
    np.testing.assert_allclose(pruned, dense, atol=1e-8)
    offset_ignored = combinations(rows, offsets + (order >= 5), kept, 0.0, 0.0)
    np.testing.assert_allclose(offset_ignored, shares, atol=1e-8)


@pytest.mark.parametrize(("lam", "offset_weight"), [(1e-3, 1.0), (0.1, 4.0)])
def test_shares_are_the_least_squares_that_are_written(lam: float, offset_weight: float) -> None:
    rows, offsets, kept = RNG.standard_normal((8, 5)), RNG.standard_normal(8), np.array([1, 4, 6])
    gone = np.setdiff1d(np.arange(8), kept)
    whole = np.hstack([rows, offset_weight**0.5 * offsets[:, None]])
    power = lam * np.mean(np.sum(whole[kept] ** 2, axis=1))
    design = np.vstack([whole[kept].T, np.sqrt(power) * np.eye(3)])
    expected = np.linalg.lstsq(design, np.vstack([whole[gone].T, np.zeros((3, 5))]), rcond=None)[0].T
    np.testing.assert_allclose(combinations(rows, offsets, kept, lam, offset_weight), expected, atol=1e-10)


def test_kept_channels_that_are_the_same_or_zero_are_no_obstacle() -> None:
    rows = np.array([[1.0, 0], [1, 0], [2, 0], [0, 0]])
    shares = combinations(rows, np.zeros(4), np.array([0, 1]), 0.0)
    np.testing.assert_allclose(shares @ rows[:2], rows[2:], atol=1e-4)
    assert np.isfinite(combinations(np.zeros((3, 2)), np.zeros(3), np.array([0]), 0.0)).all()
    assert combinations(rows, np.zeros(4), np.arange(4)).shape == (0, 4)
    assert combinations(rows, np.zeros(4), np.zeros(0, int)).shape == (4, 0)


def test_folding_copies_changes_nothing() -> None:
    """Through a nonlinearity: the consumer's weights of copies are added up."""
    rows, offsets = RNG.standard_normal((4, 6)), RNG.standard_normal(4)
    copies = np.array([0, 1, 2, 3, 1, 1, 3])
    rows, offsets = rows[copies], offsets[copies]
    weight = RNG.standard_normal((7, 1, 5))
    found = fold(np.hstack([rows, offsets[:, None]]), 4)
    assert len(found.kept) == 4 and len(set(copies[found.kept])) == 4
    x = RNG.standard_normal((30, 6))
    dense = np.maximum(x @ rows.T + offsets, 0) @ weight[:, 0]
    hidden = np.maximum(x @ found.mean(rows).T + found.mean(offsets), 0)
    np.testing.assert_allclose(hidden @ found.total(weight)[:, 0], dense, atol=1e-10)
    np.testing.assert_allclose(found.gains(rows), 1)


def test_gains_give_back_the_variance_of_white_inputs() -> None:
    rows = np.repeat(RNG.standard_normal((3, 40)), 4, axis=0) + 0.5 * RNG.standard_normal((12, 40))
    found = fold(rows, 3)
    assert sorted(np.bincount(found.labels)) == [4, 4, 4]
    x = RNG.standard_normal((200_000, 40))
    members, merged = (x @ rows.T).var(0), (x @ found.mean(rows).T).var(0)
    np.testing.assert_allclose(found.gains(rows) ** 2 * merged, found.mean(members), rtol=0.02)
    assert (found.gains(rows) > 1).all()


def test_gains_for_equal_variances_follow_the_mean_correlation() -> None:
    r, n = 0.3, 5
    rows = np.linalg.cholesky(np.full((n, n), r) + (1 - r) * np.eye(n))
    assert fold(rows, 1).gains(rows) == pytest.approx(np.sqrt(n / (1 + (n - 1) * r)))
    opposite = np.array([[1.0, 0], [-1, 0]])
    assert fold(opposite, 1).gains(opposite).tolist() == [1.0]  # nothing is left that could be scaled
    uncorrelated = np.eye(3)
    assert fold(uncorrelated, 1).gains(uncorrelated) == pytest.approx(3**0.5)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 20), st.integers(1, 22), st.integers(0, 1000), st.booleans())
def test_clusters_are_never_empty_and_runs_agree(channels: int, count: int, seed: int, flat: bool) -> None:
    features = np.zeros((channels, 3)) if flat else np.random.default_rng(seed).standard_normal((channels, 3)).round(1)
    found, again = fold(features, count, seed), fold(features, count, seed)
    k = min(count, channels)
    assert len(found.kept) == k and (np.diff(found.kept) > 0).all()
    assert set(found.labels) == set(range(k)) and (found.labels == again.labels).all()
    assert found.labels[found.kept].tolist() == list(range(k))
    if count >= channels:
        assert found.labels.tolist() == list(range(channels))


def test_clusters_are_tighter_than_any_cut_by_order() -> None:
    features = RNG.standard_normal((40, 2)) + 8 * RNG.integers(0, 3, (40, 2))
    found = fold(features, 9)

    def spread(labels: Array) -> float:
        return sum(float(np.sum((features[labels == k] - features[labels == k].mean(0)) ** 2)) for k in set(labels))

    for column in (0, 1):
        cut = np.argsort(np.argsort(features[:, column])) * 9 // 40
        assert spread(found.labels) < spread(cut)
    assert np.isfinite(fold(np.array([[np.nan, 1], [np.inf, 2], [0, 3.0]]), 2).kept).all()


def test_moments_behind_a_rectifier_are_those_of_samples() -> None:
    mean, deviation = np.array([-3.0, -0.5, 0, 0.7, 4, 1]), np.array([1.0, 2, 1, -0.5, 1, 0])
    z = mean + deviation * np.random.default_rng(0).standard_normal((400_000, 6))
    first, second = relu_moments(mean, deviation)
    np.testing.assert_allclose(first, np.maximum(z, 0).mean(0), atol=0.01)
    np.testing.assert_allclose(second, (np.maximum(z, 0) ** 2).mean(0), rtol=0.02, atol=0.002)
