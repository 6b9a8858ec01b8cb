"""Calibration and repair in the whole line: what options do, what reports say, how wrong data is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layered
import numpy as np
import onnx
import pytest
from oracles import Net
from small import array_of, cli, cnn, external, put, record, refused

import graphprune
from graphprune.calibrate.statistics import sums_bytes
from graphprune.consumers import consumers
from graphprune.errors import GraphPruneError, UsageError
from graphprune.execute import evaluate, relative_error

FAST: dict[str, Any] = {"prove": False, "time": False, "align": 1}
QUICK = ("--no-prove", "--no-time", "--align", 1, "--force")


def images(count: int = 60, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def pruned(model: Any = None, sparsity: float | None = 0.5, **options: Any) -> graphprune.Result:
    return graphprune.prune(cnn() if model is None else model, sparsity, **{**FAST, **options})


def relative(result: graphprune.Result, when: str = "after") -> float:
    return float(result.report["divergence"][when][0]["relative"])


def contents(model: onnx.ModelProto) -> dict[str, bytes]:
    return {w.name: onnx.numpy_helper.to_array(w).tobytes() for w in model.graph.initializer}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", **images())
    return tmp_path / "data.npz"


# What repair is for


def test_outputs_are_nearer_by_repair_on_other_samples() -> None:
    fresh = images(40, 7)
    dense = evaluate(graphprune.analyse(cnn()).model, fresh)
    apart = {}
    for repair in ("none", "symmetric", "sequential"):
        result = pruned(calibration=images(), repair=repair, criterion="l2")
        apart[repair] = relative_error(dense, evaluate(graphprune.analyse(result.model).model, fresh))[0]
        before, after = relative(result, "before"), relative(result)
        assert after == before if repair == "none" else after < 0.5 * before
    assert apart["symmetric"] < 0.5 * apart["none"] and apart["sequential"] < 0.5 * apart["none"]


def test_a_model_that_was_fitted_keeps_its_answers() -> None:
    """Classes that depend on inputs: features are random, the head is fitted by least squares."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 10)).astype(np.float32)
    classes = np.argmax(np.maximum(x @ rng.standard_normal((10, 6)), 0) @ rng.standard_normal((6, 4)), 1)
    net = Net()
    hidden = net("Relu", net.gemm(net.input("x", [None, 10]), 10, 96, name="a"))
    w, b = (onnx.numpy_helper.to_array(t) for t in net.initializers)
    features = np.maximum(x @ w.T + b, 0)
    head = np.linalg.lstsq(features, np.eye(4)[classes] * 6, rcond=None)[0]
    net.output(net("MatMul", hidden, net.const(head.astype(np.float32), name="b")))
    right = {}
    cases: dict[str, dict[str, Any]] = {
        "dense": {"sparsity": 0.0}, "plain": {"repair": "none", "criterion": "random"},
        "repaired": {"criterion": "random"}, "obs": {},
    }
    for name, options in cases.items():
        result = pruned(net.model(), **{"sparsity": 0.5, "calibration": {"x": x[:400]}, **options})
        (y,) = evaluate(graphprune.analyse(result.model).model, {"x": x[400:]}).values()
        right[name] = float((y.argmax(1) == classes[400:]).mean())
    assert right["dense"] > 0.8 and right["plain"] + 0.1 < right["repaired"]
    assert right["obs"] >= right["repaired"] - 0.02 and right["obs"] > right["dense"] - 0.1, right


def test_biases_alone_are_repaired_by_means() -> None:
    """Weights stay as they are; what the next layer read of removed channels becomes its mean."""
    shifted = images()
    shifted["x"] += 1
    result = pruned(calibration=shifted, repair="bias", criterion="l2")
    plain = pruned(calibration=shifted, repair="none", criterion="l2")
    assert result.plan.keep == plain.plan.keep and result.report["repair"]["mode"] == "bias"
    one, other = contents(result.model), contents(plain.model)
    changed = {name for name in one if one[name] != other.get(name)}
    assert changed and all(array_of(result.model, name).ndim == 1 for name in changed)
    assert all(x["strength"] is None and x["after"] < x["before"] for x in result.report["repair"]["layers"])
    assert relative(result) < relative(result, "before")
    assert relative(pruned(calibration=shifted, repair="symmetric", criterion="l2")) < relative(result)


