"""Small nets with one layer of each kind to calibrate and repair, and samples for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from oracles import Net

import graphprune
from graphprune.analysis import Analysis
from graphprune.calibrate import Samples
from graphprune.calibrate.knowledge import Knowledge, learn
from graphprune.rewrite import Chosen, rearranged

Array = np.ndarray[Any, Any]


def conv(dtype: Any = np.float32, group: int = 1, bias: bool = True) -> Net:
    net = Net(dtype=dtype)
    x = net("Relu", net.conv(net.input("x", [None, 3, 6, 5]), 3, 8, 3, name="a", pads=[1] * 4))
    y = net.conv(x, 8, 6, 3, name="b", pads=[1] * 4, group=group, bias=bias)
    return net.output(net("ReduceMean", net("Relu", y), axes=[2, 3], keepdims=0))


def grouped() -> Net:
    return conv(group=2)


def gemm() -> Net:
    net = Net()
    return net.output(net.gemm(net("Relu", net.gemm(net.input("x", [None, 6]), 6, 12, name="a")), 12, 5, name="b"))


def matmul(dtype: Any = np.float32) -> Net:
    net = Net(dtype=dtype)
    hidden = net("Relu", net.matmul(net.input("x", [None, 4, 6]), 6, 12, name="a"))
    return net.output(net.matmul(hidden, 12, 5, name="b"))


def turned(group: int = 1) -> Net:
    net = Net()
    x = net("Relu", net.conv(net.input("x", [None, 3, 4, 3]), 3, 8, 3, name="a", pads=[1] * 4))
    y = net("ConvTranspose", x, net.weight(8, 4 // group, 2, 2, name="b"), strides=[2, 2], group=group)
    return net.output(net("ReduceMean", net("Relu", y), axes=[2, 3], keepdims=0))


def lstm() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [7, None, 6]), 6, 10, name="a"))
    y, _, _ = net("LSTM", x, net.weight(1, 12, 10, name="b"), net.weight(1, 12, 3, name="r"), n=3, hidden_size=3)
    return net.output(y)


def gru() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [7, None, 6]), 6, 10, name="a"))
    matrices = net.weight(2, 9, 10, name="b"), net.weight(2, 9, 3, name="r")
    y, _ = net("GRU", x, *matrices, n=2, hidden_size=3, direction="bidirectional")
    return net.output(y)


def rnn() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [7, None, 6]), 6, 10, name="a"))
    y, _ = net("RNN", x, net.weight(1, 3, 10, name="b"), net.weight(1, 3, 3, name="r"), n=2, hidden_size=3)
    return net.output(y)


def joined() -> Net:
    """Two convolutions side by side, then one that reads both."""
    net = Net()
    x = net.input("x", [None, 3, 5, 5])
    parts = [net.conv(x, 3, n, 3, name=name, pads=[1] * 4) for name, n in (("a", 4), ("c", 6))]
    y = net.conv(net("Relu", net("Concat", *parts, axis=1)), 10, 5, 3, name="b", pads=[1] * 4)
    return net.output(net("ReduceMean", net("Relu", y), axes=[2, 3], keepdims=0))


def heads() -> Net:
    """Self-attention of two heads of four; the last product reads "(2 4)"."""
    net = Net()
    x = net.input("x", [None, 5, 6])
    q, k, v = (
        net("Transpose", net("Reshape", net.matmul(x, 6, 8, name=f"w{n}"), net.ints(0, 0, 2, 4)), perm=[0, 2, 1, 3])
        for n in "qkv"
    )
    scores = net("Mul", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), net.const(np.float32(0.1)))
    mixed = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return net.output(net.matmul(net("Reshape", mixed, net.ints(0, 0, 8)), 8, 3, name="b"))


def depthwise() -> Net:
    net = Net()
    x = net("Relu", net.conv(net.input("x", [None, 3, 6, 6]), 3, 8, 3, name="a"))
    x = net("Relu", net.conv(x, 8, 8, 3, name="d", group=8))
    return net.output(net("ReduceMean", net.conv(x, 8, 4, 1, name="b"), axes=[2, 3], keepdims=0))


def flat() -> Net:
    """A convolution's maps flattened for a matrix: each channel has as many columns as places."""
    net = Net()
    x = net("Relu", net.conv(net.input("x", [None, 3, 4, 3]), 3, 8, 3, name="a", pads=[1] * 4))
    return net.output(net.gemm(net("Flatten", x), 96, 5, name="b"))


def deep(layers: int = 7, width: int = 24) -> Net:
    net = Net()
    x = net("Relu", net.gemm(net.input("x", [None, 10]), 10, width))
    for _ in range(layers):
        scaled = net("Mul", net.gemm(x, width, width), net.const(np.float32(width**-0.5)))
        x = net("Tanh", scaled)
    return net.output(net.gemm(x, width, 6, name="head"))


KINDS = {
    "conv": conv, "gemm": gemm, "matmul": matmul, "grouped": grouped, "turned": turned, "lstm": lstm, "gru": gru,
    "rnn": rnn,
    "joined": joined, "heads": heads, "depthwise": depthwise, "flat": flat,
}


def given(feeds: Mapping[str, Array], axes: Mapping[str, int] | None = None) -> Samples:
    """Return samples of arrays, along the first axis where `axes` says no other."""
    axes = axes if axes is not None else dict.fromkeys(feeds, 0)
    count = next(feeds[n].shape[k] for n, k in axes.items())
    return Samples(lambda: iter([feeds]), count, "in-distribution", (), axes)


def samples_of(analysis: Analysis, count: int = 40, seed: int = 0) -> Samples:
    """Return normal random samples for a model whose first input has one open axis."""
    rng = np.random.default_rng(seed)
    (value,) = analysis.model.graph.inputs
    assert value.shape is not None and value.dtype is not None
    sizes = [n if isinstance(n, int) else None for n in value.shape]
    array = rng.standard_normal([count if n is None else n for n in sizes]).astype(value.dtype.numpy())
    return given({str(value.name): array}, {str(value.name): sizes.index(None)})


def known(net: Net, count: int = 40, **options: Any) -> tuple[Analysis, Knowledge]:
    analysis = graphprune.analyse(net.model())
    return analysis, learn(analysis, samples_of(analysis, count), **options)


def keeping(analysis: Analysis, share: float = 0.5) -> Chosen:
    """Return a random part of every group."""
    rng = np.random.default_rng(3)
    return {
        g.dim: np.sort(rng.permutation(g.size)[: max(g.least, round(g.size * share))])
        for g in analysis.coupling.groups
    }


def pruned_of(analysis: Analysis, chosen: Chosen) -> Any:
    return rearranged(analysis.model, analysis.coupling, chosen)


def fitted(rows: Array, batch: int) -> Array:
    """Return the rows that are fitted to: every fifth batch checks fits, the eighth of ten tells results."""
    return rows[[k // batch % 5 != 4 and k // batch % 10 != 7 for k in range(len(rows))]]
