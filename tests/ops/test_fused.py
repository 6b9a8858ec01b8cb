"""Element-wise operators and normalisations of com.microsoft; onnxruntime runs them, numpy where it has no kernel."""

from __future__ import annotations

from typing import Any

import contributed as own
import numpy as np
import pytest
from oracles import Net, check

MS = "com.microsoft"


def ends(net: Net, y: str, width: int) -> Net:
    return net.output(net.matmul(y, width, 3, name="o"))


def hidden(net: Net, width: int = 8, length: Any = "s") -> str:
    return net.matmul(net.input("x", [None, length, 5]), 5, width, name="a")


@pytest.mark.parametrize(("operator", "extra"), [("Gelu", {}), ("QuickGelu", {"alpha": 1.5}), ("FastGelu", {}),
                                                 ("ScaledSiLU", {"alpha": 0.7})])
def test_activation(operator: str, extra: dict[str, Any]) -> None:
    net = Net()
    y = net(operator, hidden(net), domain=MS, **extra)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "o:0": "8"})


@pytest.mark.parametrize("operator", ["BiasGelu", "FastGelu"])
def test_bias_before_an_activation(operator: str) -> None:
    net = Net()
    y = net(operator, hidden(net), net.weight(8, name="b"), domain=MS)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "b:0": "8"})


def test_gated_add() -> None:
    """The gate has one number for each row."""
    net = Net()
    x = net.input("x", [None, "s", 5])
    parts = [net.matmul(x, 5, 8, name=name) for name in ("a", "b")]
    y = net("GatedAdd", *parts, net("Sigmoid", net.matmul(x, 5, 1, name="g")), domain=MS)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "b:1": "8"})


def test_bias_add() -> None:
    net = Net()
    x = net.input("x", [None, "s", 5])
    parts = [net.matmul(x, 5, 8, name=name) for name in ("a", "c")]
    y = net("BiasAdd", parts[0], net.weight(8, name="b"), parts[1], domain=MS)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "b:0": "8", "c:1": "8"}, reference=[own.BiasAdd])


def test_bias_split_gelu() -> None:
    net = Net()
    y = net("BiasSplitGelu", hidden(net), net.weight(8, name="b"), domain=MS)
    free = {"a:1": "(4 + 4)", "b:0": "(4 + 4)", "o:0": "4"}
    check(ends(net, y, 4), groups=1, free=free, reference=[own.BiasSplitGelu])


@pytest.mark.parametrize("residual", [False, True])
def test_bias_dropout(residual: bool) -> None:
    net = Net()
    a = hidden(net)
    y, mask = net("BiasDropout", a, net.weight(8, name="b"), *([a] if residual else []), n=2, domain=MS)
    y = net("Where", mask, y, net.const(0.0))
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "b:0": "8"}, reference=[own.BiasDropout])


@pytest.mark.parametrize("operator", ["BitmaskDropout", "BitmaskBiasDropout"])
def test_dropout_with_a_mask_of_bits(operator: str) -> None:
    """The mask as an output pins all; without it nothing does."""
    for used in (False, True):
        net = Net()
        bias = [net.weight(8, name="b")] if "Bias" in operator else []
        y = net(operator, hidden(net), *bias, n=2 if used else 1, domain=MS)
        if used:
            net.output(y[1], dtype=np.int32)
            check(ends(net, y[0], 8), groups=0, pinned={"a:1": "packed into bits"})
        else:
            check(ends(net, y, 8), groups=1, free={"a:1": "8"}, reference=[own.BitmaskDropout, own.BitmaskBiasDropout])


@pytest.mark.parametrize("operator", ["ComplexMul", "ComplexMulConj"])
def test_complex_product(operator: str) -> None:
    """Pairs on the last axis stay; the others are free."""
    net = Net()
    x = net.input("x", [None, 5])
    pairs = [net("Reshape", net.matmul(x, 5, 8, name=name), net.ints(0, 4, 2)) for name in ("a", "b")]
    y = net("Reshape", net(operator, *pairs, domain=MS), net.ints(0, 8))
    check(ends(net, y, 8), groups=1, free={"a:1": "(4 [2])", "b:1": "(4 [2])"},
          reference=[own.ComplexMul, own.ComplexMulConj])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("simplified", [False, True])
