"""Mixtures of experts in one operator: inner widths, and whole experts.

Judged with numpy: onnxruntime 1.31 writes the output of its CPU kernel over an input that nothing else reads.
"""

from __future__ import annotations

from typing import Any

import contributed as own
import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net, _Onnxruntime, _Reference, check, solved

MS = "com.microsoft"
TOKENS, WIDTH, INNER, EXPERTS, IN = 6, 8, 12, 4, 5


def mixture(net: Net, *, fused: int = 0, gate: bool = False, bias: bool = True, shape: tuple[int, ...] = (TOKENS,),
            **extra: Any) -> None:
    x = net.matmul(net.input("x", [*shape, IN]), IN, WIDTH, name="a")
    router = net("Reshape", net.matmul(x, WIDTH, EXPERTS, name="r"), net.ints(-1, EXPERTS))
    rows = INNER * (2 if fused else 1)
    operands = [
        x, router, net.weight(EXPERTS, rows, WIDTH, name="up"), net.weight(EXPERTS, rows, name="up.b") if bias else "",
        net.weight(EXPERTS, WIDTH, INNER, name="down"), net.weight(EXPERTS, WIDTH, name="down.b") if bias else "",
    ]
    operands += [net.weight(EXPERTS, INNER, WIDTH, name="gate")] if gate else []
    operands += [net.weight(EXPERTS, INNER, name="gate.b")] if gate and bias else []
    y = net("MoE", *operands, domain=MS, **extra)
    net.output(net.matmul(net("Add", x, y), WIDTH, 3, name="o"))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
def test_experts(activation: str, bias: bool) -> None:
    """One inner width for all experts, the width outside, and experts themselves."""
    net = Net()
    mixture(net, bias=bias, activation_type=activation, k=2)
    free = {"a:1": "8", "r:1": "4", "up:0": "4", "up:1": "12", "up:2": "8"}
    free |= {"down:0": "4", "down:1": "8", "down:2": "12"}
    free |= {"up.b:0": "4", "up.b:1": "12", "down.b:1": "8"} if bias else {}
    got = check(net, groups=3, free=free, reference=[own.MoE])
    assert got.macs("MoE") == TOKENS * 2 * 2 * WIDTH * INNER


@pytest.mark.parametrize("shape", [(2, 3), ("b", "s"), ("t",)])
def test_tokens(shape: tuple[Any, ...]) -> None:
    """Samples and positions stand in one row for the router."""
    net = Net()
    mixture(net, k=1, shape=shape)
    check(net, groups=3, free={"up:1": "12", "r:1": "4"}, reference=[own.MoE])


@pytest.mark.parametrize("normalize", [0, 1])
def test_fused_gate(normalize: int) -> None:
    """Gate and value lie in pairs in one matrix."""
    net = Net()
    mixture(net, fused=1, activation_type="swiglu", swiglu_fusion=1, k=2, normalize_routing_weights=normalize)
    got = check(net, groups=3, free={"up:1": "(12 2)", "up.b:1": "(12 2)", "down:2": "12"}, reference=[own.MoE])
    assert got.macs("MoE") == TOKENS * 2 * 3 * WIDTH * INNER


def test_gate_behind_the_values() -> None:
    net = Net()
    mixture(net, fused=2, activation_type="swiglu", swiglu_fusion=2, k=2)
    check(net, groups=3, free={"up:1": "(12 + 12)", "up.b:1": "(12 + 12)"}, reference=[own.MoE])


def test_gate_of_its_own() -> None:
    net = Net()
    mixture(net, gate=True, k=2, activation_type="silu")
    free = {"up:1": "12", "gate:1": "12", "gate:2": "8", "gate.b:1": "12"}
    got = check(net, groups=3, free=free, reference=[own.MoE])
    assert got.macs("MoE") == TOKENS * 2 * 3 * WIDTH * INNER


@pytest.mark.parametrize("extra", [
    {"activation_type": "relu", "k": 2}, {"activation_type": "silu", "k": 1}, {"activation_type": "gelu", "k": 4},
    {"activation_type": "swiglu", "swiglu_fusion": 1, "fused": 1, "k": 2}, {"k": 2, "normalize_routing_weights": 1},
])
def test_numpy_says_what_onnxruntime_says(extra: dict[str, Any]) -> None:
    net = Net()
    mixture(net, **extra)
    model, _ = solved(net)
    feeds = {"x": {"x": np.random.default_rng(3).standard_normal((TOKENS, IN)).astype(np.float32)}}
    (left,), (right,) = (runner(model, feeds) for runner in (_Onnxruntime(), _Reference([own.MoE])))
    assert isinstance(model, ir.Model)
    for name, value in left.items():
        assert np.allclose(value, right[name], rtol=1e-3, atol=1e-3)


def test_no_fewer_experts_than_are_asked_for() -> None:
    net = Net()
    mixture(net, k=3)
    got = check(net, groups=3, reference=[own.MoE])
    assert {g.size: g.least for g in got.coupling.groups} == {WIDTH: 1, INNER: 1, EXPERTS: 3}
