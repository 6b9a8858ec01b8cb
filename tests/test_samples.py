"""Every sample runs, as a user would run it, and says what its text promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracles import Net

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


# Samples for models of text, on small ones


WORDS = [f"word{chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(60)]


def of_text(folder: Path, encoder: bool) -> list[str]:
    """Write a model of tokens, its tokenizer and two texts; return the arguments that a sample takes."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token=WORDS[0]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    net = Net()
    ids = net.input("input_ids", ["batch", "tokens"], np.int64)
    if encoder:
        net.input("attention_mask", ["batch", "tokens"], np.int64)
    x = net("Gather", net.weight(60, 8, name="table"), ids)
    x = net("Add", x, net.matmul(net("Relu", net.matmul(x, 8, 32, name="up")), 32, 8, name="down"))
    net.output(net("LayerNormalization", x, net.weight(8)) if encoder else net.matmul(x, 8, 60, name="head"))
    onnx.save(net.model(), folder / "model.onnx")
    rng = np.random.default_rng(0)
    for name in ("some.txt", "other.txt"):
        lines = [" ".join(rng.choice(WORDS, 9)).capitalize() + "." for _ in range(200)]
        (folder / name).write_text("\n\n".join(lines), encoding="utf-8")
    return [str(folder / "model.onnx"), str(folder / "tokenizer.json"), "--calibration", str(folder / "some.txt"),
            "--evaluate", f"other={folder / 'other.txt'}"]


def test_sentence_embeddings(tmp_path: Path) -> None:
    out = run("6_sentence_embeddings.py", *of_text(tmp_path, encoder=True), "--sentences", "80")
    cosine = float(re.findall(r"other: mean cosine (\S+) over 80 sentences", out)[0])
    before, after = (int(n.replace(",", "")) for n in re.findall(r"parameters (\S+) -> (\S+),", out)[0])
    assert before == 60 * 8 + 2 * 8 * 32 + 8 and after <= before - 0.25 * 2 * 8 * 32
    assert 0.5 < cosine < 1


def test_language_model(tmp_path: Path) -> None:
    words = ["--sequences", "40", "--length", "16", "--save", str(tmp_path / "out.onnx")]
    out = run("7_language_model.py", *of_text(tmp_path, encoder=False), *words)
    dense, pruned, times = map(float, re.findall(r"other: perplexity (\S+) -> (\S+), (\S+) times, 16", out)[0])
    assert dense > 1 and times == pytest.approx(pruned / dense, abs=0.01) and (tmp_path / "out.onnx").is_file()


def test_the_pipeline_ends_in_a_deployed_model() -> None:
    pytest.importorskip("torch")
    out = run("10_pipeline.py", "--epochs", "1", "--effort", "low", "--seconds", "0.05")
    found = {name: (float(right), int(size.replace(",", ""))) for name, right, size in re.findall(
        r"^(\S+\.onnx) +([\d.]+)% +([\d,]+) +[\d.]+ ms$", out, re.MULTILINE)}
    assert list(found) == ["dense.onnx", "dense.int8.onnx", "pruned.onnx", "tuned.onnx", "tuned.dynamic.onnx",
                           "tuned.int8.onnx"]
    assert found["dense.onnx"][0] == 93.0 and min(right for right, _ in found.values()) > 85
    assert found["tuned.int8.onnx"][1] < found["tuned.onnx"][1] / 2 < found["dense.onnx"][1] / 8


def test_deploying_needs_numpy_and_onnxruntime_only() -> None:
    imports = re.findall(r"^(?:import|from) (\w+)", (SAMPLES / "10_deploy.py").read_text(), re.MULTILINE)
    assert imports == ["sys", "numpy", "onnxruntime"]
