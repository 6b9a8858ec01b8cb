"""The command line: every command, in text and JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small import (
    FAST,
    cli,
    record,
    refused,
    shapes_of,
)


def test_inspect(net: Path) -> None:
    got = record("inspect", net)
    assert set(got) >= {"model", "groups", "pins", "coverage", "seconds"}
    assert {"nodes", "opset", "parameters", "macs", "bytes"} <= set(got["model"])
    assert (got["model"]["nodes"], got["model"]["opset"]) == (7, 17)
    assert got["model"]["bytes"] == 4 * got["model"]["parameters"] and got["model"]["macs"] > 0
    assert [(g["name"], g["size"]) for g in got["groups"]] == [("w1:0", 32), ("w2:0", 48)]
    places = got["groups"][0]["occurrences"]
    assert {(o["initializer"], o["axis"], o["role"]) for o in places} == {
        ("w1", 0, "produced"), ("b1", 0, "produced"), ("w2", 1, "contracted")
    }
    assert all(isinstance(o["expression"], str) for o in places)
    (head,) = [p["reason"] for p in got["pins"] if p["name"] == "w3:0"]
    assert head.startswith("graph output")
    assert 0.9 < got["coverage"] <= 1 and set(got["seconds"]) >= {"load", "trace", "solve"}
    text = cli("inspect", net)
    assert text.code == 0 and "w2:0" in text.out and "channel groups" in text.out
    assert len(cli("inspect", net, "-v").out) > len(text.out)
    assert cli("inspect", net, "-q").out == ""


def test_explain(net: Path) -> None:
    got = record("explain", net, "w1:0", "w2:1")
    assert "Conv" in json.dumps(got["explanations"]) and got["explanations"][0]["path"]
    for name in ("w1:0", "w1", "conv1", "c1:1", "y"):
        assert record("explain", net, name)["explanations"]
    assert cli("explain", net, "w3:0").out.strip()


def test_prove(net: Path) -> None:
    got = record("prove", net, "--seed", 3)
    assert (got["groups"], got["passed"]) == (2, True) and got["max_relative_error"] < 1e-4
    assert cli("prove", net).out.startswith("passed")


def test_prune_and_its_record(net: Path, tmp_path: Path) -> None:
    got = record("prune", net, "--sparsity", 0.5, "--align", 1, "--seconds", 0.2)
    for side in ("before", "after"):
        assert set(got[side]) >= {"parameters", "macs", "bytes", "latency_ms"}
        assert all(isinstance(got[side][k], (int, float)) for k in ("parameters", "macs", "bytes", "latency_ms"))
    assert got["after"]["parameters"] < 0.4 * got["before"]["parameters"]
    assert got["speedup"] > 0 and got["noise_band"] >= 0 and got["proof"]["passed"] is True
    assert got["plan"]["groups"]["w1:0"]["size"] == 32 and "validate" in got["seconds"]
    out = tmp_path / "net.pruned.onnx"
    assert got["output"] == str(out) and shapes_of(onnx.load(out))["w1"] == [16, 3, 3, 3]
    stored = sum(int(np.prod(w.dims)) for w in onnx.load(out).graph.initializer)
    assert stored == got["after"]["parameters"]


def test_prune_in_words(net: Path, tmp_path: Path) -> None:
    common = ("prune", net, "--sparsity", 0.5, "-o", tmp_path / "p.onnx", "--seconds", 0.2)
    text = cli(*common)
    assert text.code == 0 and "written: " in text.out and "proof: " in text.out and "speed" in text.out
    assert len(cli(*common, "-v").out) > len(text.out)
    quiet = cli(*common, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    bare = cli(*common, "--no-run")
    assert "not run" in bare.out and "not timed" in bare.out
    got = record(*common, "--no-run")
    assert got["proof"] is None and got["speedup"] is None and got["checks"] == []
    got = record(*common, "--no-prove", "--no-time")
    assert got["proof"] is None and got["before"]["latency_ms"] is None and all(c["passed"] for c in got["checks"])


def test_a_replayed_plan_gives_the_same_file(net: Path, tmp_path: Path) -> None:
    how = ("--target", "macs=0.5", "--criterion", "l1", "--allocation", "global", "--align", 4)
    assert cli("plan", net, "-o", tmp_path / "plan.json", *how).code == 0
    assert cli("plan", net, "-o", tmp_path / "plan.json", *how, "-q").out == ""
    assert cli("prune", net, "--plan", tmp_path / "plan.json", "-o", tmp_path / "a.onnx", *FAST).code == 0
    assert cli("prune", net, "-o", tmp_path / "b.onnx", *how, *FAST).code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    printed = record("plan", net, *how)
    assert printed["plan"]["groups"] == json.loads((tmp_path / "plan.json").read_text())["groups"]


@pytest.mark.parametrize("option", [("--target", f"{k}=0.6") for k in ("macs", "params", "bytes")])
def test_targets(net: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    got = record("plan", net, *option, "--align", 1)
    key = {"params": "parameters"}.get(kind := option[1].split("=")[0], kind)
    assert 0.5 < got["after"][key] / got["before"][key] <= 0.6


def test_choosing_groups(net: Path) -> None:
    kept = {g["name"]: g["kept"] for g in record("plan", net, "--sparsity", 0.5, "--include", "w1*")["groups"]}
    assert kept["w1:0"] == 16 and kept["w2:0"] == 48
    kept = {g["name"]: g["kept"] for g in record("plan", net, "--sparsity", 0.5, "--exclude", "w1*")["groups"]}
    assert kept["w1:0"] == 32 and kept["w2:0"] < 48
    deep = ("--sparsity", 0.9, "--floor", 0.75, "--align", 1)
    kept = {g["name"]: g["kept"] for g in record("plan", net, *deep)["groups"]}
    assert kept == {"w1:0": 24, "w2:0": 36}
    for criterion in ("l1", "l2", "lamp", "fpgm", "bn_scale", "random"):
        assert record("plan", net, "--sparsity", 0.5, "--criterion", criterion)["after"]["macs"]


@pytest.mark.parametrize("suffix", ["graphml", "dot"])
def test_exported_graphs_parse_again(net: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"g.{suffix}"
    assert cli("inspect", net, "--graph", path, "-q").code == 0
    if suffix == "graphml":
        import networkx as nx

        graph = nx.read_graphml(path)
        assert graph.nodes["op:conv1"]["operator"] == "Conv" and "w1:0" in graph.nodes["value:w1"]["groups"]
        assert graph.has_edge("value:w1", "op:conv1")
    else:
        import pydot

        (graph,) = pydot.graph_from_dot_file(str(path))
        assert len(graph.get_edges()) >= 14


def test_compare_and_bench(net: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    assert cli("prune", net, "--sparsity", 0.5, "-o", small, *FAST, "-q").code == 0
    got = record("compare", net, small, "--seconds", 0.2, "--batch", 2)
    assert set(got) >= {"before", "after", "speedup", "noise_band", "proof", "seconds", "plan"}
    assert got["after"]["macs"] < got["before"]["macs"] and got["max_relative_difference"] > 0
    assert "latency" in cli("compare", net, small, "--seconds", 0.1, "--threads", 2).out
    got = record("bench", net, small, "--seconds", 0.2, "--input-shape", "x:3,3,8,8")
    assert [r["model"] for r in got["models"]] == [str(net), str(small)] and got["inputs"] == {"x": [3, 3, 8, 8]}
    assert all(r["median_ms"] > 0 for r in got["models"])
    assert "median" in cli("bench", net, net, small, "--seconds", 0.1).out


def test_given_inputs(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((5, 3, 8, 8), np.float32))
    got = record("prove", net, "--inputs", tmp_path / "in.npz")
    assert got["passed"] and got["assumed"] == []
    assert record("bench", net, "--inputs", tmp_path / "in.npz", "--seconds", 0.1)["inputs"]["x"] == [5, 3, 8, 8]


def test_output_that_graphprune_wrote_is_replaced(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    assert cli("prune", net, "--sparsity", 0.5, "-o", out, *FAST).code == 0
    assert cli("prune", net, "--sparsity", 0.25, "-o", out, "--align", 1, *FAST).code == 0
    assert shapes_of(onnx.load(out))["w1"] == [24, 3, 3, 3]
    out.write_bytes(b"something else")
    refused(tmp_path, "prune", net, "--sparsity", 0.5, "-o", out, *FAST, says="--force")
    assert cli("prune", net, "--sparsity", 0.5, "-o", out, "--force", *FAST).code == 0


def test_as_a_module(net: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graphprune", "inspect", net, "--json"]
    run = subprocess.run(command, capture_output=True, check=False)
    assert run.returncode == 0 and json.loads(run.stdout)["groups"] and not run.stderr
    assert cli("--help").code == 0 and "prune" in cli("--help").out and cli("prune", "--help").code == 0
    assert cli().code == 2


def test_a_speedup_that_the_written_model_does_not_have_is_told(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune import pipeline

    plan_of = pipeline.make_plan
    monkeypatch.setattr(pipeline, "make_plan", lambda a, c, p, *_: plan_of(a, pipeline.Choosing(sparsity=0.1), p))
    out = net.with_name("out.onnx")
    ran = cli("prune", net, "--speedup", 50, "-o", out, "--seconds", 0.1, "--no-prove")
    assert ran.code == 0 and "asked for 50x" in ran.err
    assert "asked for" not in cli("prune", net, "--speedup", 50, "-o", out, "--no-time", "--no-prove").err


def test_that_nothing_is_removed_is_told(net: Path) -> None:
    words = "nothing is removed"
    assert words in cli("plan", net, "--sparsity", 0.01).err
    assert words in cli("prune", net, "--sparsity", 0.01, "-o", net.with_name("out.onnx"), *FAST).err
    assert words not in cli("plan", net, "--sparsity", 0.5, "--align", 1).err
