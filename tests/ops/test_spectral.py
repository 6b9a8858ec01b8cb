"""Frontends, grids, losses and random numbers: what must stay in place does, the rest goes along."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Net, check


@pytest.mark.parametrize("op_type", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(op_type: str) -> None:
    """Times are places, channels are free."""
    net = Net(17)
    y = net.conv(net.input("x", [None, 3, 8]), 3, 6, name="a", dims=1)
    y = net("Mul", y, net(op_type, net.const(8)))
    check(net.output(net.conv(y, 6, 2, dims=1)), groups=1, free={"a:0": "6"})
    net = Net(17)
    y = net("Mul", net.matmul(net.input("x", [None, 5]), 5, 8, name="a"), net(op_type, net.const(8)))
    check(net.output(net.matmul(y, 8, 3)), groups=0, pinned={"a:1": "positions"})


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("axis", [1, 2])
def test_transform(axis: int, opset: int) -> None:
    net = Net(opset)
    y = net("Unsqueeze", net.matmul(net.input("x", [None, 6, 5]), 5, 8, name="a"), net.ints(3))
    y = net("DFT", y, axis=axis) if opset == 17 else net("DFT", y, "", net.const(axis))
    y = net("ReduceSum", net("Mul", y, y), net.ints(3), keepdims=0)
    pinned = {"a:1": "times of a transform"} if axis == 2 else {}
    check(net.output(net.matmul(y, 8, 3)), groups=int(axis == 1), pinned=pinned)


def test_short_time_transform_and_filter_bank() -> None:
    """Signals are cut, transformed and summed in bands: all of it by place; layers after that are free."""
    net = Net(17)
    window = net.weight(8, name="window", positive=True)
    y = net("STFT", net.input("x", [2, 20]), net.const(4), window, net.const(8), onesided=1)
    y = net("ReduceSum", net("Mul", y, y), net.ints(3), keepdims=0)
    bank = net("MelWeightMatrix", net.const(4), net.const(8), net.const(16), net.const(0.0), net.const(8.0))
    y = net("Relu", net.matmul(net("MatMul", y, bank), 4, 6, name="a"))
    check(net.output(net.matmul(y, 6, 3)), groups=1, free={"a:1": "6"}, pinned={"window:0": "STFT", "a:0": "positions"})


def test_grids_and_determinants() -> None:
    net = Net(20)
    y = net.conv(net.input("x", [2, 3, 6, 6]), 3, 8, name="a")
    theta = net("Reshape", net.matmul(net("ReduceMean", y, net.ints(2, 3), keepdims=0), 8, 6, name="t"),
                net.ints(2, 2, 3))
    y = net("GridSample", y, net("AffineGrid", theta, net.ints(2, 3, 4, 4)))
    check(net.output(net.conv(y, 8, 3)), groups=1, free={"a:0": "8", "t:0": "8"}, pinned={"t:1": "positions"})
    net = Net(20)
    y = net("Reshape", net.matmul(net.input("x", [None, 5]), 5, 24, name="a"), net.ints(0, 6, 2, 2))
    check(net.output(net.matmul(net("Det", y), 6, 3)), groups=1, free={"a:1": "(6 [2] [2])"})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("op_type", ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"])
def test_losses(op_type: str, reduction: str, weighted: bool) -> None:
    """Classes are numbers; what comes before them is free."""
    net = Net(13)
    y = net.conv(net.input("x", [2, 3, 6]), 3, 8, name="a", dims=1)
    y = net("LogSoftmax", net.conv(y, 8, 5, name="c", dims=1), axis=1)
    labels = net.input("labels", [2, 6], np.int64, between=(0, 5))
    weights = [net.weight(5, name="w", positive=True)] if weighted else []
    net.output(net(op_type, y, labels, *weights, reduction=reduction))
    check(net, groups=1, free={"a:0": "8", "c:1": "8"}, pinned={"c:0": "labels are numbers of classes"})


def test_logarithms_of_a_loss() -> None:
    net = Net(13)
    y = net.conv(net.input("x", [2, 3, 6]), 3, 5, name="c", dims=1)
    labels = net.input("labels", [2, 6], np.int64, between=(0, 5))
    loss, logarithms = net("SoftmaxCrossEntropyLoss", y, labels, n=2)
    net.output(net("Mul", net.conv(logarithms, 5, 2, dims=1, name="o"), loss))
    check(net, groups=0, pinned={"c:0": "labels", "o:1": "labels"})


@pytest.mark.parametrize("op_type", ["RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"])
def test_random_numbers_pin(op_type: str) -> None:
    net = Net(15)
    y = net.matmul(net.input("x", [2, 5]), 5, 8, name="a")
    if op_type == "Dropout":
        z = net("Dropout", y, net.const(0.5), net.const(True, np.bool_))
    else:
        y = net("Sigmoid", y)
        z = net(op_type, y, **({"sample_size": 8} if op_type == "Multinomial" else {}))
        z = net("Cast", z, to=1)
    check(net.output(net.matmul(net("Add", y, z), 8, 3)), groups=0, pinned={"a:1": "random numbers"})


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniform"])
def test_random_constants_pin(op_type: str) -> None:
    net = Net(13)
    y = net("Add", net.matmul(net.input("x", [2, 5]), 5, 8, name="a"), net(op_type, shape=[2, 8]))
    check(net.output(net.matmul(y, 8, 3)), groups=0, pinned={"a:1": "random numbers"})


def test_swiglu() -> None:
    net = Net(28)
    x = net.input("x", [2, 5])
    y = net("SwiGLU", net.matmul(x, 5, 8, name="g"), net.matmul(x, 5, 8, name="u"), alpha=1.5)
    check(net.output(net.matmul(y, 8, 3)), groups=1, free={"g:1": "8", "u:1": "8"}, reference=True)
