"""Integer arithmetic of com.microsoft, which onnxruntime runs."""

from __future__ import annotations

from typing import Any

import contributed as own
import numpy as np
import pytest
from oracles import Net, _Onnxruntime, _Reference, check
from quantised import around, into, scales, whole, zeros

MS = "com.microsoft"


def target(net: Net, scale: float = 0.1, dtype: Any = np.uint8) -> tuple[str, str]:
    """Return scale and zero point of a result."""
    return net.const(np.float32(scale)), zeros(net, dtype=dtype)


def one(net: Net, axes: int = 2) -> str:
    """A single branch of 6 channels."""
    if axes == 2:
        return net.matmul(net.input("x", [None, 5]), 5, 6, name="a")
    return net.conv(net.input("x", [None, 2, 6, 6]), 2, 6, name="a")


def halves(net: Net) -> tuple[str, str]:
    """Two branches of 6 channels each."""
    x = net.input("x", [None, 5])
    return net.matmul(x, 5, 6, name="a"), net.matmul(x, 5, 6, name="b")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
def test_two_operands(operator: str, dtype: Any) -> None:
    net = Net(17)
    a, b = halves(net)
    out = target(net, dtype=dtype)
    y = net(operator, *into(net, a, dtype), *into(net, b, dtype), *out, domain=MS)
    net.output(net.matmul(net("DequantizeLinear", y, *out), 6, 4))
    check(net, groups=1, free={"a:1": "6", "b:1": "6"})


def test_a_constant_operand_is_a_weight() -> None:
    net = Net(17)
    out = target(net)
    bias = whole(net, 6, name="w", dtype=np.uint8), net.const(np.float32(0.02)), zeros(net, dtype=np.uint8)
    y = net("QLinearAdd", *into(net, one(net)), *bias, *out, domain=MS)
    got = check(net.output(net.matmul(net("DequantizeLinear", y, *out), 6, 4)), free={"a:1": "6", "w:0": "6"})
    assert np.abs(got.coupling.graph.weights["w"].read()).max() < 3


def test_where() -> None:
    net = Net(17)
    a, b = halves(net)
    out = target(net)
    condition = net("Greater", a, net.const(np.float32(0.1)))
    y = net("QLinearWhere", condition, *into(net, a), *into(net, b), *out, domain=MS)
    check(net.output(net.matmul(net("DequantizeLinear", y, *out), 6, 4)), groups=1, free=["a:1", "b:1"])


@pytest.mark.parametrize(("operator", "extra"), [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.1})])
def test_one_operand(operator: str, extra: dict[str, Any]) -> None:
    net = Net(17)
    out = target(net, 1 / 200)
    y = net(operator, *into(net, one(net)), *out, domain=MS, **extra)
    check(net.output(net.matmul(net("DequantizeLinear", y, *out), 6, 4)), groups=1, free={"a:1": "6"})


@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (13, -1)])
def test_softmax(opset: int, axis: int) -> None:
    net = Net(17)
    out = net.const(np.float32(1 / 256)), net.const(np.uint8(0), np.uint8)
    y = net("QLinearSoftmax", *into(net, one(net)), *out, domain=MS, opset=opset, axis=axis)
    got = check(net.output(net.matmul(net("DequantizeLinear", y, *out), 6, 4)), groups=1, free={"a:1": "6"})
    assert got.coupling.groups[0].normalised


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("operator", ["QLinearAveragePool", "QLinearGlobalAveragePool"])
def test_pools(operator: str, last: int) -> None:
    net = Net(17)
    x, out = one(net, 4), target(net, 0.03)
    if last:
        x = net("Transpose", x, perm=[0, 2, 3, 1])
    extra = {"kernel_shape": [3, 3], "strides": [2, 2]} if operator == "QLinearAveragePool" else {}
    y = net("DequantizeLinear", net(operator, *into(net, x), *out, domain=MS, channels_last=last, **extra), *out)
    if last:
        y = net("Transpose", y, perm=[0, 3, 1, 2])
    check(net.output(net.conv(y, 6, 3)), groups=1, free={"a:0": "6"})


