"""Tuning in 16 bits: float16 with a scale of the loss, steps that overflow, going on, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import small  # noqa: E402

from graphprune.calibrate.samples import Samples  # noqa: E402
from graphprune.converters.descent import Descent  # noqa: E402
from graphprune.converters.losses import Distance  # noqa: E402
from graphprune.converters.pytorch import to_module  # noqa: E402
from graphprune.converters.tune import State, Tuner  # noqa: E402
from graphprune.converters.tuning import FLOAT16, Tuning  # noqa: E402
from graphprune.converters.tuning_data import Batches  # noqa: E402
from graphprune.errors import UsageError  # noqa: E402
from graphprune.execute import evaluate  # noqa: E402
from graphprune.model import load  # noqa: E402

ASKED = Tuning(epochs=6, batch=16, lr=5e-3, precision=FLOAT16)
X = np.random.default_rng(0).standard_normal((160, 3, 8, 8)).astype(np.float32)


@dataclass(frozen=True)
class Loud(Distance):
    """A loss times a number: so large that gradients overflow float16 until the scale has come down."""

    times: float = 1.0

    def of(self, made: Any, answers: Any, labels: Any = None) -> Any:
        return super().of(made, answers, labels) * self.times


def tuner(times: float = 1.0, told: Callable[[str], None] = lambda text: None, asked: Tuning = ASKED) -> Tuner:
    dense = load(small.cnn())

    def batches(x: Any) -> Batches:
        samples = Samples(lambda: iter([{"x": x}]), len(x), "in-distribution")
        return Batches(samples, lambda feed: evaluate(dense, feed), asked.batch)

    return Tuner(to_module(small.scaled(0.7)), batches(X[32:]), batches(X[:32]), Loud({"y": "logits"}, times=times),
                 asked, told)  # fmt: skip


def test_a_step_that_overflows_is_left_out_and_training_recovers() -> None:
    quiet = tuner().run()
    said: list[str] = []
    loud = tuner(300, said.append).run()
    assert quiet.skipped < loud.skipped < 16 and quiet.best < 0.5 * quiet.losses[0]
    assert loud.best < 0.5 * loud.losses[0], "clipped gradients have the same direction, whatever the loss is times"
    left_out = [int(t.split()[2]) for t in said if t.endswith("steps left out, their gradients overflowed float16")]
    assert sum(left_out) == loud.skipped and len(left_out) < 4
    assert all(bool(torch.isfinite(w).all()) for w in loud.weights.values())


def test_the_rate_stays_where_it_is_when_a_step_is_left_out() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    descent = Descent([weight], ASKED, 20)
    shares, moved = [], []
    for wrong in (False, True, False):
        descent.begin()
        before, factor = weight.detach().clone(), float("inf") if wrong else 1.0
        descent.backward((weight * factor).sum())
        assert descent.step() is not wrong
        shares.append(descent.share)
        moved.append(bool((weight != before).any()))
    assert shares == [0.05, 0.05, 0.1] and moved == [True, False, True]
    saved = descent.state_dict()
    assert saved["scaler"]["scale"] == 2.0**15
    with pytest.raises(UsageError, match="not finite at any scale"):
        for _ in range(64):
            descent.begin()
            descent.backward((weight * float("inf")).sum())
            descent.step()
    other = Descent([weight], ASKED, 20)
    other.load_state_dict(saved)
    assert other.state_dict()["scaler"] == saved["scaler"] and other.share == 0.1


def test_going_on_after_a_break_gives_the_same_weights(tmp_path: Path) -> None:
    place, whole = tmp_path / "s.pt", tuner(300).run()

    def stop(text: str) -> None:
        if text.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuner(300, stop).run(place)
    half: State = State(**torch.load(place, weights_only=True)["state"])
    assert half.epoch == 1 and half.skipped > 0
    again = tuner(300).run(place, resume=True)
    assert again.losses == whole.losses and again.skipped == whole.skipped
    assert all(torch.equal(again.weights[k], w) for k, w in whole.weights.items())
    with pytest.raises(UsageError, match="another precision"):
        tuner(300, asked=Tuning(epochs=6, batch=16, lr=5e-3)).run(place, resume=True)


def test_a_model_that_overflows_float16_itself_is_told() -> None:
    with pytest.raises(UsageError, match="no finite loss in float16"):
        tuner(float("inf")).run()


def test_the_command_takes_precisions(tmp_path: Path) -> None:
    onnx.save(small.cnn(), tmp_path / "dense.onnx")
    onnx.save(small.scaled(0.7), tmp_path / "start.onnx")
    np.savez(tmp_path / "data.npz", x=X[:96])
    words = ["finetune", str(tmp_path / "start.onnx"), "--teacher", str(tmp_path / "dense.onnx"), "--epochs", "4",
             "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "t.onnx"), "--json", "--lr", "5e-3",
             "--batch", "16"]  # fmt: skip
    found = {}
    for options in (*(("--precision", p) for p in ("float32", "float16", "bfloat16")), ("--bfloat16",)):
        done = small.cli(*words, *options)
        assert done.code == 0, done.err
        record = found[options] = json.loads(done.out)
        assert min(record["loss"]) < record["loss"][0] and record["module_error"] < 1e-4 and record["skipped_steps"] < 8
    losses = [r["loss"] for r in found.values()]
    assert losses[2] == losses[3] and losses[0] != losses[1] != losses[2] != losses[0]
    for options, said in (
        (("--precision", "half"), "give float32, bfloat16 or float16"),
        (("--bfloat16", "--precision", "float16"), "contradict"),
    ):
        failed = small.cli(*words, *options)
        assert failed.code == 2 and said in failed.err and failed.err.count("\n") == 1


ONE_OVERFLOWS = """
import pathlib
import torch
from graphprune.converters.descent import Descent
from graphprune.converters.ranks import joined, leave
from graphprune.converters.tuning import Tuning
ranks, device = joined("cpu")
weight = torch.nn.Parameter(torch.ones(2))
descent = Descent([weight], Tuning(precision="float16"), 10)
taken = []
for wrong in (None, 1, None):
    descent.begin()
    descent.backward((weight * (float("inf") if ranks.rank == wrong else 1.0 + ranks.rank)).sum())
    ranks.averaged([weight], 1)
    taken.append(descent.step())
assert taken == [True, False, True], taken
both = ranks.summed(weight.detach().clone()) / 2
assert torch.equal(both, weight.detach()) and descent.share == 0.2
leave()
threads = [t.read_text().strip() for t in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in t for t in threads), threads
"""


def test_processes_leave_out_the_same_steps(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch has no gloo here")
    (tmp_path / "both.py").write_text(ONE_OVERFLOWS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "both.py")], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
