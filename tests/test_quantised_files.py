"""Models as onnxruntime.quantization writes them: the float model's groups, proofs that hold, pruned files that run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import cnn, put
from test_lively import branches, proof_of
from test_validate import wrong_concat

import graphprune
from graphprune import reference, rounding
from graphprune.ops import AXES

quantization = pytest.importorskip("onnxruntime.quantization")
FORMS = ["dynamic", "dynamic each", "QDQ", "QDQ each", "QOperator", "QOperator each"]


class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A few random inputs to find ranges by."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.left: Iterator[Any] = iter([{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self.left, None)


def quantised(folder: Path, model: onnx.ModelProto, form: str) -> Path:
    """Return the file that onnxruntime.quantization writes; `each`: a scale for every channel."""
    kind, *each = form.split()
    source, target = put(folder / "float.onnx", model), folder / "quantised.onnx"
    signed = quantization.QuantType.QInt8 if each else quantization.QuantType.QUInt8
    logging.disable(logging.WARNING)
    try:
        if kind == "dynamic":
            quantization.quantize_dynamic(source, target, per_channel=bool(each), weight_type=signed)
        else:
            shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
            quantization.quantize_static(
                source, target, Samples(shape), quant_format=quantization.QuantFormat[kind], per_channel=bool(each),
                activation_type=quantization.QuantType.QUInt8, weight_type=signed,
            )
    finally:
        logging.disable(logging.NOTSET)
    return target


@pytest.mark.parametrize("form", FORMS)
def test_groups_are_those_of_the_float_model(tmp_path: Path, form: str) -> None:
    dense = graphprune.analyse(cnn(batch=2))
    path = quantised(tmp_path, cnn(batch=2), form)
    analysis = graphprune.analyse(path)
    assert [(g.size, g.normalised) for g in analysis.coupling.groups] == [
        (g.size, g.normalised) for g in dense.coupling.groups
    ]
    assert abs(analysis.coupling.coverage - dense.coupling.coverage) < 0.02
    assert any(w.quantised for w in analysis.coupling.graph.weights.values())
    proof = proof_of(path)
    assert proof.passed
    assert proof.tolerance <= 2e-2


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_as_the_numbers_they_stand_for(tmp_path: Path, form: str) -> None:
    """Scores are computed from them, so they must be those of the float model, to about a unit in 255."""
    path = quantised(tmp_path, cnn(batch=2), form)
    dense = {w.name: w for w in graphprune.analyse(cnn(batch=2)).coupling.graph.weights.values()}
    found = [w for w in graphprune.analyse(path).coupling.graph.weights.values() if w.quantised]
    assert len(found) >= 2
    for weight in found:
        if weight.name.removesuffix("_quantized") in dense:
            real = dense[weight.name.removesuffix("_quantized")].read()
            real = real if real.shape == weight.shape else real.T  # a Gemm becomes a product
            assert np.abs(weight.read() - real).max() < 0.01 * np.abs(real).max()


@pytest.mark.parametrize("form", FORMS)
def test_pruned_files_run(tmp_path: Path, form: str) -> None:
    path, out = quantised(tmp_path, cnn(batch=2), form), tmp_path / "pruned.onnx"
    graphprune.prune(path, 0.5, output=out, align=1, time=False)
    before, after = ({t.name: t for t in onnx.load(p).graph.initializer} for p in (path, out))
    shrunk = [n for n in after if n in before and list(after[n].dims) != list(before[n].dims)]
    assert any(after[n].data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for n in shrunk)
    assert all(after[n].data_type == before[n].data_type for n in shrunk)


@pytest.mark.parametrize("form", ["dynamic", "QDQ", "QDQ each"])
def test_rounding_to_a_grid_does_not_hide_a_wrong_rule(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = quantised(tmp_path, branches(None), form)
    assert proof_of(path).passed
    rows = {k: list(v) for k, v in AXES._rows.items()}
    rows["", "Concat"] = [replace(r, rule=wrong_concat) for r in rows["", "Concat"]]
    monkeypatch.setattr(AXES, "_rows", rows)
    proof = proof_of(path)
    assert not proof.passed
    assert proof.culprits
    assert proof.max_relative_error > 0.1


def test_the_tolerance_is_measured_and_bounded(tmp_path: Path) -> None:
    """Ten times what changes of 1e-6 do, at least 1e-3 and at most 2e-2 where activations are rounded to a grid."""
    analysis = graphprune.analyse(quantised(tmp_path, cnn(batch=2), "QDQ"))
    found = analysis.reference
    assert found.rounds
    assert found.tolerance == min(max(reference.TOLERANCE, 10 * found.noise), 2e-2)
    assert not graphprune.analyse(cnn(batch=2)).reference.rounds


def test_weights_alone_bound_the_tolerance_too() -> None:
    model = cnn(batch=2)
    (weight,) = [t for t in model.graph.initializer if t.name == "w1"]
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array((array * 100).astype(np.int8), "w1.q"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.01), "w1.s"))
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["w1.q", "w1.s"], ["w1"]))
    found = graphprune.analyse(model).reference
    found.__dict__["noise"] = 0.5
    assert not found.rounds
    assert found.tolerance == 2e-2


def test_changes_as_small_as_rounding() -> None:
    model = graphprune.analyse(cnn()).model
    other = rounding.disturbed(model, 0)
    for name, value in model.graph.initializers.items():
        a, b = value.const_value.numpy(), other.graph.initializers[name].const_value.numpy()
        assert np.abs(a - b).max() <= 2e-6 * np.abs(a).max()
        assert (a == b).all() == (a.size <= 8)
    given = {"x": np.ones((2, 3), np.float32), "ids": np.arange(3)}
    moved = rounding.disturbed_arrays(given, 0)
    assert 0 < np.abs(moved["x"] - 1).max() < 2e-6
    assert (moved["ids"] == given["ids"]).all()


def test_a_copy_that_does_not_round(tmp_path: Path) -> None:
    """What is quantised and read back by one scale is passed on; weights keep their integers."""
    model = graphprune.analyse(quantised(tmp_path, cnn(batch=2), "QDQ")).model
    smooth = rounding.smoothed(model)
    assert smooth is not None
    assert rounding.rounds(model)
    assert rounding.smoothed(graphprune.analyse(cnn()).model) is None
    kinds = [[n.op_type for n in m.graph] for m in (model, smooth)]
    assert kinds[1].count("Identity") > kinds[0].count("Identity")
    assert 0 < kinds[1].count("DequantizeLinear") < kinds[0].count("DequantizeLinear")
