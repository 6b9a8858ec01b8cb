"""Samples: cut into batches, split, thinned out, always in the same way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.calibrate import Samples, describe
from graphprune.calibrate.samples import evenly, of_items
from graphprune.errors import UsageError


def stream(*sizes: int, known: bool = True) -> Samples:
    """Samples 0, 1, 2, ... in feeds of these sizes."""
    starts = np.cumsum([0, *sizes])

    def opened():
        for start, size in zip(starts, sizes, strict=False):
            yield {"x": np.arange(start, start + size).reshape(-1, 1), "rate": np.array(8)}

    return Samples(opened, sum(sizes) if known else None, "synthetic")


def numbers(samples: Samples) -> list[int]:
    return [int(n) for feed in samples.open() for n in feed["x"].ravel()]


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@given(sizes, st.integers(1, 9))
def test_batches_hold_everything_in_order(counts: list[int], size: int) -> None:
    got = [feed["x"].ravel().tolist() for feed in stream(*counts).batches(size)]
    assert [n for part in got for n in part] == list(range(sum(counts)))
    assert all(len(part) == size for part in got[:-1])
    assert 1 <= len(got[-1]) <= size


@given(sizes, st.floats(0.05, 0.95), st.integers(0, 3), st.booleans())
def test_a_split_is_a_partition(counts: list[int], fraction: float, seed: int, known: bool) -> None:
    fit, held = stream(*counts, known=known).split(fraction, seed)
    ours, theirs = numbers(fit), numbers(held)
    assert sorted(ours + theirs) == list(range(sum(counts)))
    assert (ours, theirs) == (numbers(fit), numbers(held))
    assert fit.count in (None, len(ours)) and held.count in (None, len(theirs))
    if known and sum(counts) > 1:
        assert len(theirs) == min(max(round(sum(counts) * fraction), 1), sum(counts) - 1)


def test_a_split_depends_on_the_seed_and_reaches_everywhere() -> None:
    held = [numbers(stream(400).split(0.25, seed)[1]) for seed in range(3)]
    assert held[0] != held[1]
    for part in held:
        assert np.bincount(np.array(part) // 4).tolist() == [1] * 100


def test_picked_and_streamed_samples_are_the_same() -> None:
    picked = of_items(range(37), lambda i: {"x": np.full((1, 1), i), "rate": np.array(8)}, "synthetic")
    streamed = stream(5, 30, 2)
    for change in (lambda s: s.split(0.3, 1)[0], lambda s: s.split(0.3, 1)[1], lambda s: s.limited(11, 4)):
        assert numbers(change(picked)) == numbers(change(streamed))


def test_only_picked_samples_are_loaded() -> None:
    loaded: list[int] = []

    def load(i: int) -> dict[str, np.ndarray]:
        loaded.append(i)
        return {"x": np.full((1, 1), i)}

    part = of_items(range(100), load, "synthetic").limited(5).split(0.4)[0]
    assert numbers(part) == loaded and len(loaded) == 3


def test_limits() -> None:
    assert len(numbers(stream(9, 9).limited(5))) == 5 == stream(9, 9).limited(5).count
    assert numbers(stream(9, 9).limited(50)) == list(range(18))
    unknown = stream(9, 9, known=False).limited(12)
    assert numbers(unknown) == list(range(12)) and unknown.count is None
    assert evenly(10, 3, 0) != evenly(10, 3, 1)


def test_one_sample_is_not_held_back() -> None:
    fit, held = stream(1).split(0.5)
    assert numbers(fit) == [0] and numbers(held) == [] and held.count == 0


def test_feeds_of_other_sizes_are_not_put_together() -> None:
    shapes = [(1, 4), (1, 4), (1, 6), (1, 4)]
    samples = of_items(shapes, lambda s: {"x": np.zeros(s)}, "synthetic")
    assert [f["x"].shape for f in samples.batches(8)] == [(2, 4), (1, 6), (1, 4)]


def test_samples_along_another_axis_and_inputs_without_one() -> None:
    def load(i: int) -> dict[str, np.ndarray]:
        return {"x": np.full((1, 3), i), "state": np.full((2, 1, 4), i), "rate": np.array(i // 2)}

    samples = of_items(range(4), load, "synthetic", axes={"x": 0, "state": 1})
    feeds = list(samples.batches(3))
    assert [f["state"].shape for f in feeds] == [(2, 2, 4), (2, 2, 4)]  # the rate, which all share, changes
    assert feeds[1]["state"][0, :, 0].tolist() == [2, 3]


def test_a_model_of_fixed_batch_takes_feeds_as_they_are() -> None:
    samples = of_items(range(4), lambda i: {"x": np.full((2, 3), i)}, "synthetic", axes={})
    assert [f["x"].shape for f in samples.batches(8)] == [(2, 3)] * 4
    assert sum(1 for _ in samples.split(0.25)[0].open()) == 3


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'x' 2, 'y' 3"):
        list(Samples(lambda: iter([{"x": np.zeros(2), "y": np.zeros(3)}]), 2, "noise").batches(1))
    with pytest.raises(UsageError, match="batch of 0"):
        list(stream(2).batches(0))
    with pytest.raises(UsageError, match="between 0 and 1"):
        stream(2).split(1.0)
    with pytest.raises(UsageError, match="1 or more"):
        stream(2).limited(0)


def test_what_a_report_says() -> None:
    told = describe(Samples(lambda: iter(()), None, "out-of-distribution", ("x: guessed",)))
    assert told == {"source": "out-of-distribution", "samples": None, "assumed": ["x: guessed"]}
