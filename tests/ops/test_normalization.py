"""Normalisations, whole and decomposed, and softmaxes."""

from __future__ import annotations

import pytest
from oracles import Net, check


def conv_net(opset: int) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.conv(net.input("x", [None, 3, 5, 6]), 3, 12, name="a")


def token_net(opset: int) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.matmul(net.input("x", [None, "s", 5]), 5, 12, name="a")


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_norm(opset: int) -> None:
    net, y = conv_net(opset)
    scale, bias, mean, var = net.weight(12, name="g"), net.weight(12), net.weight(12), net.weight(12, positive=True)
    y = net("BatchNormalization", y, scale, bias, mean, var)
    got = check(net.output(net.conv(y, 12, 4)), groups=1, free={"a:0": "12", "g:0": "12"})
    assert [o.initializer for o in got.coupling.groups[0].occurrences if o.gain] == ["g"]


def test_batch_norm_of_vectors() -> None:
    net = Net(15)
    y = net.gemm(net.input("x", [None, 5]), 5, 8, name="a")
    y = net("BatchNormalization", y, *[net.weight(8, positive=True) for _ in range(4)])
    check(net.output(net.gemm(y, 8, 4)), groups=1)


def test_batch_norm_statistics() -> None:
    """Statistics that leave the graph pin the channels."""
    net, y = conv_net(15)
    weights = [net.weight(12, positive=True) for _ in range(4)]
    y, mean, _ = net("BatchNormalization", y, *weights, n=3, training_mode=1)
    check(net.output(net.conv(y, 12, 4), mean), groups=0, pinned={"a:0": "graph output"})


@pytest.mark.parametrize("opset", [6, 17, 22])
def test_instance_norm(opset: int) -> None:
    net, y = conv_net(max(opset, 7))
    y = net("InstanceNormalization", y, net.weight(12, name="g"), net.weight(12))
    check(net.output(net.conv(y, 12, 4)), groups=1, free={"a:0": "12", "g:0": "12"})


@pytest.mark.parametrize(("groups", "text"), [(1, "12"), (3, "(3 4)"), (12, "12")])
@pytest.mark.parametrize("opset", [18, 21])
def test_group_norm(opset: int, groups: int, text: str) -> None:
    net, y = conv_net(opset)
    size = groups if opset == 18 else 12
    y = net("GroupNormalization", y, net.weight(size, name="g"), net.weight(size), num_groups=groups)
    check(net.output(net.conv(y, 12, 4)), groups=text.count(" ") + 1, free={"a:0": text})


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_group_norm_by_instance_norm(groups: int, scaled: bool) -> None:
    """PyTorch exports GroupNorm as Reshape, InstanceNormalization, Reshape, Mul, Add."""
    net, y = conv_net(13)
    flat = net("Reshape", y, net.ints(0, groups, -1))
    flat = net("InstanceNormalization", flat, net.weight(groups), net.weight(groups))
    y = net("Reshape", flat, net("Shape", y))
    y = net("Add", net("Mul", y, net.weight(12, 1, 1, name="g")), net.weight(12, 1, 1)) if scaled else y
    check(net.output(net.conv(y, 12, 4)), free={"a:0": "12" if groups == 1 else "(3 4)"})


@pytest.mark.parametrize("op_type", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(op_type: str, bias: bool) -> None:
    net, y = token_net(23)
    weights = [net.weight(12, name="g")]
    weights += [net.weight(12)] if bias and op_type == "LayerNormalization" else []
    y = net(op_type, y, *weights, axis=-1)
    got = check(net.output(net.matmul(y, 12, 4)), free={"a:1": "12", "g:0": "12"})
    assert all(g.normalised for g in got.coupling.groups)


def test_layer_norm_over_two_axes() -> None:
    net, y = conv_net(17)
    y = net("LayerNormalization", y, net.weight(12, 5, 6, name="g"), net.weight(12, 5, 6), axis=1)
    check(net.output(net.conv(y, 12, 4)), groups=1, free={"a:0": "12", "g:0": "12"})


def test_layer_norm_statistics() -> None:
    net, y = token_net(17)
    y, mean, _ = net("LayerNormalization", y, net.weight(12, name="g"), n=3)
    check(net.output(net.matmul(net("Add", y, mean), 12, 4)), groups=1, free={"g:0": "12"})


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_decomposed_layer_norm(opset: int, square: str) -> None:
    net, y = token_net(opset)

    def mean(value: str) -> str:
        return str(net("ReduceMean", value, net.ints(-1)) if opset >= 18 else net("ReduceMean", value, axes=[-1]))

    centred = net("Sub", y, mean(y))
    squared = net("Pow", centred, net.const(2.0)) if square == "Pow" else net("Mul", centred, centred)
    y = net("Div", centred, net("Sqrt", net("Add", mean(squared), net.const(1e-5))))
    y = net("Add", net("Mul", y, net.weight(12, name="g")), net.weight(12))
    got = check(net.output(net.matmul(y, 12, 4)), groups=1, free={"a:1": "12", "g:0": "12"})
    assert got.coupling.groups[0].normalised


def test_lrn_pins() -> None:
    net, y = conv_net(13)
    check(net.output(net.conv(net("LRN", y, size=3), 12, 4)), groups=0, pinned={"a:0": "neighbouring channels"})


@pytest.mark.parametrize("op_type", ["LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_over_an_axis(op_type: str, axis: int) -> None:
    net, y = conv_net(13)
    y = net(op_type, y, **({"axes": [axis]} if op_type.startswith("Mean") else {"axis": axis}))
    got = check(net.output(net.conv(y, 12, 4)), groups=1, free={"a:0": "12"})
    assert got.coupling.groups[0].normalised == (axis == 1)


@pytest.mark.parametrize("axis", [None, 1, 2, 3])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_old_softmax(op_type: str, axis: int | None) -> None:
    """Before opset 13 everything from the axis on was one; the default axis was 1."""
    net, y = conv_net(11)
    y = net(op_type, y, **({} if axis is None else {"axis": axis}))
    got = check(net.output(net.conv(y, 12, 4)), groups=1)
    assert got.coupling.groups[0].normalised == (axis in (None, 1))


@pytest.mark.parametrize(("opset", "axis", "pins"), [(11, 1, True), (13, 1, True), (13, 2, False), (11, 2, False)])
def test_hardmax(opset: int, axis: int, pins: bool) -> None:
    net, y = conv_net(opset)
    net.output(net.conv(net("Hardmax", y, axis=axis), 12, 4))
    check(net, groups=0 if pins else 1, pinned={"a:0": "maxima"} if pins else {})
