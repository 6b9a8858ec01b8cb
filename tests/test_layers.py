"""Layers as well as widths, end to end: cheap branches go, plans replay, names can be excluded, repair goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
from layered import given
from oracles import Net

import graphprune
from graphprune.accuracy import deciding
from graphprune.allocate import Budget
from graphprune.calibrate.knowledge import learn
from graphprune.influence import influences
from graphprune.model import load
from graphprune.searching import improved

RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((400, 6)).astype(np.float32)}
OPTIONS: dict[str, Any] = {"align": 1, "prove": False, "time": False, "calibration": X}


def blocks(*scales: float, fused: bool = False) -> onnx.ModelProto:
    """Residual blocks 6 -> 24 -> 6, each scaled."""
    net = Net()
    x = net.gemm(net.input("x", [None, 6]), 6, 6, name="stem")
    for k, scale in enumerate(scales):
        y = net.gemm(net("Relu", net.gemm(x, 6, 24, name=f"up{k}")), 24, 6, name=f"down{k}")
        x = net("Add", x, net("Mul", y, net.const(np.float32(scale))))
    return net.output(net.gemm(x, 6, 4, name="head")).model()


def test_a_branch_that_does_next_to_nothing_goes_first() -> None:
    model = blocks(1.0, 1e-4, 1.0)
    result = graphprune.prune(model, target={"macs": 0.7}, **OPTIONS)
    (name,) = result.plan.bypass
    assert result.report["bypass"] == [name]
    left = {t.name for t in result.model.graph.initializer}
    assert not any("1" in n for n in left if n.startswith(("up", "down"))) and {"up0", "up2"} <= left
    assert {g["name"]: g["kept"] for g in result.report["groups"]}["up0:0"] == 24
    assert result.report["divergence"]["after"][0]["relative"] < 1e-3
    assert graphprune.analyse(result.model).dense.macs == result.report["after"]["macs"]
    assert result.report["after"]["macs"] <= 0.7 * result.report["before"]["macs"]
    assert [n.op_type for n in result.model.graph.node].count("Identity") == 0

    widths = graphprune.prune(model, target={"macs": 0.7}, layers=False, **OPTIONS)
    assert not widths.plan.bypass and widths.report["divergence"]["after"][0]["relative"] > 1e-3
    kept = graphprune.prune(model, target={"macs": 0.7}, exclude=name, **OPTIONS)
    assert not kept.plan.bypass
    assert not graphprune.prune(model, 0.3, **OPTIONS).plan.bypass


def test_a_plan_with_branches_replays_to_the_same_bytes(tmp_path: Path) -> None:
    path = small.put(tmp_path / "m.onnx", blocks(1.0, 1e-4))
    made = small.record("plan", path, "-o", tmp_path / "plan.json", "--target", "macs=0.6", "--align", "1")
    assert len(made["bypass"]) == 1 and made["plan"]["bypass"] == made["bypass"]
    for out in ("a.onnx", "b.onnx"):
        small.record("prune", path, "--plan", tmp_path / "plan.json", "-o", tmp_path / out, *small.FAST)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    again = graphprune.prune(path, plan=tmp_path / "plan.json", prove=False, time=False, calibration="off")
    assert again.report["after"] == {**made["after"]}
    shown = small.cli("plan", path, "--target", "macs=0.6", "--align", "1")
    assert "bypassed: 1 branch: " in shown.out
    assert "bypassed" not in small.cli("plan", path, "--target", "macs=0.6", "--align", "1", "--no-layers").out


def test_branches_alone_are_repaired_after_all() -> None:
    """Nothing loses an index: what follows is fitted to the dense outputs all the same."""
    analysis = graphprune.analyse(blocks(0.3, 0.3))
    names = [b.name for b in analysis.coupling.branches.free]
    plan = graphprune.PruningPlan({}, {}, {}, {}, (names[0],))
    found = {
        repair: graphprune.prune(blocks(0.3, 0.3), plan=plan, repair=repair, **OPTIONS).report["divergence"]["after"]
        for repair in ("none", "sequential")
    }
    assert found["sequential"][0]["relative"] < 0.8 * found["none"][0]["relative"]


def test_a_tied_weight_is_repaired_where_one_of_its_branches_is_gone() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 6]), 6, 6)
    up, down, shift = net.weight(6, 24, name="up"), net.weight(24, 6, name="down"), net.weight(6)
    for _ in range(3):
        y = net("MatMul", net("Relu", net("MatMul", x, up)), down)
        x = net("Add", x, net("Mul", net("Add", y, shift), net.const(np.float32(0.2))))
    model = net.output(net.gemm(x, 6, 4)).model()
    analysis = graphprune.analyse(model)
    plan = graphprune.prune(model, 0.4, **OPTIONS).plan
    for branch in analysis.coupling.branches.free:
        both = graphprune.PruningPlan(plan.model, plan.keep, plan.sizes, {}, (branch.name,))
        for repair in ("symmetric", "sequential", "weights"):
            result = graphprune.prune(model, plan=both, **{**OPTIONS, "repair": repair})
            assert result.report["repair"]["mode"] == repair and result.report["repair"]["layers"]


def test_a_search_starts_from_bypassed_branches() -> None:
    analysis = graphprune.analyse(blocks(1.0, 1e-4, 1.0))
    decide = deciding(analysis, replace(learn(analysis, given(X)), effort="high"), (1, True), lambda text: None)
    budget = Budget(targets={"macs": 0.5}, allocation="error")
    plan = decide(budget)
    found = improved(decide, plan, budget, lambda text: None)
    assert plan.bypass and found.bypass and found.meta["search"]["after"] <= found.meta["search"]["before"]
    assert analysis.costs(found.sizes_of(analysis.coupling)).macs <= 0.5 * analysis.dense.macs


def test_inspect_lists_branches_and_why_some_stay(tmp_path: Path) -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    key = net.gemm(x, 8, 12)
    x = net("Add", x, net.gemm(net("Mul", net("Sigmoid", key), net.gemm(x, 8, 12)), 12, 8))
    x = net("Add", x, net.gemm(net("Relu", net.gemm(x, 8, 12)), 12, 8))
    path = small.put(tmp_path / "m.onnx", net.output(net.gemm(x, 8, 3), key).model())
    one, two = small.record("inspect", path)["branches"]
    assert "output of the model" in one["reason"] and not two["reason"]
    assert two["macs"] == 2 * 8 * 12 and two["parameters"] == 2 * 8 * 12 + 12 + 8 and two["nodes"] == 3
    assert "residual branches: 1 can be bypassed, 1 more cannot be" in small.cli("inspect", path).out
    assert one["reason"] in small.cli("inspect", path, "-v").out


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_influence_is_the_angle_that_a_branch_turns_by(scale: float) -> None:
    analysis = graphprune.analyse(blocks(scale, 1.0))
    known = learn(analysis, given(X))
    first, second = (influences(analysis, known, analysis.coupling.branches.free)[b.name]
                     for b in analysis.coupling.branches.free)  # fmt: skip
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in blocks(scale, 1.0).graph.initializer}
    checked = np.concatenate([f["x"] for f in graphprune.influence.check_feeds(known)])  # type: ignore[attr-defined]
    x = checked @ weights["stem"].T + weights["stem.b"]
    y = np.maximum(x @ weights["up0"].T + weights["up0.b"], 0) @ weights["down0"].T + weights["down0.b"]
    after = x + scale * y
    cosine = (x * after).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(after, axis=1)
    few = min(len(cosine), max(1, 32 // known.batch) * known.batch)
    assert first == pytest.approx(1 - cosine[:few].mean(), abs=1e-5) and 0 <= first < second


def test_a_model_of_another_name_is_refused(tmp_path: Path) -> None:
    path = small.put(tmp_path / "m.onnx", blocks(1.0))
    plan = graphprune.PruningPlan({}, {}, {}, {}, ("nothing",))
    plan.save(tmp_path / "plan.json")
    options = ("--plan", tmp_path / "plan.json", "-o", tmp_path / "o.onnx", *small.FAST)
    small.refused(tmp_path, "prune", path, *options, says="the plan's branch 'nothing' is not in the model")
    assert load(path).graph.name == "net"
