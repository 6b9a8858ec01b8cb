"""Where damage starts: the search by bisection, and what is told of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from oracles import Net
from small import cli, put

import graphprune
from graphprune import onset
from graphprune.allocate import Budget
from graphprune.errors import TargetError
from graphprune.onset import eased
from graphprune.report.quality import damage_words

FAST: dict[str, Any] = {"prove": False, "time": False, "align": 1}

def fitted(width: int = 64) -> onnx.ModelProto:
    """Return a net of independent features, each of which carries a part of the outputs: what goes is lost."""
    net = Net()
    hidden = net("Tanh", net("MatMul", net.input("x", [None, width]), net.const(np.eye(width, dtype="f"), name="a")))
    out = np.random.default_rng(0).standard_normal((width, 10)).astype("f") / 3
    return net.output(net("MatMul", hidden, net.const(out, name="b"))).model()


def inputs(width: int = 64) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((300, width)).astype("f")}


def found(sparsity: float | None = 0.9, **options: Any) -> dict[str, Any]:
    result = graphprune.prune(fitted(), sparsity, calibration=inputs(), **{**FAST, **options})
    return dict(result.report["divergence"])


def test_what_is_found_is_not_damaged_and_a_step_more_is() -> None:
    told = found()
    assert told["damaged"]
    most, damaged_at = told["onset"]["budget"]["sparsity"], told["onset"]["damaged_at"]["sparsity"]
    assert 0 < most < damaged_at <= 0.9 and damaged_at - most == pytest.approx(0.9 / 2**4)
    for repair in ("symmetric", "sequential"):
        assert not found(most, repair=repair)["damaged"]
    assert found(damaged_at, repair="symmetric")["damaged"]
    assert found(most)["onset"] is None


def test_targets_and_fractions_that_are_kept() -> None:
    told = found(None, target={"macs": 0.15})["onset"]
    macs = told["budget"]["macs"]
    assert 0.15 < told["damaged_at"]["macs"] < macs < 1 and told["macs"] == pytest.approx(macs, abs=0.03)
    assert told["params"] == pytest.approx(told["macs"], abs=0.1) and told["repair"] == "symmetric"


@pytest.mark.parametrize("repair", ["none", "bias", "symmetric", "sequential"])
def test_the_search_repairs_as_was_asked(repair: str) -> None:
    told = found(repair=repair)["onset"]
    assert told["repair"] == ("symmetric" if repair == "sequential" else repair)


def test_low_effort_plans_and_large_models_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(effort="low")
    assert told["damaged"] and told["onset"] is None
    plan = graphprune.prune(fitted(), 0.9, calibration=inputs(), **FAST).plan
    told = found(None, plan=plan)
    assert told["damaged"] and told["onset"] is None
    monkeypatch.setattr(onset, "_WORK", 1.0)
    assert found()["onset"] is None


def test_tries_are_bounded_and_curves_are_made_once() -> None:
    said: list[str] = []
    graphprune.prune(fitted(), 0.9, calibration=inputs(), progress=said.append, **FAST)
    assert [s for s in said if s.startswith("looking for where")] == [
        f"looking for where damage starts, {k} of 4" for k in range(1, 5)
    ]
    assert len([s for s in said if s.startswith("error curves")]) == len(
        graphprune.analyse(fitted()).coupling.groups
    )


def test_where_everything_damages_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onset, "_damaged", lambda *args: True)
    told = found()["onset"]
    assert told["budget"] is None and told["macs"] is None and told["damaged_at"]["sparsity"] == pytest.approx(0.9 / 16)


def test_plans_that_cannot_be_made_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any) -> bool:
        raise TargetError("no such plan")

    monkeypatch.setattr(onset, "_damaged", refuses)
    assert found()["onset"]["budget"] is None


def test_eased_budgets() -> None:
    assert eased(Budget(sparsity=0.8), 0.25).sparsity == pytest.approx(0.2)
    both = eased(Budget(targets={"macs": 0.5, "params": 0.2}), 0.5).targets
    assert both == pytest.approx({"macs": 0.75, "params": 0.6})


def test_words(tmp_path: Any) -> None:
    net = put(tmp_path / "net.onnx", fitted())
    np.savez(tmp_path / "x.npz", **inputs())
    asked = ("--calibration", tmp_path / "x.npz", "--no-prove", "--no-time", "--align", 1, "-o", tmp_path / "o.onnx")
    said = cli("prune", net, "--sparsity", 0.9, *asked).out
    (line,) = [x for x in said.splitlines() if x.startswith("damaged:")]
    assert "; up to sparsity=0." in line and "they are not: prune less" in line
    (line,) = [x for x in cli("prune", net, "--target", "macs=0.15", *asked, "--force").out.splitlines()
               if x.startswith("damaged:")]
    assert "; down to macs=0." in line
    assert "already at macs=0.90" in damage_words({"onset": {"budget": None, "damaged_at": {"macs": 0.9}}})
    assert damage_words({"onset": None}).endswith("prune less, or give (more) data by --calibration")
