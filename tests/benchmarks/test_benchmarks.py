"""The benchmarks run, on the smallest of inputs; how fast anything is, is not asserted."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from oracles import Net

import graphprune
from graphprune import speed
from graphprune.machine import known
from graphprune.model import load
from graphprune.runtime import Runtime, open_session, run

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1] / "samples" / "fashion_mnist_resnet.onnx"


def script(name: str) -> ModuleType:
    """Import a benchmark by its file."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["residual", "attention"])
def test_scaling_finds_the_same_groups_in_every_block(kind: str) -> None:
    scaling = script("scaling")
    small, large = (scaling.measure(kind, blocks, 1) for blocks in (2, 5))
    shared = 1
    assert (small["groups"] - shared) * 5 == (large["groups"] - shared) * 2
    assert scaling.table([small, large]).count("\n") == 3


def test_accuracy_counts_what_a_model_gets_right(tmp_path: Path) -> None:
    """On files of the same form as Fashion-MNIST's, with the sample network's own answers for labels, but for two."""
    benchmark = script("accuracy")
    subset = np.load(SAMPLE.with_name("fashion_mnist_subset.npz"))
    images = subset["images"][:40]
    session = open_session(str(SAMPLE), Runtime())
    answers = run(session, {"image": benchmark.normalised(images)})["logits"].argmax(1).astype(np.uint8)
    answers[:2] = (answers[:2] + 1) % 10
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + answers.tobytes()))
    out = tmp_path / "rows.json"
    words = ["--data", str(tmp_path), "--targets", "0.5", "--set", "L2: --calibration off", "--json", str(out)]
    benchmark.main([str(SAMPLE), *words])
    dense, pruned = json.loads(out.read_text())
    assert dense["accuracy"] == 38 / 40 and dense["macs"] == 1
    assert pruned["method"] == "L2" and abs(pruned["macs"] - 0.5) < 0.02 and 0 <= pruned["accuracy"] <= 1
    lines = benchmark.table([dense, pruned]).splitlines()
    assert lines[0].endswith("| 0.5 of the MACs |") and "(95.0) | L2 |" in lines[2]


def test_int8_versions_answer_as_the_network_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    images = np.load(SAMPLE.with_name("fashion_mnist_subset.npz"))["images"][:80]
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8 + len(images))))
    feed = {"image": script("accuracy").normalised(images)}
    plain = run(open_session(str(SAMPLE), Runtime()), feed)["logits"].argmax(1)
    files = script("quantised").written(SAMPLE, tmp_path / "int8", tmp_path)
    assert [f.stem.rpartition("_")[2] for f in files] == ["dynamic", "qdq", "qoperator"]
    for file in files:
        assert file.stat().st_size < 0.5 * SAMPLE.stat().st_size
        assert (run(open_session(str(file), Runtime()), feed)["logits"].argmax(1) == plain).mean() > 0.9


def test_against_peers_times_graphprune_without_any_peer() -> None:
    peers = script("against_peers")
    runners = peers.contestants(("analysis", "prune", "files"))
    assert list(runners) == ["analysis", "prune", "files"]
    row = peers.race(SAMPLE, "sample", runners, 1)
    assert 0.2 < row["prune"]["kept"] == row["files"]["kept"] < 0.3
    assert peers.table({"sample": row}, runners).startswith("| network | analysis | prune | files |")
    assert set(peers.versions()) >= {"graphprune", "torch-pruning", "onnxsim"}


def test_a_contestant_that_fails_is_told_and_does_not_stop_the_others() -> None:
    peers = script("against_peers")

    def broken(path: Path, name: str) -> tuple[float, float]:
        raise ValueError("no")

    row = peers.race(SAMPLE, "sample", {"broken": broken, "analysis": peers.graphprune_analysis}, 1)
    assert row["broken"] == {"error": "ValueError: no"}
    assert row["analysis"]["seconds"] > 0
    assert "failed" in peers.table({"sample": row}, row)