def test_stages_are_told_from_before_repair_to_its_end() -> None:
    model = layered.deep(20, 12).model()
    x = {"x": np.random.default_rng(0).standard_normal((400, 10)).astype(np.float32)}
    for repair, effort, middle in (
        ("none", "medium", None), ("bias", "medium", []), ("symmetric", "medium", []),
        ("sequential", "low", [1, 2, 3, 4]), ("sequential", "medium", [6, 11, 16, 21]),
        ("sequential", "high", [6, 11, 16, 21]),
    ):
        found = pruned(model, calibration=x, repair=repair, effort=effort).report["divergence"]
        names = [s["stage"] for s in found["stages"]]
        inner = [f"after correction {k} of {middle[-1]}" for k in middle or []]
        end = [] if middle is None else [f"after {repair if not middle else 'symmetric'} repair"]
        assert names == ["before repair", *end, *inner]
        assert found["stages"][0]["outputs"] == found["before"] and found["stages"][-1]["outputs"] == found["after"]
        assert all(len(s["outputs"]) == 1 for s in found["stages"])


def test_corrections_that_gain_no_more_than_chance_are_taken_back() -> None:
    """10 of 100 samples are held back: what corrections gain there is a part of what they differ by."""
    x = {"x": np.random.default_rng(0).standard_normal((100, 10)).astype(np.float32)}
    found = pruned(layered.deep().model(), calibration=x, repair="sequential").report
    stages = {s["stage"]: s["outputs"][0] for s in found["divergence"]["stages"]}
    assert stages["after correction 8 of 8"]["kl"] < stages["after symmetric repair"]["kl"]
    assert list(stages)[-1] == "corrections taken back" and found["repair"]["mode"] == "symmetric"
    assert stages["corrections taken back"] == stages["after symmetric repair"]


