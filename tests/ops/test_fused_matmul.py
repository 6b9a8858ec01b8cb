"""Products and convolutions with something fused to them; onnxruntime runs them, numpy where it has no kernel."""

from __future__ import annotations

from typing import Any

import contributed as own
import numpy as np
import pytest
from oracles import Net, check

MS = "com.microsoft"


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("operator", ["FusedMatMul", "TransposeMatMul"])
def test_transposed(operator: str, left: int, right: int) -> None:
    """Either factor may lie the other way round."""
    net = Net()
    x = net.input("x", [2, 6, 5])
    a = net.matmul(x, 5, 8, name="a")
    a = net("Transpose", a, perm=[0, 2, 1]) if left else a
    w = net.weight(*((4, 8) if right else (8, 4)), name="w")
    y = net(operator, a, w, transA=left, transB=right, alpha=0.5, domain=MS)
    net.output(net.matmul(y, 4, 3, name="o"))
    got = check(net, groups=2, free={"a:1": "8", f"w:{right}": "8", f"w:{1 - right}": "4", "o:0": "4"})
    assert got.macs(operator) == 2 * 6 * 8 * 4


def test_scores_of_attention() -> None:
    """What onnxruntime makes of a product with a transposed key and a scale."""
    net = Net()
    x = net.input("x", [2, "s", 5])
    q, k = ((net("Reshape", net.matmul(x, 5, 12, name=n), net.ints(2, -1, 3, 4))) for n in ("q", "k"))
    q, k = (net("Transpose", a, perm=[0, 2, 1, 3]) for a in (q, k))
    scores = net("Softmax", net("FusedMatMul", q, k, transB=1, alpha=0.3, domain=MS), axis=-1)
    y = net("Reshape", net("Transpose", net("MatMul", scores, k), perm=[0, 2, 1, 3]), net.ints(2, -1, 12))
    check(net.output(net.matmul(y, 12, 3)), groups=2, free={"q:1": "(3 4)", "k:1": "(3 4)"})


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("batch", [(1, 0), (0, 1), (1, 1)])
def test_batches_behind(batch: tuple[int, int], turn: int) -> None:
    """The first axis of a factor may stand for rows, and the next ones for batches."""
    net = Net()
    x = net.input("x", [2, 3, 4, 4])
    left = net("MatMul", x, net.weight(4, 6, name="a"))
    left = net("Transpose", left, perm=[0, 1, 3, 2]) if turn else left
    left = net("Transpose", left, perm=[2, 0, 1, 3]) if batch[0] else left
    right = net("MatMul", x, net.weight(4, 6, name="c"))
    right = net("Transpose", right, perm=[0, 1, 3, 2])
    right = net("Transpose", right, perm=[2, 0, 1, 3]) if batch[1] else right
    y = net("FusedMatMul", left, right, transA=turn, transBatchA=batch[0], transBatchB=batch[1], domain=MS)
    got = check(net.output(y), groups=1, free={"a:1": "6", "c:1": "6"})
    assert got.macs("FusedMatMul") == 2 * 3 * 4 * 4 * 6


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Softmax"])
def test_product_with_an_activation(activation: str) -> None:
    """Softmax mixes slots; it pins, as anything unknown would."""
    net = Net()
    a = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    y = net("FusedMatMulActivation", a, net.weight(8, 4, name="w"), activation=activation, domain=MS)
    net.output(net.matmul(y, 4, 3, name="o"))
    if activation == "Softmax":
        check(net, groups=0, pinned={"a:1": "may mix", "w:1": "may mix"})
    else:
        check(net, groups=2, free={"a:1": "8", "w:1": "4"}, reference=[own.FusedMatMulActivation])


@pytest.mark.parametrize("bias", [False, True])
def test_gemm_fast_gelu(bias: bool) -> None:
    net = Net()
    a = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    y = net("GemmFastGelu", a, net.weight(8, 4, name="w"), *([net.weight(4, name="b")] if bias else []), domain=MS)
    free = {"a:1": "8", "w:1": "4", **({"b:0": "4"} if bias else {})}
    got = check(net.output(net.matmul(y, 4, 3)), groups=2, free=free, reference=[own.GemmFastGelu])
    assert got.macs("GemmFastGelu") == 2 * 6 * 8 * 4


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Sigmoid", "Tanh"])
def test_fused_gemm(activation: str, turned: int) -> None:
    net = Net()
    a = net.gemm(net.input("x", [None, 5]), 5, 8, name="a")
    w = net.weight(*((4, 8) if turned else (8, 4)), name="w")
    extra = {"activation_alpha": 0.2} if activation == "LeakyRelu" else {}
    y = net("FusedGemm", a, w, net.weight(4, name="c"), transB=turned, activation=activation, domain=MS, **extra)
    got = check(net.output(net.gemm(y, 4, 3)), groups=2, free={"a:0": "8", f"w:{1 - turned}": "4", "c:0": "4"})
    assert got.macs("FusedGemm") == 8 * 4


def test_fused_gemm_with_an_unknown_activation_pins() -> None:
    net = Net()
    a = net.gemm(net.input("x", [None, 5]), 5, 8, name="a")
    y = net("FusedGemm", a, net.weight(8, 4, name="w"), activation="Softmax", domain=MS)
    check(net.output(net.gemm(y, 4, 3)), groups=0, pinned={"a:0": "may mix", "w:0": "may mix"})


