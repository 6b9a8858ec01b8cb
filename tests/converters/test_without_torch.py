"""Without torch, what needs it says so in one line, and everything else is as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small import cnn

BLOCKED = "import sys; sys.modules['torch'] = None; from graphprune.cli import main; main()"
"""A name that is None in sys.modules can neither be imported nor found."""


def without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where torch is not installed."""
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, samples, and sources whose frameworks need torch."""
    made = tmp_path_factory.mktemp("no_torch")
    onnx.save(cnn(), made / "net.onnx")
    for name in ("net.pt2", "net.pt"):
        (made / name).touch()
    (made / "hf").mkdir()
    (made / "hf" / "config.json").write_text("{}")
    np.savez(made / "images.npz", x=np.random.default_rng(0).random((40, 3, 8, 8), np.float32))
    return made


@pytest.mark.parametrize(("command", "extra"), [
    (("finetune", "net.onnx", "--teacher", "net.onnx", "--data", "images.npz", "-o", "out.onnx"), "torch"),
    (("prune", "net.onnx", "--criterion", "taylor", "--sparsity", "0.5", "-o", "out.onnx"), "torch"),
    (("convert", "net.pt2", "-o", "out.onnx"), "torch"),
    (("convert", "hf", "-o", "out.onnx"), "hf"),
    (("prune", "net.pt", "--sparsity", "0.5", "-o", "out.onnx"), "torch"),
    (("export", "net.onnx", "--to", "tflite", "-o", "out.tflite"), "tflite"),
    (("export", "net.onnx", "--to", "coreml", "-o", "out.mlpackage"), "coreml"),
])
def test_commands_that_need_torch_say_so(command: tuple[str, ...], extra: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = without_torch(folder, *command)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert "torch" in line and f"pip install 'graphprune[{extra}]'" in line
    assert sorted(folder.rglob("*")) == before


def test_everything_else_is_unaffected(folder: Path) -> None:
    for command in (
        ("prune", "net.onnx", "--sparsity", "0.5", "--calibration", "images.npz", "-o", "p.onnx", "--no-time"),
        ("compare", "net.onnx", "p.onnx", "--seconds", "0.05"),
    ):
        done = without_torch(folder, *command, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