def test_large_models_are_not_looked_at_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks run both models: where that is much work, only high effort does it between stages."""
    monkeypatch.setattr("graphprune.repair._LOOK_WORK", 1.0)
    model = layered.deep(20, 12).model()
    x = {"x": np.random.default_rng(0).standard_normal((400, 10)).astype(np.float32)}
    counts = {}
    for effort in ("medium", "high"):
        found = pruned(model, calibration=x, repair="sequential", effort=effort).report["divergence"]
        counts[effort] = len(found["stages"])
    assert counts == {"medium": 3, "high": 6}


# Options: each changes what it should


def test_off_leaves_weights_as_they_are_and_reports_nothing() -> None:
    result = pruned(calibration="off")
    assert result.plan.meta["criterion"] == "l2" and not result.report.get("calibration")
    kept = list(result.plan.keep["w1:0"])
    assert np.array_equal(array_of(result.model, "w1"), array_of(cnn(), "w1")[kept])


def test_sources_are_told(data: Path) -> None:
    for calibration, source in (
        (None, "synthetic"), ("none", "synthetic"), ("noise", "noise"), (str(data), "in-distribution"),
        (f"ood:{data}", "out-of-distribution"), (images(), "in-distribution"), (images()["x"], "in-distribution"),
    ):
        report = pruned(calibration=calibration, samples=40).report
        assert report["calibration"]["source"] == source and report["calibration"]["used"] == 40
        assert report["calibration"]["samples"] == 40 and report["remark"] == ""


def test_made_up_inputs_and_noise_differ() -> None:
    one, other = (pruned(calibration=c, samples=40) for c in ("none", "noise"))
    assert contents(one.model) != contents(other.model)


def test_efforts_and_modes() -> None:
    model = layered.deep().model()
    x = {"x": np.random.default_rng(0).standard_normal((1600, 10)).astype(np.float32)}
    results = {
        (repair, effort): pruned(model, calibration=x, repair=repair, effort=effort)
        for repair in ("auto", "sequential") for effort in ("low", "medium", "high")
    }
    modes = {key: r.report["repair"]["mode"] for key, r in results.items()}
    assert modes == {(r, e): "matched" if r == "auto" else r for r, e in results}
    assert contents(results["auto", "medium"].model) != contents(results["sequential", "medium"].model)
    by_effort = [contents(results["sequential", effort].model) for effort in ("low", "medium", "high")]
    assert by_effort[0] != by_effort[1]
    symmetric = pruned(model, calibration=x, repair="symmetric")
    assert relative(results["auto", "medium"]) < relative(symmetric)


def test_high_effort_corrects_every_layer() -> None:
    model = layered.deep(36, 12).model()
    x = {"x": np.random.default_rng(0).standard_normal((40, 10)).astype(np.float32)}
    runs = {}
    for effort in ("low", "medium", "high"):
        said: list[str] = []
        pruned(model, calibration=x, repair="sequential", effort=effort, progress=said.append)
        runs[effort] = len([s for s in said if s.startswith("refitting")])
    assert runs == {"low": 4, "medium": 32, "high": 37}


def test_high_effort_swaps_what_goes_and_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {effort: pruned(calibration=images(), repair="none", effort=effort).plan for effort in ("medium", "high")}
    sizes = [{name: len(kept) for name, kept in plan.keep.items()} for plan in plans.values()]
    assert sizes[0] == sizes[1]

    def last(coupling: Any, keep: Any, *_: Any) -> dict[str, Any]:
        return {name: range(coupling.group(name).size)[-len(kept) :] for name, kept in keep.items()}

    monkeypatch.setattr("graphprune.accuracy.exchanged", last)
    for effort, swapped in (("medium", False), ("high", True)):
        keep = pruned(calibration=images(), repair="none", effort=effort, allocation="global").plan.keep
        assert all(kept == tuple(range(kept[-1] - len(kept) + 1, kept[-1] + 1)) for kept in keep.values()) == swapped


def test_made_up_inputs_are_not_matched_to() -> None:
    assert pruned().report["repair"]["mode"] == "sequential"
    assert pruned(calibration=images(400), repair="matched").report["repair"]["mode"] == "matched"


def test_weights_alone_repair_without_running_anything() -> None:
    plain, mended = (pruned(calibration="off", repair=r) for r in ("auto", "weights"))
    assert mended.plan.keep == plain.plan.keep and contents(mended.model) != contents(plain.model)
    assert mended.report["calibration"] is None and mended.report["repair"]["mode"] == "weights"
    assert 0 < mended.report["repair"]["error_after"] < mended.report["repair"]["error_before"]
    unrun = pruned(repair="weights", run=False)
    assert contents(unrun.model) == contents(mended.model)


def test_bias_alone_leaves_the_other_weights() -> None:
    plain, mended = (pruned(calibration=images(), repair=r) for r in ("none", "bias"))
    assert np.array_equal(array_of(plain.model, "w2"), array_of(mended.model, "w2"))
    assert relative(mended) < relative(plain)


def test_criteria_and_allocations() -> None:
    plans = {}
    cases: dict[str, dict[str, Any]] = {
        "obs": {}, "l2": {"criterion": "l2"}, "error": {"sparsity": None, "target": {"macs": 0.5}},
        "uniform": {"sparsity": None, "target": {"macs": 0.5}, "allocation": "uniform"},
        "global": {"sparsity": None, "target": {"macs": 0.5}, "allocation": "global"},
    }
    for name, options in cases.items():
        result = pruned(calibration=images(), **options)
        plans[name] = {k: list(v) for k, v in result.plan.keep.items()}
        assert result.plan.meta["criterion"] == ("l2" if name == "l2" else "obs")
        if "target" in options:
            assert result.report["after"]["macs"] <= 0.5 * result.report["before"]["macs"]
    assert plans["obs"] != plans["l2"]
    assert {k: len(v) for k, v in plans["obs"].items()} == {"w1:0": 16, "w2:0": 24}
    assert plans["error"] != plans["uniform"]


def test_memory_and_samples() -> None:
    assert pruned(calibration=images(), samples=11).report["calibration"]["used"] == 11
    assert pruned(samples=9).report["calibration"]["used"] == 9
    passes = []
    largest = max(sums_bytes(c) for c in consumers(graphprune.analyse(cnn()).coupling).found)
    for memory in (largest / 1e9, 2.0, float("inf")):
        said: list[str] = []
        pruned(calibration=images(), memory=memory, progress=said.append)
        passes.append(len({s.split(":")[0] for s in said if s.startswith("statistics")}))
    assert passes == [2, 1, 1]
    none = pruned(calibration=images(), memory=1e-9).report
    assert none["calibration"] is None and "GB (--memory)" in none["remark"]


def test_plans_replay_and_repair_again(tmp_path: Path) -> None:
    result = pruned(calibration=images(), target={"macs": 0.5}, sparsity=None)
    result.plan.save(tmp_path / "plan.json")
    again = pruned(sparsity=None, plan=tmp_path / "plan.json", calibration=images())
    assert again.plan.keep == result.plan.keep and contents(again.model) == contents(result.model)
    plain = pruned(sparsity=None, plan=tmp_path / "plan.json", calibration="off")
    assert plain.plan.keep == result.plan.keep and contents(plain.model) != contents(result.model)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, same = (pruned(target={"macs": 0.5}, sparsity=None, seed=1, samples=40) for _ in range(2))
    other = pruned(target={"macs": 0.5}, sparsity=None, seed=2, samples=40)
    assert one.plan.keep == same.plan.keep and contents(one.model) == contents(same.model)
    assert contents(one.model) != contents(other.model)


def test_threads_agree_to_rounding() -> None:
    one, two = (pruned(calibration=images(), threads=n) for n in (1, 2))
    assert one.plan.keep == two.plan.keep
    x = images(20, 3)
    outputs = [evaluate(graphprune.analyse(r.model).model, x) for r in (one, two)]
    assert relative_error(*outputs)[0] < 1e-3


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One thread means one for calibration, too; where nothing is said, all cores calibrate and one is timed."""
    from graphprune import execute

    opened: list[int] = []
    original = execute.open_session

    def counted(source: Any, runtime: Any) -> Any:
        opened.append(runtime.threads)
        return original(source, runtime)

    monkeypatch.setattr(execute, "open_session", counted)
    path = put(tmp_path / "m.onnx", cnn())
    for option, expected in (((), {0}), (("--threads", 1), {1}), (("--threads", 2), {2}), (("--threads", 0), {0})):
        opened.clear()
        np.savez(tmp_path / "data.npz", **images(20))
        asked = ("--calibration", tmp_path / "data.npz", *option, *QUICK)
        assert record("prune", path, "--sparsity", 0.5, *asked)["repair"]["layers"]
        assert set(opened) == expected, option
    for options, expected in (({"threads": 1}, {1}), ({"runtime": graphprune.Runtime(threads=2)}, {2}), ({}, {0})):
        opened.clear()
        pruned(path, calibration=images(20), **options)
        assert set(opened) == expected, options


