"""What tuning aims at: labels beside a teacher, inner values, images that are changed, data that is streamed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import small  # noqa: E402

from graphprune import PruningPlan, prune  # noqa: E402
from graphprune.calibrate.choice import parse_calibration  # noqa: E402
from graphprune.calibrate.labelled import LABELS  # noqa: E402
from graphprune.calibrate.samples import Samples  # noqa: E402
from graphprune.converters.augment import changing  # noqa: E402
from graphprune.converters.features import Matched, similarities  # noqa: E402
from graphprune.converters.finetune import finetune  # noqa: E402
from graphprune.converters.losses import Distance  # noqa: E402
from graphprune.converters.ranks import Ranks  # noqa: E402
from graphprune.converters.tuning import Tuning  # noqa: E402
from graphprune.converters.tuning_data import Batches, open_tuning  # noqa: E402
from graphprune.errors import PlanError, UsageError  # noqa: E402
from graphprune.execute import evaluate, observe_shapes  # noqa: E402
from graphprune.model import load  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a dense network, a pruned one with its plan, and inputs with the dense network's answers as labels."""
    folder = tmp_path_factory.mktemp("aims")
    onnx.save(small.cnn(), folder / "dense.onnx")
    result = prune(folder / "dense.onnx", 0.5, output=folder / "pruned.onnx", prove=False, time=False,
                   calibration="off")  # fmt: skip
    result.plan.save(folder / "plan.json")
    x = RNG.standard_normal((160, 3, 8, 8)).astype(np.float32)
    answers = evaluate(load(folder / "dense.onnx"), {"x": x})["y"]
    np.savez(folder / "data.npz", x=x, labels=answers.argmax(1))
    return {p.stem: p for p in folder.iterdir()}


def tuned(files: dict[str, Path], asked: Tuning, **options: Any) -> Any:
    data = parse_calibration({"x": np.load(files["data"])["x"]}) if not asked.labels else parse_calibration(
        str(files["data"]))  # fmt: skip
    return finetune(files["pruned"], options.pop("teacher", files["dense"]), data, asked, **options)


