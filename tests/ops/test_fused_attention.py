"""Attention and rotary embedding of com.microsoft; onnxruntime runs them, numpy where it has no kernel."""

from __future__ import annotations

from typing import Any

import contributed as own
import numpy as np
import onnx
import pytest
from oracles import Checked, Net, check

MS = "com.microsoft"
IN = 5


def tokens(net: Net, length: Any = "s", batch: Any = None) -> str:
    return net.input("x", [batch, length, IN])


def projected(net: Net, x: str, *widths: int, names: str = "qkv") -> list[str]:
    return [net.matmul(x, IN, n, name=name) for name, n in zip(names, widths, strict=True)]


def ends(net: Net, y: str, width: int) -> Net:
    return net.output(net.matmul(y, width, 3, name="o"))


def attributes(model: onnx.ModelProto, operator: str) -> dict[str, Any]:
    (node,) = [n for n in model.graph.node if n.op_type == operator]
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def less(got: Checked, place: str, *sizes: int) -> onnx.ModelProto:
    """Return the model with so many indices of each factor of a weight's axis, the first ones."""
    dims = [g.dim for g in got.coupling.groups if any(f"{o.initializer}:{o.axis}" == place for o in g.occurrences)]
    chosen = {d: np.arange(n) for d, n in zip(dims, sizes, strict=True)}
    return got.pruned(chosen)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}, {"scale": 0.3}], ids=lambda e: " ".join(e) or "plain")
def test_attention(extra: dict[str, Any], bias: bool) -> None:
    """One matrix for queries, keys and values: heads, and two widths. Without a bias, onnxruntime's own crashes."""
    net = Net()
    w = net.weight(8, 36, name="w")
    operands = [net.matmul(tokens(net), IN, 8, name="a"), w, *([net.weight(36, name="b")] if bias else [])]
    y = net("Attention", *operands, num_heads=3, domain=MS, **extra)
    axis = "((3 4) + (3 4) + (3 4))"
    free = {"a:1": "8", "w:0": "8", "w:1": axis, "o:0": "(3 4)", **({"b:0": axis} if bias else {})}
    got = check(ends(net, y, 12), groups=4, free=free, reference=False if bias else [own.Attention])
    assert got.macs("Attention") == 16 * 8 * 36 + 16 * 16 * 24


def test_attention_follows() -> None:
    """Head counts and widths are told; the scale stays what it was."""
    net = Net()
    y = net("Attention", tokens(net), net.weight(IN, 36, name="w"), net.weight(36), num_heads=3, domain=MS)
    got = check(ends(net, y, 12), groups=3)
    assert attributes(less(got, "w:1", 2, 3, 4), "Attention") == {
        "num_heads": 2, "qkv_hidden_sizes": [6, 6, 8], "scale": pytest.approx(0.5)
    }
    assert attributes(less(got, "w:1", 2, 4, 4), "Attention") == {"num_heads": 2}


def test_attention_with_other_values() -> None:
    """Values may be wider than queries."""
    net = Net()
    y = net("Attention", tokens(net), net.weight(IN, 42, name="w"), net.weight(42, name="b"), num_heads=3,
            qkv_hidden_sizes=[12, 12, 18], domain=MS)
    got = check(ends(net, y, 18), groups=3, free={"w:1": "((3 4) + (3 4) + (3 6))", "o:0": "(3 6)"})
    model = less(got, "w:1", 3, 2, 5)
    assert attributes(model, "Attention")["qkv_hidden_sizes"] == [6, 6, 15]
    assert got.macs("Attention") == 16 * IN * 42 + 16 * 16 * (12 + 18)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 6), (2,)])
