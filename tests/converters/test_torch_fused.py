"""Operators that onnxruntime fuses, as torch rules beside onnxruntime itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_torch_module import model, node, rand  # noqa: E402

from graphprune.converters.pytorch import to_module  # noqa: E402
from graphprune.execute import evaluate, relative_error  # noqa: E402
from graphprune.model import load  # noqa: E402

F32, I32, I64 = np.float32, np.int32, np.int64
TABLES = {"cos": np.cos(np.outer(np.arange(16), 0.3 ** np.arange(8))).astype(F32)}
TABLES["sin"] = np.sin(np.arccos(TABLES["cos"])).astype(F32)

# Names in capitals are constants, the others inputs.
CASES: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "bias gelu": ("BiasGelu", "x b", "y", {"x": rand(2, 6), "b": rand(6)}, {}),
    "fast gelu": ("FastGelu", "x b", "y", {"x": rand(2, 6), "b": rand(6)}, {}),
    "fast gelu without bias": ("FastGelu", "x", "y", {"x": rand(2, 6)}, {}),
    "gelu": ("Gelu", "x", "y", {"x": rand(2, 6)}, {}),
    "quick gelu": ("QuickGelu", "x", "y", {"x": rand(2, 6)}, {"alpha": 1.5}),
    "fused matmul": (
        "FusedMatMul", "a b", "y", {"a": rand(2, 5, 3), "b": rand(2, 4, 5)}, {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "fused gemm": (
        "FusedGemm", "a b c", "y", {"a": rand(3, 5), "b": rand(5, 4), "c": rand(4)}, {"activation": "Relu"},
    ),
    "fused conv": (
        "FusedConv", "x w b", "y", {"x": rand(2, 4, 7, 7), "w": rand(6, 2, 3, 3), "b": rand(6)},
        {"group": 2, "pads": [1, 1, 1, 1], "activation": "LeakyRelu", "activation_params": [0.2]},
    ),
    "fused conv with a sum": (
        "FusedConv", "x w b z", "y",
        {"x": rand(1, 4, 5, 5), "w": rand(6, 4, 1, 1), "b": rand(6), "z": rand(1, 6, 5, 5)}, {"activation": "Relu"},
    ),
    "skip layer norm": (
        "SkipLayerNormalization", "x s g b c", "y - - z",
        {"x": rand(2, 3, 8), "s": rand(2, 3, 8), "g": rand(8), "b": rand(8), "c": rand(8)}, {},
    ),
    "skip simplified layer norm": (
        "SkipSimplifiedLayerNormalization", "x s g", "y - - z",
        {"x": rand(2, 3, 8), "s": rand(2, 3, 8), "g": rand(8)}, {"epsilon": 1e-5},
    ),
    "embeddings": (
        "EmbedLayerNormalization", "i s W P T G B m", "y n",
        {
            "i": np.array([[1, 2, 0]], I32), "s": np.array([[0, 1, 1]], I32), "W": rand(4, 8), "P": rand(5, 8),
            "T": rand(2, 8), "G": rand(8), "B": rand(8), "m": np.array([[1, 1, 0]], I32),
        }, {},
    ),
    "attention": (
        "Attention", "x w b m", "y",
        {"x": rand(2, 5, 8), "w": rand(8, 24), "b": rand(24), "m": np.array([5, 3], I32)}, {"num_heads": 2},
    ),
    "attention in order": (
        "Attention", "x w b - p", "y q",
        {"x": rand(2, 5, 8), "w": rand(8, 24), "b": rand(24), "p": rand(2, 2, 2, 3, 4)},
        {"num_heads": 2, "unidirectional": 1},
    ),
    "attention of other widths": (
        "Attention", "x w b m", "y",
        {"x": rand(2, 5, 8), "w": rand(8, 28), "b": rand(28), "m": np.array([[1] * 5, [1, 1, 1, 0, 0]], I32)},
        {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12]},
    ),
    "multi-head": (
        "MultiHeadAttention", "q k v b m", "y",
        {
            "q": rand(2, 5, 8), "k": rand(2, 7, 8), "v": rand(2, 7, 8), "b": rand(24),
            "m": np.array([[1] * 7, [1, 1, 1, 1, 0, 0, 0]], I32),
        },
        {"num_heads": 2},
    ),
    "multi-head with scores and caches": (
        "MultiHeadAttention", "q k v - - s p r", "y c d",
        {
            "q": rand(1, 2, 8), "k": rand(1, 2, 8), "v": rand(1, 2, 8), "s": rand(1, 2, 2, 5),
            "p": rand(1, 2, 3, 4), "r": rand(1, 2, 3, 4),
        },
        {"num_heads": 2, "scale": 0.3},
    ),
    "grouped, prompt": (
        "GroupQueryAttention", "q k v - - n t cos sin", "y c d",
        {
            "q": rand(1, 5, 64), "k": rand(1, 5, 32), "v": rand(1, 5, 32), "n": np.array([4], I32),
            "t": np.array(5, I32), **TABLES,
        },
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
    ),
    "grouped, next": (
        "GroupQueryAttention", "q k v p r n t cos sin", "y c d",
        {
            "q": rand(1, 1, 64), "k": rand(1, 1, 32), "v": rand(1, 1, 32), "p": rand(1, 2, 5, 16),
            "r": rand(1, 2, 5, 16), "n": np.array([5], I32), "t": np.array(6, I32), **TABLES,
        },
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 3},
    ),
    "rotary": (
        "RotaryEmbedding", "x p cos sin", "y",
        {"x": rand(2, 3, 32), "p": np.array([[0, 1, 2], [4, 5, 6]], I64), **TABLES}, {},
    ),
    "rotary from a place on": (
        "RotaryEmbedding", "x p cos sin", "y", {"x": rand(2, 2, 3, 16), "p": np.array([3], I64), **TABLES},
        {"interleaved": 1},
    ),
    "squared distances": ("CDist", "a b", "y", {"a": rand(3, 4), "b": rand(5, 4)}, {"metric": "sqeuclidean"}),
    "rows of a table": ("ExpandDims", "x a", "y", {"x": rand(3, 4), "a": np.array(1, I32)}, {}),
}  # fmt: skip


def one(only: Any, values: dict[str, Any], outputs: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return a model of one node, and its inputs."""
    inputs = {k: v for k, v in values.items() if not k.isupper()}
    return model([only], {k: v for k, v in values.items() if k.isupper()}, inputs, outputs), inputs


