"""Models that onnxruntime has optimised and saved: they behave as what they were made from."""

from __future__ import annotations

import platform
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from oracles import Net
from small import cli, put, record

WIDTH, HEADS, INNER, LENGTH = 32, 4, 64, 6
X86 = platform.machine() in ("x86_64", "AMD64")


def norm(net: Net, x: str, name: str) -> str:
    return str(net("LayerNormalization", x, net.weight(WIDTH, name=name, positive=True), net.weight(WIDTH), axis=-1))


def heads(net: Net, x: str, name: str, perm: list[int]) -> str:
    y = net("Add", net.weight(WIDTH), net.matmul(x, WIDTH, WIDTH, name=name))
    return str(net("Transpose", net("Reshape", y, net.ints(0, 0, HEADS, WIDTH // HEADS)), perm=perm))


def layer(net: Net, x: str, i: int) -> str:
    """Attention and two matrices with Gelu between them, spelled out as exporters do, normalised after each sum."""
    q, v = (heads(net, x, f"{name}{i}", [0, 2, 1, 3]) for name in "qv")
    scores = net("Div", net("MatMul", q, heads(net, x, f"k{i}", [0, 2, 3, 1])), net.const((WIDTH // HEADS) ** 0.5))
    y = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = net.matmul(net("Reshape", y, net.ints(0, 0, WIDTH)), WIDTH, WIDTH, name=f"o{i}")
    x = norm(net, net("Add", net("Add", y, net.weight(WIDTH)), x), f"n{i}")
    y = net("Add", net.matmul(x, WIDTH, INNER, name=f"up{i}"), net.weight(INNER))
    gate = net("Add", net("Erf", net("Div", y, net.const(2**0.5))), net.const(1.0))
    y = net("Mul", net("Mul", y, gate), net.const(0.5))
    y = net("Add", net.matmul(y, INNER, WIDTH, name=f"down{i}"), net.weight(WIDTH))
    return norm(net, net("Add", y, x), f"m{i}")


def transformer() -> onnx.ModelProto:
    net = Net()
    ids = net.input("input_ids", ["batch", LENGTH], "int64", between=(0, 40))
    x = net("Add", net("Gather", net.weight(40, WIDTH, name="words"), ids), net.weight(LENGTH, WIDTH, name="places"))
    x = norm(net, x, "n")
    for i in range(2):
        x = layer(net, x, i)
    y = net("Tanh", net.gemm(net("Gather", x, net.const(0), axis=1), WIDTH, WIDTH, name="pool"))
    return net.output(net.gemm(y, WIDTH, 3, name="head")).model()


def network() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", [1, 3, 8, 8])
    for cin, cout, k, name in ((3, 32, 3, "a"), (32, 64, 1, "b"), (64, 32, 1, "c")):
        x = net("Relu", net.conv(x, cin, cout, k, name=name))
    return net.output(net.gemm(net("Flatten", net("ReduceMean", x, axes=[2, 3])), 32, 4, name="o")).model()


def saved(model: onnx.ModelProto, level: str, path: Path) -> Path:
    """Let onnxruntime optimise a model for a level, and write what it makes of it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def fused(path: Path) -> set[str]:
    return {n.op_type for n in onnx.load(path).graph.node if n.domain}


@pytest.mark.parametrize(("level", "operators"), [("BASIC", set()), ("EXTENDED", {"FusedMatMul", "BiasGelu"}),
                                                  ("ALL", {"FusedMatMul", "BiasGelu"})])
def test_transformer(tmp_path: Path, level: str, operators: set[str]) -> None:
    """Coverage, proof and the pruned size are those of the file before it was optimised."""
    before = put(tmp_path / "before.onnx", transformer())
    after = saved(transformer(), level, tmp_path / "after.onnx")
    assert fused(after) >= operators
    coverage = [record("inspect", path)["coverage"] for path in (before, after)]
    assert coverage[0] > 0.95 and abs(coverage[0] - coverage[1]) < 0.01
    assert cli("prove", after).code == 0
    kept = [
        record("prune", path, "--sparsity", 0.5, "--align", 1, "--no-time", "-o", tmp_path / "small.onnx")
        for path in (before, after)
    ]
    sizes = [k["after"]["parameters"] / k["before"]["parameters"] for k in kept]
    assert abs(sizes[0] - sizes[1]) < 0.05 and sizes[1] < 0.6


@pytest.mark.skipif(not X86, reason="other processors have other blocks, or none")
def test_blocks_of_channels(tmp_path: Path) -> None:
    """Only whole blocks of the last rows are free; what lies between is pinned, and said to be."""
    path = saved(network(), "ALL", tmp_path / "all.onnx")
    assert "ReorderOutput" in fused(path)
    seen = record("inspect", path)
    assert [g["size"] for g in seen["groups"]] == [2]
    assert any("mix input channels in memory" in p["reason"] for p in seen["pins"])
    assert cli("prove", path).code == 0
    assert cli("prune", path, "--sparsity", 0.3, "--align", 1, "--no-time", "-o", tmp_path / "small.onnx").code == 0
