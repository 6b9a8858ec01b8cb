"""Tuning: what is minimised, what may change, what is written, and going on after a break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import small  # noqa: E402

from graphprune.calibrate.choice import parse_calibration  # noqa: E402
from graphprune.calibrate.samples import Samples  # noqa: E402
from graphprune.converters.finetune import Saving, finetune  # noqa: E402
from graphprune.converters.losses import Distance, kinds  # noqa: E402
from graphprune.converters.pytorch import to_module  # noqa: E402
from graphprune.converters.subset import choose  # noqa: E402
from graphprune.converters.tune import Tuning  # noqa: E402
from graphprune.converters.tuning_data import Batches  # noqa: E402
from graphprune.errors import UsageError  # noqa: E402
from graphprune.execute import evaluate  # noqa: E402
from graphprune.model import load  # noqa: E402

RNG = np.random.default_rng(0)
QUICK = Tuning(epochs=3, batch=32, lr=5e-3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a dense network, a pruned one, and inputs with the dense network's answers as labels."""
    folder = tmp_path_factory.mktemp("tuning")
    dense = small.cnn()
    onnx.save(dense, folder / "dense.onnx")
    result = small.cli("prune", str(folder / "dense.onnx"), "-o", str(folder / "pruned.onnx"), "--sparsity", "0.5",
                       "--repair", "none", *small.FAST)  # fmt: skip
    assert result.code == 0, result.err
    x = RNG.standard_normal((192, 3, 8, 8)).astype(np.float32)
    answers = evaluate(load(folder / "dense.onnx"), {"x": x})["y"]
    np.savez(folder / "data.npz", x=x)
    np.savez(folder / "labelled.npz", x=x, labels=answers.argmax(1))
    np.savez(folder / "few.npz", x=x, labels=np.zeros(3, np.int64))
    return {p.stem: p for p in folder.iterdir()}


def tuned(files: dict[str, Path], asked: Tuning = QUICK, **options: Any) -> Any:
    return finetune(files["pruned"], files["dense"], parse_calibration(str(files["data"])), asked, **options)


def test_the_tuned_model_is_nearer_to_the_dense_one(files: dict[str, Path]) -> None:
    done = tuned(files)
    record = done.record
    assert len(record["loss"]) == 4 and min(record["loss"]) < 0.5 * record["loss"][0]
    before, after = (record[k][0] for k in ("divergence_before", "divergence_after"))
    assert after["relative"] < before["relative"]
    assert record["samples"] == 192 and record["held_back"] == 19 and record["module_error"] < 1e-4
    start = load(files["pruned"])
    assert [n.op_type for n in done.model.graph] == [n.op_type for n in start.graph]
    assert set(done.model.graph.initializers) == set(start.graph.initializers)


