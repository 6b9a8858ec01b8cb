"""Convolutions in blocks of channels, which onnxruntime writes for the processor that it runs on."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from oracles import Net, check

BLOCKS = "com.microsoft.nchwc"
pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="blocks of other processors")


def first(net: Net, width: int = 32) -> str:
    """A convolution of three channels, which come in the plain layout."""
    x = net.input("x", [None, 3, 8, 8])
    w, b = net.weight(width, 3, 3, 3, name="w"), net.weight(width, name="b")
    return str(net("Conv", x, w, b, pads=[1] * 4, activation="Relu", domain=BLOCKS))


def ends(net: Net, y: str, width: int = 32) -> Net:
    y = net("ReorderOutput", y, channels=width, domain=BLOCKS)
    return net.output(net.conv(y, width, 2, name="o"))


def test_rows_in_blocks() -> None:
    net = Net()
    got = check(ends(net, first(net)), groups=1, free={"w:0": "(2 [16])", "b:0": "(2 [16])", "o:1": "(2 [16])"})
    assert got.macs("Conv") == 64 * 32 * (27 + 2)
    model = got.pruned({got.group("w:0"): np.array([1])})
    assert [a.i for n in model.graph.node for a in n.attribute if a.name == "channels"] == [16]


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Upsample"])
def test_channels_stay_in_place(operator: str) -> None:
    net = Net()
    pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
    extra = {"scales": [1, 1, 2, 2]} if operator == "Upsample" else {} if operator.startswith("Global") else pooling
    check(ends(net, net(operator, first(net), domain=BLOCKS, **extra)), groups=1, free={"w:0": "(2 [16])"})


def test_one_channel_each_and_a_sum() -> None:
    """A depthwise convolution, to whose output its input is added; the number of groups follows."""
    net = Net()
    a = first(net)
    y = net("Conv", a, net.weight(32, 1, 3, 3, name="d"), net.weight(32), a, pads=[1] * 4, group=32, domain=BLOCKS)
    got = check(ends(net, y), groups=1, free={"w:0": "(2 [16])", "d:0": "(2 [16])"})
    model = got.pruned({got.group("w:0"): np.array([0])})
    assert [a.i for n in model.graph.node for a in n.attribute if a.name == "group"] == [16]


def test_input_channels_pin() -> None:
    net = Net()
    y = net("Conv", first(net), net.weight(64, 32, 1, 1, name="d"), domain=BLOCKS)
    reason = "mix input channels"
    check(ends(net, y, 64), groups=1, free={"d:0": "(4 [16])"}, pinned={"w:0": reason, "d:1": reason})


@pytest.mark.parametrize("group", [1, 2])
def test_other_widths_and_groups_pin(group: int) -> None:
    net = Net()
    y = net("Conv", first(net, 32), net.weight(40, 32 // group, 1, 1, name="d"), group=group, domain=BLOCKS)
    check(ends(net, y, 40), groups=0, pinned={"d:0": "mix input channels"})


@pytest.mark.parametrize("last", [0, 1])
def test_into_blocks(last: int) -> None:
    """From the plain layout, channels second or last, and back."""
    net = Net()
    x = net.input("x", [None, 3, 8, 8])
    y = net.conv(x, 3, 32, name="a")
    y = net("Transpose", y, perm=[0, 2, 3, 1]) if last else y
    y = net("ReorderInput", y, channels_last=last, domain=BLOCKS)
    y = net("ReorderOutput", net("Relu", y), channels=32, channels_last=last, domain=BLOCKS)
    y = net("Transpose", y, perm=[0, 3, 1, 2]) if last else y
    check(net.output(net.conv(y, 32, 2, name="o")), groups=1, free={"a:0": "(2 [16])", "o:1": "(2 [16])"})


def test_channels_that_are_filled_up_pin() -> None:
    net = Net()
    y = net("ReorderOutput", first(net, 32), channels=30, domain=BLOCKS)
    check(net.output(net.conv(y, 30, 2, name="o")), groups=0, pinned={"w:0": "filled up", "o:1": "filled up"})