def test_concat() -> None:
    net = Net(17)
    a, b = halves(net)
    out = target(net)
    y = net("QLinearConcat", *out, *into(net, a), *into(net, b), domain=MS, axis=-1)
    net.output(net.matmul(net("DequantizeLinear", y, *out), 12, 4, name="v"))
    got = check(net, groups=2, free=["a:1", "b:1"])
    assert got.axis("v:0") == "(6 + 6)"


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("group", [1, 2])
def test_conv(group: int, last: int) -> None:
    net = Net(17)
    x, out = one(net, 4), target(net)
    if last:
        x = net("Transpose", x, perm=[0, 2, 3, 1])
    weight = whole(net, 8, 6 // group, 3, 3, name="w"), scales(net, 8, name="s"), net.const(np.zeros(8), np.int8)
    y = net("QLinearConv", *into(net, x), *weight, *out, domain=MS, channels_last=last, group=group)
    y = net("DequantizeLinear", y, *out)
    if last:
        y = net("Transpose", y, perm=[0, 3, 1, 2])
    got = check(net.output(net.conv(y, 8, 3)), free=["a:0", "w:0", "s:0"])
    assert got.axis("w:0") == {1: "8", 2: "(2 4)"}[group]
    assert got.macs("QLinearConv") == 16 * 8 * 9 * 6 // group


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned: int, real: bool) -> None:
    net = Net(17)
    weight = whole(net, 8, 6, name="w") if turned else whole(net, 6, 8, name="w")
    bias = net.const(net.rng.integers(-900, 900, 8), np.int32, "b")
    parameters = scales(net, 8, name="s"), net.const(np.zeros(8), np.int8)
    out = () if real else target(net)
    y = net("QGemm", *into(net, one(net)), weight, *parameters, bias, *out, domain=MS, transB=turned)
    y = y if real else net("DequantizeLinear", y, *out)
    place = f"w:{1 - turned}"
    got = check(net.output(net.matmul(y, 8, 4)), groups=2, free={place: "8", "s:0": "8", "a:1": "6"})
    assert got.macs("QGemm") == 6 * 8
    assert got.group(place) == got.group("s:0")


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("operator", ["MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
def test_matrices_that_answer_in_floats(operator: str, each: bool) -> None:
    net = Net(17)
    shape = (8,) if each else ()
    weight, scale, point = whole(net, 6, 8, name="w"), scales(net, *shape, name="s"), zeros(net, *shape)
    bias = net.weight(8, name="b")
    x = one(net)
    if operator == "DynamicQuantizeMatMul":
        y = net(operator, x, weight, scale, point, bias, domain=MS)
    else:
        value, own, zero = net("DynamicQuantizeLinear", x, n=3)
        y = net(operator, value, weight, own, scale, zero, point, bias, domain=MS)
    got = check(net.output(net.matmul(y, 8, 4)), groups=2, free={"w:0": "6", "w:1": "8", "b:0": "8"})
    assert got.macs(operator) == 6 * 8
    assert 0.5 < np.abs(got.coupling.graph.weights["w"].read()).max() < 4


def attend(net: Net, mask: bool = False, each: bool = True, **extra: Any) -> str:
    """Three heads of width 4, from 5 inner channels."""
    x = around(net, net.matmul(net.input("x", [None, 4, 3]), 3, 5, name="a"))
    value, scale, zero = into(net, x)
    shape = (36,) if each else ()
    lengths = net.input("lengths", ["batch"], np.int32, between=(2, 4)) if mask else ""
    weight = whole(net, 5, 36, name="w"), net.weight(36, name="b"), scale, scales(net, *shape, name="s")
    point = net.const(np.zeros(shape), np.int8)
    y = net("QAttention", value, *weight, lengths, zero, point, domain=MS, num_heads=3, **extra)
    return str(net.matmul(y, 12, 5, name="o"))


@pytest.mark.parametrize("extra", [{}, {"unidirectional": 1}, {"scale": 0.3}], ids=" ".join)
@pytest.mark.parametrize("mask", [False, True])
def test_attention(mask: bool, extra: dict[str, Any]) -> None:
    net = Net(17)
    net.output(attend(net, mask, **extra))
    got = check(net, groups=3, free={"a:1": "5", "w:0": "5", "w:1": "(3 3 4)", "b:0": "(3 3 4)", "s:0": "(3 3 4)",
                                     "o:0": "(3 4)"})
    assert got.macs("QAttention") == 4 * 5 * 36 + 2 * 4 * 4 * 12


def test_attention_with_one_scale() -> None:
    net = Net(17)
    check(net.output(attend(net, each=False)), groups=3, free={"w:1": "(3 3 4)", "o:0": "(3 4)"})


def test_attention_with_a_cache_outside() -> None:
    net = Net(17)
    value, scale, zero = into(net, net.matmul(net.input("x", [None, 4, 3]), 3, 5, name="a"))
    past = net.input("past", [2, "batch", 3, "past", 4])
    weight = whole(net, 5, 36, name="w"), net.weight(36, name="b"), scale, scales(net, 36)
    point = net.const(np.zeros(36), np.int8)
    y, present = net("QAttention", value, *weight, "", zero, point, past, n=2, domain=MS, num_heads=3, unidirectional=1)
    net.output(net.matmul(y, 12, 5), present)
    check(net, groups=1, free={"w:0": "5"}, pinned={"w:1": "graph"})


def test_embedding() -> None:
    net = Net(17)
    ids, kinds = (net.input(n, [None, 4], np.int32, between=(0, high)) for n, high in (("ids", 9), ("kinds", 2)))
    shapes = {"words": (9, 8), "places": (6, 8), "segments": (2, 8), "g": (8,), "b": (8,)}
    tables = [whole(net, *shape, name=name, dtype=np.uint8) for name, shape in shapes.items()]
    words, places, segments, gain, bias = tables
    mask = net.input("mask", ["batch", 4], np.int32, between=(1, 2))
    numbers = [scales(net) for _ in range(5)], [zeros(net, dtype=np.uint8) for _ in range(5)]
    y, _ = net("QEmbedLayerNormalization", ids, kinds, words, places, segments, gain, bias, mask, *numbers[0],
               *numbers[1], n=2, domain=MS, epsilon=1e-5)
    for inputs in net.inputs:
        inputs.type.tensor_type.shape.dim[0].dim_param = "batch"
    got = check(net.output(net.matmul(y, 8, 4)), groups=1, free={"words:1": "8", "places:1": "8", "g:0": "8"},
                pinned={"words:0": "indexed by data"})
    assert got.coupling.groups[0].normalised
    assert np.abs(got.coupling.graph.weights["words"].read()).max() < 4


def test_parameters_of_another_form_pin() -> None:
    """A scale for every row of the first matrix, and then one for a stack of them."""
    net = Net(17)
    x = net.matmul(net.input("x", [2, 3, 5]), 5, 6, name="a")
    value, _, zero = into(net, x)
    weight = whole(net, 6, 8, name="w"), scales(net, 2, 3, 1, name="s"), scales(net)
    y = net("MatMulIntegerToFloat", value, *weight, zero, zeros(net), domain=MS)
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"w:1": "of a form of their own", "a:1": "of a form"})


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent(direction: str, each: bool, states: bool) -> None:
    """Units share the range by which states are quantised, so removing one is not the same as masking it."""
    net, d = Net(17), 1 + (direction == "bidirectional")
    x = net("Tanh", net.matmul(net.input("x", [4, 2, 5]), 5, 7, name="a"))
    shape = (d, 24) if each else (d,)
    pairs = [n for name in "wr" for n in (scales(net, *shape, name=f"{name}.s"), net.const(np.zeros(shape), np.int8))]
    matrices = whole(net, d, 7, 24, name="w"), whole(net, d, 6, 24, name="r"), net.weight(d, 48, name="b")
    initial = [net.weight(d, 2, 6) for _ in range(2)] if states else ["", ""]
    y, h, c = net("DynamicQuantizeLSTM", x, *matrices, "", *initial, "", *pairs, n=3, domain=MS, hidden_size=6,
                  direction=direction)
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(4, 2, 6 * d))
    net.output(net.matmul(y, 6 * d, 3, name="o"), net.matmul(net("Add", h, c), 6, 3, name="p"))
    free = {"a:1": "7", "w:1": "7", "w:2": "(4 6)", "r:1": "6", "r:2": "(4 6)", "b:1": "((4 6) + (4 6))", "p:0": "6"}
    got = check(net, groups=2, free={**free, **({"w.s:1": "(4 6)"} if each else {})}, tolerance=1e-3)
    assert got.coupling.dims[got.group("r:1")].normalised
    assert got.macs("DynamicQuantizeLSTM") == 4 * 2 * d * 24 * (7 + 6)
    assert 0.5 < np.abs(got.coupling.graph.weights["r"].read()).max() < 4