def test_a_rate_that_ruins_the_model_gives_back_what_was_there(files: dict[str, Path]) -> None:
    done = tuned(files, Tuning(epochs=4, batch=32, lr=50.0, patience=2))
    assert done.record["best_epoch"] == 0 and done.record["epochs"] == 2, "two epochs without gain, then it stops"
    feeds = {"x": RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(evaluate(done.model, feeds)["y"], evaluate(load(files["pruned"]), feeds)["y"])


def test_going_on_after_a_break_gives_the_same_model(files: dict[str, Path], tmp_path: Path) -> None:
    whole = tuned(files).record["loss"]
    place = tmp_path / "state.pt"

    class Broken(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("epoch 2/"):
            raise Broken

    with pytest.raises(Broken):
        tuned(files, saving=Saving(place), progress=stop)
    assert place.is_file()
    assert tuned(files, saving=Saving(place, resume=True)).record["loss"] == pytest.approx(whole, rel=1e-5)
    with pytest.raises(UsageError, match="another lr"):
        tuned(files, Tuning(epochs=3, batch=32, lr=1e-4), saving=Saving(place, resume=True))
    place.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no checkpoint"):
        tuned(files, saving=Saving(place, resume=True))


def test_only_some_weights_are_tuned(files: dict[str, Path]) -> None:
    done = tuned(files, Tuning(epochs=2, batch=32, lr=5e-3, only=("bias",)))
    start, end = (load(files["pruned"]).graph.initializers, done.model.graph.initializers)
    moved = {k for k in start if not np.array_equal(start[k].const_value.numpy(), end[k].const_value.numpy())}
    assert moved == {"b1", "b2", "b3"}
    module = to_module(files["pruned"])
    assert choose(module, ["w?"]) == sum(p.numel() for p in module.parameters() if p.dim() > 1)
    with pytest.raises(UsageError, match="norm"):
        choose(module, ["norm"])


def test_labels_and_their_mistakes(files: dict[str, Path]) -> None:
    asked = Tuning(epochs=3, batch=32, lr=5e-3, labels=True)
    data = parse_calibration(str(files["labelled"]))
    losses = finetune(files["pruned"], None, data, asked, labels="labels").record["loss"]
    assert min(losses) < losses[0]
    few = parse_calibration(str(files["few"]))
    for source, key, said in (
        (data, "nothing", "no array 'nothing'"), (few, "labels", "one whole number per sample"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            finetune(files["pruned"], None, source, asked, labels=key)


def test_the_command_writes_prints_and_refuses(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "tuned.onnx"
    words = ["finetune", str(files["pruned"]), "--data", str(files["data"]), "-o", str(out), "--epochs", "1"]
    done = small.cli(*words, "--teacher", str(files["dense"]), "--json", "--bfloat16", "--lr", "0.005")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["output"] == str(out) and out.is_file() and min(record["loss"]) < record["loss"][0]
    onnx.checker.check_model(str(out))
    for more, said in (
        ((), "--teacher"), (("--labels", "y", "--alpha", "0.3"), "--alpha"), (("--teacher", "d"), "no such file"),
        (("--labels", "y", "--resume"), "--resume"),
        (("--labels", "y", "--checkpoint", str(tmp_path / "no" / "state")), "there is no folder"),
        (("--labels", "y"), "no array 'y'"), (("--labels", "y", "--device", "toaster"), "toaster"),
        (("--labels", "y", "--epochs", "0"), "epochs is 0"), (("--teacher", "d", "--smoothing", "0.1"), "smoothing"),
        (("--labels", "y", "--norms", "new"), "train or frozen"),
        (("--labels", "y", "-o", str(files["pruned"])), "the model itself"),
    ):  # fmt: skip
        failed = small.cli(*words, *more)
        assert failed.code == 2 and said in failed.err and failed.err.count("\n") == 1, (more, failed.err)


def test_outputs_are_told_apart_and_measured_each_in_its_way() -> None:
    logits = 5 * RNG.standard_normal((8, 6)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answers = {"logits": logits, "shares": shares, "embedding": 0.1 * RNG.standard_normal((8, 6)).astype(np.float32)}
    found = kinds(answers)
    assert found == {"logits": "logits", "shares": "probabilities", "embedding": "features"}
    same = {k: torch.as_tensor(v) for k, v in answers.items()}
    assert float(Distance(found).to_answers(same, answers)) == pytest.approx(0, abs=1e-4)
    other = RNG.standard_normal((8, 6)).astype(np.float32)
    t, p, q = 2.0, logits.astype(np.float64) / 2, other.astype(np.float64) / 2
    p, q = (v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (p, q))
    expected = t * t * (np.exp(p) * (p - q)).sum(1).mean()
    got = Distance({"logits": "logits"}, t).to_answers({"logits": torch.as_tensor(other)}, answers)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_batches_come_in_another_order_each_time_and_too_many_are_streamed() -> None:
    x = np.arange(20.0, dtype=np.float32)[:, None]
    samples = Samples(lambda: iter([{"x": x[:7]}, {"x": x[7:]}]), 20, "in-distribution")
    asked: list[int] = []

    def answer(feed: Any) -> dict[str, Any]:
        asked.append(len(feed["x"]))
        return {"y": 2 * feed["x"]}

    held = Batches(samples, answer, 6)
    orders = []
    for epoch in (0, 1, 0):
        found = list(held.epoch(epoch))
        assert all((a["y"] == 2 * f["x"]).all() for f, a in found)
        orders.append(np.concatenate([f["x"] for f, _ in found]).ravel().tolist())
    assert orders[0] == orders[2] != orders[1] and sorted(orders[1]) == x.ravel().tolist()
    assert sum(asked) == 20, "answers in memory are asked for once"
    streamed = Batches(samples, answer, 6, memory=10)
    found = [f["x"].ravel().tolist() for f, _ in streamed.epoch(0)]
    assert sorted(v for f in found for v in f) == x.ravel().tolist() and [len(f) for f in found] == [6, 6, 6, 2]
    assert held.steps() == streamed.steps() == 4
