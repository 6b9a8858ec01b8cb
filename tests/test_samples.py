"""Every sample runs, as a user would run it, and says what its text promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

SAMPLES = Path(__file__).resolve().parents[1] / "samples"


def run(script: str, *arguments: str) -> str:
    """Run a sample from another folder and return its output."""
    command = [sys.executable, str(SAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SAMPLES.parent / "tests")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pruning_fashion_mnist_prints_every_trial() -> None:
    out = run("1_prune_fashion_mnist.py", "--seconds", "0.05")
    rows = [line for line in out.splitlines() if "%" in line]
    assert "93.0%" in rows[0] and "400,810" in rows[0]
    assert len(rows) == 12
    for row in rows[1:]:
        accuracy, error = re.findall(r"([\d.]+)%", row)[0], row.split()[-1]
        assert 0 <= float(accuracy) <= 95.0
        assert float(error) < 1e-5
    found = {row.split("  ")[1].strip(): float(re.findall(r"([\d.]+)%", row)[0]) for row in rows[1:]}
    assert found["macs 0.5, 256 images"] > 92 and found["macs 0.5, made-up inputs"] > 90
    assert found["macs 0.5, weights only"] < 50


def test_the_core_on_one_page_proves_its_groups() -> None:
    out = run("2_core_on_one_page.py")
    errors = re.findall(r"changes the output by (\S+)", out)
    assert len(errors) == 2 and all(float(e) < 1e-5 for e in errors)
    assert re.search(r"group \w+ of +2: wq:1 \((\w+) 4\), wk:1 \(\1 4\), wv:1 \(\1 4\), wo:0 \(\1 4\)", out)
    assert re.search(r"group \w+ of +6: a:0 (\w+), c:1 \(\1 \+ 10\)", out)


def test_the_core_finds_the_groups_that_graphprune_finds() -> None:
    import graphprune

    out = run("2_core_on_one_page.py").partition("residual CNN")[2]
    found = {
        frozenset(re.findall(r"(\S+:\d) \w+", places)): int(size)
        for size, places in re.findall(r"group \w+ of +(\d+): (.*)", out)
    }
    coupling = graphprune.analyse(SAMPLES / "fashion_mnist_resnet.onnx").coupling
    assert found == {frozenset(f"{o.initializer}:{o.axis}" for o in g.occurrences): g.size for g in coupling.groups}


def test_the_core_fits_on_its_page_and_needs_nothing_of_ours() -> None:
    lines = (SAMPLES / "2_core_on_one_page.py").read_text().splitlines()
    assert not any(re.match(r"(from|import) graphprune", line) for line in lines)
    assert sum(bool(line.strip()) for line in lines) < 150


def test_a_plan_is_replayed_to_the_same_bytes() -> None:
    out = run("3_plan_and_replay.py")
    assert "replayed twice, same bytes: True" in out
    assert out.count("$ graphprune") == 3


def test_training_says_what_it_needs() -> None:
    pytest.importorskip("torch")
    assert "--epochs" in run("0_train_fashion_mnist.py", "--help")


def test_every_sample_is_described() -> None:
    text = (SAMPLES / "README.md").read_text()
    assert [f.name for f in SAMPLES.iterdir() if f.is_file() and f.name != "README.md" and f.name not in text] == []


def test_characters_are_counted(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("ppocr", SAMPLES / "5_prune_ppocr.py")
    assert spec is not None and spec.loader is not None
    sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sample)
    assert sample.edits("kitten", "sitting") == 3 and sample.edits("", "ab") == 2 and sample.edits("ab", "ab") == 0
    text = tmp_path / "text"
    text.write_text("one two three\nfour five six seven eight nine ten eleven")
    lines = sample.lines_of(text, 14)
    assert " ".join(lines) == text.read_text().replace("\n", " ") and max(map(len, lines)) <= 14
    model = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key="character", value="a\nb\n")])
    assert sample.characters_of(model) == ["a", "b", " "]
