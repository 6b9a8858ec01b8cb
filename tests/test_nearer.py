"""Whether the outputs of one model are nearer to the dense one's than another's: more than chance gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.quality import Divergence, nearer

LOSSES = st.lists(st.floats(0.01, 10), min_size=2, max_size=30)


def look(*outputs: list[float]) -> list[Divergence]:
    """Outputs whose samples lose so much."""
    return [Divergence(f"y{k}", 0.1, 0.9, float(np.mean(o)), 0.5, np.array(o)) for k, o in enumerate(outputs)]


@given(LOSSES, st.floats(0.001, 1))
def test_what_every_sample_gains_is_a_gain(losses: list[float], gain: float) -> None:
    less = look([x - gain for x in losses])
    assert nearer(less, look(losses)) and not nearer(look(losses), less)


@given(LOSSES, LOSSES)
def test_nothing_is_nearer_than_itself_and_no_two_than_each_other(one: list[float], other: list[float]) -> None:
    size = min(len(one), len(other))
    first, second = look(one[:size]), look(other[:size])
    assert not nearer(first, first) and not (nearer(first, second) and nearer(second, first))


@pytest.mark.parametrize(("gaining", "losing", "gain"), [(3, 0, True), (3, 2, False), (8, 2, True), (0, 3, False)])
def test_what_few_of_twenty_gain_may_be_chance(gaining: int, losing: int, gain: bool) -> None:
    after = [1.0] * gaining + [3.0] * losing + [2.0] * (20 - gaining - losing)
    assert nearer(look(after), look([2.0] * 20)) is gain


@pytest.mark.parametrize(("other", "gain"), [([0.5, 0.7], True), ([1.5, 2.5], False)])
def test_outputs_count_together(other: list[float], gain: bool) -> None:
    """The first output gains 0.5 with each sample."""
    assert nearer(look([0.5, 1.5], other), look([1.0, 2.0], [1.0, 1.0])) is gain


@pytest.mark.parametrize("losses", [[1.0], [1.0, 1.0, 1.0]])
def test_of_unlike_or_single_samples_the_mean_decides(losses: list[float]) -> None:
    """The sizes of an output may depend on what is in it."""
    assert nearer(look([0.9] * min(len(losses), 2)), look(losses))
    assert not nearer(look([1.1] * min(len(losses), 2)), look(losses))


def test_outputs_that_are_compared_once_only_do_not_count() -> None:
    """Detections have other sizes in other models: what cannot be compared takes nothing back."""
    both, one = look([1.0, 2.0], [5.0, 5.0]), look([0.9, 1.8])
    assert nearer(one, both) and not nearer(both, one)
    assert nearer(look(), both) and nearer(both, look()) and nearer(look(), look())