@pytest.mark.parametrize("name", CASES)
def test_fused_operators_compute_what_onnxruntime_does(name: str) -> None:
    kind, inputs, outputs, feeds, attributes = CASES[name]
    made = [o for o in outputs.split() if o != "-"]
    proto, feeds = one(node(kind, inputs, outputs, domain="com.microsoft", **attributes), feeds, made)
    expected = evaluate(load(proto), feeds)
    got = to_module(proto).eval()(**feeds)
    for key, array in expected.items():
        assert got[key].shape == array.shape
        assert relative_error({key: array}, {key: got[key].detach().numpy()})[0] < 1e-5, key


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("grouped")])
def test_gradients_of_fused_operators_are_the_numerical_ones(name: str) -> None:
    kind, inputs, _, feeds, attributes = CASES[name]
    proto, feeds = one(node(kind, inputs, "y", domain="com.microsoft", **attributes), feeds, ["y"])
    module = to_module(proto).eval().double()
    given = {k: torch.as_tensor(v) for k, v in feeds.items()}
    real = [k for k, v in given.items() if v.is_floating_point()]
    start = {k: given[k].double() for k in real}
    torch.manual_seed(0)
    direction = {k: torch.randn_like(start[k]) for k in real}
    weight = torch.rand_like(module(**{**given, **start})["y"]) + 0.1

    def value(step: float) -> Any:
        return (weight * module(**{**given, **{k: start[k] + step * direction[k] for k in real}})["y"]).sum()

    leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
    (weight * module(**{**given, **leaves})["y"]).sum().backward()
    slope = sum(float((leaves[k].grad * direction[k]).sum()) for k in real if leaves[k].grad is not None)
    numerical = float(value(1e-6) - value(-1e-6)) / 2e-6
    assert slope == pytest.approx(numerical, rel=1e-5, abs=1e-5)
