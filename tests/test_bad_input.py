"""Bad input of every kind: one line on standard error, the right exit code, nothing written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small import (
    FAST,
    FLOAT,
    array_of,
    cli,
    cnn,
    external,
    mlp,
    mlp_nodes,
    model,
    put,
    rand,
    record,
    refused,
    tensor,
)

COMMANDS = [("inspect",), ("prove",), ("prune", "--sparsity", 0.5), ("plan", "--sparsity", 0.5), ("bench",)]


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_are_no_models(tmp_path: Path, command: tuple[Any, ...]) -> None:
    content = cnn().SerializeToString()
    rng = np.random.default_rng(0)
    files = {
        "empty": b"", "text": b"not a model\n" * 20, "noise": rng.bytes(5000), "json": b'{"a": 1}',
        **{f"cut{share}": content[: len(content) * share // 100] for share in (50, 90, 99)},
    }
    for name, data in files.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
        refused(tmp_path, command[0], tmp_path / f"{name}.onnx", *command[1:], says=f"{name}.onnx")
    refused(tmp_path, command[0], tmp_path / "missing.onnx", *command[1:], says="no such file")
    refused(tmp_path, command[0], tmp_path, *command[1:], says="not a file")


def test_graphs_that_cannot_be_used(tmp_path: Path) -> None:
    proto = cnn()
    del proto.graph.output[:]
    refused(tmp_path, "inspect", put(tmp_path / "o.onnx", proto), says="no outputs")
    for name, changed in (("ir", cnn(17, 99)), ("opset", cnn(99))):
        path = put(tmp_path / f"{name}.onnx", changed)
        refused(tmp_path, "prune", path, "--sparsity", 0.5, says="onnxruntime cannot open")
        assert cli("inspect", path).code == 0
    twins = cnn()
    for node in twins.graph.node:
        node.name = "same"
    path = put(tmp_path / "twins.onnx", twins)
    assert cli("inspect", path).code == 0
    refused(tmp_path, "prune", path, "--sparsity", 0.5, says="same node name")
    unnamed = cnn()
    for node in unnamed.graph.node:
        node.name = ""
    assert cli("prove", put(tmp_path / "unnamed.onnx", unnamed)).code == 0


def test_nothing_to_prune(tmp_path: Path) -> None:
    sides = [("x", FLOAT, ["b", 4])], [("y", FLOAT, ["b", 4])]
    bare = put(tmp_path / "bare.onnx", model([helper.make_node("Relu", ["x"], ["y"])], [], *sides))
    one = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", rand(4, 4))], *sides)
    pinned = put(tmp_path / "pinned.onnx", one)
    through = put(tmp_path / "through.onnx", model([], [], [("x", FLOAT, [1])], [("x", FLOAT, [1])]))
    for command in ("prune", "plan"):
        refused(tmp_path, command, bare, "--sparsity", 0.5, code=3, says="no weights")
        refused(tmp_path, command, pinned, "--sparsity", 0.5, code=3, says="pinned")
        refused(tmp_path, command, through, "--sparsity", 0.5, code=3, says="no weights")
    for path in (bare, pinned, through):
        assert record("inspect", path)["groups"] == []
        assert record("prove", path)["groups"] == 0


def test_external_data_that_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    path = external(cnn(), folder / "m.onnx")
    (folder / "weights.bin").rename(folder / "gone.bin")
    refused(tmp_path, "prune", path, "--sparsity", 0.5, says="missing: weights.bin")
    (folder / "weights.bin").write_bytes(b"short")
    refused(tmp_path, "inspect", path, says="too short")


def test_outputs_that_must_not_be(net: Path, tmp_path: Path) -> None:
    content = net.read_bytes()
    half = ("prune", net, "--sparsity", 0.5)
    link = tmp_path / "link.onnx"
    link.symlink_to(net)
    folder = tmp_path / "folder"
    folder.mkdir()
    for out in (net, link, folder / ".." / "net.onnx", os.path.relpath(net)):
        refused(tmp_path, *half, "-o", out, "--force", says="is the model itself")
    refused(tmp_path, *half, "-o", folder, says="is a folder")
    refused(tmp_path, *half, "-o", tmp_path / "none" / "x.onnx", says="no such folder")
    (tmp_path / "other.onnx").write_bytes(mlp().SerializeToString())
    refused(tmp_path, *half, "-o", tmp_path / "other.onnx", says="not written by graphprune")
    refused(tmp_path, "plan", net, "--sparsity", 0.5, "-o", net, says="is the model itself")
    refused(tmp_path, "plan", net, "--sparsity", 0.5, "-o", tmp_path / "other.onnx", says="is not a plan")
    refused(tmp_path, "plan", net, "--sparsity", 0.5, "-o", tmp_path / "none" / "p.json", says="no such folder")
    refused(tmp_path, "inspect", net, "--graph", tmp_path / "g.png", says=".graphml or .dot")
    refused(tmp_path, "inspect", net, "--graph", tmp_path / "none" / "g.dot", says="cannot be written")
    if os.geteuid():
        folder.chmod(0o500)
        refused(tmp_path, *half, "-o", folder / "x.onnx", says="permission denied")
        folder.chmod(0o700)
    source = external(cnn(), folder / "m.onnx", lambda name: "n.onnx.data")
    refused(tmp_path, "prune", source, "--sparsity", 0.5, "-o", folder / "n.onnx", "--force", says="own data")
    assert net.read_bytes() == content


OPTIONS: list[tuple[tuple[Any, ...], str]] = [
    (("--sparsity", 1.0), "sparsity"), (("--sparsity", -0.1), "sparsity"), (("--sparsity", "nan"), "sparsity"),
    (("--sparsity", "half"), "sparsity"), (("--target", "macs"), "macs=0.5"), (("--target", "speed=2"), "speed"),
    (("--target", "macs=0"), "(0, 1]"), (("--target", "macs=1.5"), "(0, 1]"), (("--target", "macs=nan"), "(0, 1]"),
    (("--target", "macs=0.001"), "cannot be reached"), (("--speedup", 1), "above 1"), (("--speedup", 0), "above 1"),
    (("--speedup", "nan"), "above 1"),
    (("--sparsity", 0.5, "--target", "macs=0.5"), "one of"), ((), "one of"),
    (("--sparsity", 0.5, "--align", 0), "align"), (("--sparsity", 0.5, "--align", "few"), "align"),
    (("--sparsity", 0.5, "--floor", 2), "floor"), (("--sparsity", 0.5, "--floor", -1), "floor"),
    (("--sparsity", 0.5, "--criterion", "l3"), "l3"), (("--sparsity", 0.5, "--aggregate", "x"), "x"),
    (("--sparsity", 0.5, "--normalise", "x"), "x"), (("--sparsity", 0.5, "--allocation", "x"), "x"),
    (("--sparsity", 0.5, "--include", "w1:1"), "w1:0"), (("--sparsity", 0.5, "--exclude", "W2*"), "'w2'"),
    (("--sparsity", 0.5, "--exclude", "zzz"), "zzz"),
    (("--sparsity", 0.5, "--input-shape", "z:1,3,8,8"), "'z'"),
    (("--sparsity", 0.5, "--input-shape", "x:1,4,8,8"), "'x'"),
    (("--sparsity", 0.5, "--input-shape", "x"), "of the form"), (("--sparsity", 0.5, "--input-shape", "x:1,a"), "'a'"),
    (("--sparsity", 0.5, "--input-shape", "x:1,3,8"), "'x'"), (("--sparsity", 0.5, "--batch", 0), "batch"),
    (("--sparsity", 0.5, "--threads", -1), "threads"), (("--sparsity", 0.5, "--seed", -1), "seed"),
    (("--sparsity", 0.5, "--provider", "quantum"), "quantum"), (("--sparsity", 0.5, "--inputs", "no.npz"), "no.npz"),
    (("--sparsity", 0.5, "--frobnicate"), "frobnicate"), (("--sparsity", 0.5, "--seconds", "x"), "seconds"),
    (("--sparsity", 0.5, "--input-shape", "x:0,3,8,8"), "x"),
]


@pytest.mark.parametrize("options,says", OPTIONS, ids=lambda o: " ".join(map(str, o)) if isinstance(o, tuple) else "")
def test_options_out_of_range(net: Path, tmp_path: Path, options: tuple[Any, ...], says: str) -> None:
    refused(tmp_path, "prune", net, *options, says=says)


def test_a_provider_that_is_absent(net: Path, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    refused(tmp_path, "prune", net, "--sparsity", 0.5, "--provider", "cuda", says="install onnxruntime-gpu")
    refused(tmp_path, "bench", net, "--provider", "cuda", says="install onnxruntime-gpu")


def test_inputs_that_do_not_fit(net: Path, tmp_path: Path) -> None:
    made = {
        "dtype": {"x": np.ones((1, 3, 8, 8))}, "name": {"z": np.ones((1, 3, 8, 8), np.float32)},
        "shape": {"x": np.ones((1, 4, 8, 8), np.float32)},
    }
    for name, arrays in made.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        refused(tmp_path, "prove", net, "--inputs", tmp_path / f"{name}.npz", says="input")
    (tmp_path / "text.npz").write_text("hello")
    refused(tmp_path, "prove", net, "--inputs", tmp_path / "text.npz", says="not an .npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    refused(tmp_path, "prove", net, "--inputs", tmp_path / "array.npy", says="not an .npz")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        array = rand(8, 64)
        array[3, 3] = value
        proto = mlp()
        proto.graph.initializer[0].CopyFrom(tensor("w1", array))
        refused(tmp_path, "prune", put(tmp_path / "n.onnx", proto), "--sparsity", 0.5, says="'w1' has NaN or infinite")


def test_plans_that_do_not_fit(net: Path, tmp_path: Path) -> None:
    other = put(tmp_path / "mlp.onnx", mlp())
    plan = tmp_path / "plan.json"
    assert cli("plan", other, "--sparsity", 0.5, "-o", plan).code == 0
    refused(tmp_path, "prune", net, "--plan", plan, says="not in the model")
    refused(tmp_path, "prune", other, "--plan", plan, "--sparsity", 0.5, says="--plan says what goes")
    refused(tmp_path, "prune", other, "--plan", plan, "-o", plan, "--force", says="is the plan")
    for text in ("", "{", "[1]", '{"format": "x"}', "\x00\xff"):
        (tmp_path / "bad.json").write_text(text, encoding="latin-1")
        refused(tmp_path, "prune", net, "--plan", tmp_path / "bad.json", says="bad.json")
    refused(tmp_path, "prune", net, "--plan", tmp_path / "none.json", says="cannot be read")


def test_names_that_are_unknown(net: Path, tmp_path: Path) -> None:
    refused(tmp_path, "explain", net, "w1:9", says="w1:0")
    refused(tmp_path, "explain", net, "w1:0", "conv7", says="'conv1'")
    refused(tmp_path, "explain", net, "qqqqqqq", says="inspect")


def test_inputs_that_are_not_tensors(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, ["b", 8])
    proto = mlp()
    proto.graph.node.insert(0, helper.make_node("SequenceAt", ["s", "zero"], ["x"]))
    proto.graph.initializer.append(helper.make_tensor("zero", TensorProto.INT64, [], [0]))
    proto.graph.input[0].CopyFrom(sequence)
    path = put(tmp_path / "seq.onnx", proto)
    assert cli("inspect", path).code == 0
    refused(tmp_path, "prune", path, "--sparsity", 0.5, code=3, says="is not known")
    refused(tmp_path, "bench", path, says="'s' is not a tensor")
    text = mlp()
    text.graph.input.append(helper.make_tensor_value_info("t", TensorProto.STRING, ["b"]))
    text.graph.node.append(helper.make_node("Identity", ["t"], ["u"]))
    text.graph.output.append(helper.make_tensor_value_info("u", TensorProto.STRING, ["b"]))
    assert cli("prune", put(tmp_path / "text.onnx", text), "--sparsity", 0.5, "--seconds", 0.1).code == 0
    optional = mlp()
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["b", 8]))
    optional.graph.input[0].CopyFrom(helper.make_value_info("s", kind))
    optional.graph.node.insert(0, helper.make_node("OptionalGetElement", ["s"], ["x"]))
    path = put(tmp_path / "opt.onnx", optional)
    assert cli("inspect", path).code == 0
    refused(tmp_path, "prove", path, says="'s' is not a tensor")


def test_a_model_that_fails_when_it_runs(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.node.append(helper.make_node("Gather", ["x", "far"], ["z"], axis=1))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([100]), "far"))
    proto.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    path = put(tmp_path / "fails.onnx", proto)
    refused(tmp_path, "prune", path, "--sparsity", 0.5, says="onnxruntime cannot run the model")
    refused(tmp_path, "bench", path, says="onnxruntime cannot run the model")


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    big = model(
        mlp_nodes(), [tensor("w1", rand(512, 4096)), tensor("w2", rand(4096, 512))], [("x", FLOAT, ["b", 512])],
        [("y", FLOAT, ["b", 512])],
    )
    path = put(tmp_path / "big.onnx", big)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command = [sys.executable, "-m", "graphprune", "prune", path, "--sparsity", "0.5", "--seconds", "60",
                   "--calibration", "off"]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
        )
        end = time.monotonic() + 30
        while not list(tmp_path.glob(".graphprune-*/*.onnx")) and time.monotonic() < end:
            time.sleep(0.02)
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
        assert child.returncode == code and "Traceback" not in err and not out, (child.returncode, err)
        assert [p.name for p in tmp_path.iterdir()] == ["big.onnx"]


def test_mistakes_of_ours_are_one_line(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune import analysis

    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(analysis, "couple", broken)
    monkeypatch.delenv("GRAPHPRUNE_DEBUG", raising=False)
    ran = cli("prune", net, "--sparsity", 0.5, "--json")
    assert ran.code == 1 and ran.err.count("\n") == 1 and "internal error" in ran.err
    assert json.loads(ran.out)["exit_code"] == 1
    monkeypatch.setenv("GRAPHPRUNE_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli("inspect", net)


def test_weights_of_a_kept_group_are_untouched(net: Path, tmp_path: Path) -> None:
    assert cli("prune", net, "--sparsity", 0.5, "--include", "w1:0", "-o", tmp_path / "p.onnx", *FAST).code == 0
    np.testing.assert_array_equal(array_of(onnx.load(tmp_path / "p.onnx"), "w3"), array_of(cnn(), "w3"))
