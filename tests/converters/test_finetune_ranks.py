"""Several processes, started by torch's own launcher, tune one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import small  # noqa: E402

from graphprune.execute import evaluate  # noqa: E402
from graphprune.model import load  # noqa: E402

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo here", allow_module_level=True)


def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((101, 3, 8, 8)).astype(np.float32)
    onnx.save(small.cnn(), tmp_path / "dense.onnx")
    labels = evaluate(load(tmp_path / "dense.onnx"), {"x": x})["y"].argmax(1)
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    onnx.save(small.scaled(0.7), tmp_path / "start.onnx")
    words = ["finetune", str(tmp_path / "start.onnx"), "--data", str(tmp_path / "data.npz"), "--labels", "labels",
             "--epochs", "2", "--lr", "0.003", "--threads", "1", "--json"]  # fmt: skip
    alone = small.cli(*words, "--batch", "32", "-o", str(tmp_path / "alone.onnx"))
    assert alone.code == 0, alone.err
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both = subprocess.run(
        [*launch, "-m", "graphprune", *words, "--batch", "16", "-o", str(tmp_path / "both.onnx"),
         "--checkpoint", str(tmp_path / "s.pt")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr[-2000:]
    one, two = json.loads(alone.out), json.loads(both.stdout)  # one JSON object: the first process's
    assert two["processes"] == 2 and "processes" not in one
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4) and min(one["loss"]) < one["loss"][0]
    weights = [load(tmp_path / f"{n}.onnx").graph.initializers for n in ("alone", "both", "start")]
    for name in weights[0]:
        a, b, start = (w[name].const_value.numpy() for w in weights)
        assert np.abs(a - b).max() <= 0.02 * np.abs(a - start).max(), name
    assert (tmp_path / "s.pt").is_file()


def test_pruning_in_steps_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(small.cnn(), tmp_path / "dense.onnx")
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    failed = small.cli("finetune", str(tmp_path / "dense.onnx"), "--data", str(tmp_path / "data.npz"),
                       "--prune-to", "macs=0.5")  # fmt: skip
    assert failed.code == 2 and "--prune-to works in one process" in failed.err