def test_mask(shape: tuple[int, ...]) -> None:
    net = Net()
    mask = net.input("mask", shape, np.int32, between=(3, 7) if len(shape) == 1 else (0, 2))
    y = net("Attention", tokens(net, 6, 2), net.weight(IN, 36, name="w"), net.weight(36), mask, num_heads=3, domain=MS)
    check(ends(net, y, 12), groups=3, free={"w:1": "((3 4) + (3 4) + (3 4))"})


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("operator", ["Attention", "MultiHeadAttention"])
def test_bias_of_scores(operator: str, heads: int) -> None:
    """What is added to the scores has one matrix for each head, or one for all."""
    net = Net()
    x, added = tokens(net, 6, 2), net.weight(1, heads, 6, 6, name="r")
    if operator == "Attention":
        y = net(operator, x, net.weight(IN, 36, name="w"), net.weight(36), "", "", added, num_heads=3, domain=MS)
    else:
        y = net(operator, *projected(net, x, 12, 12, 12), "", "", added, num_heads=3, domain=MS)
    got = check(ends(net, y, 12), groups=3, free={"o:0": "(3 4)"}, pinned={"r:2": "positions", "r:3": "positions"})
    assert heads == 1 or got.axis("r:1") == "3"


def test_past_inside_attention() -> None:
    """Keys and values of the past lie in one value; all widths are the same then."""
    net = Net()
    past = net.weight(2, 2, 3, 4, 4, name="p")
    y, present = net("Attention", tokens(net, 6, 2), net.weight(IN, 36, name="w"), net.weight(36), "", past, n=2,
                     num_heads=3, unidirectional=1, domain=MS)
    net.output(net("ReduceMean", present, axes=[0, 2, 4], keepdims=0))
    got = check(ends(net, y, 12), groups=2, free={"w:1": "((3 4) + (3 4) + (3 4))", "p:2": "3", "p:4": "4"})
    assert got.macs("Attention") == 12 * IN * 36 + 2 * 12 * 12 * 10


def test_past_as_input() -> None:
    net = Net()
    past = net.input("past", [2, 2, 3, 4, 4])
    y, present = net("Attention", tokens(net, 6, 2), net.weight(IN, 36, name="w"), net.weight(36), "", past, n=2,
                     num_heads=3, unidirectional=1, domain=MS)
    check(ends(net, y, 12).output(present), groups=0, pinned={"w:1": "graph"})


def test_rotary_inside_attention_pins_the_width() -> None:
    """Angles depend on the place in the head."""
    net = Net()
    y = net("Attention", tokens(net, 6, 2), net.weight(IN, 3 * 64, name="w"), net.weight(3 * 64), num_heads=2,
            do_rotary=1, unidirectional=1, domain=MS)
    net.output(net.matmul(y, 64, 3, name="o"))
    check(net, free={"w:1": "((2 [32]) + (2 [32]) + (2 32))"}, reference=[own.Attention])


def test_packed_attention() -> None:
    """Tokens of all samples lie on one axis."""
    net = Net()
    a = net.gemm(net.input("x", [7, IN]), IN, 8, name="a")
    places, ends_at = net.const(np.arange(8).reshape(2, 4), np.int32), net.const([0, 3, 7], np.int32)
    y = net("PackedAttention", a, net.weight(8, 36, name="w"), net.weight(36, name="b"), places, ends_at,
            num_heads=3, domain=MS)
    axis = "((3 4) + (3 4) + (3 4))"
    free = {"a:0": "8", "w:0": "8", "w:1": axis, "b:0": axis, "o:0": "(3 4)"}
    got = check(ends(net, y, 12), groups=4, free=free, reference=[own.PackedAttention])
    assert got.macs("PackedAttention") == 7 * 8 * 36 + 7 * 7 * 24


def test_decoder_self_attention() -> None:
    """The cache lies in an order that depends on the width, which is pinned; heads are free."""
    net = Net()
    past = net.weight(2, 2, 3, 4, 4, name="p")
    y, present = net("DecoderMaskedSelfAttention", net.matmul(tokens(net, 1, 2), IN, 8, name="a"),
                     net.weight(8, 36, name="w"), net.weight(36, name="b"), "", past, n=2, num_heads=3, domain=MS)
    net.output(net("ReduceMean", present, axes=[0, 2, 4], keepdims=0))
    axis = "((3 [4]) + (3 [4]) + (3 [4]))"
    check(ends(net, y, 12), groups=2, free={"a:1": "8", "w:1": axis, "b:0": axis, "p:2": "3"},
          pinned={"p:4": "layout depends"}, reference=[own.DecoderMaskedSelfAttention])


def before(extra: dict[str, Any]) -> dict[str, Any]:
    return {k: pytest.approx(v) for k, v in extra.items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}, {"scale": 0.3}], ids=lambda e: " ".join(e) or "plain")
