"""Operators of com.microsoft that came into ai.onnx later: the same rules; onnxruntime runs most."""

from __future__ import annotations

import contributed as own
import numpy as np
import onnx
import pytest
from oracles import Net, check

MS = "com.microsoft"


def image(net: Net, width: int = 8) -> str:
    return net.conv(net.input("x", [2, 3, 6, 6]), 3, width, name="a")


def test_grid_sample() -> None:
    """Channels are free; positions come from a grid. An older kernel: it takes no more than bilinear and its kin."""
    net = Net()
    grid = net.const(np.random.default_rng(0).uniform(-1, 1, (2, 4, 5, 2)))
    y = net("GridSample", image(net), grid, mode="bilinear", domain=MS)
    check(net.output(net.conv(y, 8, 2, name="o")), groups=1, free={"a:0": "8", "o:1": "8"})


def test_trilu() -> None:
    """A triangle pins both of its axes, and no batch."""
    net = Net()
    y = net("Trilu", image(net), upper=1, domain=MS)
    net.output(net.conv(y, 8, 2, name="o"))
    flat = net("Trilu", net.matmul(net.input("z", [2, 6, 5]), 5, 8, name="b"), domain=MS)
    check(net.output(net.matmul(flat, 8, 3)), groups=1, free={"a:0": "8"}, pinned={"b:1": "triangle"})


def test_inverse() -> None:
    net = Net()
    y = net("Inverse", net("Add", image(net), net.const(10 * np.eye(6))), domain=MS)
    net.output(net.conv(y, 8, 2, name="o"))
    flat = net("Reshape", net.matmul(net.input("z", [2, 5]), 5, 16, name="b"), net.ints(2, 4, 4))
    flat = net("Inverse", flat, domain=MS)
    check(net.output(net("ReduceMean", flat, axes=[1])), groups=1, free={"a:0": "8"}, pinned={"b:1": "whole matrix"})


@pytest.mark.parametrize("shape", [(8,), (1, 8)])
def test_pad(shape: tuple[int, ...]) -> None:
    """The number of added channels stays; a list with two axes pins."""
    net = Net()
    pads = net.const(np.reshape([0, 1, 0, 0, 0, 2, 0, 0], shape))
    y = net("Pad", image(net), pads, mode="constant", domain=MS)
    if len(shape) > 1:
        check(net.output(net.conv(y, 11, 2, name="o")), groups=0, pinned={"a:0": "two axes", "o:1": "two axes"})
    else:
        check(net.output(net.conv(y, 11, 2, name="o")), free={"a:0": "8", "o:1": "(1 + 8 + 2)"})


def test_pad_of_positions() -> None:
    net = Net()
    y = net("Pad", image(net), net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="constant", domain=MS)
    check(net.output(net.conv(y, 8, 2, name="o")), groups=1, free={"a:0": "8", "o:1": "8"})


def test_range() -> None:
    """Numbers by position: nothing moves; its length is known."""
    net = Net()
    a = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    steps = net("Range", net.const(np.float32(0)), net.const(np.float32(8)), net.const(np.float32(1)), domain=MS)
    y = net("Add", a, steps)
    check(net.output(net.matmul(y, 8, 3)), groups=0, pinned={"a:1": "depend on positions"})


def test_unique() -> None:
    net = Net()
    a = net.gemm(net.input("x", [1, 5]), 5, 8, name="a")
    y, _, _ = net("Unique", net("Reshape", a, net.ints(8)), n=3, domain=MS)
    check(net.output(net("ReduceSum", y, keepdims=0)), groups=0, pinned={"a:0": "depend on positions"})


def test_gather_nd() -> None:
    """Rows are picked by data; what a row holds goes along."""
    net = Net()
    a = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    picked = net.input("i", [3, 2], np.int64, between=(0, 2))
    y = net("GatherND", a, picked, domain=MS)
    check(net.output(net.matmul(y, 8, 3, name="o")), groups=1, free={"a:1": "8", "o:0": "8"})


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_expand_dims(axis: int) -> None:
    net = Net()
    a = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    y = net("Squeeze", net("ExpandDims", a, net.const(axis, np.int32), domain=MS), net.ints(axis))
    check(net.output(net.matmul(y, 8, 3, name="o")), groups=1, free={"a:1": "8", "o:0": "8"})


def test_torch_embedding() -> None:
    net = Net()
    ids = net.input("ids", [2, 6], np.int64, between=(0, 9))
    y = net("TorchEmbedding", net.weight(9, 8, name="t"), ids, domain=MS)
    check(net.output(net.matmul(y, 8, 3, name="o")), groups=1, free={"t:1": "8", "o:0": "8"},
          pinned={"t:0": "indexed"}, reference=[own.TorchEmbedding])


@pytest.mark.parametrize("operator", ["NGramRepeatBlock", "IsAllFinite", "MRotaryEmbedding", "Rfft", "Strange"])
def test_operators_without_a_rule_pin(operator: str) -> None:
    """Whatever else there is: all that it touches stays, and the reason says who."""
    net = Net()
    a = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    net.output(net(operator, a, a, domain=MS))
    model: onnx.ModelProto = net.model()
    assert model.graph.node[-1].domain == MS
    check(net, groups=0, pinned={"a:1": f"no axis rule for {MS}.{operator}"})
