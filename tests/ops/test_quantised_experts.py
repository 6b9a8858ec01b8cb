"""QMoE: inner widths, the width outside and whole experts, in whole bytes and blocks, as the CPU kernel runs it."""

from __future__ import annotations

from typing import Any

import contributed as own
import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net, _Onnxruntime, _Reference, check, solved

MS = "com.microsoft"
TOKENS, WIDTH, INNER, EXPERTS, IN = 6, 64, 96, 4, 5


def matrix(net: Net, rows: int, columns: int, bits: int, block: int, zeros: bool, name: str) -> list[str]:
    """Add weight, scales, bias and zero points of all experts."""
    weight = net.const(net.rng.integers(0, 256, (EXPERTS, rows, columns * bits // 8)), np.uint8, name)
    counted = (EXPERTS, rows, columns // block) if block else (EXPERTS, rows)
    scale = net.const(net.rng.uniform(0.5, 1.5, counted) / 2**bits, np.float32, f"{name}.s")
    packed = (*counted[:-1], -(-counted[-1] * bits // 8))
    point = net.const(net.rng.integers(0, 256, packed), np.uint8, f"{name}.z") if zeros else ""
    return [weight, scale, net.weight(EXPERTS, rows, name=f"{name}.b"), point]


def exact(bits: int, block: int) -> Any:
    """Return who judges: with 8 bits in blocks the kernel rounds its inputs to 8 bits, too, so numpy does."""
    return [own.QMoE] if bits == 8 and block else False


def mixture(net: Net, *, bits: int = 4, block: int = 0, zeros: bool = False, fused: int = 0, gate: bool = False,
            weighed: bool = False, **extra: Any) -> Net:
    x = net.matmul(net.input("x", [TOKENS, IN]), IN, WIDTH, name="a")
    router = net.matmul(x, WIDTH, EXPERTS, name="r")
    up = matrix(net, INNER * (2 if fused else 1), WIDTH, bits, block, zeros, "up")
    down = matrix(net, WIDTH, INNER, bits, block, zeros, "down")
    third = matrix(net, INNER, WIDTH, bits, block, zeros, "gate") if gate else [""] * 4
    operands = [x, router, *up[:3], *down[:3], *third[:3], up[3], down[3], third[3]]
    operands += [net("Sigmoid", net.matmul(x, WIDTH, EXPERTS, name="v"))] if weighed else []
    while not operands[-1]:
        operands.pop()
    attributes = {"expert_weight_bits": bits, "k": 2, **extra}
    attributes |= {"block_size": block} if block else {}
    attributes |= {"activation_type": "swiglu", "swiglu_fusion": fused} if fused else {}
    y = net("QMoE", *operands, domain=MS, **attributes)
    return net.output(net.matmul(net("Add", x, y), WIDTH, 3, name="o"))


@pytest.mark.parametrize(("bits", "each"), [(8, 1), (4, 2), (2, 4)])
def test_a_scale_for_every_row(bits: int, each: int) -> None:
    """Widths go in whole bytes; whole experts go, too."""
    net = mixture(Net(), bits=bits, activation_type="relu")
    wide, inner = ("64", "96") if each == 1 else (f"({WIDTH // each} [{each}])", f"({INNER // each} [{each}])")
    got = check(net, groups=3, tolerance=1e-3, free={
        "a:1": wide, "r:1": "4", "up:0": "4", "up:1": inner, "up:2": str(WIDTH // each), "up.s:1": inner,
        "up.b:1": inner, "down:1": wide, "down:2": str(INNER // each), "down.s:1": wide, "o:0": wide,
    })
    assert got.macs("QMoE") == TOKENS * 2 * 2 * WIDTH * INNER
    assert {g.size: g.least for g in got.coupling.groups} == {WIDTH // each: 1, INNER // each: 1, EXPERTS: 2}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_scale_for_every_block(bits: int) -> None:
    net = mixture(Net(), bits=bits, block=16, activation_type="silu")
    inside = "[16]" if bits == 8 else f"([{16 * bits // 8}] [{8 // bits}])"
    got = check(net, groups=3, tolerance=1e-3, free=["a:1", "up.s:2", "down.s:2", "up:1", "down:1", "up:0"],
                reference=exact(bits, 16))
    assert (got.axis("up.s:2"), got.axis("down.s:2"), got.axis("a:1").replace("(", "").replace(")", "")) == (
        "4", "6", f"4 {inside}".replace("(", "").replace(")", ""))
    assert not got.coupling.dims[got.group("down.s:2")].normalised
    thin = got.pruned({got.group("down.s:2"): np.array([0, 3]), got.group("up.s:2"): np.array([1])})
    sizes = {t.name: list(t.dims) for t in thin.graph.initializer}
    assert sizes["up"] == [4, 32, 16 * bits // 8] and sizes["down"] == [4, 16, 32 * bits // 8]


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("bits", [8, 4])
def test_zero_points_share_bytes(bits: int, block: int) -> None:
    """Without blocks they lie row beside row, with blocks block beside block."""
    net = mixture(Net(), bits=bits, block=block, zeros=True, activation_type="gelu")
    got = check(net, groups=3, tolerance=1e-3, free=["a:1", "up:1", "up.s:1", "down.s:1"],
                reference=exact(bits, block))
    assert (got.group("down.s:2").size if block else got.group("down:2").size) == {
        (8, 0): 96, (4, 0): 48, (8, 16): 6, (4, 16): 3}[bits, block]


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_gate_in_the_same_matrix(bits: int, block: int) -> None:
    """The kernel knows gate and value in pairs."""
    net = mixture(Net(), bits=bits, block=block, fused=1, normalize_routing_weights=1)
    got = check(net, groups=3, tolerance=1e-3, free=["up:1", "down:1", "a:1", "r:1"], reference=exact(bits, block))
    assert got.axis("up:1").endswith("2)")
    assert got.macs("QMoE") == TOKENS * 2 * 3 * WIDTH * INNER


@pytest.mark.parametrize("extra", [
    {"gate": True, "activation_type": "silu"}, {"fused": 2}, {"gate": True, "zeros": True},
])
@pytest.mark.parametrize("block", [0, 16])
def test_gates_that_the_kernel_does_not_know(block: int, extra: dict[str, Any]) -> None:
    got = check(mixture(Net(), block=block, **extra), groups=3, tolerance=1e-3, reference=[own.QMoE])
    assert got.macs("QMoE") == TOKENS * 2 * 3 * WIDTH * INNER


def test_bits_of_each_matrix() -> None:
    """Every matrix may have its own number of bits."""
    net = Net()
    x = net.matmul(net.input("x", [TOKENS, IN]), IN, WIDTH, name="a")
    up, down = matrix(net, INNER, WIDTH, 8, 0, False, "up"), matrix(net, WIDTH, INNER, 4, 0, False, "down")
    y = net("QMoE", x, net.matmul(x, WIDTH, EXPERTS, name="r"), *up[:3], *down[:3], domain=MS, k=1,
            expert_weight_bits=8, fc2_expert_weight_bits=4)
    check(net.output(net.matmul(y, WIDTH, 3)), groups=3, tolerance=1e-3, free={"up:2": "64", "down:2": "48"},
          reference=[own.QMoE])


def test_experts_that_are_weighed_apart() -> None:
    got = check(mixture(Net(), weighed=True, block=16), groups=3, tolerance=1e-3, free={"r:1": "4", "v:1": "4"})
    assert got.group("r:1") == got.group("v:1")


@pytest.mark.parametrize("extra", [{"weights_prepacked": 1}, {"quant_type": "nvfp4"}])
def test_other_layouts_pin_the_widths(extra: dict[str, Any]) -> None:
    """Whole experts may go; which bytes belong to which channel is not told."""
    _, coupling = solved(mixture(Net(), **extra))
    assert [g.size for g in coupling.groups] == [EXPERTS]
    reasons = {place: reason for place, reason, _ in coupling.pins()}
    assert all("layout of the weights" in reasons[place] for place in ("a:1", "up:1", "down:2", "up.s:1"))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_numpy_and_scores_read_what_onnxruntime_reads(bits: int, block: int, zeros: bool) -> None:
    model, coupling = solved(mixture(Net(), bits=bits, block=block, zeros=zeros, fused=1))
    feeds = {"x": {"x": np.random.default_rng(3).standard_normal((TOKENS, IN)).astype(np.float32)}}
    (left,), (right,) = (runner(model, feeds) for runner in (_Onnxruntime(), _Reference([own.QMoE])))
    assert isinstance(model, ir.Model)
    for name, value in left.items():
        assert np.abs(value - right[name]).max() < (2e-2 if exact(bits, block) else 1e-4) * np.abs(value).max()
    weights = {k: t.const_value.numpy() for k, t in model.graph.initializers.items() if t.const_value is not None}
    evaluated = own.QMoE.matrix
    for which, name in enumerate(("up", "down")):
        given = {"expert_weight_bits": bits, "block_size": block}
        node = type("Node", (), {"get": lambda self, key, default, given=given: given.get(key, default)})()
        real = evaluated(node, which, weights[name], weights[f"{name}.s"], weights.get(f"{name}.z"))
        assert np.allclose(coupling.graph.weights[name].read().reshape(real.shape), real, atol=1e-5)
