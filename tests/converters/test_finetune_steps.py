"""Pruning around tuning: a little at a time, and towards a plan before it is carried out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import small  # noqa: E402

from graphprune import PruningPlan, prune, speed  # noqa: E402
from graphprune.calibrate.choice import parse_calibration  # noqa: E402
from graphprune.converters.finetune import finetune  # noqa: E402
from graphprune.converters.pytorch import to_module  # noqa: E402
from graphprune.converters.stepwise import Steps, prune_in_steps  # noqa: E402
from graphprune.converters.towards import penalty_of  # noqa: E402
from graphprune.converters.tuning import Tuning  # noqa: E402
from graphprune.errors import PlanError, UsageError  # noqa: E402
from graphprune.execute import evaluate  # noqa: E402
from graphprune.machine import known  # noqa: E402
from graphprune.machine.counted import Counted  # noqa: E402
from graphprune.model import load  # noqa: E402

X = np.random.default_rng(0).standard_normal((192, 3, 8, 8)).astype(np.float32)
QUICK = Tuning(epochs=2, batch=32, lr=5e-3)
OPTIONS = {"align": 1, "prove": False, "effort": "low"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a dense network, samples with labels, and a plan."""
    folder = tmp_path_factory.mktemp("steps")
    onnx.save(small.cnn(), folder / "dense.onnx")
    labels = evaluate(load(folder / "dense.onnx"), {"x": X})["y"].argmax(1)
    np.savez(folder / "data.npz", x=X)
    np.savez(folder / "labelled.npz", x=X, labels=labels)
    PruningPlan({}, {"w1:0": tuple(range(12)), "w2:0": tuple(range(20, 48))}, {"w1:0": 32, "w2:0": 48}).save(
        folder / "plan.json"
    )
    return {p.stem: p for p in folder.iterdir()}


def test_a_schedule_ends_where_it_should() -> None:
    assert Steps.by({"macs": 0.25}, 0.05).count == 28 and Steps.by({"macs": 0.5, "params": 0.9}, 0.5).count == 1
    steps = Steps({"macs": 0.25, "params": 0.5}, 2)
    assert steps.part(0, {}, {}) == pytest.approx({"macs": 0.5, "params": 0.5**0.5})
    dense = {"macs": 100.0, "parameters": 10.0}
    assert steps.part(1, dense, {"macs": 40.0, "parameters": 8.0}) == pytest.approx({"macs": 0.625, "params": 0.625})
    assert [Steps({"macs": 0.5}, 4).epochs(k, 6) for k in range(4)] == [2, 3, 4, 6], "more of it, the more is gone"
    for wrong in (lambda: Steps({"macs": 0.5}, 0), lambda: Steps({"macs": 2.0}, 1), lambda: Steps.by({"macs": 0.5}, 1)):
        with pytest.raises(UsageError):
            wrong()


def test_the_plans_of_steps_are_one_plan(files: dict[str, Path], tmp_path: Path) -> None:
    steps = Steps({"macs": 0.4}, 2, OPTIONS)
    data, said = parse_calibration(str(files["data"])), list[str]()

    class Broken(Exception):
        pass

    def stop(text: str) -> None:
        said.append(text)
        if "step 2/2: pruning" in said and text.startswith("epoch 2/2"):
            raise Broken

    folder = tmp_path / "state"
    with pytest.raises(Broken):
        prune_in_steps(files["dense"], steps, data, QUICK, folder=folder, progress=stop)
    assert all((folder / name).is_file() for name in ("step-1.onnx", "pruned.onnx", "tuning.pt"))
    with pytest.raises(UsageError, match="not empty"):
        prune_in_steps(files["dense"], steps, data, QUICK, folder=folder)
    with pytest.raises(UsageError, match="another target"):
        prune_in_steps(files["dense"], replace(steps, target={"macs": 0.5}), data, QUICK, folder=folder, resume=True)
    said.clear()
    done = prune_in_steps(files["dense"], steps, data, QUICK, folder=folder, resume=True, progress=said.append)
    assert not [t for t in said if t.startswith(("scoring", "epoch 1/"))], "neither pruned nor tuned again"
    macs = [s["after"]["macs"] / s["dense"]["macs"] for s in done.record["steps"]]
    assert macs[0] == pytest.approx(0.4**0.5, abs=0.04) and macs[1] == pytest.approx(0.4, abs=0.03)
    assert [s["epochs"] for s in done.record["steps"]] == [1, 2]
    assert done.plan is not None, done.record["no_plan"]
    again = prune(files["dense"], plan=done.plan, calibration="off", prove=False, time=False)
    shapes = {k: list(v.shape) for k, v in again.ir_model.graph.initializers.items()}
    assert shapes == {k: list(v.shape) for k, v in done.model.graph.initializers.items()}
    straight = prune_in_steps(files["dense"], steps, data, QUICK)
    assert straight.record["loss"] == pytest.approx(done.record["loss"], rel=1e-4)


def test_steps_of_latency_are_measured_and_the_next_makes_up_for_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def reached(analysis: Any, decide: Any, budget: Any, speedup: float, *_: Any) -> PruningPlan:
        asked.append(speedup)
        plan = decide(replace(budget, targets={"macs": 1 / speedup}))
        return replace(plan, meta={**plan.meta, "speed": {"measured": 1.1 * speedup}})

    monkeypatch.setattr(speed, "allocate_for_speed", reached)
    monkeypatch.setattr(known, "know", lambda *_: known.Known(Counted(), None, None, False))  # type: ignore[arg-type]
    steps = Steps({"latency": 0.5}, 2, OPTIONS)
    done = prune_in_steps(files["dense"], steps, parse_calibration(str(files["data"])), QUICK)
    assert asked == pytest.approx([2**0.5, 2 / (1.1 * 2**0.5)])
    left = [s["after"]["latency"] for s in done.record["steps"]]
    assert left == pytest.approx([1 / (1.1 * 2**0.5), 1 / 2.2]) and done.record["dense"]["latency"] == 1