def test_skip_norm(simplified: bool, total: bool, bias: bool) -> None:
    """The sum goes on as an output of its own."""
    net = Net()
    x = net.input("x", [None, "s", 5])
    parts = [net.matmul(x, 5, 8, name=name) for name in ("a", "b")]
    vectors = [net.weight(8, name="gain", positive=True)]
    vectors += [] if simplified else [net.weight(8, name="beta")]
    vectors += [net.weight(8, name="bias")] if bias else []
    name = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    y = net(name, *parts, *vectors, n=4 if total else 1, domain=MS, epsilon=1e-6)
    if total:
        net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
        y = net("Add", y[0], net("Relu", y[3]))
    places = ["a:1", "b:1", "gain:0", *(["bias:0"] if bias else [])]
    got = check(ends(net, y, 8), groups=1, free=dict.fromkeys(places, "8"))
    assert got.coupling.groups[0].normalised
    assert [o.gain for o in got.coupling.groups[0].occurrences if o.initializer == "gain"] == [True]


@pytest.mark.parametrize("shape", [(1, 6, 8), (6, 8)])
def test_skip_that_is_repeated(shape: tuple[int, ...]) -> None:
    """Position embeddings as what is skipped."""
    net = Net()
    y = net("SkipLayerNormalization", hidden(net, length=6), net.weight(*shape, name="p"),
            net.weight(8, positive=True), net.weight(8), domain=MS)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", f"p:{len(shape) - 1}": "8"})


@pytest.mark.parametrize("domain", ["", MS])
def test_simplified_norm(domain: str) -> None:
    """Onnxruntime writes it without a domain, too."""
    net = Net()
    y = net("SimplifiedLayerNormalization", hidden(net), net.weight(8, name="g", positive=True), domain=domain, axis=-1)
    reference = [own.SimplifiedLayerNormalization] if domain else False
    got = check(ends(net, y, 8), groups=1, free={"a:1": "8", "g:0": "8"}, reference=reference)
    assert got.coupling.groups[0].normalised


def test_layer_norm_of_older_tools() -> None:
    """LayerNormalization came with opset 17; older files have it all the same."""
    net = Net(11)
    y = net("LayerNormalization", hidden(net), net.weight(8, name="g", positive=True), net.weight(8, name="b"), axis=-1)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "g:0": "8", "b:0": "8"})


def test_layer_norm_of_microsoft() -> None:
    net = Net()
    y = net("LayerNormalization", hidden(net), net.weight(8, name="g", positive=True), net.weight(8, name="b"),
            axis=-1, domain=MS)
    check(ends(net, y, 8), groups=1, free={"a:1": "8", "g:0": "8", "b:0": "8"}, reference=[own.LayerNormalization])


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("total", [False, True])
def test_embedding_norm(total: bool, segments: bool) -> None:
    net = Net()
    ids = net.input("ids", [None, "s"], np.int32, between=(0, 9))
    kinds = net.input("kinds", ["batch", "s"], np.int32, between=(0, 2)) if segments else ""
    tables = [net.weight(n, 8, name=name) for n, name in ((9, "w"), (40, "p"))]
    tables += [net.weight(2, 8, name="t")] if segments else [""]
    vectors = [net.weight(8, name="g", positive=True), net.weight(8, name="b")]
    mask = net.input("mask", ["batch", "s"], np.int32)
    y = net("EmbedLayerNormalization", ids, kinds, *tables, *vectors, mask, n=3 if total else 2, domain=MS)
    if total:
        ends(net, net("Add", y[0], net("Relu", y[2])), 8)
    else:
        ends(net, y[0], 8)
    net.output(y[1], dtype=np.int32)
    free = {"w:1": "8", "p:1": "8", "g:0": "8", "b:0": "8", **({"t:1": "8"} if segments else {})}
    check(net, groups=1, free=free, pinned={"w:0": "indexed", "p:0": "indexed"})


