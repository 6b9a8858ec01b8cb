"""The facade: what `import graphprune` offers, and what `prune` takes and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import array_of, cnn, mlp, put, shapes_of

import graphprune
from graphprune.errors import GraphPruneError, NothingPrunable, PlanError, TargetError, UsageError

FAST: dict[str, Any] = {"time": False, "prove": False, "align": 1, "calibration": "off"}


def test_public_names_exist_and_importing_is_cheap() -> None:
    assert sorted(graphprune.__all__) == [
        "Analysis", "Checking", "Choosing", "GraphPruneError", "Looking", "PruningPlan", "Result", "Runtime", "analyse",
        "prune",
    ]
    assert all(getattr(graphprune, name) for name in graphprune.__all__)
    assert set(graphprune.__all__) <= set(dir(graphprune))
    with pytest.raises(AttributeError, match="nothing"):
        _ = graphprune.nothing
    code = "import sys, graphprune, graphprune.cli; print(sorted(m for m in sys.modules if m in sys.argv[1:]))"
    heavy = ["onnx", "onnx_ir", "onnxruntime", "numpy", "networkx", "torch"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_result_has_model_plan_report_and_save(tmp_path: Path) -> None:
    result = graphprune.prune(cnn(), 0.5, time=False, align=1)
    assert isinstance(result.model, onnx.ModelProto) and shapes_of(result.model)["w1"] == [16, 3, 3, 3]
    onnx.checker.check_model(result.model, full_check=True)
    report = json.loads(json.dumps(result.report))
    assert report["proof"]["passed"] and report["before"]["macs"] > report["after"]["macs"]
    assert list(result.plan.keep) == ["w1:0", "w2:0"]
    result.save(tmp_path / "a.onnx")
    for name in shapes_of(result.model):
        np.testing.assert_array_equal(array_of(onnx.load(tmp_path / "a.onnx"), name), array_of(result.model, name))


def test_kept_channels_are_the_plans() -> None:
    proto = cnn()
    result = graphprune.prune(proto, 0.5, **FAST)
    first, second = (list(result.plan.keep[n]) for n in ("w1:0", "w2:0"))
    np.testing.assert_array_equal(array_of(result.model, "w1"), array_of(proto, "w1")[first])
    np.testing.assert_array_equal(array_of(result.model, "w2"), array_of(proto, "w2")[second][:, first])
    np.testing.assert_array_equal(array_of(result.model, "b2"), array_of(proto, "b2")[second])
    np.testing.assert_array_equal(array_of(result.model, "w3"), array_of(proto, "w3")[:, second])


def test_a_plan_replays_on_another_form_of_the_model(tmp_path: Path) -> None:
    result = graphprune.prune(cnn(), target={"macs": 0.5}, **FAST)
    again = graphprune.prune(put(tmp_path / "m.onnx", cnn()), plan=result.plan, **FAST)
    for name in shapes_of(result.model):
        np.testing.assert_array_equal(array_of(again.model, name), array_of(result.model, name))
    with pytest.raises(PlanError):
        graphprune.prune(mlp(), plan=result.plan, **FAST)


def test_objects_and_options_say_the_same() -> None:
    choosing = graphprune.Choosing(sparsity=0.25, criterion="l1", align=1)
    checking = graphprune.Checking(prove=False, time=False)
    looking = graphprune.Looking(seed=1, runtime=graphprune.Runtime(threads=2))
    one = graphprune.prune(cnn(), choosing=choosing, checking=checking, looking=looking)
    two = graphprune.prune(cnn(), 0.25, criterion="l1", seed=1, **FAST)
    assert one.plan.keep == two.plan.keep


@pytest.mark.parametrize("options,error", [
    ({"sparsity": 1.0}, UsageError), ({"sparsity": 0.5, "colour": 1}, UsageError), ({}, UsageError),
    ({"target": {"macs": 0.0001}}, TargetError), ({"target": {"watts": 0.5}}, UsageError),
    ({"speedup": 0.5}, UsageError), ({"sparsity": 0.5, "seed": -1}, UsageError),
    ({"sparsity": 0.5, "criterion": "l9"}, UsageError), ({"sparsity": 0.5, "include": ["zzz"]}, UsageError),
    ({"sparsity": 0.5, "exclude": ["w*"]}, NothingPrunable), ({"sparsity": 0.5, "align": 0}, UsageError),
    ({"sparsity": 0.5, "input_shapes": {"q": (1,)}}, UsageError), ({"sparsity": 0.5, "batch": 0}, UsageError),
])
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[GraphPruneError]) -> None:
    with pytest.raises(error):
        graphprune.prune(cnn(), **options)


def test_sparsity_zero_changes_nothing() -> None:
    result = graphprune.prune(cnn(), 0.0, **FAST)
    assert not result.plan.keep and shapes_of(result.model) == shapes_of(cnn())


def test_inputs_are_used_as_given() -> None:
    given = {"x": np.ones((3, 3, 8, 8), np.float32)}
    analysis = graphprune.analyse(cnn(), graphprune.Looking(inputs=given))
    assert len(analysis.reference.feeds) == 1 and analysis.reference.feeds[0]["x"] is given["x"]
    assert analysis.assumed == ()


def test_options_may_be_spelled_as_on_the_command_line(tmp_path: Path) -> None:
    fast = {"prove": False, "time": False, "align": 1}
    by_text = graphprune.prune(cnn(), target="macs=0.5", threads=2, exclude="w3", **fast)
    by_fields = graphprune.prune(
        cnn(), target={"macs": 0.5}, runtime=graphprune.Runtime(threads=2), exclude=("w3",), **fast
    )
    assert by_text.plan.keep == by_fields.plan.keep
    by_text.plan.save(tmp_path / "plan.json")
    again = graphprune.prune(cnn(), plan=tmp_path / "plan.json", prove=False, time=False)
    assert again.plan.keep == by_text.plan.keep
    with pytest.raises(graphprune.GraphPruneError, match="macs, params, bytes"):
        graphprune.prune(cnn(), target={"flops": 0.5})