def test_multi_head(extra: dict[str, Any], bias: bool) -> None:
    net = Net()
    operands = projected(net, tokens(net), 12, 12, 18)
    operands += [net.weight(42, name="b")] if bias else []
    y = net("MultiHeadAttention", *operands, num_heads=3, domain=MS, **extra)
    free = {"q:1": "(3 4)", "k:1": "(3 4)", "v:1": "(3 6)", "o:0": "(3 6)"}
    got = check(ends(net, y, 18), groups=3, free={**free, **({"b:0": "((3 4) + (3 4) + (3 6))"} if bias else {})})
    assert got.macs("MultiHeadAttention") == 16 * 16 * (12 + 18)
    assert attributes(less(got, "v:1", 2, 5), "MultiHeadAttention") == {"num_heads": 2, **before(extra)}
    assert attributes(less(got, "q:1", 2, 3), "MultiHeadAttention") == {"num_heads": 2, "scale": 0.5, **before(extra)}


def test_stacked_inputs() -> None:
    """Queries, keys and values of a head side by side in one input."""
    net = Net()
    y = net("Reshape", net.matmul(tokens(net), IN, 36, name="w"), net.ints(0, 0, 3, 3, 4))
    y = net("MultiHeadAttention", y, num_heads=3, domain=MS)
    got = check(ends(net, y, 12), groups=2, free={"w:1": "(3 [3] 4)", "o:0": "(3 4)"},
                reference=[own.MultiHeadAttention])
    assert got.macs("MultiHeadAttention") == 16 * 16 * 24


def test_stacked_keys() -> None:
    net = Net()
    q, kv = projected(net, tokens(net), 12, 24, names="qw")
    y = net("MultiHeadAttention", q, net("Reshape", kv, net.ints(0, 0, 3, 2, 4)), num_heads=3, domain=MS)
    check(ends(net, y, 12), groups=2, free={"q:1": "(3 4)", "w:1": "(3 [2] 4)"}, reference=[own.MultiHeadAttention])


def heads_first(net: Net, y: str, heads: int = 3) -> str:
    return str(net("Transpose", net("Reshape", y, net.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3]))


def test_cross_attention() -> None:
    """Keys and values with heads before positions, as decoders hand on those of the encoder, are equally wide."""
    net = Net()
    q, k, v = projected(net, tokens(net), 12, 12, 12)
    y = net("MultiHeadAttention", q, heads_first(net, k), heads_first(net, v), num_heads=3, domain=MS)
    got = check(ends(net, y, 12), groups=2, free={"q:1": "(3 4)", "k:1": "(3 4)", "v:1": "(3 4)"})
    assert got.macs("MultiHeadAttention") == 16 * 16 * 24


def test_padding() -> None:
    net = Net()
    q, k, v = projected(net, tokens(net, 6, 2), 12, 12, 12)
    mask = net.input("mask", [2, 6], np.int32, between=(0, 2))
    y = net("MultiHeadAttention", q, k, v, "", mask, num_heads=3, domain=MS)
    check(ends(net, y, 12), groups=3, free={"q:1": "(3 4)"})


def test_caches_inside() -> None:
    """With caches, values are as wide as keys."""
    net = Net()
    q, k, v = projected(net, tokens(net, 6, 2), 12, 12, 12)
    past = [net.weight(2, 3, 4, 4, name=name) for name in ("pk", "pv")]
    y, *present = net("MultiHeadAttention", q, k, v, "", "", "", *past, n=3, num_heads=3, domain=MS)
    net.output(*[net("ReduceMean", p, axes=[1, 3], keepdims=0) for p in present])
    got = check(ends(net, y, 12), groups=2, free={"q:1": "(3 4)", "v:1": "(3 4)", "pk:1": "3", "pv:3": "4"})
    assert got.macs("MultiHeadAttention") == 2 * 6 * 10 * 24


def test_attention_weights_outside_pin_the_heads() -> None:
    net = Net()
    operands = projected(net, tokens(net, 6, 2), 12, 12, 12)
    y, _, _, weights = net("DecoderMaskedMultiHeadAttention", *operands, n=4, num_heads=3, output_qk=1, domain=MS)
    check(ends(net, y, 12).output(weights), groups=0, pinned={"q:1": "used outside"})


