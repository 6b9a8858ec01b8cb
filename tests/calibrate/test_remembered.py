"""Samples kept in memory: the same feeds, read once; not where they are too many, nor before they were read whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from graphprune.calibrate.remembered import remembered
from graphprune.calibrate.samples import Feed, Samples


def counted(reads: list[int]) -> Samples:
    def opened() -> Iterator[Feed]:
        reads.append(0)
        for k in range(4):
            reads[-1] += 1
            yield {"x": np.full((2, 3), k, np.float32)}

    return Samples(opened, 8, "noise")


@pytest.mark.parametrize(("most", "times"), [(4 * 24, 1), (4 * 24 - 1, 3)])
def test_feeds_are_the_same_and_made_once_if_they_are_small(most: int, times: int) -> None:
    reads: list[int] = []
    samples = remembered(counted(reads), most)
    for _ in range(3):
        assert [feed["x"][0, 0] for feed in samples.open()] == [0, 1, 2, 3]
    assert reads == [4] * times


def test_a_reader_that_stops_early_leaves_the_rest_to_the_next() -> None:
    reads: list[int] = []
    samples = remembered(counted(reads))
    assert next(samples.open())["x"][0, 0] == 0
    assert [feed["x"].shape for feed in samples.batches(3)] == [(3, 3), (3, 3), (2, 3)]
    assert [feed["x"][0, 0] for feed in samples.open()] == [0, 1, 2, 3]
    assert reads == [1, 4]