def test_labels_and_teacher_are_a_weighted_average() -> None:
    told, mine = (RNG.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    labels = RNG.integers(0, 4, 6)
    t = 3.0

    def log_softmax(v: Any) -> Any:
        return v - np.log(np.exp(v).sum(1, keepdims=True))

    p, q = log_softmax(told / t), log_softmax(mine / t)
    soft = t * t * (np.exp(p) * (p - q)).sum(1).mean()
    hard = -log_softmax(mine)[np.arange(6), labels].mean()
    for alpha in (0.0, 0.3, 1.0):
        got = Distance({"y": "logits"}, t, alpha).of({"y": torch.as_tensor(mine)}, {"y": told}, labels)
        assert float(got) == pytest.approx(alpha * soft + (1 - alpha) * hard, rel=1e-4)
    even = -log_softmax(mine).mean()
    got = Distance({"y": "logits"}, t, 0.0, 0.2).of({"y": torch.as_tensor(mine)}, {"y": told}, labels)
    assert float(got) == pytest.approx(0.8 * hard + 0.2 * even, rel=1e-4), "a fifth of each label is everybody's"


def test_the_command_takes_both(files: dict[str, Path], tmp_path: Path) -> None:
    words = ["finetune", str(files["pruned"]), "--data", str(files["data"]), "-o", str(tmp_path / "t.onnx"), "--json",
             "--epochs", "2", "--batch", "32", "--lr", "0.005", "--teacher", str(files["dense"])]  # fmt: skip
    done = small.cli(*words, "--labels", "labels", "--alpha", "0.3", "--augment", "mirror,shift=1")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["against"] == "labels and the dense model" and min(record["loss"]) < record["loss"][0]
    refused = (
        (("--alpha", "0.3"), "give both"), (("--labels", "labels", "--alpha", "2"), "alpha is 2"),
        (("--labels", "labels", "--augment", "wobble"), "mirror"), (("--plan", str(files["plan"])), "--features"),
        (("--labels", "labels", "--features", "nothing"), "fits no inner value"), (("--memory", "0"), "memory is 0"),
    )  # fmt: skip
    for more, said in refused:
        failed = small.cli(*words, *more)
        assert failed.code == 2 and said in failed.err and failed.err.count("\n") == 1, (more, failed.err)
    failed = small.cli(*words[:-2], "--labels", "labels", "--features", "r1")
    assert failed.code == 2 and "--teacher" in failed.err


def test_inner_values_are_pulled_to_the_slots_that_the_plan_kept(files: dict[str, Path]) -> None:
    plan = PruningPlan.load(files["plan"])
    asked = Tuning(epochs=2, batch=32, lr=5e-3, features=("r1", "r2"), feature_weight=1e4)
    first = tuned(files, Tuning(epochs=1, batch=32, lr=1e-9, features=("r1",), feature_weight=1e4), plan=plan)
    outputs = tuned(files, Tuning(epochs=1, batch=32, lr=1e-9))
    assert first.record["features"] == {"r1": "kept slots"}
    assert first.record["loss"][0] == pytest.approx(outputs.record["loss"][0], rel=1e-3), (
        "r1 is the dense model's at the kept slots, exactly, before anything is tuned"
    )
    done = tuned(files, asked, plan=plan)
    kept = list(plan.keep["w2:0"])
    x = np.load(files["data"])["x"]
    far = [_inner(m, "r2", x) - _inner(load(files["dense"]), "r2", x)[:, kept] for m in
           (load(files["pruned"]), done.model)]  # fmt: skip
    assert (far[1] ** 2).sum() < 0.7 * (far[0] ** 2).sum()
    assert [o.name for o in done.model.graph.outputs] == ["y"], "what is watched is no output of the file"
    with pytest.raises(PlanError, match="not that of the pruned model"):
        tuned(files, asked, plan=PruningPlan({}, {"w2:0": tuple(range(8))}, {"w2:0": 48}))
    with pytest.raises(PlanError, match="another model"):
        tuned(files, asked, plan=PruningPlan({}, {"qqq": (0,)}, {"qqq": 2}))


def _inner(model: Any, name: str, x: Any) -> Any:
    assert observe_shapes(model, [name], {"x": x[:2]})
    widened = model.clone()
    widened.graph.outputs.extend(o for n in widened.graph for o in n.outputs if o.name == name)
    return evaluate(widened, {"x": x})[name]


def test_without_a_plan_similarities_of_samples_are_compared(files: dict[str, Path]) -> None:
    done = tuned(files, Tuning(epochs=2, batch=32, lr=5e-3, features=("r?",)))
    assert done.record["features"] == {"r1": "similarities", "r2": "similarities"}
    wide = RNG.standard_normal((5, 6, 2)).astype(np.float32)
    twice = torch.as_tensor(np.concatenate([wide, wide], 1)) * 3
    matched = Matched(("r",), {}, frozenset({"r"}))
    assert float(matched.loss({"r": twice}, {"r": wide})) == pytest.approx(0, abs=1e-9), "no width, no scale"
    other = RNG.standard_normal((5, 3)).astype(np.float32)
    rows = [a.reshape(5, -1) @ a.reshape(5, -1).T for a in (wide, other)]
    g, h = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows)
    got = matched.loss({"r": torch.as_tensor(other)}, {"r": wide})
    assert float(got) == pytest.approx(((g - h) ** 2).sum() / 5, rel=1e-4)
    np.testing.assert_allclose(similarities(torch.as_tensor(other)).square().sum(1).numpy(), 1, rtol=1e-5)


def test_images_are_mirrored_and_shifted_and_the_teacher_sees_the_same() -> None:
    x = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    mirror = changing(["mirror"], {"x": x})
    assert mirror is not None and changing([], {"x": x}) is None
    many = np.concatenate([x] * 20)
    out = mirror({"x": many, "n": np.arange(40)}, np.random.default_rng(0))
    turned = [(a == b[..., ::-1]).all() for a, b in zip(out["x"], many, strict=True)]
    same = [(a == b).all() for a, b in zip(out["x"], many, strict=True)]
    assert 8 < sum(turned) < 32 and sum(turned) + sum(same) == 40
    shift = changing(["shift=2"], {"x": x})
    assert shift is not None
    moved = shift({"x": many}, np.random.default_rng(0))["x"]
    inner = [many[0, :, 2 + dy : 6 + dy, 2 + dx : 6 + dx] for dy in range(-2, 3) for dx in range(-2, 3)]
    assert any((moved[0, :, 2:6, 2:6] == part).all() for part in inner) and not (moved == many).all()
    last = changing(["shift=2"], {"x": np.moveaxis(many, 1, 3)})
    assert last is not None
    np.testing.assert_array_equal(
        np.moveaxis(last({"x": np.moveaxis(many, 1, 3)}, np.random.default_rng(0))["x"], 3, 1), moved
    )
    with pytest.raises(UsageError, match="4 axes"):
        changing(["mirror"], {"x": x[0, 0]})
    batches = Batches(Samples(lambda: iter([{"x": many}]), 40, "noise"), lambda f: {"y": f["x"] + 1}, 7, change=mirror)
    seen = list(batches.epoch(0))
    assert all((a["y"] == f["x"] + 1).all() for f, a in seen) and sum(len(f["x"]) for f, _ in seen) == 40


