"""Normalisations that were folded into convolutions come back while a model is tuned, and go again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import small  # noqa: E402
from onnx import helper  # noqa: E402

from graphprune.calibrate.choice import parse_calibration  # noqa: E402
from graphprune.converters.finetune import Saving, finetune  # noqa: E402
from graphprune.converters.pytorch import to_module, write_back  # noqa: E402
from graphprune.converters.restored import fold, folded, restore, restored  # noqa: E402
from graphprune.converters.tune import Tuning  # noqa: E402
from graphprune.converters.tuning_data import Batches  # noqa: E402
from graphprune.errors import UsageError  # noqa: E402
from graphprune.execute import evaluate  # noqa: E402
from graphprune.model import load  # noqa: E402

X = np.random.default_rng(0).standard_normal((160, 3, 8, 8)).astype(np.float32)
QUICK = Tuning(epochs=8, batch=32, lr=3e-3, norms="restored")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a network, one whose weights are a little off, and samples."""
    return small.to_tune(tmp_path_factory.mktemp("norms"), X)


def tuned(files: dict[str, Path], asked: Tuning = QUICK, **options: Any) -> Any:
    return finetune(files["off"], files["dense"], parse_calibration(str(files["data"])), asked, **options)


def answer(module: Any, x: Any) -> Any:
    with torch.no_grad():
        return module(x)["y"].numpy()


def test_a_restored_normalisation_is_the_identity_and_can_be_folded_at_any_time(files: dict[str, Path]) -> None:
    module = to_module(files["dense"]).eval()
    before = answer(module, X)
    layers = folded(module)
    assert [layer.node.name for layer in layers] == ["conv1", "conv2"]
    restore(module, layers, [{"x": X[:64]}, {"x": X[64:]}])
    np.testing.assert_allclose(answer(module, X), before, atol=1e-5)
    spread = module.norms[0].variance
    assert 0.9 < float(spread.min()) <= float(spread.max()) < 1.001, "weights are scaled to outputs of deviation 1"
    np.testing.assert_allclose(answer(module.train(), X), before, atol=0.01)  # the batch is what was measured
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for rows in np.split(X, 5):
        optimizer.zero_grad()
        module(rows)["y"].logsumexp(1).mean().backward()
        optimizer.step()
    trained = answer(module.eval(), X)
    assert np.abs(trained - before).max() > 0.1
    fold(module, layers)
    assert not hasattr(module, "norms")
    np.testing.assert_allclose(answer(module, X), trained, atol=1e-4)
    np.testing.assert_allclose(evaluate(write_back(module, files["dense"]), {"x": X})["y"], trained, atol=1e-4)


def test_tuning_with_restored_normalisations_writes_the_same_graph(files: dict[str, Path], tmp_path: Path) -> None:
    done, start = tuned(files), load(files["off"])
    assert done.record["restored_norms"] == 2 and done.record["lr"] == 3e-3 and done.record["module_error"] < 1e-4
    assert min(done.record["loss"]) < 0.5 * done.record["loss"][0]
    assert [n.op_type for n in done.model.graph] == [n.op_type for n in start.graph]
    assert set(done.model.graph.initializers) == set(start.graph.initializers)

    class Broken(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("epoch 3/"):
            raise Broken

    place = tmp_path / "state.pt"
    with pytest.raises(Broken):
        tuned(files, saving=Saving(place), progress=stop)
    again = tuned(files, saving=Saving(place, resume=True))
    assert again.record["loss"] == pytest.approx(done.record["loss"], rel=1e-4)


def test_the_rate_is_higher_with_them_unless_it_is_given() -> None:
    assert Tuning().settled(restored=True).rate == 4e-3 and Tuning().settled(restored=False).rate == 1e-3
    assert Tuning(lr=2e-3).settled(restored=True).rate == 2e-3


def test_they_come_back_by_themselves_only_where_that_is_sound(files: dict[str, Path]) -> None:
    def count(asked: Tuning, towards: bool = False) -> int:
        samples = parse_calibration(str(files["data"])).open(load(files["off"]), batch=asked.batch)
        data = Batches(samples, lambda feed: {}, asked.batch)
        return len(restored(to_module(files["off"]), asked, towards, data))

    enough = Tuning(epochs=20, batch=16)  # 200 steps
    assert count(enough) == 2
    for less in ({"epochs": 19}, {"batch": 8}, {"only": ("bias",)}, {"lora": 2}, {"norms": "train"}):
        assert count(replace(enough, **less)) == 0, less
    assert count(enough, towards=True) == 0
    assert count(QUICK) == 2, "fewer steps are enough where it is asked for"
    with pytest.raises(UsageError, match="all weights"):
        count(replace(QUICK, only=("bias",)))


def test_layers_with_normalisations_of_their_own_or_other_readers_have_none_restored(tmp_path: Path) -> None:
    def found(nodes: list[Any], weights: list[Any]) -> list[str]:
        onnx.save(small.cnn(nodes=nodes, weights=weights), tmp_path / "net.onnx")
        return [layer.node.name for layer in folded(to_module(tmp_path / "net.onnx"))]

    assert found(small.nodes(), small.weights()) == ["conv1", "conv2"]
    ones = [small.tensor(n, np.ones(48, np.float32)) for n in "sbmv"]
    norm = helper.make_node("BatchNormalization", ["c2", "s", "b", "m", "v"], ["n2"], name="norm")
    kept = [n for n in small.nodes() if n.name != "relu2"]
    relu = helper.make_node("Relu", ["n2"], ["r2"], name="relu2")
    place = 1 + next(k for k, n in enumerate(kept) if n.name == "conv2")
    assert found([*kept[:place], norm, relu, *kept[place:]], [*small.weights(), *ones]) == []
    bare = [helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4), *small.nodes()[1:]]
    assert found(bare, [w for w in small.weights() if w.name != "b1"]) == ["conv2"]