@pytest.mark.parametrize("group", [1, 3, 12])
@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_fused_conv(activation: str, total: bool, group: int) -> None:
    """What is added before the activation goes with the output channels."""
    net = Net()
    x = net.input("x", [None, 3, 6, 6])
    a = net.conv(x, 3, 12, name="a")
    operands = [a, net.weight(12, 12 // group, 3, 3, name="w"), net.weight(12, name="b")]
    operands += [net.conv(x, 3, 12, name="z")] if total else []
    extra = {"activation_params": [-0.5, 2.0]} if activation == "Clip" else {}
    y = net("FusedConv", *operands, activation=activation, group=group, pads=[1] * 4, domain=MS, **extra)
    net.output(net.conv(y, 12, 2, name="o"))
    out = {1: "12", 3: "(3 4)", 12: "12"}[group]
    free = {"a:0": out, "w:0": out, "b:0": out, "o:1": out, **({"z:0": out} if total else {})}
    got = check(net, groups={1: 2, 3: 3, 12: 1}[group], free=free)
    assert got.macs("FusedConv") == 36 * 12 * (12 // group) * 9


def channels_last(net: Net, group: int, x: str) -> str:
    return str(net("Transpose", net.conv(x, 3, 12, name="a"), perm=[0, 2, 3, 1]))


@pytest.mark.parametrize("group", [1, 3])
def test_nhwc_conv(group: int) -> None:
    """The weight has its input channels last, too."""
    net = Net()
    a = channels_last(net, group, net.input("x", [None, 3, 6, 6]))
    w, b = net.weight(6, 2, 2, 12 // group, name="w"), net.weight(6, name="b")
    y = net("NhwcConv", a, w, b, group=group, strides=[2, 2], domain=MS)
    net.output(net.conv(net("Transpose", y, perm=[0, 3, 1, 2]), 6, 2, name="o"))
    out = "6" if group == 1 else "(3 2)"
    got = check(net, groups=2 if group == 1 else 3, free={"w:0": out, "b:0": out, "o:1": out}, reference=[own.NhwcConv])
    assert got.macs("NhwcConv") == 9 * 6 * 4 * 12 // group


def test_nhwc_conv_with_another_weight_pins() -> None:
    net = Net()
    a = channels_last(net, 1, net.input("x", [None, 3, 6, 6]))
    y = net("NhwcConv", a, net.weight(6, 12, 2, 2, name="w"), domain=MS)
    check(net.output(y), groups=0, pinned={"a:0": "not the last axis", "w:0": "not the last axis"})


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "Strange"])
def test_nhwc_fused_conv(activation: str, total: bool) -> None:
    """The weight has its input channels second."""
    net = Net()
    a = channels_last(net, 1, net.input("x", [None, 3, 6, 6]))
    operands = [a, net.weight(12, 12, 1, 1, name="w"), net.weight(12, name="b"), *([a] if total else [])]
    y = net("NhwcFusedConv", *operands, activation=activation, domain=MS)
    net.output(net.conv(net("Transpose", y, perm=[0, 3, 1, 2]), 12, 2, name="o"))
    if activation == "Strange":
        check(net, groups=0, pinned={"a:0": "not known", "w:0": "not known"})
    else:
        check(net, groups=1 if total else 2, free={"a:0": "12", "w:0": "12"}, reference=[own.NhwcFusedConv])


def test_nhwc_max_pool() -> None:
    net = Net()
    a = channels_last(net, 1, net.input("x", [None, 3, 6, 6]))
    y = net("NhwcMaxPool", a, kernel_shape=[2, 2], strides=[2, 2], domain=MS)
    net.output(net.conv(net("Transpose", y, perm=[0, 3, 1, 2]), 12, 2, name="o"))
    check(net, groups=1, free={"a:0": "12", "o:1": "12"}, reference=[own.NhwcMaxPool])


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_distances(metric: str) -> None:
    """Every row to every other; what a distance sums over is one axis of both."""
    net = Net()
    a = net.gemm(net.input("x", [7, 5]), 5, 8, name="a")
    y = net("CDist", a, net.weight(6, 8, name="w"), metric=metric, domain=MS)
    free = {"a:0": "8", "w:1": "8", "w:0": "6", "o:1": "6"}
    got = check(net.output(net.gemm(y, 6, 3, name="o")), groups=2, free=free)
    assert got.macs("CDist") == 7 * 6 * 8


def attributes(net: Net) -> dict[str, Any]:
    return {a.name: a.i for n in net.nodes for a in n.attribute}


def test_groups_of_a_fused_conv_follow() -> None:
    net = Net()
    a = net.conv(net.input("x", [None, 3, 6, 6]), 3, 12, name="a")
    y = net("FusedConv", a, net.weight(12, 1, 3, 3, name="w"), activation="Relu", group=12, domain=MS)
    got = check(net.output(net.conv(y, 12, 2)), groups=1)
    model = got.pruned({got.group("w:0"): np.array([1, 4, 7])})
    assert [x.i for n in model.graph.node for x in n.attribute if x.name == "group"] == [3]
    assert attributes(net)["group"] == 12
