"""Layers whose errors reach the output strongly are told from those that do not."""

from __future__ import annotations

import numpy as np
import pytest
from layered import known
from oracles import Net

from graphprune.calibrate.sensitivity import sensitivities
from graphprune.reconstruct.curves import curves
from graphprune.score import score


def two_ways(factor: float) -> Net:
    """One hidden layer, read twice; what the first reader gives is multiplied."""
    net = Net()
    hidden = net("Relu", net.gemm(net.input("x", [None, 6]), 6, 12, name="a"))
    loud = net("Mul", net.gemm(hidden, 12, 5, name="b"), net.const(np.float32(factor)))
    return net.output(net("Add", loud, net.gemm(hidden, 12, 5, name="c")))


def test_an_error_counts_as_it_reaches_the_output() -> None:
    analysis, found = known(two_ways(10.0))
    told = sensitivities(analysis.model, found.consumers.found, found.samples, batch=8)
    by_layer = {c.weight[0]: told[c.node] for c in found.consumers.found if c.node in told}
    assert by_layer["b"] / by_layer["c"] > 20  # the factor squared, but for the energies of the two
    assert np.mean(list(told.values())) == pytest.approx(1, abs=0.02)


def test_curves_rise_with_it() -> None:
    analysis, found = known(two_ways(1.0))
    coupling = analysis.coupling
    nodes = [c.node for c in found.consumers.found]

    def error(importance: float) -> float:
        made = curves(
            coupling, coupling.groups, found.consumers, found.stats, score(coupling, "l2").by_group,
            importance=dict.fromkeys(nodes, importance),
        )
        return float(next(iter(made.values())).errors[6])

    assert error(2.0) == pytest.approx(2 * error(1.0))