@pytest.mark.parametrize("inner", [0, 1])
def test_bias_softmax(inner: int) -> None:
    """The bias is as long as what is normalised, and the same for some of the axes before."""
    net = Net()
    x = net("Reshape", net.matmul(net.input("x", [2, 3, 5]), 5, 24, name="a"), net.ints(2, 3, 4, 6))
    bias = net.weight(*((2, 1, 1, 6) if inner else (1, 1, 4, 6)), name="b")
    y = net("BiasSoftmax", x, bias, axis=3, is_inner_broadcast=inner, domain=MS)
    y = net("Reshape", y, net.ints(2, 3, 24))
    free = {"a:1": "(4 6)", "b:3": "6", **({} if inner else {"b:2": "4"})}
    check(ends(net, y, 24), groups=2, free=free, reference=[own.BiasSoftmax])


def test_bias_softmax_of_another_rank_pins() -> None:
    net = Net()
    y = net("BiasSoftmax", hidden(net, length=6), net.weight(6, 8, name="b"), axis=2, is_inner_broadcast=0, domain=MS)
    check(ends(net, y, 8), groups=0, pinned={"a:1": "another rank", "b:1": "another rank"})


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("skip", [0, 2, 4])
def test_group_norm(skip: int, last: int) -> None:
    """Channels in groups, last or second; after the sum of two inputs, or alone."""
    net = Net()
    x = net.input("x", [2, 3, 4, 4])
    convs = [net.conv(x, 3, 12, name=name) for name in ("a", "b")[: 2 if skip else 1]]
    convs = [net("Transpose", c, perm=[0, 2, 3, 1]) for c in convs] if last else convs
    y, other = convs[0], convs[-1]
    vectors = [net.weight(12, name="g", positive=True), net.weight(12, name="beta")]
    if skip:
        if skip == 2:
            other = net("ReduceMean", other, axes=[1, 2] if last else [2, 3], keepdims=0)
        operands = [y, *vectors, other, net.weight(12, name="bias")]
        y, total = net("SkipGroupNorm", *operands, n=2, groups=3, channels_last=last, activation=1, domain=MS)
        y = net("Add", y, total)
    else:
        y = net("GroupNorm", y, *vectors, groups=3, channels_last=last, domain=MS)
    y = net("Transpose", y, perm=[0, 3, 1, 2]) if last else y
    net.output(net.conv(y, 12, 2, name="o"))
    free = {"a:0": "(3 4)", "g:0": "(3 4)", "o:1": "(3 4)", **({"b:0": "(3 4)", "bias:0": "(3 4)"} if skip else {})}
    got = check(net, groups=2, free=free, reference=[own.GroupNorm, own.SkipGroupNorm])
    model = got.pruned({got.coupling.groups[0].dim: np.array([0, 2])})
    groups = [a.i for n in model.graph.node for a in n.attribute if a.name == "groups"]
    assert groups == [2 if got.coupling.groups[0].size == 3 else 3]


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("heads", [1, 3])
def test_gated_rms_norm(heads: int, activation: str) -> None:
    net = Net()
    x = net.input("x", [None, "s", 5])
    a, gate = (net.matmul(x, 5, heads * 4, name=name) for name in ("a", "z"))
    y = net("GatedRMSNorm", a, net.weight(4, name="g", positive=True), gate, activation=activation, domain=MS)
    axis = "4" if heads == 1 else "(3 4)"
    check(ends(net, y, heads * 4), groups=1 if heads == 1 else 2, free={"a:1": axis, "z:1": axis, "g:0": "4"})


@pytest.mark.parametrize("scale", [None, (12,), (3, 4), (4,)])
@pytest.mark.parametrize("flat", [False, True])
def test_branchwise_norm(flat: bool, scale: tuple[int, ...] | None) -> None:
    net = Net()
    a = hidden(net, 12)
    extra = {"num_branches": 3} if flat else {}
    y = a if flat else net("Reshape", a, net.ints(0, 0, 3, 4))
    gain = [net.weight(*scale, name="g", positive=True)] if scale else []
    y = net("BranchwiseRMSNorm", y, *gain, domain=MS, **extra)
    y = y if flat else net("Reshape", y, net.ints(0, 0, 12))
    free = {"a:1": "(3 4)", **({f"g:{len(scale) - 1}": "(3 4)" if scale == (12,) else "4"} if scale else {})}
    check(ends(net, y, 12), groups=2, free=free)