@pytest.mark.parametrize("bias", [False, True])
def test_decoder_attention_over_an_encoder(bias: bool) -> None:
    """One token; the width is pinned, as caches on some devices lie in an order that depends on it."""
    net = Net()
    x = tokens(net, 1, 2)
    memory = net.input("m", [2, 6, IN])
    q = net.matmul(x, IN, 12, name="q")
    k, v = (heads_first(net, net.matmul(memory, IN, 12, name=name)) for name in "kv")
    operands = [q, k, v, *[""] * 7, net.weight(36, name="b")] if bias else [q, k, v]
    y = net("DecoderMaskedMultiHeadAttention", *operands, num_heads=3, domain=MS)
    got = check(ends(net, y, 12), free={"q:1": "(3 [4])", "k:1": "(3 [4])", "v:1": "(3 [4])"})
    assert got.macs("DecoderMaskedMultiHeadAttention") == 2 * 6 * 24


def test_decoder_attention_with_a_cache() -> None:
    net = Net()
    operands = projected(net, tokens(net, 1, 2), 12, 12, 12)
    past = [net.weight(2, 3, 8, 4, name=name) for name in ("pk", "pv")]
    filled = net.const([4], np.int32)
    y, *present = net("DecoderMaskedMultiHeadAttention", *operands, "", "", *past, filled, n=3, num_heads=3,
                      past_present_share_buffer=1, domain=MS)
    net.output(*[net("ReduceMean", p, axes=[1, 3], keepdims=0) for p in present])
    check(ends(net, y, 12), groups=1, free={"q:1": "(3 [4])", "pk:1": "3"}, pinned={"pk:3": "layout depends"})


def test_decoder_attention_of_one_matrix() -> None:
    net = Net()
    y = net.matmul(tokens(net, 1, 2), IN, 36, name="w")
    past = [net.weight(2, 3, 4, 4) for _ in range(2)]
    y = net("DecoderMaskedMultiHeadAttention", y, "", "", "", "", *past, num_heads=3, domain=MS)
    axis = "((3 [4]) + (3 [4]) + (3 [4]))"
    check(ends(net, y, 12), groups=1, free={"w:1": axis}, reference=[own.DecoderMaskedMultiHeadAttention])


@pytest.mark.parametrize("stacked", [False, True])
def test_packed_multi_head(stacked: bool) -> None:
    net = Net()
    x = net.input("x", [7, IN])
    places, ends_at = net.const(np.arange(8).reshape(2, 4), np.int32), net.const([0, 3, 7], np.int32)
    if stacked:
        operands = [net("Reshape", net.matmul(x, IN, 36, name="q"), net.ints(7, 3, 3, 4)), "", ""]
    else:
        operands = projected(net, x, 12, 12, 18)
    y = net("PackedMultiHeadAttention", *operands, "", places, ends_at, num_heads=3, domain=MS)
    free = {"q:1": "(3 [3] 4)"} if stacked else {"q:1": "(3 4)", "k:1": "(3 4)", "v:1": "(3 6)"}
    width = 12 if stacked else 18
    got = check(ends(net, y, width), groups=2 if stacked else 3, free=free, reference=[own.PackedMultiHeadAttention])
    assert got.macs("PackedMultiHeadAttention") == 7 * 7 * (12 + width)


@pytest.mark.parametrize("operator", ["LongformerAttention", "SparseAttention", "DecoderAttention",
                                      "RelativePositionBias", "GatedRelativePositionBias"])
def test_what_stays(operator: str) -> None:
    """Windows and blocks tell heads apart, widths are told by the input, tables lie the other way round."""
    net = Net()
    a = net.matmul(tokens(net, 6, 2), IN, 12, name="a")
    reason = "by position"
    if operator.endswith("PositionBias"):
        reason = "order of its own"
    net.output(net(operator, a, net.weight(12, 36, name="w"), net.weight(36),
                   num_heads=3, kv_num_heads=3, domain=MS))
    check(net, groups=0, pinned={"a:1": reason, "w:0": reason, "w:1": reason})
