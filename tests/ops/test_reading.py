"""What operators tell of the values they read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphprune.ops import AFFINE, FLOORS, LOOKUPS, MOMENTS

C = np.array([2.0, -4.0])
X = np.array([3.0, 5.0])


@pytest.mark.parametrize(
    ("operator", "position", "compute"),
    [("Add", 0, lambda x: C + x), ("Add", 1, lambda x: x + C), ("Sub", 0, lambda x: C - x), ("Sub", 1, lambda x: x - C),
     ("Mul", 0, lambda x: C * x), ("Mul", 1, lambda x: x * C), ("Div", 1, lambda x: x / C)],
)
def test_affine_maps(operator: str, position: int, compute: Callable[[np.ndarray], np.ndarray]) -> None:
    rule = AFFINE.get("", operator, 17)
    assert rule is not None
    a, b = rule(C, position)
    np.testing.assert_allclose(a * X + b, compute(X))


def test_what_is_not_affine_is_nan() -> None:
    rule = AFFINE.get("", "Div", 17)
    assert rule is not None
    assert np.isnan(rule(C, 0)[0]).all() and np.isnan(rule(np.zeros(2), 1)[0]).all()


def test_moments_are_those_stored_and_not_those_of_the_batch() -> None:
    rule = MOMENTS.get("", "BatchNormalization", 17)
    assert rule is not None
    found = rule({})
    assert found is not None and (found.data, found.mean, found.variance) == (0, 3, 4)
    assert rule({"training_mode": 1}) is None


def test_lookups() -> None:
    gather, embed = LOOKUPS.get("", "Gather", 17), LOOKUPS.get("com.microsoft", "EmbedLayerNormalization", 1)
    assert gather is not None and embed is not None
    rows = gather({})
    assert rows is not None and (rows.table, rows.indices) == (0, 1) and gather({"axis": 1}) is None
    words = embed({})
    assert words is not None and (words.table, words.indices) == (2, 0)


def test_floors() -> None:
    relu, clip = FLOORS.get("", "Relu", 17), FLOORS.get("", "Clip", 17)
    assert relu is not None and clip is not None and FLOORS.get("", "LeakyRelu", 17) is None
    assert relu({}, None) == 0
    assert clip({}, np.array(-1.0)) == -1 and clip({"min": 2.0}, None) == 2
    assert clip({}, None) is None and clip({}, np.array(-np.inf)) is None
