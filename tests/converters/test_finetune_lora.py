"""Low-rank updates: few numbers are tuned, the file has the same graph and computes what the module did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import small  # noqa: E402

from graphprune.calibrate.choice import parse_calibration  # noqa: E402
from graphprune.converters.finetune import Saving, finetune  # noqa: E402
from graphprune.converters.lora import LowRank, adapt, merge  # noqa: E402
from graphprune.converters.pytorch import to_module, write_back  # noqa: E402
from graphprune.converters.subset import prepare  # noqa: E402
from graphprune.converters.tuning import Tuning  # noqa: E402
from graphprune.errors import UsageError  # noqa: E402
from graphprune.execute import evaluate  # noqa: E402
from graphprune.model import load  # noqa: E402

X = np.random.default_rng(0).standard_normal((96, 3, 8, 8)).astype(np.float32)
QUICK = Tuning(epochs=3, batch=32, lr=1e-2, lora=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a network, and one whose weights are a little off."""
    return small.to_tune(tmp_path_factory.mktemp("lora"), X)


def test_the_merged_file_is_the_module_with_its_updates(files: dict[str, Path]) -> None:
    module = to_module(files["off"])
    before = sum(p.numel() for p in module.parameters())
    numbers = prepare(module, QUICK)
    assert numbers == 2 * (32 + 27) + 2 * (48 + 288) + 2 * (5 + 48) < 0.1 * before
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith(".up"):
                assert float(p.abs().max()) == 0, "nothing changes at first"
                p.normal_(std=0.3)
    with torch.no_grad():
        adapted = module.eval()(X[:8])["y"].numpy()
    start = load(files["off"])
    assert np.abs(adapted - evaluate(start, {"x": X[:8]})["y"]).max() > 0.01
    for merged in (False, True):  # written with updates or after they were merged: the same file
        if merged:
            merge(module)
            assert sorted(n for n, _ in module.named_parameters()) == sorted(
                n for n, _ in to_module(start).named_parameters()
            )
        written = write_back(module, start)
        got = evaluate(written, {"x": X[:8]})["y"]
        np.testing.assert_allclose(got, adapted, rtol=1e-5, atol=1e-5 * np.abs(adapted).max())
        assert [n.op_type for n in written.graph] == [n.op_type for n in start.graph]
        assert set(written.graph.initializers) == set(start.graph.initializers)


def test_tuning_moves_matrices_by_the_rank_and_vectors_only_if_asked(files: dict[str, Path], tmp_path: Path) -> None:
    data = parse_calibration(str(files["data"]))
    done = finetune(files["off"], files["dense"], data, QUICK, saving=Saving(tmp_path / "state.pt"))
    assert min(done.record["loss"]) < 0.8 * done.record["loss"][0]
    again = finetune(files["off"], files["dense"], data, QUICK, saving=Saving(tmp_path / "state.pt", resume=True))
    assert again.record["loss"] == done.record["loss"], "a checkpoint has the updates"
    start, end = load(files["off"]).graph.initializers, done.model.graph.initializers
    moved = {k: end[k].const_value.numpy() - start[k].const_value.numpy() for k in start}
    for name in ("w1", "w2", "w3"):
        assert np.linalg.matrix_rank(moved[name].reshape(len(moved[name]), -1), tol=1e-5) == 2
    assert all(not moved[k].any() for k in ("b1", "b2", "b3"))
    both = finetune(files["off"], files["dense"], data, Tuning(epochs=1, batch=32, lr=1e-2, lora=2, only=("bias",),
                                                               lora_on=("w2",)))  # fmt: skip
    end = both.model.graph.initializers
    changed = {k for k in start if not np.array_equal(start[k].const_value.numpy(), end[k].const_value.numpy())}
    assert changed == {"w2", "b1", "b2", "b3"} and both.record["tuned_numbers"] == 2 * (48 + 288) + 32 + 48 + 5


def test_small_weights_are_tuned_themselves_and_mistakes_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    module = to_module(files["off"])
    module.requires_grad_(False)
    adapt(module, 16)  # w1: 32 x 27, w3: 5 x 48
    assert {n for n, p in module.named_parameters() if p.requires_grad and "." not in n.removeprefix("weights.")} == {
        "weights.w1", "weights.w3"}  # fmt: skip
    assert isinstance(module.weights.parametrizations.w2[0], LowRank)
    with pytest.raises(UsageError, match="b1"):
        adapt(to_module(files["off"]), 2, ["b1"])
    with pytest.raises(UsageError, match="--lora"):
        Tuning(lora_on=("w*",))
    out = tmp_path / "tuned.onnx"
    done = small.cli("finetune", str(files["off"]), "--teacher", str(files["dense"]), "--data", str(files["data"]),
                     "-o", str(out), "--json", "--epochs", "1", "--lora", "2", "--lora-on", "w2,w3")  # fmt: skip
    assert done.code == 0 and json.loads(done.out)["tuned_numbers"] == 2 * (48 + 288) + 2 * (5 + 48), done.err
