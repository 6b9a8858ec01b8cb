"""Models go to OpenVINO, TensorFlow Lite and Core ML: what is written computes the same, and errors say what to do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from small import cli, cnn, record, refused
from test_sources import needs

from graphprune.converters.target import TARGETS, Exported, Wanted, from_onnx
from graphprune.errors import UsageError, ValidationError
from graphprune.runtime import Runtime, open_session, run

SIZED = ("--input-shape", "x:1,3,8,8")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with two convolutions in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    onnx.save(cnn(), tmp_path / "net.onnx")
    return tmp_path


def pretend(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0, **have: bool) -> None:
    """Put an exporter in the place of OpenVINO's that gives `factor` times the outputs; packages are there or not."""
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: have[n] or None if n in have else real(n))
    module: Any = ModuleType("graphprune.converters.openvino")

    def write(path: Path, written: Path, feed: Any, wanted: Wanted) -> Exported:
        for suffix in TARGETS["openvino"].suffixes:
            written.with_suffix(suffix).write_text(suffix)
        session = open_session(str(path), Runtime())
        names = [v.name for v in session.get_inputs()]

        def compute(arrays: Sequence[Any]) -> Sequence[Any]:
            found = run(session, dict(zip(names, arrays, strict=True)))
            return [np.asarray(y * factor) for y in found.values()]

        return Exported(compute, "OpenVINO", ("a note",))

    module.from_onnx = write
    monkeypatch.setitem(sys.modules, "graphprune.converters.openvino", module)


@pytest.mark.parametrize(("to", "says"), [
    ("openvino", "exporting to OpenVINO needs openvino: pip install 'graphprune[openvino]'"),
    ("tflite", "needs torch and litert_torch and ai_edge_litert: pip install 'graphprune[tflite]'"),
    ("coreml", "exporting to Core ML needs torch and coremltools: pip install 'graphprune[coreml]'"),
    ("tensorrt", "--to 'tensorrt': give openvino, tflite, coreml"),
])
def test_what_is_missing_is_told(to: str, says: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dict.fromkeys([p for t in TARGETS.values() for p in t.packages], False)
    pretend(monkeypatch, **gone)
    refused(model, "export", "net.onnx", "--to", to, says=says)


def test_nothing_is_overwritten_and_names_are_right(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, openvino=True)
    got = record("export", "net.onnx", "--to", "openvino")
    assert got["output"] == "net.xml" and got["bytes"] == 8 and got["inputs"] == {} and got["notes"] == ["a note"]
    assert got["max_relative_difference"] == 0 and got["compared"] == got["format"] == "OpenVINO"
    assert (model / "net.bin").read_text() == ".bin"
    refused(model, "export", "net.onnx", "--to", "openvino", says="net.xml: exists: give another name, or --force")
    (model / "net.xml").unlink()
    refused(model, "export", "net.onnx", "--to", "openvino", says="net.bin: exists")
    refused(model, "export", "net.onnx", "--to", "openvino", "-o", "net.ir", says="ends in .xml")
    refused(model, "export", "none.onnx", "--to", "openvino", says="no such file")
    refused(model, "export", "net.onnx", "--to", "openvino", "-o", "no/net.xml", says="no such folder")
    told = cli("export", "net.onnx", "--to", "openvino", "--force", *SIZED).out
    assert "x is fixed to [1, 3, 8, 8]" in told and "a note" in told and "written: net.xml" in told


def test_an_export_that_computes_something_else_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, factor=1.001, openvino=True)
    refused(model, "export", "net.onnx", "--to", "openvino", code=1, says="is off by")
    assert not (model / "net.xml").exists() and not (model / "net.bin").exists()
    half = record("export", "net.onnx", "--to", "openvino", "--half")
    assert 1e-4 < half["max_relative_difference"] < 1e-2
    unchecked = record("export", "net.onnx", "--to", "openvino", "--no-check", "--force")
    assert unchecked["compared"] is None and unchecked["max_relative_difference"] is None
    pretend(monkeypatch, factor=float("nan"), openvino=True)
    with pytest.raises(ValidationError, match="nothing was written; --no-check writes it"):
        from_onnx(model / "net.onnx", "openvino", model / "other.xml")


def test_open_sizes_have_to_be_given(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = cnn()
    net.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(net, model / "net.onnx")
    pretend(monkeypatch, torch=True, litert_torch=True, ai_edge_litert=True)
    says = "input 'x' is [batch, 3, height, 8], and files of TensorFlow Lite have fixed sizes: --input-shape x:1,..."
    refused(model, "export", "net.onnx", "--to", "tflite", says=says)


@needs("torch")
def test_a_model_of_fixed_sizes_is_plain_torch(tmp_path: Path) -> None:
    import torch
    from onnx import TensorProto, helper

    from graphprune.converters.fixed import Named, Plain, fixed

    made = [  # sizes are read and computed with: at fixed sizes nothing of that may be left
        helper.make_node("Shape", ["in.put"], ["s"]), helper.make_node("Gather", ["s", "one"], ["n"]),
        helper.make_node("Range", ["zero", "n", "step"], ["r"]), helper.make_node("Cast", ["r"], ["f"], to=1),
        helper.make_node("Add", ["in.put", "f"], ["0"]),
    ]
    numbers = [helper.make_tensor(k, TensorProto.INT64, [], [v]) for k, v in (("one", 1), ("zero", 0), ("step", 1))]
    side = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "w"])] for n in ("in.put", "0")]
    graph = helper.make_graph(made, "g", *side, initializer=numbers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    x = np.zeros((2, 5), np.float32)
    program = fixed(tmp_path / "g.onnx", {"in.put": x})
    assert list(program.examples) == ["in_put"] and program.outputs == ("_0",)
    assert program.notes == ("'in.put' is called 'in_put'", "'0' is called '_0'")
    right = np.tile(np.arange(5, dtype=np.float32), (2, 1))
    assert np.array_equal(program.run([x])[0], right)
    assert torch.equal(Plain(program)(torch.zeros(2, 5))[0], torch.from_numpy(right))
    named = Named(program)
    assert torch.equal(named(in_put=torch.ones(2, 5))["_0"], torch.from_numpy(right + 1))
    assert "arange" not in str(program.operators().graph)


@needs("openvino")
def test_openvino(model: Path) -> None:
    got = record("export", "net.onnx", "--to", "openvino")
    assert got["max_relative_difference"] < 1e-5 and got["inputs"] == {}
    half = record("export", "net.onnx", "--to", "openvino", "--half", "-o", "half.xml", *SIZED)
    assert half["bytes"] < got["bytes"] and half["inputs"] == {"x": [1, 3, 8, 8]}
    assert 1e-7 < half["max_relative_difference"] < 1e-2


@needs("torch", "litert_torch", "ai_edge_litert")
def test_tflite(model: Path) -> None:
    got = record("export", "net.onnx", "--to", "tflite")
    assert got["compared"] == "LiteRT" and got["max_relative_difference"] < 1e-5
    assert got["inputs"] == {"x": [1, 3, 8, 8]}
    with pytest.raises(UsageError, match="--half"):
        from_onnx(model / "net.onnx", "tflite", model / "half.tflite", Wanted(half=True))


@needs("torch", "coremltools")
def test_coreml(model: Path) -> None:
    got = record("export", "net.onnx", "--to", "coreml")
    assert got["max_relative_difference"] < 1e-5 and (model / "net.mlpackage" / "Manifest.json").is_file()
    refused(model, "export", "net.onnx", "--to", "coreml", says="is a folder")
    half = record("export", "net.onnx", "--to", "coreml", "--half", "--force")
    assert half["bytes"] < got["bytes"]