def real(net: Net, y: str) -> str:
    """Return sums of integers as numbers, times the product of both scales as dynamic quantisation writes it."""
    scale = net("Mul", net.const(np.float32(0.05)), net.const(np.float32(0.02), name="scale"))
    return str(net("Mul", net("Cast", y, to=1), scale))


def test_matrices_of_sixteen_bits() -> None:
    net = Net(21)
    x = net("Round", net("Mul", net.matmul(net.input("x", [None, 5]), 5, 6, name="a"), net.const(50.0)))
    weight = net.const(net.rng.integers(-3000, 3000, (6, 8)), np.int16, "w")
    y = real(net, net("MatMulInteger16", net("Cast", x, to=5), weight, domain=MS))
    got = check(net.output(net.matmul(y, 8, 4)), groups=2, free={"a:1": "6", "w:0": "6", "w:1": "8"},
                reference=[own.MatMulInteger16])
    runners = _Onnxruntime(), _Reference([own.MatMulInteger16])
    (left,), (right,) = (r(got.model, {"": got.feeds["traced"]}) for r in runners)
    assert all(np.allclose(v, right[k], rtol=1e-3, atol=1e-3 * np.abs(v).max()) for k, v in left.items())
    assert got.macs("MatMulInteger16") == 6 * 8
    assert 1000 * 0.02 < np.abs(got.coupling.graph.weights["w"].read()).max() < 3000 * 0.051


