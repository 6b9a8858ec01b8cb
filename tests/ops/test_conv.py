"""Convolutions and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check

SPATIAL = {1: [9], 2: [7, 6], 3: [5, 4, 6]}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_plain(dims: int, bias: bool) -> None:
    net = Net(11)
    x = net.input("x", [None, 3, *SPATIAL[dims]])
    y = net("Relu", net.conv(x, 3, 8, 3, name="a", dims=dims, bias=bias))
    check(net.output(net.conv(y, 8, 4, 2, name="b", dims=dims)), groups=1, free={"a:0": "8", "b:1": "8"})


@pytest.mark.parametrize(
    "attributes",
    [{"dilations": [2, 2]}, {"strides": [2, 1]}, {"pads": [1, 0, 1, 2]}, {"auto_pad": "SAME_UPPER"},
     {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"}],
    ids=lambda a: " ".join(a),
)
def test_window(attributes: dict[str, Any]) -> None:
    net = Net()
    x = net.input("x", [None, 3, None, None])
    y = net.conv(x, 3, 8, 3, name="a", **attributes)
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize(
    ("cin", "cout", "group", "weight", "before"),
    [
        (8, 12, 4, "(4 3)", "(4 2)"),
        (8, 8, 8, "8", "8"),
        (6, 12, 6, "(6 2)", "6"),
        (8, 4, 4, "4", "(4 2)"),
        (8, 12, 2, "(2 6)", "(2 4)"),
    ],
)
def test_grouped(cin: int, cout: int, group: int, weight: str, before: str) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 3, 5, 5]), 3, cin, name="a")
    y = net.conv(y, cin, cout, 3, name="g", group=group)
    net.output(net.conv(y, cout, 4, name="b"))
    check(net, free={"a:0": before, "g:0": weight, "g.b:0": weight, "b:1": weight})


def test_depthwise_separable() -> None:
    """Batch sizes and image sizes left open; the channels of the stem pass through the depthwise convolution."""
    net = Net()
    y = net("Relu", net.conv(net.input("x", [None, 3, "h", "w"]), 3, 8, 3, name="stem"))
    y = net("Relu", net.conv(y, 8, 8, 3, name="dw", group=8, pads=[1, 1, 1, 1]))
    y = net.conv(y, 8, 6, name="pw")
    y = net("Flatten", net("GlobalAveragePool", y))
    got = check(net.output(net.gemm(y, 6, 4, name="fc")), groups=2, free={"stem:0": "8", "pw:0": "6", "fc:1": "6"})
    assert got.group("stem:0") is got.group("dw:0") is got.group("pw:1")


def test_grouped_after_grouped() -> None:
    """Four groups then two: the coarser grouping is refined."""
    net = Net()
    y = net.conv(net.input("x", [None, 3, 5, 5]), 3, 16, name="a")
    y = net.conv(y, 16, 16, name="g", group=4)
    y = net.conv(y, 16, 16, name="h", group=2)
    check(net.output(net.conv(y, 16, 4)), free={"a:0": "(2 2 4)", "g:0": "(2 2 4)"})


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_transposed(dims: int, group: int) -> None:
    net = Net(11)
    x = net.input("x", [None, 3, *SPATIAL[dims]])
    y = net.conv(x, 3, 8, name="a", dims=dims)
    weights = net.weight(8, 12 // group, *[2] * dims, name="t"), net.weight(12, name="tb")
    y = net("ConvTranspose", y, *weights, group=group)
    inner = {1: ("8", "8", "12"), 2: ("(2 4)", "(2 4)", "(2 6)"), 4: ("(4 2)", "(4 2)", "(4 3)")}[group]
    check(net.output(net.conv(y, 12, 4, dims=dims)), free=dict(zip(("a:0", "t:0", "tb:0"), inner, strict=True)))


@pytest.mark.parametrize("attributes", [{"output_padding": [1, 1]}, {"output_shape": [10, 10]}, {"pads": [1, 0, 0, 1]}])
def test_transposed_window(attributes: dict[str, Any]) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 3, 5, 5]), 3, 8, name="a")
    y = net("ConvTranspose", y, net.weight(8, 6, 3, 3, name="t"), strides=[2, 2], **attributes)
    check(net.output(net.conv(y, 6, 4)), groups=2, free={"a:0": "8", "t:1": "6"})


def test_costs() -> None:
    """Output positions times weights, by hand."""
    net = Net()
    y = net.conv(net.input("x", [None, 3, 8, 8]), 3, 8, 3, pads=[1, 1, 1, 1])
    y = net.conv(y, 8, 8, 3, group=8)
    y = net("ConvTranspose", y, net.weight(8, 6, 2, 2), strides=[2, 2])
    got = check(net.output(net.conv(y, 6, 5)))
    assert got.macs("Conv") == 8 * 8 * 8 * 27 + 6 * 6 * 8 * 9 + 12 * 12 * 5 * 6
    assert got.macs("ConvTranspose") == 6 * 6 * 8 * 6 * 4


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_pool(op_type: str, dims: int) -> None:
    net = Net(18 if op_type == "LpPool" else 12)
    y = net.conv(net.input("x", [None, 3, *SPATIAL[dims]]), 3, 8, dims=dims, name="a")
    y = net(op_type, y, kernel_shape=[2] * dims, strides=[2] * dims)
    check(net.output(net.conv(y, 8, 4, dims=dims)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [7, 8, 10, 12, 19, 22])
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_pool_opsets(op_type: str, opset: int) -> None:
    net = Net(opset)
    y = net.conv(net.input("x", [None, 3, None, None]), 3, 8, name="a")
    attributes = {"ceil_mode": 1} if opset >= 10 and op_type != "LpPool" else {}
    y = net(op_type, y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], **attributes)
    check(net.output(net.conv(y, 8, 4)), groups=1)


def test_max_pool_indices_pin() -> None:
    """Indices count through all channels, so their values depend on how many there are."""
    net = Net()
    y = net.conv(net.input("x", [None, 3, 6, 6]), 3, 8, name="a")
    y, indices = net("MaxPool", y, n=2, kernel_shape=[2, 2], strides=[2, 2])
    y = net("Add", y, net("Cast", indices, to=1))
    check(net.output(net.conv(y, 8, 4)), groups=0, pinned={"a:0": "flattened"})


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_global_pool(op_type: str, dims: int) -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 3, *SPATIAL[dims]]), 3, 8, dims=dims, name="a")
    y = net("Flatten", net(op_type, y))
    check(net.output(net.gemm(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [16, 20, 22])
@pytest.mark.parametrize("grid", ["input", "computed"])
def test_grid_sample(grid: str, opset: int) -> None:
    net = Net(opset)
    x = net.input("x", [None, 3, 6, 6])
    y = net.conv(x, 3, 8, name="a")
    if grid == "input":
        places = net.input("grid", [None, 4, 4, 2], between=(-1, 1))
    else:
        places = net("Tanh", net("Transpose", net.conv(x, 3, 2, name="p"), perm=[0, 2, 3, 1]))
    y = net("GridSample", y, places)
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [10, 16])
def test_roi_align(opset: int) -> None:
    net = Net(opset)
    y = net.conv(net.input("x", [1, 3, 8, 8]), 3, 8, name="a")
    rois = net.const(np.array([[0, 0, 4, 4], [1, 2, 6, 7.0]]))
    y = net("RoiAlign", y, rois, net.ints(0, 0), output_height=3, output_width=3)
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_max_roi_pool() -> None:
    net = Net()
    y = net.conv(net.input("x", [1, 3, 8, 8]), 3, 8, name="a")
    y = net("MaxRoiPool", y, net.const(np.array([[0, 0, 0, 4, 4], [0, 1, 2, 6, 7.0]])), pooled_shape=[3, 3])
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize(("group", "offset_group"), [(1, 1), (2, 1), (1, 2), (8, 1)])
def test_deform_conv(group: int, offset_group: int) -> None:
    net = Net(19)
    x = net.input("x", [1, 3, 6, 6])
    y = net.conv(x, 3, 8, name="a")
    offsets = net.conv(x, 3, 8 * offset_group, 2, name="p")
    masks = net.conv(x, 3, 4 * offset_group, 2, name="m")
    w, b = net.weight(12 if group < 8 else 8, 8 // group, 2, 2, name="w"), net.weight(12 if group < 8 else 8)
    y = net("DeformConv", y, w, offsets, b, masks, group=group, offset_group=offset_group)
    net.output(net.conv(y, 12 if group < 8 else 8, 4))
    if offset_group > 1:
        check(net, groups=0, pinned={"a:0": "differ between groups"})
        return
    kept = {1: ("8", "12"), 2: ("(2 4)", "(2 6)"), 8: ("8", "8")}[group]
    check(net, free={"a:0": kept[0], "w:0": kept[1]}, pinned={"p:0": "offsets", "m:0": "masks"})


def test_col2im() -> None:
    """Rows are channels times kernel positions; the channels are free."""
    net = Net(18)
    y = net.matmul(net.input("x", [None, 5, 32]), 32, 25)
    y = net("MatMul", net.weight(20, 5, name="a"), y)
    y = net("Col2Im", y, net.ints(6, 6), net.ints(2, 2))
    check(net.output(net.conv(y, 5, 4, name="b")), groups=1, free={"b:1": "5"})
