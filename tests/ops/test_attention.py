"""Fused attention and rotary embedding; onnxruntime runs them, or onnx's reference does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check


def projections(net: Net, heads: int, shared: int, width: int = 4, value: int = 4, length: Any = "s") -> list[str]:
    x = net.input("x", [None, length, 5])
    sizes = {"q": heads * width, "k": shared * width, "v": shared * value}
    return [net.matmul(x, 5, n, name=name) for name, n in sizes.items()]


def split(net: Net, y: str, heads: int) -> str:
    return str(net("Transpose", net("Reshape", y, net.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3]))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("extra", [{}, {"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.3}], ids=" ".join)
@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (6, 2), (4, 1)])
def test_three_axes(heads: int, shared: int, extra: dict[str, Any], opset: int) -> None:
    net = Net(opset)
    q, k, v = projections(net, heads, shared, 4, 6)
    y = net("Attention", q, k, v, q_num_heads=heads, kv_num_heads=shared, **extra)
    net.output(net.matmul(y, heads * 6, 5, name="o"))
    query = {(3, 3): "(3 {})", (6, 2): "(2 3 {})", (4, 1): "(4 {})"}[heads, shared]
    key = {3: "(3 {})", 2: "(2 {})", 1: "{}"}[shared]
    got = check(net, free={"q:1": query.format(4), "k:1": key.format(4), "v:1": key.format(6), "o:0": query.format(6)})
    assert got.macs("Attention") == 16 * 16 * heads * (4 + 6)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (6, 2)])
def test_four_axes(heads: int, shared: int, opset: int) -> None:
    net = Net(opset)
    q, k, v = projections(net, heads, shared)
    y = net("Attention", split(net, q, heads), split(net, k, shared), split(net, v, shared))
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, heads * 4))
    net.output(net.matmul(y, heads * 4, 5, name="o"))
    got = check(net, groups=3 if heads == 3 else 4, free={"q:1": "(3 4)" if heads == 3 else "(2 3 4)"})
    assert got.macs("Attention") == 16 * 16 * heads * 8


@pytest.mark.parametrize("shape", [(6, 6), (1, 1, 6, 6), (1, 4, 6, 6), (2, 1, 6, 6), (2, 4, 6, 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_mask(dtype: Any, shape: tuple[int, ...]) -> None:
    net = Net(23)
    q, k, v = projections(net, 4, 4, length=6)
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 2
    mask = net.weight(*shape, name="mask") if dtype is np.float32 else net.const(net.rng.random(shape) > 0.2, np.bool_)
    y = net("Attention", q, k, v, mask, q_num_heads=4, kv_num_heads=4)
    got = check(net.output(net.matmul(y, 16, 5)), groups=3, free={"q:1": "(4 4)"})
    if dtype is np.float32 and len(shape) == 4 and shape[1] == 4:
        assert got.axis("mask:1") == "4"


def test_caches() -> None:
    """Keys and values of the past come in and go out: heads and widths are pinned, shares are free."""
    net = Net(23)
    q, k, v = projections(net, 6, 2)
    past = [net.input(n, [None, 2, "past", 4]) for n in ("past_k", "past_v")]
    y, *present = net("Attention", q, k, v, "", *past, n=3, q_num_heads=6, kv_num_heads=2)
    net.output(net.matmul(y, 24, 5, name="o"), *present)
    got = check(net, groups=1, free={"q:1": "([2] 3 [4])"}, pinned={"k:1": "graph", "v:1": "graph"})
    assert got.macs("Attention") == 16 * (16 + 8) * 6 * 8


def test_caches_inside() -> None:
    """A past and a present that stay in the graph: the second layer attends to the first one's keys."""
    net = Net(23)
    q, k, v = projections(net, 2, 2)
    memory = net.input("memory", [None, "m", 5])
    past = [split(net, net.matmul(memory, 5, 8, name=name), 2) for name in ("pk", "pv")]
    first, key, value = net("Attention", q, k, v, "", *past, n=3, q_num_heads=2, kv_num_heads=2)
    y = net("Attention", split(net, first, 2), key, value)
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
    check(net.output(net.matmul(y, 8, 5)), groups=2, free={"q:1": "(2 4)", "v:1": "(2 4)", "pk:1": "(2 4)"})


