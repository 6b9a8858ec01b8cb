"""Quantised numbers and integer arithmetic of ai.onnx."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from oracles import Net, check, solved
from quantised import around, into, scales, whole, zeros

NARROW = [np.int8, np.uint8]


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 25])
def test_one_scale_for_all(opset: int) -> None:
    net = Net(opset)
    weight = net("DequantizeLinear", whole(net, 5, 8, name="w"), net.const(np.float32(0.02)), zeros(net))
    y = around(net, net("Relu", net("MatMul", around(net, net.input("x", [None, 5])), weight)))
    got = check(net.output(net.matmul(y, 8, 4, name="v")), groups=1, free={"w:1": "8", "v:0": "8"})
    assert got.group("w:1") == got.group("v:0")


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("opset", "axis"), [(13, 1), (17, -1), (21, 1)])
def test_a_scale_for_every_channel(opset: int, axis: int, dtype: Any) -> None:
    net = Net(opset)
    weight = net("DequantizeLinear", whole(net, 5, 8, name="w", dtype=dtype), scales(net, 8, name="s"),
                 zeros(net, 8, dtype=dtype, name="z"), axis=axis)
    y = net("Relu", net("MatMul", net.input("x", [None, 5]), weight))
    got = check(net.output(net.matmul(y, 8, 4)), groups=1, free={"w:1": "8", "s:0": "8"})
    assert got.group("w:1") == got.group("s:0")
    (group,) = got.coupling.groups
    assert group.name == "w:1"


def test_scores_are_those_of_real_numbers() -> None:
    net = Net(17)
    integers, scale = np.ones((5, 4), np.int8), np.float32([1, 2, 3, 4])
    weight = net("DequantizeLinear", net.const(integers, np.int8, "w"), net.const(scale), axis=1)
    net.output(net.matmul(net("MatMul", net.input("x", [None, 5]), weight), 4, 3))
    _, coupling = solved(net)
    assert (coupling.graph.weights["w"].read() == integers * scale).all()


@pytest.mark.parametrize("node", [True, False])
def test_embedding(node: bool) -> None:
    """Rows are picked before they become real."""
    net = Net(17)
    ids = net.input("ids", [None, 6], np.int64, between=(0, 9))
    rows = net("Gather", whole(net, 9, 8, name="w"), ids)
    y = net("DequantizeLinear", rows, net.const(np.float32(0.02), node=node), zeros(net))
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"w:1": "8"}, pinned={"w:0": "indexed by data"})


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("group", [1, 3, 6])
def test_a_convolution_between(group: int, dtype: Any) -> None:
    net = Net(17)
    x = net.conv(around(net, net.input("x", [None, 2, 5, 5])), 2, 6, name="a")
    weight = net("DequantizeLinear", whole(net, 12, 6 // group, 3, 3, name="w"), scales(net, 12, name="s"), axis=0)
    y = net("Conv", around(net, x, dtype=dtype), weight, group=group)
    got = check(net.output(net.conv(around(net, y, 0.1), 12, 3)), free=["w:0", "a:0", "s:0"])
    assert got.axis("w:0") == got.axis("s:0") == {1: "12", 3: "(3 4)", 6: "(6 2)"}[group]


@pytest.mark.parametrize("opset", [21, 25])
def test_blocks(opset: int) -> None:
    net = Net(opset)
    x = net.matmul(net.input("x", [None, 5]), 5, 16, name="a")
    operands = whole(net, 16, 6, name="w"), scales(net, 4, 6, name="s"), whole(net, 4, 6, name="z")
    weight = net("DequantizeLinear", *operands, axis=0, block_size=4)
    y = net("MatMul", x, weight)
    check(net.output(net.matmul(y, 6, 4)), groups=2,
          free={"w:0": "(4 [4])", "a:1": "(4 [4])", "s:0": "4", "w:1": "6", "s:1": "6"})


def test_a_last_block_that_is_not_full_pins() -> None:
    net = Net(21)
    x = net.matmul(net.input("x", [None, 5]), 5, 14, name="a")
    weight = net("DequantizeLinear", whole(net, 14, 6, name="w"), scales(net, 4, 6), axis=0, block_size=4)
    net.output(net.matmul(net("MatMul", x, weight), 6, 4))
    check(net, groups=1, free={"w:1": "6"}, pinned={"w:0": "the last block is not full", "a:1": "not full"})


def test_quantised_in_blocks_as_it_runs() -> None:
    net = Net(21)
    x = net.matmul(net.input("x", [None, 5]), 5, 16, name="a")
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 2
    scale = scales(net, 2, 4, name="s")
    y = net("QuantizeLinear", x, scale, net.const(np.zeros((2, 4)), np.int8), axis=1, block_size=4)
    y = net("DequantizeLinear", y, scale, net.const(np.zeros((2, 4)), np.int8), axis=1, block_size=4)
    check(net.output(net.matmul(y, 16, 4)), groups=1, free={"a:1": "(4 [4])", "s:1": "4"}, reference=True)


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_four_bits(dtype: Any) -> None:
    """Numbers of four bits stay what they are when slots between them go."""
    net = Net(21)
    weight = net.rng.integers(0, 8, (5, 9)).astype(dtype)
    tensor = _tensor(weight, "w")
    net.initializers.append(tensor)
    real = net("DequantizeLinear", "w", scales(net, 9, name="s"), axis=1)
    y = net("Tanh", net("MatMul", net.input("x", [None, 5]), real))
    got = check(net.output(net.matmul(y, 9, 4)), groups=1, free={"w:1": "9", "s:0": "9"})
    pruned = got.pruned({got.group("w:1"): np.array([0, 3, 8])})
    (kept,) = [t for t in pruned.graph.initializer if t.name == "w"]
    assert kept.data_type == tensor.data_type
    assert (_array(kept) == weight[:, [0, 3, 8]]).all()


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_float8(dtype: Any) -> None:
    net = Net(19)
    net.initializers.append(_tensor(net.rng.standard_normal((5, 8)).astype(dtype), "w"))
    real = net("DequantizeLinear", "w", scales(net, 8, name="s"), axis=1)
    y = net("Relu", net("MatMul", net.input("x", [None, 5]), real))
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"w:1": "8", "s:0": "8"}, reference=True)


def _tensor(array: Any, name: str) -> Any:
    import onnx_ir as ir

    return ir.serde.serialize_tensor(ir.tensor(array, name=name))


def _array(tensor: Any) -> Any:
    import onnx_ir as ir

    return ir.serde.deserialize_tensor(tensor).numpy()


@pytest.mark.parametrize("zero", [True, False])
def test_spelled_out_by_cast_and_mul(zero: bool) -> None:
    net = Net(17)
    integers = net.rng.integers(-100, 100, (5, 8)).astype(np.int8)
    real = net("Cast", net.const(integers, np.int8, "w"), to=1)
    if zero:
        real = net("Sub", real, net.const(np.full((1, 8), 3.0), name="z"))
    real = net("Mul", real, scales(net, 1, 8, name="s"))
    y = net("Relu", net("MatMul", net.input("x", [None, 5]), real))
    got = check(net.output(net.matmul(y, 8, 4)), groups=1, free={"w:1": "8", "s:1": "8"})
    scale = got.coupling.graph.weights["s"].read()
    assert np.allclose(got.coupling.graph.weights["w"].read(), (integers - 3.0 * zero) * scale)


def dynamically(net: Net, x: str) -> tuple[str, str, str]:
    value, scale, zero = net("DynamicQuantizeLinear", x, n=3)
    return value, scale, zero


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("each", [False, True])
def test_dynamic_matrix(each: bool, dtype: Any) -> None:
    """What onnxruntime's quantize_dynamic writes; the real weight is found though its scale comes after."""
    net = Net(17)
    x = net.matmul(net.input("x", [None, 3, 5]), 5, 6, name="a")
    value, scale, zero = dynamically(net, x)
    shape = (8,) if each else ()
    weight, point = whole(net, 6, 8, name="w", dtype=dtype), zeros(net, *shape, dtype=dtype)
    own = scales(net, *shape, name="s")
    y = net("Cast", net("MatMulInteger", value, weight, zero, point), to=1)
    y = net("Mul", y, net("Mul", scale, own))
    got = check(net.output(net.matmul(net("Relu", y), 8, 4)), groups=2, free={"w:0": "6", "w:1": "8", "a:1": "6"})
    assert got.macs("MatMulInteger") == 3 * 6 * 8
    weights = got.coupling.graph.weights["w"]
    real = np.abs(weights.read()).max()
    assert 0.5 < real < 4


