"""Sequences of tokens used twice: what is replaced, what stays, what it is worth, and what figures are told of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from oracles import Net

import graphprune
from graphprune import accuracy
from graphprune.accuracy import samples_for
from graphprune.calibrate.contents import read
from graphprune.calibrate.knowledge import learn, macs_of_sample
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.tokens_made import vocabulary
from graphprune.calibrate.varied import SHARE, replaced, varied
from graphprune.execute import evaluate
from graphprune.model import load
from graphprune.options import Calibrating, Looking
from graphprune.pipeline import analyse
from graphprune.quality import told_feeds

TOKENS = 400


def encoder(batch: Any = "batch") -> onnx.ModelProto:
    """A table, two layers, and an embedding for each token."""
    net, rng = Net(), np.random.default_rng(0)
    ids = net.input("input_ids", [batch, "sequence"], np.int64)
    mask = net.input("attention_mask", [batch, "sequence"], np.int64)
    hidden = net("Gather", net.const(rng.standard_normal((TOKENS, 24))), ids)
    hidden = net("Mul", hidden, net("Unsqueeze", net("Cast", mask, to=1), net.ints(2)))
    inner = net("Relu", net("MatMul", hidden, net.const(rng.standard_normal((24, 64)) / 5)))
    model: onnx.ModelProto = net.output(net("MatMul", inner, net.const(rng.standard_normal((64, 24)) / 8))).model()
    return model


def texts(count: int, tokens: range, seed: int = 0) -> dict[str, Any]:
    """Sequences of 12 tokens, the last two of them padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(tokens.start, tokens.stop, (count, 12))
    ids[:, 0], ids[:, 9], ids[:, 10:] = 1, 2, 0
    return {"input_ids": ids, "attention_mask": (np.arange(12) < 10).astype(np.int64)[None].repeat(count, 0)}


SIZES = {"input_ids": (1, 12), "attention_mask": (1, 12)}


def samples(count: int = 7, step: int = 3) -> Samples:
    whole = texts(count, range(3, 30))
    feeds = [{n: a[k : k + step] for n, a in whole.items()} for k in range(0, count, step)]
    return Samples(lambda: iter(feeds), count, "in-distribution")


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 9), st.booleans(), st.integers(0, 99))
def test_marks_and_padding_stay_and_a_share_of_the_rest_is_replaced(
    rows: int, length: int, padding: int, left: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    real = np.column_stack([np.full(rows, 1), rng.integers(10, 50, (rows, length)), np.full(rows, 2)])
    pad = np.zeros((rows, padding), np.int64)
    ids = np.concatenate([pad, real] if left else [real, pad], 1).astype(np.int32)
    found = replaced(ids, vocabulary(None, 9000), rng)
    assert found.dtype == ids.dtype and found.shape == ids.shape
    ends = ids < 10
    assert (found[ends] == ids[ends]).all() and (found >= 0).all() and (found < 9000).all()


def test_a_quarter_is_replaced_by_any_token() -> None:
    ids = np.random.default_rng(0).integers(10, 50, (200, 100))
    found = replaced(ids, vocabulary(None, TOKENS), np.random.default_rng(0))
    share = (found != ids).mean()
    assert 0.8 * SHARE < share < SHARE and len(np.unique(found)) > 0.9 * TOKENS


def test_every_sample_is_followed_by_its_variation() -> None:
    model, own = load(encoder()), samples()
    found = varied(own, read(model, SIZES), seed=3)
    assert (found.count, found.each, found.pick) == (14, 2, None)
    assert found.assumed == ("input_ids: every sequence is used again with 25% of its tokens replaced by random ones",)
    for before, after in zip(own.open(), found.open(), strict=True):
        for name, array in before.items():
            assert (after[name][0::2] == array).all(), "the caller's own"
            assert after[name].dtype == array.dtype
        assert (after["attention_mask"][1::2] == before["attention_mask"]).all()
        other = after["input_ids"][1::2]
        assert (other != before["input_ids"]).any() and (other[:, [0, 9, 10, 11]] == [1, 2, 0, 0]).all()
    first, again = ([f["input_ids"] for f in found.open()] for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True)), "the same whenever it is read"


