"""Attention with shared keys, rotary embedding, and a decoder as onnxruntime-genai writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from oracles import Net, check, solved

MS = "com.microsoft"
IN = 5


def attributes(model: onnx.ModelProto, operator: str) -> dict[str, Any]:
    node = next(n for n in model.graph.node if n.op_type == operator)
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def lengths(net: Net, batch: int, length: int) -> list[str]:
    return [net.const([length - 1] * batch, np.int32), net.const(length, np.int32)]


def tables(net: Net, rows: int, half: int) -> list[str]:
    angles = np.linspace(0, 3, rows * half).reshape(rows, half)
    return [net.const(np.cos(angles), name="cos"), net.const(np.sin(angles), name="sin")]


def ends(net: Net, y: str, width: int) -> Net:
    return net.output(net.matmul(y, width, 3, name="o"))


CASES: list[tuple[int, int, str]] = [(4, 4, "(4 {})"), (6, 2, "(2 3 {})"), (4, 1, "(4 {})")]


@pytest.mark.parametrize(("heads", "shared", "queries"), CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_grouped(packed: bool, heads: int, shared: int, queries: str) -> None:
    """Query heads in groups; the width of heads goes in blocks of 8."""
    net = Net()
    x = net.input("x", [2, 6, IN])
    width = 16
    key = {4: "(4 2 [8])", 2: "(2 2 [8])", 1: "(2 [8])"}[shared]
    query = queries.format("2 [8]")
    if packed:
        operands = [net.matmul(x, IN, (heads + 2 * shared) * width, name="w"), "", ""]
        free = {"w:1": f"({query} + {key} + {key})"}
    else:
        sizes = {"q": heads, "k": shared, "v": shared}
        operands = [net.matmul(x, IN, n * width, name=name) for name, n in sizes.items()]
        free = {"q:1": query, "k:1": key, "v:1": key}
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), num_heads=heads,
            kv_num_heads=shared, domain=MS)
    got = check(ends(net, y, heads * width), free={**free, "o:0": query})
    assert got.macs("GroupQueryAttention") == 2 * 2 * 6 * 6 * heads * width


def test_grouped_follows() -> None:
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 16, name=name) for name, n in (("q", 6), ("k", 2), ("v", 2))]
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), num_heads=6, kv_num_heads=2, domain=MS)
    got = check(ends(net, y, 96), groups=3)
    dims = {g.size: g.dim for g in got.coupling.groups if g.name.startswith("q")}
    assert sorted(dims) == [2, 3]
    keys, blocks = [g.dim for g in got.coupling.groups if g.size == 2]
    model = got.pruned({keys: np.array([1]), blocks: np.array([0]), dims[3]: np.array([0, 2])})
    assert attributes(model, "GroupQueryAttention") == {"num_heads": 2, "kv_num_heads": 1, "scale": 0.25}


@pytest.mark.parametrize("extra", [{"softcap": 2.0}, {"smooth_softmax": 1}, {"local_window_size": 3}, {"scale": 0.3}],
                         ids=lambda e: next(iter(e)))
def test_grouped_with(extra: dict[str, Any]) -> None:
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 16, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), num_heads=4, kv_num_heads=2,
            domain=MS, **extra)
    check(ends(net, y, 64), groups=3, free={"q:1": "(2 2 2 [8])"})


@pytest.mark.parametrize("interleaved", [0, 1])
def test_grouped_and_turned(interleaved: int) -> None:
    """Pairs of positions turn together, in blocks of 8 pairs; the tables go along."""
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 32, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), *tables(net, 8, 16), num_heads=4,
            kv_num_heads=2, do_rotary=1, rotary_interleaved=interleaved, domain=MS)
    pair = "2 [8] 2" if interleaved else "((2 [8]) + (2 [8]))"
    check(ends(net, y, 128), groups=3, free={"q:1": f"(2 2 {pair})", "k:1": f"(2 {pair})", "cos:1": "(2 [8])"})


def test_grouped_and_partly_turned_pins_the_width() -> None:
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 32, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), *tables(net, 8, 8), num_heads=4,
            kv_num_heads=2, do_rotary=1, domain=MS)
    check(ends(net, y, 128), groups=2, free={"q:1": "(2 2 [32])", "k:1": "(2 [32])"}, pinned={"cos:1": ""})


def test_sinks_and_bias_of_scores() -> None:
    """A number for each head beside its scores, and a matrix for each head on them."""
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 16, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    added, sink = net.weight(1, 4, 6, 6, name="r"), net.weight(4, name="s")
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), "", "", "", added, sink, num_heads=4,
            kv_num_heads=2, domain=MS)
    check(ends(net, y, 64), groups=3, free={"s:0": "(2 2)", "r:1": "(2 2)", "q:1": "(2 2 2 [8])"})


def test_grouped_with_a_cache_inside() -> None:
    net = Net()
    x = net.input("x", [2, 1, IN])
    operands = [net.matmul(x, IN, n * 16, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    past = [net.weight(2, 2, 5, 16, name=name) for name in ("pk", "pv")]
    y, *present = net("GroupQueryAttention", *operands, *past, *lengths(net, 2, 6), n=3, num_heads=4,
                      kv_num_heads=2, domain=MS)
    net.output(*[net("ReduceMean", p, axes=[1, 3], keepdims=0) for p in present])
    got = check(ends(net, y, 64), groups=3, free={"q:1": "(2 2 2 [8])", "pk:1": "2", "pv:3": "(2 [8])"})
    assert got.macs("GroupQueryAttention") == 2 * 2 * 6 * 64


def test_a_width_without_blocks_pins() -> None:
    """Onnxruntime takes no such file; the heads would be free."""
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 12, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    y = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), num_heads=4, kv_num_heads=2, domain=MS)
    _, coupling = solved(ends(net, y, 48))
    assert sorted(g.size for g in coupling.groups) == [2, 2]


def test_attention_weights_of_groups_outside_pin_the_heads() -> None:
    net = Net()
    x = net.input("x", [2, 6, IN])
    operands = [net.matmul(x, IN, n * 16, name=name) for name, n in (("q", 4), ("k", 2), ("v", 2))]
    y, _, _, weights = net("GroupQueryAttention", *operands, "", "", *lengths(net, 2, 6), n=4, num_heads=4,
                           kv_num_heads=2, qk_output=1, domain=MS)
    _, coupling = solved(ends(net, y, 64).output(weights))
    assert [g.size for g in coupling.groups] == [2]
    assert [origin.operator for _, origin in coupling.solution.pins.values()].count(f"{MS}.GroupQueryAttention") > 2


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("start", [False, True])
def test_rotary(start: bool, axes: int, interleaved: int, counted: bool) -> None:
    """Positions come second; where heads are not counted, the tables tell how wide they are."""
    net = Net()
    y = net.matmul(net.input("x", [2, 6, IN]), IN, 24, name="a")
    places = net.const([1]) if start else net.input("places", [2, 6], np.int64, between=(0, 9))
    attributes = {"interleaved": interleaved, **({"num_heads": 3} if counted else {})}
    if axes == 4:
        y = net("Transpose", net("Reshape", y, net.ints(0, 0, 3, 8)), perm=[0, 2, 1, 3])
    y = net("RotaryEmbedding", y, places, *tables(net, 9, 4), domain=MS, **attributes)
    if axes == 4:
        y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 24))
    pair = "4 2" if interleaved else "(4 + 4)"
    got = check(ends(net, y, 24), groups=2, free={"a:1": f"(3 {pair})", "cos:1": "4", "sin:1": "4"})
    heads, pairs = [next(g.dim for g in got.coupling.groups if g.size == n) for n in (3, 4)]
    model = got.pruned({heads: np.array([0, 1]), pairs: np.array([1, 3])})
    node = next(n for n in model.graph.node if n.op_type == "RotaryEmbedding")
    assert {a.name: a.i for a in node.attribute if a.name == "num_heads"} == ({"num_heads": 2} if counted else {})


def test_rotary_of_a_part() -> None:
    """Turned positions are counted: they stay; the others are free."""
    net = Net()
    y = net.matmul(net.input("x", [2, 6, IN]), IN, 24, name="a")
    places = net.input("places", [2, 6], np.int64, between=(0, 9))
    y = net("RotaryEmbedding", y, places, *tables(net, 9, 2), num_heads=3, rotary_embedding_dim=4, domain=MS)
    check(ends(net, y, 24), groups=2, free={"a:1": "(3 ([2] + [2] + 4))"})


def decoder(layers: int = 2, hidden: int = 32, heads: int = 4, shared: int = 2, width: int = 16) -> Net:
    """Write a decoder the way onnxruntime-genai does: every norm takes the sum, caches go in and out."""
    net = Net(opset=21)
    ids = net.input("input_ids", [1, "sequence"], np.int64, between=(0, 40))
    names = [f"past_key_values.{i}.{n}" for i in range(layers) for n in ("key", "value")]
    past = [net.input(name, [1, shared, "past", width]) for name in names]
    sequence, before = (net("Shape", v, start=k, end=k + 1) for v, k in ((ids, 1), (past[0], 2)))
    total = net("Cast", net("Squeeze", net("Add", sequence, before)), to=onnx.TensorProto.INT32)
    ones = net("Expand", net("Sub", total, net.const(1, np.int32)), net("Shape", ids, start=0, end=1))
    places = net("Add", net("Range", net.const(0), net("Squeeze", sequence), net.const(1)), net("Squeeze", before))
    places = net("Expand", net("Unsqueeze", places, net.ints(0)), net("Shape", ids))
    cos, sin = tables(net, 64, width // 2)
    embedded = net("Gather", net.weight(40, hidden, name="embed"), ids)
    y = net("SimplifiedLayerNormalization", embedded, net.weight(hidden, name="n", positive=True), axis=-1)
    total_sum, present = embedded, []
    for i in range(layers):
        sizes = (("q", heads), ("k", shared), ("v", shared))
        q, k, v = (net.matmul(y, hidden, n * width, name=f"{name}{i}") for name, n in sizes)
        q, k = (net("RotaryEmbedding", a, places, cos, sin, domain=MS) for a in (q, k))
        a, key, value = net("GroupQueryAttention", q, k, v, *past[2 * i : 2 * i + 2], ones, total, n=3, num_heads=heads,
                            kv_num_heads=shared, domain=MS)
        present += [key, value]
        for part in ("attention", "mlp"):
            down = part == "attention"
            added = net.matmul(a, heads * width, hidden, name=f"o{i}") if down else mlp(net, y, hidden, i)
            gain = net.weight(hidden, name=f"{part}{i}", positive=True)
            y, _, _, total_sum = net("SkipSimplifiedLayerNormalization", total_sum, added, gain, n=4, domain=MS)
    net.output(net.matmul(y, hidden, 40, name="head"), *present)
    return net


def mlp(net: Net, y: str, hidden: int, i: int) -> str:
    gate, up = (net.matmul(y, hidden, 48, name=f"{name}{i}") for name in ("gate", "up"))
    return net.matmul(net("Mul", net("QuickGelu", gate, alpha=1.0, domain=MS), up), 48, hidden, name=f"down{i}")


def test_decoder_of_genai() -> None:
    """Caches pin key heads and widths; the residual stream, shares of query heads and inner widths are free."""
    got = check(decoder(), groups=5, free={
        "embed:1": "32", "n:0": "32", "q0:1": "([2] 2 ([8] + [8]))", "o0:0": "([2] 2 2 [8])", "o0:1": "32",
        "gate1:1": "48", "up1:1": "48", "down1:0": "48", "head:0": "32", "attention0:0": "32", "mlp1:0": "32",
    }, pinned={"k0:1": "graph", "v1:1": "graph", "cos:1": ""})
    shares = next(g.dim for g in got.coupling.groups if g.name.startswith("q0"))
    assert attributes(got.pruned({shares: np.array([1])}), "GroupQueryAttention") == {"num_heads": 2, "kv_num_heads": 2}
