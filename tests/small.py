"""Small models to load, break and prune, and a way to call the command line inside the process."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


FAST = ("--no-prove", "--no-time", "--calibration", "off")
"""Options of `prune` for tests of other things."""


def tensor(name: str, array: Any, code: int = FLOAT) -> onnx.TensorProto:
    """Return a tensor of any float type, bfloat16 included."""
    import onnx_ir as ir

    kind = ir.DataType(code)
    return ir.serde.serialize_tensor(ir.Tensor(np.asarray(array).astype(kind.numpy()), dtype=kind, name=name))


def rand(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) / 3


def weights(code: int = FLOAT) -> list[onnx.TensorProto]:
    shapes = {"w1": (32, 3, 3, 3), "b1": (32,), "w2": (48, 32, 3, 3), "b2": (48,), "w3": (5, 48), "b3": (5,)}
    return [tensor(name, rand(*shape), code) for name, shape in shapes.items()]


def nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]


def cnn(
    opset: int = 17, ir_version: int = 8, code: int = FLOAT, batch: Any = "batch", **changes: Any
) -> onnx.ModelProto:
    """Return two convolutions and a head, with two groups: 32 and 48 channels."""
    return model(
        changes.pop("nodes", nodes()), changes.pop("weights", weights(code)), [("x", code, [batch, 3, 8, 8])],
        [("y", code, [batch, 5])], opset=opset, ir_version=ir_version, **changes,
    )


def model(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[onnx.TensorProto], inputs: Sequence[tuple[str, int, Any]],
    outputs: Sequence[tuple[str, int, Any]], opset: int = 17, ir_version: int = 8, **more: Any,
) -> onnx.ModelProto:
    infos = [[helper.make_tensor_value_info(*i) for i in side] for side in (inputs, outputs)]
    if ir_version < 4:
        infos[0] += [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights]
    graph = helper.make_graph(nodes, "net", *infos, initializer=weights)
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **more)


def mlp_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="down"),
    ]


def mlp(code: int = FLOAT, **changes: Any) -> onnx.ModelProto:
    """Return two matrices with one group of 64 between them."""
    arrays = [tensor("w1", rand(8, 64), code), tensor("w2", rand(64, 4), code)]
    return model(mlp_nodes(), arrays, [("x", code, ["batch", 8])], [("y", code, ["batch", 4])], **changes)


def array_of(proto: onnx.ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(w for w in proto.graph.initializer if w.name == name))


def scaled(factor: float) -> onnx.ModelProto:
    """Return `cnn` with all weights a little off."""
    return cnn(weights=[tensor(w.name, numpy_helper.to_array(w) * factor) for w in weights()])


def to_tune(folder: Path, x: Any) -> dict[str, Path]:
    """Write a network, one whose weights are a little off, and samples: `dense`, `off`, `data`."""
    onnx.save(cnn(), folder / "dense.onnx")
    onnx.save(scaled(0.8), folder / "off.onnx")
    np.savez(folder / "data.npz", x=x)
    return {p.stem: p for p in folder.iterdir()}


def shapes_of(proto: onnx.ModelProto) -> dict[str, list[int]]:
    return {w.name: list(w.dims) for w in proto.graph.initializer}


def external(proto: onnx.ModelProto, path: Path, files: Callable[[str], str] = lambda name: "weights.bin") -> Path:
    """Write a model whose weights lie in the files that `files(name)` says."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for w in copy.graph.initializer:
        content, location = numpy_helper.to_array(w).tobytes(), files(w.name)
        data = path.parent / location
        offset = data.stat().st_size if data.exists() else 0
        with open(data, "ab") as file:
            file.write(content)
        w.ClearField("raw_data")
        w.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", len(content))):
            entry = w.external_data.add()
            entry.key, entry.value = key, str(value)
    path.write_bytes(copy.SerializeToString())
    return path


@dataclass(frozen=True)
class Ran:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


def cli(*args: Any) -> Ran:
    """Run a command inside this process."""
    from graphprune.cli import main
    from graphprune.terminal import Talk

    Talk.answered = False
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    code: Any = 0
    try:
        argv = patch.object(sys, "argv", ["graphprune", *map(str, args)])
        with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Ran(code or 0, out.getvalue(), err.getvalue())


def put(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def record(*args: Any) -> dict[str, Any]:
    """Run a command with --json and return its one object; nothing else may be on standard output."""
    ran = cli(*args, "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1
    return dict(json.loads(ran.out))


def refused(tmp_path: Path, *args: Any, code: int = 2, says: str = "") -> Ran:
    """Run a command that must fail: one line, no traceback, nothing written; and the same with --json."""
    before = sorted(p for p in tmp_path.rglob("*"))
    ran = cli(*args)
    assert ran.code == code, (ran.code, ran.out, ran.err)
    assert ran.err.count("\n") == 1 and ran.err.startswith("graphprune: ") and "Traceback" not in ran.err, ran.err
    assert "internal error" not in ran.err, ran.err
    assert says in ran.err, ran.err
    assert not ran.out
    told = cli(*args, "--json")
    answer = json.loads(told.out)
    assert answer == {"error": ran.err.removeprefix("graphprune: ").rstrip("\n"), "exit_code": code}
    assert sorted(p for p in tmp_path.rglob("*")) == before
    return ran
