"""The curve of weights that stay: the error of what is lost, as it is computed directly."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.reconstruct.obs import Quadratic, as_one
from graphprune.reconstruct.unrefitted import unrefitted


def rows(n: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((n, columns)) @ rng.standard_normal((columns, columns)) + 0.5, 0)


def problem(x: np.ndarray, outputs: int, biased: bool, seed: int = 1) -> Quadratic:
    weight = np.random.default_rng(seed).standard_normal((x.shape[1], outputs))
    return Quadratic(x.T @ x / len(x), x.mean(0), len(x), weight, None, biased)


def direct(x: np.ndarray, q: Quadratic, gone: np.ndarray, biased: bool) -> float:
    """What is lost, as a share of the outputs, both without their means where a bias takes these up."""
    lost, out = x[:, gone] @ q.weight[gone], x @ q.weight
    if biased:
        lost, out = lost - lost.mean(0), out - out.mean(0)
    return float(np.square(lost).sum() / np.square(out).sum())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("each", [1, 3])
def test_errors_are_those_of_what_is_lost(each: int, biased: bool) -> None:
    x = rows(200, 6 * each)
    q = problem(x, 4, biased)
    blocks = [np.arange(i, 6 * each, 6) for i in range(6)]
    found = unrefitted([q], [blocks], 2)
    assert len(found.order) == 4 and len(found.errors) == 5
    for t in range(1, 5):
        gone = np.concatenate([blocks[i] for i in found.order[:t]])
        best = direct(x, q, gone, biased)
        assert found.errors[t] >= best - 1e-9
        assert found.errors[t] == pytest.approx(best, rel=1e-6) or found.errors[t] == found.errors[t - 1]


def test_the_first_to_go_is_the_one_that_costs_least() -> None:
    x = rows(300, 7)
    q = problem(x, 3, True)
    alone = [direct(x, q, np.array([i]), True) for i in range(7)]
    assert unrefitted([q], [[np.array([i]) for i in range(7)]]).order[0] == int(np.argmin(alone))


def test_what_cancels_is_no_loss() -> None:
    """Two columns that are each other's opposite can go together, but neither alone."""
    x = rows(100, 4)
    x[:, 1] = x[:, 0]
    q = problem(x, 3, False)
    weight = 100 * q.weight
    weight[0], weight[1] = 10.0, -10.0
    q = Quadratic(q.second, q.mean, q.rows, weight, None, False)
    found = unrefitted([q], [[np.array([i]) for i in range(4)]])
    assert set(found.order[:2].tolist()) == {0, 1}
    assert found.errors[2] == found.errors[1] < found.errors[3]


def test_several_consumers_add_up() -> None:
    x = rows(100, 5)
    a, b = problem(x, 3, True), problem(x, 2, True, seed=5)
    own = [np.array([i]) for i in range(5)]
    both = unrefitted([a, b], [own, own])
    for t in range(1, 5):
        gone = both.order[:t]
        assert both.errors[t] == pytest.approx(direct(x, a, gone, True) + direct(x, b, gone, True), rel=1e-6)


def test_blocks_of_a_grouped_convolution_are_one_consumer() -> None:
    left, right = rows(80, 4), rows(80, 4, 7)
    parts = as_one([problem(left, 2, False), problem(right, 2, False, seed=3)])
    own = [np.array([i]) for i in range(4)]
    found = unrefitted(parts, [own, own])
    gone, both = found.order, list(zip((left, right), parts, strict=True))
    lost = sum(float(np.square(x[:, gone] @ p.weight[gone]).mean(0).sum()) for x, p in both)
    whole = sum(float(np.square(x @ p.weight).mean(0).sum()) for x, p in both)
    assert found.errors[len(gone)] == pytest.approx(lost / whole, rel=1e-6)
