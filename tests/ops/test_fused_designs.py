"""Designs of fused and quantised nodes: rows of real inputs times the real matrix is what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import contributed as own
import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net, _Onnxruntime, _Reference, solved
from quantised import into, scales, whole, zeros

from graphprune.consumers import Consumer, consumers
from graphprune.groups import Coupling
from graphprune.model import all_values
from graphprune.ops import DESIGNS
from graphprune.ops.designs import everywhere

MS = "com.microsoft"


def before(net: Net, axes: int = 2) -> str:
    """A layer of 6 channels, with one axis of positions for every axis more."""
    if axes == 4:
        return str(net("Relu", net.conv(net.input("x", [None, 2, 6, 5]), 2, 6, name="a")))
    return str(net("Relu", net.matmul(net.input("x", [None, 4, 5] if axes == 3 else [None, 5]), 5, 6, name="a")))


def around(net: Net, made: Callable[[Net], str]) -> tuple[ir.Model, Coupling, Consumer]:
    model, coupling = solved(net.output(made(net)))
    (one,) = (c for c in consumers(coupling).found if c.weight == "b")
    return model, coupling, one


def computed(model: ir.Model, coupling: Coupling, one: Consumer, runner: Any = None) -> tuple[Any, Any]:
    """Return rows times matrix, and what the model puts out."""
    (given,) = model.graph.inputs
    assert given.shape is not None
    sizes = [3, *[n if isinstance(n, int) else 4 for n in given.shape[1:]]]
    feed = {"x": np.random.default_rng(3).standard_normal(sizes).astype(np.float32)}
    watched = model.clone()
    watched.graph.outputs.insert(0, all_values(watched)[one.data])
    (values,) = (runner or _Onnxruntime())(watched, {"": feed})
    data, out = list(values.values())[:2]
    weight = coupling.graph.weights["b"].read()
    rows = one.design.rows(one.source.real(data), everywhere)
    return rows @ one.design.matrix(weight), out


def fused_matmul(net: Net) -> str:
    return str(net("FusedMatMul", before(net, 3), net.weight(6, 5, name="b"), alpha=0.3, domain=MS))


def fused_matmul_turned(net: Net) -> str:
    return str(net("FusedMatMul", before(net, 3), net.weight(5, 6, name="b"), alpha=2.0, transB=1, domain=MS))


def fused_matmul_swapped(net: Net) -> str:
    x = net("Transpose", before(net, 3), perm=[0, 2, 1])
    return str(net("FusedMatMul", x, net.weight(6, 5, name="b"), transA=1, domain=MS))


@pytest.mark.parametrize("made", [fused_matmul, fused_matmul_turned, fused_matmul_swapped])
def test_fused_products(made: Callable[[Net], str]) -> None:
    model, coupling, one = around(Net(), made)
    product, out = computed(model, coupling, one)
    assert one.design.answers is not None
    assert np.allclose(product, one.design.answers(out, everywhere), atol=1e-4)
    weight = coupling.graph.weights["b"].read()
    assert np.allclose(one.design.weights(one.design.matrix(weight), weight.shape), weight)


def fused_gemm(net: Net) -> str:
    operands = before(net), net.weight(5, 6, name="b"), net.const(np.zeros(5))
    return str(net("FusedGemm", *operands, transB=1, activation="Relu", domain=MS))


def fused_conv(net: Net) -> str:
    operands = before(net, 4), net.weight(5, 6, 3, 3, name="b"), net.const(np.zeros(5))
    return str(net("FusedConv", *operands, pads=[1] * 4, activation="Relu", domain=MS))


@pytest.mark.parametrize("made", [fused_gemm, fused_conv])
def test_activations(made: Callable[[Net], str]) -> None:
    """What is put out is no product, so there are no answers; without the activation it is one."""
    model, coupling, one = around(Net(), made)
    product, out = computed(model, coupling, one)
    assert one.design.answers is None and one.design.bias == 2
    flat = out if out.ndim == 2 else np.moveaxis(out.reshape(*out.shape[:2], -1), 1, -1).reshape(-1, 5)
    assert np.allclose(np.maximum(product[0], 0), flat, atol=1e-4)


def nhwc_conv(net: Net) -> str:
    x = net("Transpose", before(net, 4), perm=[0, 2, 3, 1])
    return str(net("NhwcConv", x, net.weight(5, 3, 3, 6, name="b"), domain=MS))


def nhwc_fused_conv(net: Net) -> str:
    x = net("Transpose", before(net, 4), perm=[0, 2, 3, 1])
    return str(net("NhwcFusedConv", x, net.weight(5, 6, 3, 3, name="b"), activation="Relu", domain=MS))


@pytest.mark.parametrize("made", [nhwc_conv, nhwc_fused_conv])
def test_channels_last(made: Callable[[Net], str]) -> None:
    model, coupling, one = around(Net(), made)
    product, out = computed(model, coupling, one, _Reference([own.NhwcConv, own.NhwcFusedConv]))
    if one.design.answers is not None:
        assert np.allclose(product, one.design.answers(out, everywhere), atol=1e-4)
    assert np.allclose(product[0] if made is nhwc_conv else np.maximum(product[0], 0), out.reshape(-1, 5), atol=1e-4)
    weight = coupling.graph.weights["b"].read()
    assert np.array_equal(one.design.weights(one.design.matrix(weight), weight.shape), weight)
    assert one.columns == 9 and one.axis.size == 6


def result(net: Net, scale: float = 0.1) -> tuple[str, str]:
    return net.const(np.float32(scale)), zeros(net, dtype=np.uint8)


def linear_conv(net: Net) -> str:
    out = result(net)
    weight = whole(net, 5, 6, 3, 3, name="b"), scales(net, 5), net.const(np.zeros(5), np.int8)
    return str(net("DequantizeLinear", net("QLinearConv", *into(net, before(net, 4)), *weight, *out), *out))


def linear_matmul(net: Net) -> str:
    out = result(net)
    weight = whole(net, 6, 5, name="b"), scales(net, 5), net.const(np.zeros(5), np.int8)
    return str(net("DequantizeLinear", net("QLinearMatMul", *into(net, before(net, 3)), *weight, *out), *out))


def linear_gemm(net: Net) -> str:
    weight = whole(net, 5, 6, name="b"), scales(net, 5), net.const(np.zeros(5), np.int8)
    return str(net("QGemm", *into(net, before(net)), *weight, transB=1, domain=MS))


def dynamic(net: Net, *weight: int, op: str = "MatMulInteger", axes: int = 3) -> str:
    value, scale, zero = net("DynamicQuantizeLinear", before(net, axes), n=3)
    y = net(op, value, whole(net, *weight, name="b"), zero)
    factor = net("Mul", scale, net.const(np.float32(0.02)))
    return str(net("Mul", net("Cast", y, to=1), factor))


def dynamic_conv(net: Net) -> str:
    return dynamic(net, 5, 6, 3, 3, op="ConvInteger", axes=4)


def dynamic_matmul(net: Net) -> str:
    return dynamic(net, 6, 5)


def integer_to_float(net: Net) -> str:
    value, scale, zero = into(net, before(net, 3))
    weight = whole(net, 6, 5, name="b"), scale, scales(net, 5), zero, net.const(np.zeros(5), np.int8)
    return str(net("MatMulIntegerToFloat", value, *weight, domain=MS))


def dynamic_product(net: Net) -> str:
    weight = whole(net, 6, 5, name="b"), scales(net, 5), net.const(np.zeros(5), np.int8)
    return str(net("DynamicQuantizeMatMul", before(net, 3), *weight, domain=MS))


def read_back(net: Net) -> str:
    """What QDQ files have."""
    value, scale, zero = into(net, before(net, 3))
    weight = net("DequantizeLinear", whole(net, 6, 5, name="b"), net.const(np.float32(0.02)), zeros(net))
    return str(net("MatMul", net("DequantizeLinear", value, scale, zero), weight))


QUANTISED = [
    linear_conv, linear_matmul, linear_gemm, dynamic_conv, dynamic_matmul, integer_to_float, dynamic_product, read_back,
]


@pytest.mark.parametrize("made", QUANTISED)
def test_quantised_layers_read_real_numbers(made: Callable[[Net], str]) -> None:
    """Up to the rounding of inputs and results to 8 bits."""
    model, coupling, one = around(Net(17), made)
    product, out = computed(model, coupling, one)
    assert one.frozen
    positions = out if out.ndim < 4 else np.moveaxis(out.reshape(*out.shape[:2], -1), 1, -1)
    answers = positions.reshape(-1, out.shape[1] if out.ndim == 4 else out.shape[-1])
    inside = np.abs(answers) < 12  # results of more than 8 bits are cut off
    assert inside.mean() > 0.2
    assert np.abs(product[0] - answers)[inside].max() < 0.15


def test_queries_keys_and_values_of_integers() -> None:
    net = Net(17)
    value, scale, zero = into(net, before(net, 3))
    operands = whole(net, 6, 24, name="b"), net.weight(24), scale, scales(net), "", zero, zeros(net)
    net.output(net.matmul(net("QAttention", value, *operands, num_heads=2, domain=MS), 8, 3))
    (one,) = (c for c in consumers(solved(net)[1]).found if c.weight == "b")
    assert one.frozen and one.design.bias == 2 and one.source.scale == pytest.approx(0.05)


@pytest.mark.parametrize(("operator", "shapes", "attributes"), [
    ("FusedMatMul", [(4, 6), (6, 5)], {"transBatchA": 1}), ("FusedMatMul", [(4, 6), (3, 6, 5)], {}),
    ("FusedMatMul", [(4, 6), (6, 5)], {"alpha": 0.0}), ("FusedGemm", [(4, 6), (6, 5)], {"beta": 2.0}),
    ("QLinearConv", [(1, 6, 6, 4), (), (), (5, 4, 3, 3)], {"channels_last": 1}),
])
def test_what_is_no_plain_product_has_no_design(operator: str, shapes: Any, attributes: dict[str, Any]) -> None:
    rule = DESIGNS.get(MS, operator, 1)
    assert rule is not None and rule(attributes, shapes, 1) is None


def test_recurrences_that_are_quantised_when_they_run() -> None:
    net = Net(17)
    x = net("Tanh", net.matmul(net.input("x", [4, 2, 5]), 5, 7, name="a"))
    pairs = [n for _ in "wr" for n in (scales(net, 2), net.const(np.zeros(2), np.int8))]
    y, _, _ = net("DynamicQuantizeLSTM", x, whole(net, 2, 7, 24, name="b"), whole(net, 2, 6, 24), "", "", "", "", "",
                  *pairs, n=3, domain=MS, hidden_size=6, direction="bidirectional")
    _, coupling = solved(net.output(net("ReduceSum", y)))
    (one,) = (c for c in consumers(coupling).found if c.weight == "b")
    weight = coupling.graph.weights["b"].read()
    matrix = one.design.matrix(weight)
    assert one.frozen and matrix.shape == (1, 7, 48) and one.axis.size == 7
    assert np.array_equal(matrix[0, 3, :24], weight[0, 3]) and np.array_equal(matrix[0, 3, 24:], weight[1, 3])
    assert np.array_equal(one.design.weights(matrix, weight.shape), weight)
