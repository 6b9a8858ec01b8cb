"""Widths from the architecture alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small import cnn

from graphprune.allocate import Budget, allocate
from graphprune.allocate.precrop import kernels, profile
from graphprune.analysis import analyse
from graphprune.costs import CostModel
from graphprune.score import score


def test_the_product_of_densities_is_the_largest_there_is() -> None:
    """Against all pairs of widths: a group's logarithm counts once for each kernel it lies on."""
    coupling = analyse(cnn()).coupling
    costs = CostModel(coupling)
    budget = Budget(targets={"params": 0.5}, allocation="precrop", floor=0.0)
    plan = allocate(coupling, score(coupling, "random"), costs, budget)
    dims = {g.name: g.dim for g in coupling.groups}

    def flow(a: int, b: int) -> float:
        return float(np.log(a / 32 * (a / 32 * b / 48) * (b / 48)))  # of the kernels 3 to a, a to b, b to 5

    def fits(a: int, b: int) -> bool:
        return costs({dims["w1:0"]: a, dims["w2:0"]: b}).of("params") <= 0.5 * costs({}).of("params")

    best = max(flow(a, b) for a, b in itertools.product(range(1, 33), range(1, 49)) if fits(a, b))
    a, b = len(plan.keep["w1:0"]), len(plan.keep["w2:0"])
    assert fits(a, b) and flow(a, b) == pytest.approx(best, abs=0.01)


def test_widths_do_not_depend_on_weights_and_the_best_indices_stay() -> None:
    coupling = analyse(cnn()).coupling
    plans = []
    for criterion in ("l2", "random"):
        scores = score(coupling, criterion)
        budget = Budget(targets={"macs": 0.4}, allocation="precrop")
        plan = allocate(coupling, scores, CostModel(coupling), budget)
        plans.append({name: len(kept) for name, kept in plan.keep.items()})
        for name, kept in plan.keep.items():
            gone = np.delete(scores.by_group[name], list(kept))
            assert scores.by_group[name][list(kept)].min() >= gone.max()
    assert plans[0] == plans[1] and plans[0]


def test_a_group_counts_once_for_each_kernel() -> None:
    coupling = analyse(cnn()).coupling
    assert [kernels(coupling, g) for g in coupling.groups] == [2, 2]
    widths, losses = profile(coupling)["w1:0"]
    assert losses[-1] == 0 and losses[15] == pytest.approx(2 * np.log(2)) and len(widths) == 32