def test_ablation_has_a_row_for_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(HERE)
    ablation = script("ablation")
    drawn = ablation.letters(30)
    assert drawn.shape == (30, 28, 28) and (drawn.max((1, 2)) > 100).all() and len({x.tobytes() for x in drawn}) > 20
    asked: list[list[str]] = []

    def pruned(path: Path, target: float, options: list[str], folder: Path) -> tuple[Path, float, float]:
        asked.append(options)
        return path, target, 0.0

    monkeypatch.setattr(ablation, "pruned", pruned)
    monkeypatch.setattr(ablation, "split", lambda data, name: (drawn, np.arange(30) % 10))
    rows = ablation.rows_of(SAMPLE, 0.25, 4, tmp_path)
    ways = sum(len(w) for w in ablation.WAYS.values())
    assert len(rows) == 1 + ways and len(asked) == len({tuple(a) for a in asked}) < ways  # nothing is run twice
    assert ablation.table(rows).count("\n") == 1 + ways


def test_layers_and_widths_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    images = np.load(SAMPLE.with_name("fashion_mnist_subset.npz"))["images"][:40]
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8 + len(images))))
    net = Net()
    x = net("Relu", net.conv(net.input("image", [None, 1, 28, 28]), 1, 8, 3, strides=[3, 3]))
    x = net("Add", x, net.conv(net("Relu", net.conv(x, 8, 12, 3, pads=[1] * 4)), 12, 8, 3, pads=[1] * 4))
    net.output(net.gemm(net("Flatten", net("GlobalAveragePool", x)), 8, 10))
    (tmp_path / "net.onnx").write_bytes(net.model().SerializeToString())
    words = ["--data", str(tmp_path), "--targets", "0.5", "--corrections", "1", "--samples", "40"]
    script("layers").main([str(tmp_path / "net.onnx"), *words])
    branch, widths, layers = capsys.readouterr().out.splitlines()
    assert "Add: " in branch
    assert widths.startswith("0.5 widths: MACs 0.") and ", 0 branches bypassed, " in widths and "accuracy " in widths
    assert layers.startswith("0.5 layers: ")


def test_an_architecture_is_built_as_wide_as_a_pruned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(HERE))  # as when it is run as a script
    benchmark = script("tuning")
    zoo = benchmark.zoo_module()
    zoo.export(zoo.ZOO["plain"].make(), tmp_path / "plain.onnx", fold=True)
    graphprune.prune(tmp_path / "plain.onnx", 0.5, output=tmp_path / "small.onnx", calibration="off", prove=False,
                     time=False)  # fmt: skip
    module = benchmark.shrunk(zoo.ZOO["plain"].make(), tmp_path / "small.onnx").eval()
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    shapes = [tuple(m.weight.shape) for m in module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    there = {v.name: tuple(v.shape) for v in load(tmp_path / "small.onnx").graph.initializers.values()}
    assert sorted(shapes) == sorted(s for s in there.values() if len(s) > 1) and shapes[0] == (16, 1, 3, 3)
    rows = [{"network": "plain", "method": "dense", "accuracy": 0.9}, {
        "network": "plain", "method": "graphprune", "macs": 0.25, "before": 0.8, "accuracy": 0.91, "seconds": 7}]
    assert benchmark.table(rows).splitlines()[3] == "| plain | 0.250 | graphprune | 80.00 | 91.00 | 7 |"


def test_predicted_speedups_stand_beside_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    predicting = script("predicting")
    monkeypatch.setenv("GRAPHPRUNE_CACHE", "")
    monkeypatch.setitem(known._MEASURED, "low", (4, 0.5))
    monkeypatch.setattr(speed, "_SECONDS", 0.1)
    row = predicting.one(SAMPLE, "low", 2, 8, 3)
    assert len(row["predicted_measured"]) == 2 and all(p > 0.5 and m > 0.2 for p, m in row["predicted_measured"])
    assert row["spread"] >= 0 and row["seconds"] > 0