def test_plans_follow_each_other() -> None:
    one = PruningPlan({}, {"a": (1, 2, 5), "b": (0,)}, {"a": 6, "b": 2}, {}, ("f",))
    both = one.then(PruningPlan({}, {"a": (0, 2), "c": (3,)}, {"a": 3, "c": 4}, {}, ("g",)))
    assert both.keep == {"a": (1, 5), "b": (0,), "c": (3,)} and both.sizes == {"a": 6, "b": 2, "c": 4}
    assert both.bypass == ("f", "g")
    with pytest.raises(PlanError, match="size 6 where 3"):
        one.then(PruningPlan({}, {"a": (0,)}, {"a": 6}))


def test_the_command_prunes_and_tunes_in_turn(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    words = ["finetune", str(files["dense"]), "--data", str(files["labelled"]), "--labels", "labels", "-o", str(out),
             "--epochs", "1", "--batch", "32", "--lr", "0.005"]  # fmt: skip
    done = small.cli(*words, "--prune-to", "macs=0.5", "--steps", "2", "--align", "1", "--alpha", "0.7", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert len(record["steps"]) == 2 and record["against"] == "labels and the dense model"
    assert PruningPlan.load(record["plan"]).keep and Path(record["plan"]) == tmp_path / "small.plan.json"
    onnx.checker.check_model(str(out))
    for more, said in (
        (("--steps", "2"), "--prune-to"), (("--prune-to", "macs=0.5", "--steps", "2", "--by", "0.1"), "give one"),
        (("--prune-to", "macs=2"), "fraction"), (("--prune-to", "macs=0.5", "--align", "x"), "--align"),
        (("--floor", "0.2"), "--floor"), (("--prune-to", "macs=0.5", "--teacher", str(files["dense"])), "no --teacher"),
        (("--penalty", "mask"), "--towards"), (("--towards", str(files["plan"]), "--penalty", "l0"), "greg or mask"),
        (("--towards", str(files["plan"]), "--lora", "2"), "no --lora"),
        (("--prune-to", "macs=0.5", "--checkpoint", str(tmp_path / "none"), "--resume"), "not there"),
    ):  # fmt: skip
        failed = small.cli(*words, *more)
        assert failed.code == 2 and said in failed.err and failed.err.count("\n") == 1, (more, failed.err)


def _cost(model: Any, plan: PruningPlan) -> float:
    """Return what carrying out a plan does to the outputs of a model, relative to them."""
    smaller = prune(model, plan=plan, calibration="off", prove=False, time=False).ir_model
    whole = evaluate(load(model), {"x": X[:64]})["y"]
    return float(np.linalg.norm(evaluate(smaller, {"x": X[:64]})["y"] - whole) / np.linalg.norm(whole))


@pytest.mark.parametrize(("penalty", "strength"), [("greg", "0.1"), ("mask", "2")])
def test_what_a_plan_removes_shrinks_and_removing_it_costs_little(
    files: dict[str, Path], tmp_path: Path, penalty: str, strength: str
) -> None:
    plan, out = PruningPlan.load(files["plan"]), tmp_path / "ready.onnx"
    done = small.cli("finetune", str(files["dense"]), "--towards", str(files["plan"]), "--data", str(files["data"]),
                     "--penalty", penalty, "--strength", strength, "-o", str(out), "--json",
                     "--epochs", "12", "--batch", "16", "--lr", "0.003")  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["removed_size"][1] < 0.25 * record["removed_size"][0]
    start, end = (load(f).graph.initializers for f in (files["dense"], out))
    for name, gone in (("w1", np.s_[12:]), ("w2", np.s_[:20]), ("w2", np.s_[:, 12:]), ("b1", np.s_[12:])):
        sizes = [np.linalg.norm(v[name].const_value.numpy()[gone]) for v in (start, end)]
        assert sizes[1] < 0.4 * sizes[0], (name, sizes)
    assert end["w1"].const_value.numpy().shape == (32, 3, 3, 3), "it is still the dense model"
    assert _cost(out, plan) < 0.3 * _cost(files["dense"], plan)
    smaller = prune(out, plan=plan, calibration="off", prove=False, time=False).ir_model
    plainly = prune(files["dense"], plan=plan, calibration="off", prove=False, time=False).ir_model
    whole = evaluate(load(files["dense"]), {"x": X})["y"]
    far = [np.linalg.norm(evaluate(m, {"x": X})["y"] - whole) for m in (smaller, plainly)]
    assert far[0] < 0.5 * far[1], "nearer to the dense model, too"


def test_the_judge_sees_the_model_without_what_will_go(files: dict[str, Path]) -> None:
    plan = PruningPlan.load(files["plan"])
    module = to_module(files["dense"]).eval()
    penalty = penalty_of(module, load(files["dense"]), plan, "greg", 0.1)
    smaller = prune(files["dense"], plan=plan, calibration="off", prove=False, time=False).ir_model
    with torch.no_grad():
        with penalty.carried_out(module):
            got = module(X[:8])["y"].numpy()
        after = module(X[:8])["y"].numpy()
    np.testing.assert_allclose(got, evaluate(smaller, {"x": X[:8]})["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, evaluate(load(files["dense"]), {"x": X[:8]})["y"], rtol=1e-4, atol=1e-5)
    with pytest.raises(PlanError, match="another model"):
        finetune(files["dense"], files["dense"], parse_calibration(str(files["data"])), QUICK,
                 towards=PruningPlan({}, {"q": (0,)}, {"q": 2}))  # fmt: skip