def test_products_of_integers() -> None:
    """Of a constant vector and of another branch; a zero point is one number."""
    net = Net(17)
    a, b = halves(net)
    (p, _, zero), (q, _, other) = into(net, a), into(net, b)
    y = net("MulInteger", p, zero, q, other, domain=MS)
    v, _, point = into(net, real(net, y))
    y = net("MulInteger", v, point, whole(net, 6, name="w", dtype=np.uint8), zeros(net, dtype=np.uint8), domain=MS)
    net.output(net.matmul(real(net, y), 6, 4))
    got = check(net, groups=1, free=["a:1", "b:1", "w:0"], reference=[own.MulInteger])
    assert 0 < np.abs(got.coupling.graph.weights["w"].read()).max() < 200


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("summed", [False, True])
def test_reductions(summed: bool, keep: int) -> None:
    """Over positions, and over channels: a sum loses what goes, a mean is another one."""
    net = Net(19)
    x, out = one(net, 4), target(net, 0.03)
    value, scale, zero = into(net, x)
    channels = net.conv(net("Relu", x), 6, 6, name="b")

    def over(value: str, axes: list[int]) -> str:
        if summed:
            return real(net, net("ReduceSumInteger", value, domain=MS, axes=axes, keepdims=keep))
        y = net("QLinearReduceMean", value, scale, zero, *out, domain=MS, axes=axes, keepdims=keep)
        return str(net("DequantizeLinear", y, *out))

    y = over(value, [2, 3])
    y = net("Reshape", y, net.ints(-1, 6)) if keep else y
    flat = over(into(net, channels)[0], [1, 2, 3])
    net.output(net("Add", net.matmul(y, 6, 4, name="o"), net("Reshape", flat, net.ints(-1, 1))))
    got = check(net, groups=2, free={"a:0": "6", "b:0": "6", "o:0": "6"},
                reference=[own.ReduceSumInteger, own.QLinearReduceMean])
    by = {"a": got.coupling.dims[got.group("a:0")], "b": got.coupling.dims[got.group("b:0")]}
    assert not by["a"].normalised and by["b"].normalised is not summed