def test_what_holds_no_tokens_or_has_a_fixed_batch_stays() -> None:
    images = Samples(lambda: iter([{"x": np.zeros((2, 3, 8, 8), np.float32)}]), 2, "in-distribution")
    assert varied(images, read(load(small.cnn()), {"x": (1, 3, 8, 8)})) is images
    model = load(encoder(batch=2))
    inputs = read(model, {"input_ids": (2, 12), "attention_mask": (2, 12)})
    fixed = Samples(samples().open, 7, "in-distribution", axes={})
    assert varied(fixed, inputs) is fixed


def test_sequences_of_no_tokens_are_no_error() -> None:
    empty = {n: a[:, :0] for n, a in texts(2, range(3, 30)).items()}
    found = varied(Samples(lambda: iter([empty]), 2, "in-distribution"), read(load(encoder()), SIZES))
    assert [f["input_ids"].shape for f in found.open()] == [(4, 0)]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_figures_are_of_the_callers_own_samples(step: int) -> None:
    """Whatever batches are cut: also of 3, in which the first is now the caller's and now not."""
    analysis = analyse(load(encoder()), Looking())
    found = varied(samples(40, step), read(analysis.model, SIZES))
    known = learn(analysis, found)
    own = {tuple(row) for f in samples(40, step).open() for row in f["input_ids"]}
    told = [tuple(row) for f in told_feeds(known) for row in f["input_ids"]]
    assert told and set(told) <= own and known.stats.told - 1 <= 2 * len(told) <= known.stats.told + 1


def test_text_of_other_kinds_loses_less() -> None:
    """Calibrated with 27 tokens of 400: what other tokens lose."""
    model, other = encoder(), texts(64, range(30, TOKENS), 9)
    dense = evaluate(load(model), other)
    lost = {}
    for vary in (True, False):
        result = graphprune.prune(
            model, 0.4, calibration=texts(96, range(3, 30)), vary=vary, time=False, prove=False, adapters=False
        )
        told = any("used again" in line for line in result.report["calibration"]["assumed"])
        assert told is vary
        pruned = evaluate(ir.from_proto(result.model), other)
        lost[vary] = sum(float(((pruned[n] - a) ** 2).sum()) for n, a in dense.items())
    assert lost[True] < 0.6 * lost[False]


def test_the_option(tmp_path: Path) -> None:
    onnx.save(encoder(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **texts(64, range(3, 30)))
    words = ["prune", tmp_path / "m.onnx", "--sparsity", "0.3", "--calibration", tmp_path / "d.npz", "--no-time"]
    for options, count in (((), 128), (("--no-vary",), 64)):
        done = small.cli(*words, "--json", "-o", tmp_path / f"{count}.onnx", *options)
        assert done.code == 0, done.err
        assert json.loads(done.out)["calibration"]["used"] == count


def test_more_than_is_affordable_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analyse(load(encoder()), Looking())
    asked = Calibrating(calibration=texts(64, range(3, 30)))
    once = samples_for(analysis, replace(asked, vary=False))
    work = 64 * macs_of_sample(analysis, once)
    for most, times in ((1.01 * work, 2), (0.99 * work, 1)):
        monkeypatch.setattr(accuracy, "_VARIED_WORK", most)
        assert samples_for(analysis, asked).each == times


def test_samples_with_labels_stay(tmp_path: Path) -> None:
    onnx.save(encoder(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **texts(64, range(3, 30)), y=np.zeros(64, np.int64))
    analysis = analyse(load(encoder()), Looking())
    asked = Calibrating(calibration=tmp_path / "d.npz", labels="y")
    assert samples_for(analysis, asked).each == 1
