"""Resize, Upsample, CenterCropPad and the exchange of depth and space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check


def conv_net(opset: int, channels: int = 8, size: Any = None) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.conv(net.input("x", [None, 3, size, size]), 3, channels, name="a")


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 19])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_by_scales(mode: str, opset: int) -> None:
    net, y = conv_net(opset, size=6)
    scales = net.const(np.array([1, 1, 2, 1.5]))
    roi = net.const(np.zeros(0, np.float32)) if opset == 11 else ""
    y = net("Resize", y, scales, mode=mode) if opset < 11 else net("Resize", y, roi, scales, mode=mode)
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset: int) -> None:
    net, y = conv_net(opset, size=6)
    scales = [1.0, 1.0, 2.0, 2.0]
    y = net("Upsample", y, scales=scales) if opset < 9 else net("Upsample", y, net.const(scales))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [11, 13])
def test_resize_by_sizes_at_run_time(opset: int) -> None:
    """Sizes as PyTorch exports them: samples and channels from Shape, then what is wanted."""
    net, y = conv_net(opset)
    shape = net("Shape", y)
    head = net("Slice", shape, net.ints(0), net.ints(2), net.ints(0))
    tail = net("Mul", net("Slice", shape, net.ints(2), net.ints(4), net.ints(0)), net.ints(2))
    none = net.const(np.zeros(0, np.float32))
    y = net("Resize", y, none, none, net("Concat", head, tail, axis=0))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_resize_to_fixed_sizes() -> None:
    net, y = conv_net(13, size=6)
    y = net("Resize", y, "", "", net.ints(3, 8, 9, 9))
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 3
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_resize_like_another() -> None:
    """A feature pyramid: the size of one level taken from another's Shape."""
    net = Net(13)
    x = net.input("x", [None, 3, None, None])
    fine, coarse = net.conv(x, 3, 8, name="a"), net.conv(x, 3, 6, 2, strides=[2, 2], name="c")
    sizes = net("Concat", net("Slice", net("Shape", coarse), net.ints(0), net.ints(2)),
                net("Slice", net("Shape", fine), net.ints(2), net.ints(4)), axis=0)
    y = net("Concat", fine, net("Resize", coarse, "", "", sizes), axis=1)
    check(net.output(net.conv(y, 14, 4)), groups=2, free={"a:0": "8", "c:0": "6"})


@pytest.mark.parametrize("given", ["scales", "sizes"])
def test_resize_axes(given: str) -> None:
    net, y = conv_net(18, size=6)
    operands = ["", net.const([2.0, 2.0])] if given == "scales" else ["", "", net.ints(9, 9)]
    y = net("Resize", y, *operands, axes=[2, 3])
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


def test_resize_channels_pins() -> None:
    net, y = conv_net(13, size=6)
    y = net("Resize", y, "", net.const([1.0, 2.0, 1.0, 1.0]))
    check(net.output(net.conv(y, 16, 4)), groups=0, pinned={"a:0": "resampled"})


def test_resize_channels_by_a_little_pins() -> None:
    """As many channels as before, but other ones."""
    net, y = conv_net(13, size=6)
    scales = net.const([1.0, 1.1, 1.0, 1.0])
    y = net("Resize", y, "", scales, mode="linear", coordinate_transformation_mode="asymmetric")
    check(net.output(net.conv(y, 8, 4)), groups=0, pinned={"a:0": "resampled"})


def test_resize_within_a_region_pins() -> None:
    net, y = conv_net(13, size=6)
    roi = net.const([0.0, 0.2, 0.0, 0.0, 1.0, 0.8, 1.0, 1.0])
    y = net("Resize", y, roi, net.const([1.0, 1.0, 2.0, 2.0]), mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize")
    check(net.output(net.conv(y, 8, 4)), groups=0, pinned={"a:0": "resampled"})


@pytest.mark.parametrize("axes", [None, [2, 3], [1, 2, 3]])
def test_center_crop_pad(axes: list[int] | None) -> None:
    net, y = conv_net(18, size=6)
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 3
    sizes = {None: (3, 8, 4, 9), 2: (4, 9), 3: (8, 4, 9)}[None if axes is None else len(axes)]
    y = net("CenterCropPad", y, net.ints(*sizes), **({} if axes is None else {"axes": axes}))
    check(net.output(net.conv(y, 8, 4)), groups=1, free={"a:0": "8"})


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, opset: int) -> None:
    if mode == "CRD" and opset < 11:
        pytest.skip("the mode is younger")
    net, y = conv_net(opset, 20, size=3)
    y = net("DepthToSpace", y, blocksize=2, **({"mode": mode} if opset >= 11 else {}))
    text = "([2] [2] 5)" if mode == "DCR" else "(5 [2] [2])"
    check(net.output(net.conv(y, 5, 4, name="b")), groups=1, free={"a:0": text, "b:1": "5"})


def test_space_to_depth() -> None:
    net, y = conv_net(13, 5, size=6)
    y = net("SpaceToDepth", y, blocksize=2)
    check(net.output(net.conv(y, 20, 4, name="b")), groups=1, free={"a:0": "5", "b:1": "([2] [2] 5)"})


@pytest.mark.parametrize("shape", ["constant", "run time"])
def test_pixel_shuffle_by_reshape(shape: str) -> None:
    net, y = conv_net(13, 20, size=6 if shape == "constant" else None)
    if shape == "constant":
        y = net("Reshape", y, net.ints(-1, 5, 2, 2, 6, 6))
    else:
        full = net("Shape", y)
        n, h, w = (net("Gather", full, net.ints(k)) for k in (0, 2, 3))
        y = net("Reshape", y, net("Concat", n, net.ints(5, 2, 2), h, w, axis=0))
    y = net("Transpose", y, perm=[0, 1, 4, 2, 5, 3])
    if shape == "constant":
        y = net("Reshape", y, net.ints(-1, 5, 12, 12))
    else:
        two = net.ints(2)
        y = net("Reshape", y, net("Concat", n, net.ints(5), net("Mul", h, two), net("Mul", w, two), axis=0))
    check(net.output(net.conv(y, 5, 4, name="b")), groups=1, free={"b:1": "5"})


@pytest.mark.parametrize("groups", [2, 4])
def test_channel_shuffle(groups: int) -> None:
    net, y = conv_net(13, 8, size=6)
    y = net("Reshape", y, net.ints(-1, groups, 8 // groups, 6, 6))
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3, 4]), net.ints(-1, 8, 6, 6))
    text = f"({groups} {8 // groups})"
    check(net.output(net.conv(y, 8, 4, name="b")), groups=2, free={"a:0": text, "b:1": f"({8 // groups} {groups})"})


def test_unpooling_pins() -> None:
    """Its indices are places in all channels together."""
    net = Net(13)
    y = net.conv(net.input("x", [1, 3, 2, 2]), 3, 6, name="a")
    places = net.const(np.arange(24).reshape(1, 6, 2, 2) * 4)
    y = net("MaxUnpool", y, places, kernel_shape=[2, 2], strides=[2, 2])
    check(net.output(net.conv(y, 6, 2)), groups=0, pinned={"a:0": "places of the whole value"})