@pytest.mark.parametrize(("group", "each"), [(1, False), (1, True), (2, True), (6, False)])
def test_dynamic_convolution(group: int, each: bool) -> None:
    net = Net(17)
    x = net.conv(net.input("x", [None, 2, 5, 5]), 2, 6, name="a")
    value, scale, zero = dynamically(net, x)
    shape = (12,) if each and group == 1 else ()
    weight = whole(net, 12, 6 // group, 3, 3, name="w", dtype=np.uint8)
    point = zeros(net, *shape, dtype=np.uint8, name="z")
    y = net("Cast", net("ConvInteger", value, weight, zero, point, group=group), to=1)
    y = net("Mul", y, net("Mul", scale, net.const(np.float32(0.02))))
    got = check(net.output(net.conv(net("Relu", y), 12, 3)), free=["w:0", "a:0"], reference=bool(shape))
    assert got.axis("w:0") == {1: "12", 2: "(2 6)", 6: "(6 2)"}[group]
    assert got.macs("ConvInteger") == 9 * 12 * 9 * 6 // group
    assert 0.5 < np.abs(got.coupling.graph.weights["w"].read()).max() < 4


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_qlinear_matmul(dtype: Any, each: bool) -> None:
    net = Net(17)
    x = net.matmul(net.input("x", [None, 3, 5]), 5, 6, name="a")
    shape = (8,) if each else ()
    weight = whole(net, 6, 8, name="w"), scales(net, *shape, name="s"), zeros(net, *shape)
    out = net.const(np.float32(0.1)), zeros(net, dtype=dtype)
    y = net("QLinearMatMul", *into(net, x, dtype), *weight, *out)
    y = net("DequantizeLinear", y, *out)
    got = check(net.output(net.matmul(y, 8, 4)), groups=2, free={"w:0": "6", "w:1": "8", "a:1": "6"})
    assert got.macs("QLinearMatMul") == 3 * 6 * 8
    assert not each or got.group("s:0") == got.group("w:1")


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_qlinear_conv(group: int, each: bool) -> None:
    net = Net(17)
    x = net.conv(net.input("x", [None, 2, 5, 5]), 2, 6, name="a")
    shape = (12,) if each else ()
    point = net.const(np.zeros(shape), np.int8)
    weight = whole(net, 12, 6 // group, 3, 3, name="w"), scales(net, *shape, name="s"), point
    out = net.const(np.float32(0.1)), zeros(net, dtype=np.uint8)
    bias = net.const(net.rng.integers(-900, 900, 12), np.int32, "b")
    y = net("DequantizeLinear", net("QLinearConv", *into(net, x), *weight, *out, bias, group=group), *out)
    got = check(net.output(net.conv(y, 12, 3)), free=["w:0", "a:0"])
    assert got.axis("w:0") == {1: "12", 2: "(2 6)", 6: "(6 2)"}[group]
    assert got.macs("QLinearConv") == 9 * 12 * 9 * 6 // group
    assert not each or got.axis("s:0") == got.axis("w:0")


def test_a_scale_for_every_batch_pins() -> None:
    """A zero point for each matrix of a stack is no form that onnxruntime's users write."""
    net = Net(21)
    x = net.matmul(net.input("x", [2, 3, 5]), 5, 6, name="a")
    value, _, zero = dynamically(net, x)
    weight = whole(net, 2, 6, 8, name="w")
    y = net("Cast", net("MatMulInteger", value, weight, zero, zeros(net, 2, 1, 8, name="z")), to=1)
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"w:2": "of a form of their own", "a:1": "of a form"})


def test_com_microsoft() -> None:
    net = Net(17)
    x = net.matmul(net.input("x", [None, 5]), 5, 6, name="a")
    for extra, shape in (({}, ()), ({"axis": 1}, (6,))):
        pair = scales(net, *shape), net.const(np.full(shape, 120), np.uint8)
        x = net("QuantizeLinear", x, *pair, domain="com.microsoft", **extra)
        x = net("DequantizeLinear", x, *pair, domain="com.microsoft", **extra)
    operands = whole(net, 6, 8, name="w"), scales(net, 8, name="s"), net.const(np.zeros(8), np.int8)
    weight = net("DequantizeLinear", *operands, domain="com.microsoft", axis=1)
    net.output(net.matmul(net("MatMul", x, weight), 8, 4))
    check(net, groups=2, free={"a:1": "6", "w:1": "8", "s:0": "8"})
