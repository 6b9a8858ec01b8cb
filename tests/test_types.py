"""Types and style: mypy --strict on the package and the converters, ruff on the repository."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(*command: str) -> None:
    """Run a tool in the repository; skip if it is not installed."""
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "\n" + (done.stdout + done.stderr)[-4000:]


def test_mypy_strict_finds_nothing() -> None:
    assert "strict = true" in (ROOT / "pyproject.toml").read_text()
    check("mypy", "--no-incremental")


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", "--no-cache", ".")


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "graphprune" / "py.typed").is_file()


def test_every_package_is_in_the_wheel() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"(graphprune[\w.]*)"', text.partition("packages = [")[2].partition("]")[0]))
    there = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "graphprune").rglob("__init__.py")}
    outside = (".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "converters").rglob("__init__.py"))
    assert listed == there | {f"graphprune.{name}" for name in outside}


def test_the_core_depends_on_these_only() -> None:
    text = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("]")[0]
    names = set(re.findall(r'"([\w-]+)', text))
    assert names == {"numpy", "onnx", "onnx-ir", "onnxruntime", "networkx", "typer", "rich", "pydot"}


def test_importing_the_core_imports_no_framework() -> None:
    code = "import sys, graphprune.cli, graphprune.pipeline; print(*{'torch', 'tensorflow', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr + done.stdout
