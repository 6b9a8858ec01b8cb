"""The user's own metric: what it may return, how it fails, and that no pruned model is lost by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import cli, cnn, external, put, record, refused

import graphprune
from graphprune import metric as metrics
from graphprune.errors import UsageError
from graphprune.metric import find_metric, judge

QUICK = ("--no-prove", "--no-time", "--align", 1, "--samples", 40)
FAST: dict[str, Any] = {"prove": False, "time": False, "align": 1, "samples": 40}
CODE = '''
import onnx
import nested.numbers

def weights(path):
    print("asked")
    return float(sum(len(w.raw_data) for w in onnx.load(path).graph.initializer))

def both(path):
    return {"top1": 0.5, "loss": nested.numbers.ONE}

def fails(path):
    raise RuntimeError("no data\\nhere")

def stops(path):
    raise SystemExit(3)

def text(path):
    return "good"

def nothing(path):
    return {}

def later(path):
    if weights(path) < 30000:
        raise RuntimeError("too small")
    return 1.0

class Suite:
    @staticmethod
    def run(path):
        return 2

constant = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of metrics, made the current one."""
    (tmp_path / "own_metrics.py").write_text(CODE)
    (tmp_path / "broken_metrics.py").write_text("import no_such_thing_at_all\n")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "numbers.py").write_text("ONE = 1\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in ("own_metrics", "broken_metrics", "nested", "nested.numbers"):
        sys.modules.pop(name, None)


def size(path: str) -> float:
    return sum(len(w.raw_data) for w in onnx.load(path).graph.initializer)


# What is asked and told


def test_the_command_line_asks_about_all_models(here: Path) -> None:
    net = put(here / "net.onnx", cnn())
    ran = cli("prune", net, "--sparsity", 0.5, "-o", "out.onnx", "--evaluate", "own_metrics:weights", "--json", *QUICK)
    assert ran.code == 0 and "asked" in ran.err
    found = json.loads(ran.out)["evaluation"]
    assert found["metric"] == "weights" and found["error"] == ""
    assert found["before"] == {"weights": size(str(net))} and found["after"] == {"weights": size("out.onnx")}
    assert found["before_repair"]["weights"] <= found["after"]["weights"] < found["before"]["weights"]


def test_tables_show_it(here: Path) -> None:
    net = put(here / "net.onnx", cnn())
    said = cli("prune", net, "--sparsity", 0.5, "-o", "out.onnx", "--evaluate", "own_metrics:both", *QUICK).out
    lines = [line.split() for line in said.splitlines()]
    assert ["both", "before", "before", "repair", "after"] in lines
    assert ["top1", "0.5", "0.5", "0.5"] in lines and ["loss", "1", "1", "1"] in lines
    said = cli("compare", net, "out.onnx", "--evaluate", "own_metrics:both", "--seconds", 0.05).out
    assert ["top1", "0.5", "0.5"] in [line.split() for line in said.splitlines()]


def test_compare_tells_numbers_of_both(here: Path) -> None:
    net = put(here / "net.onnx", cnn())
    cli("prune", net, "--sparsity", 0.5, "-o", "out.onnx", *QUICK)
    found = record("compare", net, "out.onnx", "--evaluate", "own_metrics:weights", "--seconds", 0.05)["evaluation"]
    expected = {"before": {"weights": size(str(net))}, "after": {"weights": size("out.onnx")}}
    assert found == {"metric": "weights", **expected}
    assert record("compare", net, "out.onnx", "--seconds", 0.05)["evaluation"] is None


def test_python_takes_functions_and_names(here: Path) -> None:
    for given in (size, "own_metrics:weights"):
        result = graphprune.prune(cnn(), 0.5, evaluate=given, **FAST)
        found = result.report["evaluation"]
        result.save("out.onnx")
        assert list(found["after"].values()) == [size("out.onnx")]
    assert graphprune.prune(cnn(), 0.5, **FAST).report["evaluation"] is None


def test_models_with_weights_in_other_files_can_be_asked_about(here: Path) -> None:
    path = external(cnn(), here / "big.onnx")
    asked: list[tuple[str, list[float]]] = []

    def run(given: str) -> float:
        import onnxruntime

        session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
        asked.append((given, [float(v) for v in session.run(None, {"x": np.ones((1, 3, 8, 8), "f")})[0].ravel()]))
        return asked[-1][1][0]

    graphprune.prune(path, 0.5, evaluate=run, output=here / "out.onnx", **FAST)
    assert asked[0][0] == str(path) and len(asked) == 3 and asked[1][1] != asked[2][1]
    run(str(here / "out.onnx"))
    assert asked[2][1] == asked[3][1]  # what was written is what was asked about


def test_slow_metrics_are_not_asked_before_repair(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHEAP", -1.0)
    found = graphprune.prune(cnn(), 0.5, evaluate=size, **FAST).report["evaluation"]
    assert found["before_repair"] is None and found["after"]


def test_without_repair_there_are_two_numbers(here: Path) -> None:
    for options in ({"calibration": "off"}, {"repair": "none"}):
        found = graphprune.prune(cnn(), 0.5, evaluate=size, **FAST, **options).report["evaluation"]
        assert found["before_repair"] is None and found["after"]["size"] < found["before"]["size"]


@pytest.mark.parametrize(("value", "expected"), [
    (1, 1.0), (np.float32(0.5), 0.5), (np.array([2.0]), 2.0), (np.array(3), 3.0), (float("inf"), float("inf")),
])
def test_numbers_of_all_kinds(value: Any, expected: float) -> None:
    assert judge(lambda path: value, "m.onnx", "it") == {"<lambda>": expected}
    assert judge(lambda path: {"a": value, 1: 2}, "m.onnx", "it") == {"a": expected, "1": 2.0}


@pytest.mark.parametrize("value", [None, "0.5", True, b"1", np.ones(3), {}, {"a": 1, "b": None}, [1.0], object()])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="neither a number nor numbers by name") as caught:
        judge(lambda path: value, "m.onnx", "the dense model")
    assert "\n" not in str(caught.value)


# What goes wrong


@pytest.mark.parametrize(("given", "says"), [
    ("own_metrics", "not of the form module:function"), (":weights", "not of the form"), ("own_metrics:", "not of"),
    ("own_metrics.py:weights", "own_metrics:weights"), ("nowhere_to_be_found:f", "no module 'nowhere_to_be_found'"),
    ("own_metrics:weihgts", "did you mean 'weights'"), ("own_metrics:zzz", "has no function 'zzz'"),
    ("own_metrics:constant", "is no function"), ("broken_metrics:f", "no_such_thing_at_all"),
    ("own_metrics:fails", "fails failed for the dense model: RuntimeError: no data here"),
    ("own_metrics:stops", "SystemExit: 3"), ("own_metrics:text", "returned 'good'"), ("own_metrics:nothing", "{}"),
])
def test_mistakes_are_one_line_and_code_2(here: Path, given: str, says: str) -> None:
    net = put(here / "net.onnx", cnn())
    refused(here, "prune", net, "--sparsity", 0.5, "--evaluate", given, "-o", here / "out.onnx", *QUICK, says=says)
    said = says.replace("the dense model", str(net))
    refused(here, "compare", net, net, "--evaluate", given, "--seconds", 0.05, says=said)
    assert not (here / "out.onnx").exists()


def test_methods_of_classes_are_found(here: Path) -> None:
    found = find_metric("own_metrics:Suite.run")
    assert found is not None and judge(found, "m", "it") == {"run": 2.0}


def test_no_run_and_a_metric_contradict_each_other(here: Path) -> None:
    net = put(here / "net.onnx", cnn())
    asked = ("--no-run", "--evaluate", "own_metrics:weights")
    refused(here, "prune", net, "--sparsity", 0.5, *asked, *QUICK, says="--no-run")
    with pytest.raises(UsageError, match="give a function"):
        graphprune.prune(cnn(), 0.5, evaluate=3, **FAST)


def test_a_failure_after_the_work_does_not_lose_the_model(here: Path) -> None:
    net = put(here / "net.onnx", cnn())
    asked = ("prune", net, "--sparsity", 0.5, "-o", "out.onnx", "--evaluate", "own_metrics:later", *QUICK, "--force")
    ran = cli(*asked)
    assert ran.code == 2 and (here / "out.onnx").is_file()
    (line,) = [x for x in ran.err.splitlines() if x.startswith("graphprune:")]
    assert "later failed for the pruned model: RuntimeError: too small" in line and "was written: out.onnx" in line
    assert "written: out.onnx" in ran.out
    ran = cli(*asked, "--json")
    found = json.loads(ran.out)
    assert ran.code == 2 and "too small" in found["evaluation"]["error"] and found["evaluation"]["after"] is None
    onnx.checker.check_model("out.onnx")

    def late(path: str) -> float:
        if "pruned" in path or size(path) < 30000:
            raise ValueError("late")
        return 1.0

    result = graphprune.prune(cnn(), 0.5, evaluate=late, **FAST)
    assert "ValueError: late" in result.report["evaluation"]["error"] and result.model.graph.node
