"""Sessions and runs: element types, outputs of every form, error texts, and the device path on a CPU.

Not tested here, for want of a device: that CUDA and TensorRT start, and that bound outputs stay on the device. The
IOBinding code itself runs below with its tensors in host memory; a missing or broken provider is played by a fake.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune import runtime
from graphprune.errors import RuntimeUnavailable, SessionError, UsageError
from graphprune.runtime import Runtime, bind, open_session, resolve_provider, run

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model_bytes(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], ir_version: int = 10) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, ir_version=ir_version, opset_imports=opsets).SerializeToString())


def cast(source: int, target: int, shape: tuple[int, ...] = (2, 3)) -> bytes:
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name, kind in (("x", source), ("y", target)))
    return model_bytes([helper.make_node("Cast", ["x"], ["y"], to=target)], [x], [y])


def two_outputs() -> bytes:
    x, b, a = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xba")
    return model_bytes([helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])], [x], [b, a])


def test_importing_the_module_leaves_onnxruntime_alone() -> None:
    code = "import sys, graphprune.runtime, graphprune.measure, graphprune.inputs; print('onnxruntime' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_outputs_come_in_the_order_of_the_model_or_as_asked() -> None:
    session = open_session(two_outputs(), Runtime())
    assert list(run(session, {"x": X})) == ["b", "a"]
    chosen = run(session, {"x": X}, ["a", "b"])
    assert list(chosen) == ["a", "b"]
    np.testing.assert_array_equal(chosen["a"], -X)
    assert run(session, {"x": X}, []) == {}


def test_path_and_bytes_open_alike(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    path.write_bytes(two_outputs())
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(run(open_session(source, Runtime()), {"x": X})["b"], X)


@pytest.mark.parametrize(
    ("runtime_", "level", "spinning"),
    [(Runtime(), "ORT_ENABLE_ALL", "0"), (Runtime(threads=2, optimise=False), "ORT_DISABLE_ALL", "0")],
)
def test_session_options_follow_the_runtime(runtime_: Runtime, level: str, spinning: str) -> None:
    options = open_session(two_outputs(), runtime_).get_session_options()
    assert options.intra_op_num_threads == runtime_.threads
    assert options.inter_op_num_threads == 1
    assert options.log_severity_level == 4
    assert options.graph_optimization_level.name == level
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spinning


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "int4", "uint4"])
@pytest.mark.parametrize("shape", [(3, 3), (0, 3), ()])
def test_types_numpy_lacks_go_in_and_come_out(name: str, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    low = 0 if name == "uint4" else -4
    values = np.arange(low, low + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    read = run(open_session(cast(kind, TensorProto.FLOAT, shape), Runtime()), {"x": values.astype(dtype)})["y"]
    np.testing.assert_array_equal(read, values)
    written = run(open_session(cast(TensorProto.FLOAT, kind, shape), Runtime()), {"x": values})["y"]
    assert written.dtype == dtype and written.shape == shape
    np.testing.assert_array_equal(written.astype(np.float32), values)


def test_an_array_out_of_order_in_memory_is_read_right() -> None:
    turned = np.arange(9).reshape(3, 3).astype(ml_dtypes.bfloat16).T
    session = open_session(cast(TensorProto.BFLOAT16, TensorProto.FLOAT, (3, 3)), Runtime())
    np.testing.assert_array_equal(run(session, {"x": turned})["y"], turned.astype(np.float32))


def strings_beside(kind: int) -> bytes:
    """A model that passes strings on and turns a vector of type `kind` into floats."""
    inputs = [helper.make_tensor_value_info(n, k, [2]) for n, k in (("s", TensorProto.STRING), ("x", kind))]
    outputs = [helper.make_tensor_value_info(n, k, [2]) for n, k in (("t", TensorProto.STRING), ("y", 1))]
    nodes = [helper.make_node("Identity", ["s"], ["t"]), helper.make_node("Cast", ["x"], ["y"], to=1)]
    return model_bytes(nodes, inputs, outputs)


def test_strings_run_and_are_timed_unbound() -> None:
    session = open_session(strings_beside(TensorProto.FLOAT16), Runtime())
    feeds = {"s": np.array(["a", "bc"], dtype=object), "x": np.array([1, 2], dtype=np.float16)}
    assert run(session, feeds)["t"].tolist() == ["a", "bc"]
    bind(session, feeds)()


def test_strings_beside_a_type_numpy_lacks_are_refused_with_the_reason() -> None:
    session = open_session(strings_beside(TensorProto.BFLOAT16), Runtime())
    feeds = {"s": np.array(["a", "bc"], dtype=object), "x": np.array([1, 2], dtype=ml_dtypes.bfloat16)}
    with pytest.raises(SessionError, match="Only binding non-string Tensors is currently supported"):
        run(session, feeds)


def test_sequences_and_maps_are_taken_apart() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    pair = helper.make_tensor_sequence_value_info("pair", TensorProto.FLOAT, [1, 2])
    probabilities = onnx.ValueInfoProto(name="probabilities")
    of_map = probabilities.type.sequence_type.elem_type.map_type
    of_map.key_type, of_map.value_type.tensor_type.elem_type = TensorProto.INT64, TensorProto.FLOAT
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["pair"]),
        helper.make_node("ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[7, 9]),
    ]
    result = run(
        open_session(model_bytes(nodes, [x], [pair, probabilities]), Runtime()), {"x": np.array([[1, 2]], np.float32)}
    )
    assert list(result) == ["pair[0]", "pair[1]", "probabilities[0][7]", "probabilities[0][9]"]
    assert result["pair[1]"].tolist() == [[1.0, 2.0]] and float(result["probabilities[0][9]"]) == 2.0


def test_binding_runs_once_per_call_and_says_what_fails() -> None:
    session = open_session(two_outputs(), Runtime())
    bind(session, {"x": X})()
    with pytest.raises(SessionError, match=r"onnxruntime cannot run the model: .*missing"):
        bind(session, {})()
    bind(open_session(cast(TensorProto.BFLOAT16, TensorProto.FLOAT), Runtime()), {"x": X.astype(ml_dtypes.bfloat16)})()


def test_device_path_in_host_memory() -> None:
    session = open_session(two_outputs(), Runtime())
    binding, _held = runtime._binding(session, {"x": X}, ["a"], "cpu")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), -X)
    runtime._bound(session, {"x": X}, "cpu")()
    with pytest.raises(SessionError, match="Failed to find NodeArg with name: z"):
        runtime._bound(session, {"z": X}, "cpu")


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"x": np.zeros((2, 4), np.float32)}, "input: x for the following indices index: 1 Got: 4 Expected: 3"),
        ({"x": X.astype(np.float64)}, r"Unexpected input data type. Actual: \(tensor\(double\)\)"),
        ({}, r"Required inputs \(\['x'\]\) are missing"),
        ({"x": X, "z": X}, "Invalid input name: z"),
    ],
)
def test_wrong_feeds_are_told_in_one_line(feeds: dict[str, np.ndarray[Any, Any]], said: str) -> None:
    with pytest.raises(SessionError, match=f"^onnxruntime cannot run the model: .*{said}") as caught:
        run(open_session(two_outputs(), Runtime()), feeds)
    assert "\n" not in str(caught.value) and "[ONNXRuntimeError]" not in str(caught.value)


def test_models_onnxruntime_refuses(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    with pytest.raises(SessionError, match=r"^onnxruntime cannot open the model \(7 bytes\): .*protobuf"):
        open_session(b"garbage", Runtime())
    with pytest.raises(SessionError, match=r"nowhere\.onnx: .*File doesn't exist"):
        open_session(tmp_path / "nowhere.onnx", Runtime())
    with pytest.raises(SessionError, match="No Op registered for Mystery"):
        open_session(model_bytes([helper.make_node("Mystery", ["x"], ["y"])], [x], [y]), Runtime())
    too_new = model_bytes([helper.make_node("Neg", ["x"], ["y"])], [x], [y], ir_version=99)
    with pytest.raises(SessionError, match=r"bytes\): Unsupported model IR version: 99, max supported"):
        open_session(too_new, Runtime())


def test_long_messages_are_cut_and_source_positions_dropped() -> None:
    said = runtime._said(
        RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code. /onnxruntime_src/core/ops.h:563 "
            "void onnxruntime::Init(ptrdiff_t, T) [with T = float] axis == 1 was false. 3 by 4\n"
        )
    )
    assert said == "Non-zero status code. axis == 1 was false. 3 by 4"
    assert len(runtime._said(RuntimeError("word " * 500))) == 300
    assert runtime._said(ValueError()) == "ValueError"


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_provider_names(name: str) -> None:
    assert resolve_provider(name) == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("name", "advice"),
    [("openvino", "install onnxruntime-openvino in place of onnxruntime, not beside it"), ("npu9", "check the name")],
)
def test_missing_provider_says_what_there_is(name: str, advice: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=rf"^provider '{name}' is not available: .* cpu.*; {advice}"):
        resolve_provider(name)


def fake_library(available: list[str], started: list[str]) -> SimpleNamespace:
    """Stand in for an onnxruntime that lists some providers and starts others."""
    import onnxruntime

    def session(model: object, **options: Any) -> SimpleNamespace:
        assert options["enable_fallback"] == 0 and options["providers"][-1] == "CPUExecutionProvider"
        return SimpleNamespace(get_providers=lambda: started, providers=options["providers"])

    return SimpleNamespace(
        __version__="9.9",
        get_available_providers=lambda: available,
        preload_dlls=lambda: print("Failed to load libcudart"),
        InferenceSession=session,
        SessionOptions=onnxruntime.SessionOptions,
        GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
    )


def test_cuda_absent_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_library", lambda: fake_library(["CPUExecutionProvider"], []))
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime 9\.9 here has cpu; install onnxruntime-gpu in place of"):
        resolve_provider("cuda")


def test_provider_that_falls_back_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "_library", lambda: fake_library(names, names[2:]))
    with pytest.raises(RuntimeUnavailable, match="'cuda' is installed but does not start here"):
        open_session(b"", Runtime(provider="cuda"))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(runtime, "_library", lambda: fake_library(names, names))
    session: Any = open_session(b"", Runtime(provider="tensorrt"))
    assert session.providers == names


def test_broken_installations_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(RuntimeUnavailable, match="installed but empty"):
        resolve_provider("cpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match="cannot be imported"):
        resolve_provider("cpu")


def test_negative_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="threads is -1"):
        Runtime(threads=-1)
