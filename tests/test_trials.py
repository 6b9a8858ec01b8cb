"""Trials of single groups: what the outputs lose, in the order of importance, within the work that is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import layered
import numpy as np
import pytest
from layered import given, known
from oracles import Net

import graphprune
from graphprune import trials as trials_module
from graphprune.alike import families
from graphprune.calibrate.knowledge import batch_of, sample_scale
from graphprune.consumers import consumers
from graphprune.reconstruct.curves import curves
from graphprune.reconstruct.obs import Curve
from graphprune.scale.candidates import cost_of
from graphprune.score import score
from graphprune.trials import Trial, likely, trial_work, trials, worth


def two_ways(factor: float) -> Net:
    """Two hidden layers of random features; what the first gives is multiplied."""
    net = Net()
    x = net.input("x", [None, 6])
    loud, quiet = (
        net.gemm(net("Relu", net.gemm(x, 6, 12, name=f"{n}in")), 12, 5, name=n) for n in ("loud", "quiet")
    )
    return net.output(net("Add", net("Mul", loud, net.const(np.float32(factor))), quiet))


def tried(net: Net, work: float = 1e12) -> tuple[Any, dict[str, Curve], list[Trial]]:
    analysis, learnt = known(net, 400)
    coupling = analysis.coupling
    found = curves(coupling, coupling.groups, learnt.consumers, learnt.stats, score(coupling, "l2").by_group)
    return analysis, found, trials(analysis, learnt, found, coupling.groups, work)


def test_losses_are_those_of_the_outputs() -> None:
    _, found, done = tried(two_ways(4.0))
    loss = {(t.group.split(":")[0], t.width): t.loss for t in done}
    assert {w for _, w in loss} == {3, 6, 9}
    for width in (3, 6, 9):
        assert loss["loudin", width] > 2 * loss["quietin", width] > 0
    assert all(t.error == found[t.group].error(t.width) for t in done)
    for group in ("loudin", "quietin"):
        assert loss[group, 3] > loss[group, 6] > loss[group, 9]


def test_plans_keep_what_counts() -> None:
    x = {"x": np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)}

    def kept(effort: str) -> dict[str, int]:
        result = graphprune.prune(
            two_ways(4.0).model(), target={"macs": 0.6}, calibration=x, effort=effort, align=1, prove=False, time=False
        )
        sizes = {name.split(":")[0]: len(keep) for name, keep in result.plan.keep.items()}
        return {"loudin": 12, "quietin": 12, **sizes}

    measured, by_layers = kept("medium"), kept("low")
    assert measured["loudin"] > by_layers["loudin"] and measured["quietin"] < by_layers["quietin"]


def test_widths_that_no_layer_contracts_are_tried_too() -> None:
    _, _, done = tried(layered.heads())
    assert any(t.group.startswith("wq") and t.loss > 0 for t in done)


def test_work_is_kept_to_and_the_first_come_first() -> None:
    analysis, _, done = tried(two_ways(1.0), work=1.0)
    assert [t.group for t in done] == [analysis.coupling.groups[0].name] and done[0].width == 6


def test_curves_meet_their_trials() -> None:
    curve = Curve(np.arange(3), np.array([0.0, 0.1, 0.2, 0.8]), 4, 0.0)
    done = [Trial("a", 2, 0.2, 1.0), Trial("a", 1, 0.8, 3.0), Trial("b", 2, 0.2, 0.2)]
    made = worth({"a": curve, "b": curve, "c": curve}, done)
    assert [widths.tolist() for widths, _ in made.values()] == [[1, 2, 3, 4]] * 3
    assert made["a"][1] == pytest.approx([3.0, 1.0, 0.5, 0.0])
    assert made["b"][1] == pytest.approx([0.8, 0.2, 0.1, 0.0])  # beyond the last trial in proportion
    assert made["c"][1] == pytest.approx([4.0, 1.0, 0.5, 0.0])  # not tried: as the dearest


def test_no_group_is_free_and_losses_never_fall() -> None:
    curve = Curve(np.arange(3), np.array([0.0, 0.1, 0.2, 0.8]), 4, 0.0)
    done = [Trial("a", 2, 0.2, 0.0), Trial("b", 3, 0.1, 0.5), Trial("b", 2, 0.2, 0.3)]
    made = worth({"a": curve, "b": curve}, done)
    assert (np.diff(made["a"][1]) < 0).all()
    assert (np.diff(made["b"][1]) <= 0).all() and made["b"][1][1] >= 0.5


def test_longer_samples_are_more_work() -> None:
    net = Net()
    hidden = net("Relu", net.matmul(net.input("x", [None, "length", 6]), 6, 12, name="a"))
    analysis = graphprune.analyse(net.output(net.matmul(hidden, 12, 5, name="b")).model())
    natural = np.prod(analysis.coupling.graph.worlds.natural_inputs["x"])
    for length in (10, 300):
        samples = given({"x": np.zeros((20, length, 6), np.float32)})
        assert sample_scale(analysis, samples) == pytest.approx(length * 6 / natural)
    long, short = (
        batch_of(analysis, consumers(analysis.coupling), given({"x": np.broadcast_to(np.float32(1), (400, n, 6))}))
        for n in (10**6, 10)
    )
    assert long < 4 < short


def test_what_ruins_the_outputs_says_nothing_of_milder_cuts() -> None:
    curve = Curve(np.arange(4), np.array([0.0, 0.1, 0.2, 0.4, 0.8]), 5, 0.0)
    ruined = worth({"a": curve}, [Trial("a", 2, 0.4, 6.0)])["a"][1]
    np.testing.assert_allclose(ruined, [12.0, 6.0, 6.0, 6.0, 0.0])  # by width: 1 to 5
    milder = worth({"a": curve}, [Trial("a", 2, 0.4, 6.0), Trial("a", 4, 0.1, 0.2)])["a"][1]
    np.testing.assert_allclose(milder, [12.0, 6.0, 0.2 + 5.8 / 3, 0.2, 0.0])


def test_a_few_of_many_kinds_of_groups_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, learnt = known(layered.deep(3), 400)
    groups = analysis.coupling.groups
    one = cost_of(analysis, learnt, learnt.batch)
    kinds = len(families(analysis.coupling, groups))

    def work(effort: str, **limits: float) -> float:
        for name, limit in limits.items():
            monkeypatch.setattr(trials_module, f"_{name}", {effort: limit})
        return trial_work(analysis, replace(learnt, effort=effort), groups)

    assert (work("low"), work("medium"), work("high")) == (0.0, 1e12, 2e13)
    assert work("medium", WORK=0.51 * kinds * one, EACH=0.0) == 0.51 * kinds * one
    assert work("medium", WORK=0.49 * kinds * one, EACH=0.0) == 0.0
    assert work("medium", WORK=1.0, EACH=1e12) == len(groups) * one  # what tries each once may be more


def test_low_effort_tries_groups_of_deep_models_only() -> None:
    def work(blocks: int) -> float:
        analysis, learnt = known(layered.deep(blocks), 400)
        return trial_work(analysis, replace(learnt, effort="low"), analysis.coupling.groups)

    assert work(3) == 0.0 < work(12) < 2e12


def test_groups_that_were_not_tried_lose_what_their_likes_do() -> None:
    curve = Curve(np.arange(3), np.array([0.0, 0.1, 0.2, 0.8]), 4, 0.0)
    steep = Curve(np.arange(3), np.array([0.0, 1.0, 2.0, 8.0]), 4, 0.0)
    found = {"a": curve, "b": steep, "c": curve, "d": curve}
    done = [Trial("a", 2, 0.2, 0.01), Trial("c", 2, 0.2, 1.0), Trial("branch", 0, 0.0, 2.0)]
    more = likely(found, done, [("a", "b", "c"), ("d",)])
    assert [(t.group, t.width, t.error) for t in more] == [("b", 2, 2.0)]
    assert more[0].loss == pytest.approx(0.1)
    assert likely(found, [*done, Trial("b", 2, 2.0, np.inf)], [("b", "a", "c")])[0].loss == pytest.approx(0.01)


def test_blocks_are_a_family_and_are_tried_from_both_ends() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 6]), 6, 16, name="in")
    for k in range(5):
        x = net("Add", x, net.gemm(net("Relu", net.gemm(x, 16, 12, name=f"{k}a")), 12, 16, name=f"{k}b"))
    analysis, learnt = known(net.output(net.gemm(x, 16, 3, name="last")), 400)
    groups = analysis.coupling.groups
    blocks, (stream,) = sorted(families(analysis.coupling, groups), key=len, reverse=True)
    assert [name[0] for name in blocks] == list("01234") and stream.startswith("in")
    found = curves(analysis.coupling, groups, learnt.consumers, learnt.stats, score(analysis.coupling, "l2").by_group)
    enough = 4 * cost_of(analysis, learnt, 128) * 1.01
    done = trials(analysis, learnt, found, groups, enough)
    order = [t.group[0] for t in done]
    assert set(order[:2]) == {"i", "0"} and order[2:4] == ["4", "2"]