def test_threads_and_runs_decide_nothing() -> None:
    """The same inputs and seed: the same plan always; the same bytes on as many threads, else weights to rounding."""
    runs = [pruned(None, None, target={"macs": 0.4}, threads=n, calibration=images(), seed=3) for n in (1, 1, 2)]
    again, one, two = ({w.name: array_of(r.model, w.name) for w in r.model.graph.initializer} for r in runs)
    assert runs[0].plan.keep == runs[1].plan.keep == runs[2].plan.keep and runs[0].plan.keep
    assert contents(runs[0].model) == contents(runs[1].model)
    assert again.keys() == two.keys()
    for name, array in one.items():
        scale = np.abs(array).max()
        assert np.abs(array - two[name]).max() < 1e-3 * scale, name


# Wrong data and contradictions


def test_wrong_data_is_refused_in_one_line(tmp_path: Path, net: Path) -> None:
    x = images()["x"]
    broken = x.copy()
    broken[3, 0, 0, 0] = np.nan
    for name, arrays, says in (
        ("name", {"wrong": x}, "wrong"), ("shape", {"x": x[:, :2]}, "x"), ("nan", {"x": broken}, "NaN"),
        ("empty", {"x": x[:0]}, ""), ("kind", {"x": np.full((4, 3, 8, 8), "a")}, "x"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        refused(tmp_path, "prune", net, "--sparsity", 0.5, "--calibration", path, *QUICK, says=says)
        with pytest.raises(UsageError):
            pruned(calibration=arrays)
    for value, says in ((tmp_path / "nothing", "no such file"), (f"ood:{tmp_path / 'nothing'}", "no such file")):
        refused(tmp_path, "prune", net, "--sparsity", 0.5, "--calibration", value, *QUICK, says=says)


def test_iterators_that_fail_or_end_early_are_told_and_nothing_is_pruned() -> None:
    x = images()["x"]

    class Loader:
        def __len__(self) -> int:
            return 9

        def __iter__(self) -> Any:
            yield from (x[:10], x[10:20])

    def breaking() -> Any:
        yield {"x": x[:10]}
        raise OSError("no such disk")

    def changing() -> Any:
        yield {"x": x[:10]}
        yield {"y": x[:10]}

    for given, says in (
        (Loader(), "ended after 2 feeds, though its length says 9"),
        (breaking(), "reading feed 1 failed: OSError: no such disk"),
        (changing(), "feed 1: the model has no input 'y'"), (iter(()), "is empty"), ([], "is empty"), (7, "from int"),
        ([{"x": x[:4]}, {"x": x[:4].astype(np.int64)}], "is int64, the model takes float32"),
        ({"x": np.full((20, 3, 8, 8), np.inf, np.float32)}, "an infinite number"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            pruned(calibration=given)
        assert "\n" not in str(caught.value)


def test_more_kinds_of_wrong_files_are_refused_in_one_line(tmp_path: Path, net: Path) -> None:
    x = images()["x"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    (tmp_path / "text.csv").write_text("a,b\n1,2\n3\n")
    np.savez(tmp_path / "whole.npz", x=(x * 100).astype(np.int64))
    np.savez(tmp_path / "axes.npz", x=x[:, 0])
    np.savez(tmp_path / "infinite.npz", x=np.where(x > 2, np.inf, x))
    for name, says in (
        ("empty", "no calibration data"), ("broken.npz", "not an .npz"), ("text.csv", "line 3"), ("whole.npz", "int64"),
        ("axes.npz", "the model takes"), ("infinite.npz", "infinite number"),
    ):
        refused(tmp_path, "prune", net, "--sparsity", 0.5, "--calibration", tmp_path / name, *QUICK, says=says)


def test_numbers_that_only_the_layers_make_infinite_are_told(tmp_path: Path) -> None:
    proto = cnn()
    for w in proto.graph.initializer:
        w.raw_data = (onnx.numpy_helper.to_array(w) * np.float32(1e30)).tobytes()
    with pytest.raises(UsageError, match="is not finite in batch 0"):
        pruned(proto, calibration=images())
    made = pruned(proto, run=True)
    assert "not finite" in made.report["remark"] and made.report["calibration"] is None


def test_too_few_samples_are_told(tmp_path: Path, net: Path) -> None:
    """With few rows a layer stays nearer to its old weights; with none held back it stays as it is."""
    wide = Net()
    hidden = wide("Relu", wide.gemm(wide.input("x", [None, 6]), 6, 200, name="a"))
    wide.output(wide.gemm(hidden, 200, 3, name="b"))
    x = np.random.default_rng(0).standard_normal((900, 6)).astype(np.float32)
    (note,) = pruned(wide.model(), calibration={"x": x[:50]}).report["repair"]["notes"]
    assert note.startswith("1 of 1 layers: fewer rows than columns (") and ": 35 of 200)" in note
    assert not pruned(wide.model(), calibration={"x": x}).report["repair"]["notes"]
    result = pruned(wide.model(), calibration={"x": x[:1]})
    (note,) = result.report["repair"]["notes"]
    assert "no samples were left to hold back" in note
    assert relative(result) == relative(result, "before")
    np.savez(tmp_path / "one.npz", x=images()["x"][:1])
    said = cli("prune", net, "--sparsity", 0.5, "--calibration", tmp_path / "one.npz", *QUICK)
    assert said.code == 0 and "repair: no samples were left to hold back" in said.out


@pytest.mark.parametrize(("options", "says"), [
    (("--criterion", "obs", "--calibration", "off"), "needs calibration"),
    (("--criterion", "obs", "--no-run"), "needs calibration"),
    (("--allocation", "error", "--calibration", "off"), "--allocation error"),
    (("--repair", "sequential", "--calibration", "off"), "--calibration off"),
    (("--repair", "symmetric", "--no-run"), "--no-run"),
    (("--preset", "imagenet"), "--preset"),
    (("--preset", "imagenet", "--calibration", "off"), "--preset"),
    (("--tokenizer", "t.json", "--calibration", "noise"), "--tokenizer"),
    (("--samples", "0"), "samples"), (("--memory", "0"), "memory"), (("--effort", "most"), "effort"),
    (("--repair", "all"), "repair"),
])
def test_contradictions_are_refused(tmp_path: Path, net: Path, options: tuple[str, ...], says: str) -> None:
    refused(tmp_path, "prune", net, "--sparsity", 0.5, *QUICK, *options, says=says)


def test_data_that_no_model_is_run_on_is_refused(tmp_path: Path, net: Path, data: Path) -> None:
    refused(tmp_path, "prune", net, "--sparsity", 0.5, "--no-run", "--calibration", data, *QUICK, says="--no-run")


def test_made_up_inputs_that_fail_are_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise GraphPruneError("no inputs come to mind")

    monkeypatch.setattr("graphprune.accuracy.synthetic", fails)
    result = pruned()
    assert "no inputs come to mind" in result.report["remark"] and result.plan.meta["criterion"] == "l2"
    assert result.report["calibration"] is None and "by weights alone" in result.report["remark"]
    assert result.report["repair"]["mode"] == "weights" and result.report["repair"]["layers"]
    assert not pruned(repair="none").report["repair"]
    with pytest.raises(GraphPruneError, match="needs calibration"):
        pruned(criterion="obs")


def test_layers_that_cannot_be_fitted_are_named() -> None:
    net = Net()
    w = net.weight(12, 12, name="w")
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    y = net("Relu", net("Gemm", net("Relu", net("MatMul", x, w)), w, transB=1))
    net.output(net.matmul(y, 12, 3, name="c"))
    report = pruned(net.model(), samples=40).report
    assert any("its weight is tied: Gemm" in why for why in report["calibration"]["left_out"].values())
    assert report["repair"]["layers"]


# Models of many kinds


def test_a_fixed_batch_of_one() -> None:
    x = images(30)["x"]
    for calibration in (None, {"x": x}):
        report = pruned(cnn(batch=1), calibration=calibration, samples=30).report
        assert report["calibration"]["used"] == 30
        assert report["divergence"]["after"][0]["relative"] < 0.5 * report["divergence"]["before"][0]["relative"]


def test_several_inputs() -> None:
    net = Net()
    x, z = net.input("x", [None, 6]), net.input("z", [None, 5, 4])
    both = net("Add", net.gemm(x, 6, 16, name="a"), net("ReduceMean", net.matmul(z, 4, 16, name="c"), axes=[1],
                                                         keepdims=0))
    net.output(net.gemm(net("Relu", both), 16, 3, name="b"))
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((50, 6)).astype("f"), "z": rng.standard_normal((50, 5, 4)).astype("f")}
    for calibration in (None, arrays, [{k: v[:25] for k, v in arrays.items()}, {k: v[25:] for k, v in arrays.items()}]):
        result = pruned(net.model(), calibration=calibration, samples=50)
        assert result.report["calibration"]["used"] == 50 and relative(result) < relative(result, "before")
    with pytest.raises(UsageError, match="samples"):
        pruned(net.model(), calibration={**arrays, "z": arrays["z"][:20]})


def test_float16_models() -> None:
    result = pruned(cnn(code=onnx.TensorProto.FLOAT16), samples=60)
    assert relative(result) < relative(result, "before")
    assert {w.data_type for w in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_old_files_whose_weights_are_inputs() -> None:
    result = pruned(cnn(ir_version=3, opset=9), calibration=images())
    assert relative(result) < 0.5 * relative(result, "before")
    result = pruned(layered.matmul().model(), samples=60)
    assert relative(result) < relative(result, "before")


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = external(cnn(), tmp_path / "big.onnx")
    report = record("prune", path, "-o", tmp_path / "out.onnx", "--sparsity", 0.5, "--samples", 60, *QUICK)
    assert report["divergence"]["after"][0]["relative"] < 0.5 * report["divergence"]["before"][0]["relative"]
    assert (tmp_path / "out.onnx.data").exists()
    again = pruned(cnn(), samples=60)
    written = evaluate(graphprune.analyse(tmp_path / "out.onnx").model, images(9))
    assert relative_error(evaluate(graphprune.analyse(again.model).model, images(9)), written)[0] < 1e-3


def test_a_repaired_model_can_be_pruned_and_repaired_again() -> None:
    model = layered.matmul().model()
    for _ in range(2):
        result = pruned(model, 0.3, samples=60)
        assert result.report["repair"]["layers"]
        onnx.checker.check_model(result.model, full_check=True)
        assert [n.op_type for n in result.model.graph.node].count("Add") == 1
        model = result.model


def test_what_is_printed(tmp_path: Path) -> None:
    path, data = put(tmp_path / "m.onnx", cnn()), tmp_path / "data.npz"
    np.savez(data, **images(400))
    ran = cli("prune", path, "--sparsity", 0.5, "--calibration", data, *QUICK)
    assert ran.code == 0 and "repair: matched, 2 layers" in ran.out and "in-distribution" in ran.out
    report = record("prune", path, "--sparsity", 0.5, "--calibration", f"ood:{data}", "--repair", "none", *QUICK)
    assert report["repair"]["mode"] == "none" and report["repair"]["layers"] == []
    assert report["divergence"]["before"] == report["divergence"]["after"]