@pytest.mark.parametrize("partial", [0, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("axes", [3, 4])
def test_rotary(axes: int, interleaved: int, partial: int) -> None:
    """Pairs of a head's positions turn together; those of a partial turn are pinned, as their number is."""
    net = Net(23)
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 24, name="a")
    angles = np.linspace(0, 3, 2 * 6 * (partial or 8) // 2).reshape(2, 6, -1)
    tables = net.const(np.cos(angles), name="cos"), net.const(np.sin(angles), name="sin")
    attributes = {"interleaved": interleaved, **({"rotary_embedding_dim": partial} if partial else {})}
    if axes == 4:
        y = net("RotaryEmbedding", split(net, y, 3), *tables, **attributes)
        y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 24))
    else:
        y = net("RotaryEmbedding", y, *tables, num_heads=3, **attributes)
    pair = {(0, 0): "(4 + 4)", (0, 1): "4 2", (4, 0): "([2] + [2] + 4)", (4, 1): "(([2] 2) + 4)"}[partial, interleaved]
    got = check(net.output(net.matmul(y, 24, 4)), groups=2, free={"a:1": f"(3 {pair})"})
    if not partial:
        assert got.axis("cos:2") == got.axis("sin:2") == "4"


def test_rotary_of_the_whole_width_by_number() -> None:
    """The number of turned positions is given though it is all of them: it follows."""
    net = Net(23)
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 24, name="a")
    angles = np.linspace(0, 3, 6 * 4).reshape(6, 4)
    places = net.input("places", [2, 6], np.int64, between=(0, 6))
    tables = net.const(np.cos(angles)), net.const(np.sin(angles))
    y = net("RotaryEmbedding", y, *tables, places, num_heads=3, rotary_embedding_dim=8)
    check(net.output(net.matmul(y, 24, 4)), groups=2, free={"a:1": "(3 (4 + 4))"})


def test_rotary_without_a_number_of_heads_pins() -> None:
    net = Net(23)
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    angles = np.linspace(0, 3, 48).reshape(2, 6, 4)
    y = net("RotaryEmbedding", y, net.const(np.cos(angles)), net.const(np.sin(angles)))
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"a:1": ""}, reference=True)


def test_lengths_of_keys() -> None:
    """Opset 24 takes the number of valid keys of each sample."""
    net = Net(24)
    q, k, v = projections(net, 2, 2, length=6)
    lengths = net.input("lengths", ["batch"], np.int64, between=(3, 7))
    operands = [split(net, a, 2) for a in (q, k, v)]
    y = net("Attention", *operands, "", "", "", lengths)
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
    check(net.output(net.matmul(y, 8, 5)), groups=3, free={"q:1": "(2 4)", "k:1": "(2 4)", "v:1": "(2 4)"})


def test_attention_weights_outside_pin_the_heads() -> None:
    net = Net(23)
    q, k, v = projections(net, 2, 2)
    past = [net.input(n, ["batch", 2, "past", 4]) for n in ("past_k", "past_v")]
    y, _, _, weights = net("Attention", q, k, v, "", *past, n=4, q_num_heads=2, kv_num_heads=2, qk_matmul_output_mode=3)
    check(net.output(net.matmul(y, 8, 5), weights), groups=0, pinned={"q:1": ""})


@pytest.mark.parametrize("extra", ["none", "causal", "mask", "present", "past"])
def test_learned_keys(extra: str) -> None:
    """Keys and values that are weights: one of them may go unless its place matters."""
    net = Net(23)
    q = split(net, net.matmul(net.input("x", [2, 6, 5]), 5, 12, name="q"), 3)
    k, v = net.weight(2, 3, 6, 4, name="k"), net.weight(2, 3, 6, 4, name="v")
    mask = net.weight(6, 6, name="mask") if extra == "mask" else ""
    past = [net.weight(2, 3, 4, 4, name=n) for n in ("pk", "pv")] if extra == "past" else []
    y = net("Attention", q, k, v, mask, *past, **({"is_causal": 1} if extra == "causal" else {}),
            n=3 if extra in ("present", "past") else 1)
    if isinstance(y, tuple):
        y, *caches = y
        net.output(*[net("ReduceSum", c, net.ints(2)) for c in caches])
    net.output(net.matmul(net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 12)), 12, 5, name="o"))
    if extra in ("none", "present"):
        got = check(net, free={"k:2": "6", "v:2": "6"})
        assert got.group("k:2") is got.group("v:2")
    elif extra == "past":
        check(net, free={"k:2": "6"}, pinned={"pk:2": "positions of a cache", "pv:2": "positions of a cache"})
    else:
        check(net, pinned={"k:2": "which positions see which", "v:2": "which positions see which"})
