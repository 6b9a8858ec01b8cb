"""Rooflines: what is linear is found, nothing is negative, and times rise with loads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.machine.roofline import Record, Records, Roof, fitted

PRIOR = Roof((1000.0, 0.02, 0.1, 0.1))
LOAD = st.tuples(st.floats(1e3, 1e9), st.floats(1e3, 1e7), st.floats(0, 1e7))


def records(roof: Roof, count: int, seed: int = 0, noise: float = 0.0) -> list[Record]:
    rng = np.random.default_rng(seed)
    loads = [tuple(float(x) for x in 10 ** rng.uniform([6, 4, 4], [8, 6, 6])) for _ in range(count)]
    return [Record("a", x, roof(x) * float(np.exp(noise * rng.standard_normal()))) for x in loads]  # type: ignore


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_times_between_measured_points_are_found(noise: float) -> None:
    truth = Roof((3000.0, 0.05, 0.2, 0.02))
    known, asked = records(truth, 60, noise=noise), records(truth, 20, seed=1)
    errors = [abs(fitted(known, r.loads, PRIOR)(r.loads) / r.ns - 1) for r in asked]
    assert max(errors) < 0.05 + 2 * noise and np.median(errors) < 0.02 + noise


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LOAD, st.floats(1e2, 1e9)), min_size=1, max_size=12), LOAD, st.floats(1, 4))
def test_more_to_do_takes_longer_whatever_was_measured(
    found: list[tuple[tuple[float, float, float], float]], at: tuple[float, float, float], more: float
) -> None:
    roof = fitted([Record("a", loads, ns) for loads, ns in found], at, PRIOR)
    assert min(roof.rates) >= 0 and all(np.isfinite(roof.rates)) and roof(at) > 0
    assert roof((at[0] * more, at[1] * more, at[2] * more)) >= roof(at)


def test_one_measurement_scales_the_prior_and_none_leaves_it() -> None:
    at = (1e7, 1e5, 1e5)
    assert fitted([], at, PRIOR) == PRIOR
    roof = fitted([Record("a", at, 5 * PRIOR(at))], at, PRIOR)
    assert roof(at) == pytest.approx(5 * PRIOR(at), rel=0.02)
    half = (5e6, 5e4, 5e4)
    assert roof(half) / roof(at) == pytest.approx(PRIOR(half) / PRIOR(at), rel=0.05)


def test_records_of_the_node_itself_count_more() -> None:
    at = (1e7, 1e5, 1e5)
    others = [Record("a", at, 1e5)] * 4
    assert fitted(others, at, PRIOR, [Record("a", at, 2e5)])(at) > 1.3e5  # all five alike: 1.06e5


def test_the_nearest_records_are_found() -> None:
    found = Records(tuple(records(PRIOR, 500)))
    at = found.found[7].loads
    near = found.near(at)
    assert len(near) == 200 and near[0] == found.found[7] and found.away(at) == 0
