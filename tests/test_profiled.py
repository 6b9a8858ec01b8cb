"""Profiles: onnxruntime's events summed up, warm-up and nesting taken away, and two models side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import cnn

from graphprune import profiled
from graphprune.errors import RuntimeUnavailable
from graphprune.profiled import NodeTime, Profile, profile_both, profile_record, read
from graphprune.runtime import Runtime

X = {"x": np.ones((1, 3, 8, 8), np.float32)}


def event(name: str, ts: int, dur: int, index: int, operator: str = "Conv") -> dict[str, Any]:
    args = {"op_name": operator, "node_index": str(index)}
    return {"cat": "Node", "ph": "X", "tid": 1, "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def whole(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "ph": "X", "tid": 1, "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def test_warm_up_does_not_count_and_medians_do() -> None:
    durations = [900, 800, 10, 30, 20]
    events = [whole(1000 * k, d + 5) for k, d in enumerate(durations)]
    events += [event("a", 1000 * k + 1, d, 0) for k, d in enumerate(durations)]
    assert read(events) == Profile((NodeTime("a", "Conv", 0.02),), 0.025, 3)
    assert read([]) == Profile((), 0.0, 0)


def test_a_loop_counts_without_what_it_runs() -> None:
    events = [whole(0, 200), event("inside", 20, 30, 5), event("inside", 60, 40, 5), event("loop", 10, 100, 0, "Loop"),
              event("next", 110, 7, 1)]
    found = {n.name: n.ms for n in read(events).nodes}
    assert found == pytest.approx({"inside": 0.07, "loop": 0.03, "next": 0.007})


def test_nodes_of_both_models_are_set_side_by_side() -> None:
    before = Profile(
        (NodeTime("out_nchwc", "Conv", 4.0), NodeTime("head", "Gemm", 1.0), NodeTime("odd", "X", 0.5)), 6, 9
    )
    after = Profile((NodeTime("out_nchwc", "Conv", 2.0), NodeTime("head", "Gemm", 0.5), NodeTime("new", "Y", 0.1),
                     NodeTime("new2", "Y", 0.2)), 3.0, 7)
    got = profile_record(before, after, {"out": "conv1", "y": "head"})
    assert got["operators"][0] == {"operator": "Conv", "before_ms": 4.0, "after_ms": 2.0}
    assert {o["operator"] for o in got["operators"]} == {"Conv", "Gemm", "X", "Y"}
    assert {n["name"]: (n["before_ms"], n["after_ms"]) for n in got["nodes"]} == {"conv1": (4, 2), "head": (1, 0.5)}
    assert got["rest"] == pytest.approx({"before_ms": 0.5, "after_ms": 0.3})
    assert got["runs"] == 7 and got["run_ms"] == {"before": 6, "after": 3.0}


def test_two_models_are_profiled_in_turn_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiled.tempfile, "tempdir", str(tmp_path))
    model = cnn().SerializeToString()
    before, after = profile_both((model, X), (model, X), Runtime(), seconds=0.05)
    assert 5 <= before.runs == after.runs <= 100
    names = {o: n.name for n in cnn().graph.node for o in n.output}
    got = profile_record(before, after, names)
    assert {"relu1", "head"} <= {n["name"] for n in got["nodes"]} and got["rest"] == {"before_ms": 0, "after_ms": 0}
    assert got["run_ms"]["before"] >= max(o["before_ms"] for o in got["operators"]) >= 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeUnavailable, match="npu9"):
        profile_both((model, X), (model, X), Runtime("npu9"), 0.0)


def test_sessions_are_those_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Runtime, bool]] = []
    opened = profiled.open_session

    def noted(model: bytes, runtime: Runtime) -> Any:
        asked.append((replace(runtime, profile=""), bool(runtime.profile)))
        return opened(model, runtime)

    monkeypatch.setattr(profiled, "open_session", noted)
    model = onnx.load_from_string(cnn().SerializeToString()).SerializeToString()
    profile_both((model, X), (model, X), Runtime(threads=2), seconds=0.0)
    assert asked == [(Runtime(threads=2), True)] * 2
