"""Random weights in place of trained ones: their spread by role, what stays, and pruning before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from small import FLOAT, array_of, cli, cnn, model, put, rand, record, refused, tensor

from graphprune.analysis import analyse
from graphprune.errors import UsageError
from graphprune.model import load
from graphprune.options import Looking
from graphprune.reinit import MARK, reinit

QUICK = ("--sparsity", 0.5, "--align", 1, "--no-time")


def arrays(proto: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    found = reinit(load(proto), seed).model
    return {v.name or "": v.const_value.numpy() for v in found.graph.initializers.values() if v.const_value}


def mixed() -> onnx.ModelProto:
    """Return a graph with a normalisation, a matrix with its bias beside it, a table, and a constant factor."""
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "ids"], ["e"]), make("MatMul", ["e", "up"], ["h"]), make("Add", ["h", "bias"], ["b"]),
        make("LayerNormalization", ["b", "scale", "shift"], ["n"]), make("Mul", ["n", "factor"], ["m"]),
        make("Gemm", ["m", "down", "c"], ["y"], transB=1),
    ]  # fmt: skip
    shapes = {"table": (50, 64), "up": (64, 256), "bias": (256,), "scale": (256,), "shift": (256,), "factor": (256,),
              "down": (8, 256), "c": (8,)}  # fmt: skip
    weights = [tensor(name, rand(*shape)) for name, shape in shapes.items()]
    return model(nodes, weights, [("ids", onnx.TensorProto.INT64, ["n"])], [("y", FLOAT, ["n", 8])])


def test_weights_spread_by_their_fan_in() -> None:
    got = arrays(mixed())
    for name, fan_in in (("table", 64), ("up", 64), ("down", 256)):
        assert abs(got[name].std() * np.sqrt(fan_in) - 1) < 0.1 and abs(got[name].mean()) * np.sqrt(fan_in) < 0.1
    kernels = arrays(cnn())
    for name, fan_in in (("w1", 27), ("w2", 32 * 9)):
        assert abs(kernels[name].std() * np.sqrt(fan_in / 2) - 1) < 0.1
    assert not any(kernels[name].any() for name in ("b1", "b2", "b3"))


def test_norms_and_biases_start_alike_and_what_is_unknown_stays() -> None:
    got, found = arrays(mixed()), reinit(load(mixed()), 0)
    assert (got["scale"] == 1).all() and not any(got[n].any() for n in ("shift", "bias", "c"))
    np.testing.assert_array_equal(got["factor"], array_of(mixed(), "factor"))
    assert found.kept == ("factor",) and "1 constants stayed as they are: factor" in found.model.metadata_props[MARK]


def test_moments_start_at_zero_and_one() -> None:
    norm = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])
    weights = [tensor(n, rand(3, seed=k) ** 2 + 2) for k, n in enumerate("sbmv")]
    got = arrays(model([norm], weights, [("x", FLOAT, ["n", 3, 4])], [("y", FLOAT, ["n", 3, 4])]))
    assert [got[n].tolist() for n in "sbmv"] == [[1] * 3, [0] * 3, [0] * 3, [1] * 3]


def test_numbers_depend_on_the_seed_alone() -> None:
    one, again, other = arrays(cnn(), 1), arrays(cnn(), 1), arrays(cnn(), 2)
    np.testing.assert_array_equal(one["w2"], again["w2"])
    assert not np.allclose(one["w2"], other["w2"]) and not np.allclose(one["w2"], array_of(cnn(), "w2"))


def test_the_signal_keeps_its_size() -> None:
    """Twenty layers with rectifiers: neither gone nor grown."""
    nodes, weights = [], []
    for k in range(20):
        nodes.append(helper.make_node("Conv", [f"v{k}", f"w{k}"], [f"c{k}"]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"v{k + 1}"]))
        weights.append(tensor(f"w{k}", rand(64, 64, 1, 1)))
    proto = model(nodes, weights, [("v0", FLOAT, ["n", 64, 2, 2])], [("v20", FLOAT, ["n", 64, 2, 2])])
    from graphprune.execute import evaluate

    x = np.random.default_rng(0).standard_normal((16, 64, 2, 2)).astype(np.float32)
    assert 0.2 < np.square(evaluate(reinit(load(proto), 0).model, {"v0": x})["v20"]).mean() < 5


def test_the_result_is_pruned_and_not_repaired(tmp_path: Path) -> None:
    put(tmp_path / "net.onnx", cnn())
    got = record("prune", tmp_path / "net.onnx", "--reinit", 3, *QUICK, "-o", tmp_path / "out.onnx")
    assert got["proof"]["passed"] and got["assumed"][0] == "random weights by seed 3"
    assert "repair" not in got or not got["repair"]
    kept = np.array(analyse(cnn(), Looking(reinit=3)).original.graph.initializers["w1"].const_value.numpy())
    left = array_of(onnx.load(tmp_path / "out.onnx"), "w1")
    assert len(left) == 16 and all(any(np.array_equal(row, k) for k in kept) for row in left)  # as they were drawn
    assert array_of(onnx.load(tmp_path / "net.onnx"), "w1").tobytes() == array_of(cnn(), "w1").tobytes()


def test_a_repair_that_is_asked_for_is_made(tmp_path: Path) -> None:
    put(tmp_path / "net.onnx", cnn())
    asked = ("prune", tmp_path / "net.onnx", "--reinit", 3, *QUICK, "-o", tmp_path / "out.onnx", "--samples", 64)
    assert record(*asked, "--repair", "symmetric")["repair"]["layers"]


def test_nothing_to_start_is_said(tmp_path: Path) -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    with pytest.raises(UsageError, match="no weight of the model can be initialised"):
        reinit(load(proto), 0)
    put(tmp_path / "net.onnx", cnn())
    refused(tmp_path, "prune", tmp_path / "net.onnx", "--reinit", -1, *QUICK, says="seed of 0 or more")
    assert cli("plan", tmp_path / "net.onnx", "--reinit", 1, "--sparsity", 0.5, "--align", 1).code == 0
