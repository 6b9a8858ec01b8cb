"""Calibration and trials over several workers give what one process gives."""

from __future__ import annotations

from typing import Any

import layered
import numpy as np
import pytest
from shared_work import compare_statistics, learnt
from threadpoolctl import threadpool_limits

import graphprune
from graphprune.calibrate.statistics import chunk_of
from graphprune.errors import UsageError
from graphprune.reconstruct.curves import curves
from graphprune.scale import Pool
from graphprune.score import score
from graphprune.trials import trials


def test_statistics_of_shards_add_up_to_those_of_one_process() -> None:
    compare_statistics(Pool(2))


def test_so_they_do_in_several_passes() -> None:
    compare_statistics(Pool(2), layered.deep(3), limit=20_000)  # bytes: two layers each


def test_chunks_do_not_depend_on_workers() -> None:
    analysis = graphprune.analyse(layered.deep(1).model())
    assert [chunk_of(layered.samples_of(analysis, n), 4) for n in (3, 32, 100)] == [1, 1, 4]


def test_what_is_not_finite_is_told_by_workers_too() -> None:
    analysis = graphprune.analyse(layered.deep(1).model())
    bad = layered.given({str(analysis.model.graph.inputs[0].name): np.full((20, 10), np.nan, np.float32)})
    from graphprune.calibrate.knowledge import learn

    with pytest.raises(UsageError, match="is not finite in batch"):
        learn(analysis, bad, pool=Pool(2))


def test_trials_by_workers_are_those_of_one_process() -> None:
    def tried(pool: Pool) -> list[Any]:
        known = learnt(pool, layered.deep(3))
        analysis = graphprune.analyse(layered.deep(3).model(), graphprune.Looking(threads=1))
        groups = analysis.coupling.groups
        found = curves(analysis.coupling, groups, known.consumers, known.stats, score(analysis.coupling, "l2").by_group)
        return trials(analysis, known, found, groups, 1e12)

    one, many = tried(Pool()), tried(Pool(2))
    assert len(one) > 6 and [(t.group, t.width) for t in one] == [(t.group, t.width) for t in many]
    np.testing.assert_allclose([t.loss for t in one], [t.loss for t in many], rtol=1e-4)
    assert max(t.loss for t in one) > 0


def test_plans_by_workers_are_those_of_one_process() -> None:
    def plan(pool: Pool) -> Any:
        looking = graphprune.Looking(threads=1)
        with threadpool_limits(1):
            result = graphprune.prune(
                layered.deep(3).model(), target={"macs": 0.5}, looking=looking, pool=pool, samples=100, align=1,
                repair="symmetric", time=False, prove=False,
            )
        return result.plan.to_json()["groups"]

    assert plan(Pool()) == plan(Pool(2)) != {}
