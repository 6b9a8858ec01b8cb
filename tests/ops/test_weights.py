"""Weights on their way to the operator: transposed, cast, reshaped, cut, in nodes, shared."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Net, check


@pytest.mark.parametrize("way", ["Transpose", "Cast", "Identity", "Reshape", "Mul", "Unsqueeze", "Slice"])
def test_indirect(way: str) -> None:
    net = Net()
    x = net.input("x", [None, 5])
    if way == "Transpose":
        w, place = net("Transpose", net.weight(8, 5, name="w"), perm=[1, 0]), "w:0"
    elif way == "Cast":
        w, place = net("Cast", net.weight(5, 8, name="w", dtype=np.float16), to=1), "w:1"
    elif way == "Identity":
        w, place = net("Identity", net.weight(5, 8, name="w")), "w:1"
    elif way == "Reshape":
        w, place = net("Reshape", net.weight(5, 2, 4, name="w"), net.ints(5, 8)), "w:2"
    elif way == "Mul":
        w, place = net("Mul", net.weight(5, 8, name="w"), net.weight(8, name="scale")), "w:1"
    elif way == "Unsqueeze":
        w, place = net("Squeeze", net("Unsqueeze", net.weight(5, 8, name="w"), net.ints(0)), net.ints(0)), "w:1"
    else:
        w, place = net("Slice", net.weight(5, 11, name="w"), net.ints(3), net.ints(99), net.ints(1)), "w:1"
    y = net("Relu", net("MatMul", x, w))
    got = check(net.output(net.matmul(y, 8, 4, name="b")), free=[place, "b:0"])
    produced = {o.role.value for g in got.coupling.groups for o in g.occurrences if o.initializer == "w"}
    assert "produced" in produced


def test_lstm_like() -> None:
    """Four gates beside each other in one weight, cut apart and tied through the state."""
    net = Net(13)
    x = net.input("x", [None, 5])
    y = net("Gemm", x, net("Transpose", net.weight(32, 5, name="w"), perm=[1, 0]), net.weight(32, name="b"))
    i, o, f, c = net("Split", y, n=4, axis=1)
    state = net("Mul", net("Sigmoid", i), net("Tanh", c))
    state = net("Add", state, net("Sigmoid", f))
    y = net("Mul", net("Sigmoid", o), net("Tanh", state))
    recurrent = net("Slice", net.weight(32, 8, name="r"), net.ints(8), net.ints(16), net.ints(0))
    y = net("MatMul", y, net("Transpose", recurrent, perm=[1, 0]))
    y = net("Mul", net("Tanh", y), state)
    got = check(net.output(net.gemm(y, 8, 4)), free={"w:0": "(8 + 8 + 8 + 8)", "b:0": "(8 + 8 + 8 + 8)", "r:1": "8"})
    assert got.axis("r:0") == "(8 + 8 + 16)"


@pytest.mark.parametrize(("ir_version", "opset"), [(3, 7), (3, 9), (4, 11), (8, 17)])
@pytest.mark.parametrize("node", [False, True])
def test_where_weights_are(node: bool, ir_version: int, opset: int) -> None:
    """Constant nodes, and files so old that every initializer is an input."""
    net = Net(opset, ir_version)
    x = net.input("x", [None, 3, 6, 6])
    y = net("Conv", x, net.weight(8, 3, 1, 1, name="a", node=node), net.weight(8, name="a.b", node=node))
    y = net("Reshape", net("GlobalAveragePool", y), net.const([-1, 8], node=node))
    y = net("Gemm", y, net.weight(8, 4, name="fc", node=node), net.weight(4, node=node))
    check(net.output(y), groups=1, free={"a:0": "8", "a.b:0": "8", "fc:0": "8"})


@pytest.mark.parametrize("ir_version", [3, 10])
def test_shared_bias(ir_version: int) -> None:
    """One vector of zeros as the bias of two layers does not tie them."""
    net = Net(11, ir_version)
    x = net.input("x", [None, 3, 6, 6])
    bias = net.weight(8, name="bias")
    y = net("Conv", x, net.weight(8, 3, 1, 1, name="a"), bias)
    y = net("Conv", net("Relu", y), net.weight(8, 8, 1, 1, name="c"), bias)
    got = check(net.output(net.conv(y, 8, 4)), groups=2, free={"a:0": "8", "c:0": "8", "c:1": "8"})
    assert got.group("a:0") is not got.group("c:0")


def test_layer_used_twice() -> None:
    """A matrix used twice is one matrix: what is removed at one place is removed at the other."""
    net = Net()
    y = net.matmul(net.input("x", [None, 5]), 5, 8, name="a")
    w = net.weight(8, 8, name="w")
    y = net("MatMul", net("Relu", net("MatMul", y, w)), w)
    got = check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8", "w:0": "8", "w:1": "8"})
    assert got.group("w:0") is got.group("w:1")


def test_tied_autoencoder() -> None:
    """A matrix and its transpose."""
    net = Net()
    w = net.weight(5, 8, name="w")
    y = net("MatMul", net("Relu", net("MatMul", net.input("x", [None, 5]), w)), net("Transpose", w, perm=[1, 0]))
    check(net.output(y), groups=1, free={"w:1": "8"}, pinned={"w:0": "graph input"})


def test_weight_normalised_at_run_time() -> None:
    """Weight norm computed in the graph: g v / |v|, the norm over the inputs."""
    net = Net(13)
    y = net.matmul(net.input("x", [None, 5]), 5, 6, name="a")
    v = net.weight(8, 6, name="v")
    w = net("Mul", net("Div", v, net("ReduceL2", v, axes=[1], keepdims=1)), net.weight(8, 1, name="g"))
    y = net.matmul(net("MatMul", y, net("Transpose", w, perm=[1, 0])), 8, 4)
    check(net.output(y), groups=2, free={"a:1": "6", "v:0": "8", "v:1": "6", "g:0": "8"})


def test_lora() -> None:
    """A sum of a weight and a product of two small ones."""
    net = Net()
    y = net.matmul(net.input("x", [None, 5]), 5, 6, name="a")
    low = net("MatMul", net.weight(6, 3, name="down"), net.weight(3, 8, name="up"))
    w = net("Add", net.weight(6, 8, name="w"), low)
    got = check(net.output(net.matmul(net("MatMul", y, w), 8, 4)), groups=3, free={"w:0": "6", "w:1": "8", "up:0": "3"})
    assert got.group("down:0") is got.group("a:1")


def test_output_head_with_two_outputs() -> None:
    """An inner value that is an output as well is pinned."""
    net = Net()
    y = net.matmul(net.input("x", [None, 5]), 5, 8, name="a")
    check(net.output(y, net.matmul(y, 8, 4)), groups=0, pinned={"a:1": "graph output"})


def test_half_precision_between() -> None:
    """A half-precision file with casts at its border."""
    net = Net(dtype=np.float16)
    x = net("Cast", net.input("x", [None, 3, 6, 6], np.float32), to=10)
    y = net("Relu", net.conv(x, 3, 8, 3, name="a", pads=[1, 1, 1, 1]))
    y = net("Cast", net.conv(y, 8, 4), to=1)
    check(net.output(y, dtype=np.float32), groups=1, free={"a:0": "8"}, tolerance=2e-2)