def test_a_folder_larger_than_the_memory_is_streamed_and_shuffled(files: dict[str, Path], tmp_path: Path) -> None:
    count, limit = 24, 2e6
    for k in range(count):  # 9.4 MB
        x = np.full((512, 3, 8, 8), k, np.float32)
        x[:, 0, 0, 0] = 512 * k + np.arange(512)
        np.savez(tmp_path / f"{k:02}.npz", x=x)
    samples = open_tuning(load(files["dense"]), parse_calibration(str(tmp_path)), 64, None, 0)
    batches = Batches(samples, lambda feed: {"y": feed["x"][:, 0, 0, 0]}, 64, memory=limit)
    tracemalloc.start()
    seen = [a["y"].copy() for _, a in batches.epoch(0)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * limit, f"{peak / 1e6:.1f} MB"
    order = np.concatenate(seen)
    assert sorted(order.tolist()) == list(range(512 * count)) and len(seen) == batches.steps()
    files_in = [len(set((rows // 512).astype(int).tolist())) for rows in seen]
    assert np.mean(files_in) > 1.5, "a batch has samples of several files"
    assert not np.array_equal(order, np.concatenate([a["y"] for _, a in batches.epoch(1)]))


def test_labels_come_from_a_folder_as_from_one_file(files: dict[str, Path], tmp_path: Path) -> None:
    with np.load(files["data"]) as file:
        x, y = file["x"], file["labels"]
    folder = tmp_path / "parts"
    folder.mkdir()
    for k in range(3):
        np.savez(folder / f"{k}.npz", x=x[k::3], labels=y[k::3])
    order = np.concatenate([np.arange(len(x))[k::3] for k in range(3)])
    samples = open_tuning(load(files["pruned"]), parse_calibration(str(folder)), 32, "labels", 0)
    for part in (samples, *samples.split(0.2, 0), samples.limited(10)):
        for feed in part.batches(50):
            rows = [np.flatnonzero((x == row).all((1, 2, 3)))[0] for row in feed["x"]]
            np.testing.assert_array_equal(feed[LABELS], y[rows])
    got = [feed[LABELS] for feed in samples.batches(32)]
    np.testing.assert_array_equal(np.concatenate(got), y[order])
    asked = Tuning(epochs=1, batch=32, labels=True, memory=2e-5)
    done = finetune(files["pruned"], None, parse_calibration(str(folder)), asked, labels="labels")
    assert done.record["samples"] == len(x)
    np.savez(folder / "1.npz", x=x[1::3], labels=y[:5])
    with pytest.raises(UsageError, match=r"1.npz: 'labels' is int64\[5\]: give one whole number per sample"):
        open_tuning(load(files["pruned"]), parse_calibration(str(folder)), 32, "labels", 0)


def test_samples_stay_in_memory_where_answers_do_not_fit() -> None:
    x = np.arange(40, dtype=np.float32)[:, None]
    asked: list[int] = []

    def answer(feed: Any) -> dict[str, Any]:
        asked.append(len(feed["x"]))
        return {"y": np.repeat(feed["x"], 100, 1)}

    opened: list[int] = []

    def read() -> Any:
        opened.append(1)
        return iter([{"x": x}])

    batches = Batches(Samples(read, 40, "noise"), answer, 8, memory=2000)
    for epoch in range(2):
        assert all((a["y"] == f["x"]).all() for f, a in batches.epoch(epoch))
    assert len(opened) == 1 and sum(asked) == 120 and max(asked[1:]) == 8


def test_ranks_share_every_batch_of_one_order() -> None:
    x = np.arange(22, dtype=np.float32)[:, None]
    samples = Samples(lambda: iter([{"x": x}]), 22, "noise")
    whole = [f["x"].ravel().tolist() for f, _ in Batches(samples, lambda f: {"y": f["x"]}, 6).epoch(3)]
    for memory in (1e9, 1.0):
        parts = [list(Batches(samples, lambda f: {"y": f["x"]}, 3, memory, ranks=Ranks(r, 2)).epoch(3)) for r in (0, 1)]
        together = [a[0]["x"].ravel().tolist() + b[0]["x"].ravel().tolist() for a, b in zip(*parts, strict=True)]
        if memory > 1:
            assert together == whole
        assert sorted(v for t in together for v in t) == x.ravel().tolist()
        assert [len(t) for t in together] == [6, 6, 6, 4]
