"""Small networks of common operators at many widths, to time what a machine takes for them.

Chains keep convolutions in the blocked layout that they have in real networks; what cannot be in it breaks the chain
now and then, so that changes of layout are timed, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SPACES = ((112, 64), (56, 192), (28, 384), (14, 512), (7, 512))
"""Height and width of feature maps, and the most channels that are tried there."""

_HIDDEN = (64, 128, 192, 384, 768)
_LENGTHS = (16, 64, 197)
_OPSET = 17


class _Net:
    """Nodes and weights of one network while it is built; the last value is what the next node reads."""

    def __init__(self, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape = shape
        self.rng = rng
        self.last = "x"

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values: npt.NDArray[np.float32] = (self.rng.standard_normal(shape) / 16).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, operator: str, *others: str, first: str = "", **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        inputs = [first or self.last, *others]
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.last = name
        return name

    def conv(self, channels: int, out: int, kernel: int, stride: int = 1, group: int = 1) -> None:
        weight, bias = self.weight(out, channels // group, kernel, kernel), self.weight(out)
        self.node("Conv", weight, bias, strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)

    def model(self, batch: int) -> bytes:
        graph = helper.make_graph(
            self.nodes, "probe",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *self.shape])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            self.weights,
        )  # fmt: skip
        made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", _OPSET)])
        return bytes(made.SerializeToString())


def convolutional(space: int, most: int, rng: np.random.Generator, batch: int = 1) -> tuple[bytes, tuple[int, ...]]:
    """Return a network of convolutions on maps of one size, and the shape of its input.

    >>> convolutional(7, 64, np.random.default_rng(0))[1][0]
    1
    """
    widths = [w for w in _WIDTHS if w <= most]
    net = _Net((3 if space > 100 else int(rng.choice(widths)), space, space), rng)
    now = net.shape[0]
    if now == 3:
        net.conv(3, now := int(rng.choice(widths[:4])), 3, 2)
        net.node("Relu")
    for kernel in rng.permutation([1, 1, 1, 3, 3, 1, 1]):
        out = int(rng.choice(widths))
        net.conv(now, out, int(kernel))
        net.node("Relu")
        now = out
    for kernel, stride in ((3, 1), (5, 1), (7, 1), (3, 2)):
        net.conv(now, now, kernel, stride, now)
        net.node("Sigmoid", first=net.last)
        net.node("Mul", net.last, first=net.nodes[-1].input[0])
        net.conv(now, now := int(rng.choice(widths)), 1)
    kept = net.last
    net.conv(now, now, 3)
    net.node("Add", kept)
    net.node("Concat", kept, axis=1)
    net.conv(2 * now, now := int(rng.choice(widths)), 1, 2)
    net.node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    whole = net.last
    net.node("GlobalAveragePool")
    net.conv(now, 16, 1)
    net.node("Relu")
    net.conv(16, now, 1)
    net.node("Sigmoid")
    net.node("Mul", whole)
    net.node("GlobalAveragePool")
    net.node("Flatten")
    net.node("Gemm", net.weight(now, 1000), net.weight(1000))
    return net.model(batch), (batch, *net.shape)


def transforming(hidden: int, length: int, rng: np.random.Generator, batch: int = 1) -> tuple[bytes, tuple[int, ...]]:
    """Return two blocks of attention and a wider layer, and the shape of their input.

    >>> transforming(64, 16, np.random.default_rng(0))[1]
    (1, 16, 64)
    """
    net = _Net((length, hidden), rng)
    for _ in range(2):
        heads = int(rng.choice([n for n in (1, 2, 3, 4, 6, 8, 12) if hidden % (n * 16) == 0]))
        width = int(rng.choice([16, 32, 48, 64]))
        kept = net.last
        net.node("LayerNormalization", net.weight(hidden), net.weight(hidden), axis=-1)
        normal = net.last
        queries, keys, values = (
            _heads(net, normal, (hidden, heads, width), axes) for axes in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        net.node("MatMul", keys, first=queries)
        net.node("Softmax", axis=-1)
        net.node("MatMul", values)
        net.node("Transpose", perm=[0, 2, 1, 3])
        net.node("Reshape", net.constant(0, 0, heads * width))
        net.node("MatMul", net.weight(heads * width, hidden))
        net.node("Add", net.weight(hidden))
        kept = net.node("Add", kept)
        net.node("LayerNormalization", net.weight(hidden), net.weight(hidden), axis=-1)
        inner = int(rng.choice([1, 2, 3, 4])) * hidden
        net.node("MatMul", net.weight(hidden, inner))
        net.node("Add", net.weight(inner))
        net.node("Tanh" if rng.random() < 0.3 else "Relu")
        net.node("MatMul", net.weight(inner, hidden))
        net.node("Add", net.weight(hidden))
        net.node("Add", kept)
    return net.model(batch), (batch, *net.shape)


def _heads(net: _Net, source: str, sizes: tuple[int, int, int], axes: list[int]) -> str:
    hidden, heads, width = sizes
    net.node("MatMul", net.weight(hidden, heads * width), first=source)
    net.node("Add", net.weight(heads * width))
    net.node("Reshape", net.constant(0, 0, heads, width))
    return net.node("Transpose", perm=axes)


def probes(seed: int = 0) -> Iterator[list[tuple[bytes, tuple[int, ...]]]]:
    """Yield sets of models with the shapes of their inputs: in every set all sizes, in each at other widths."""
    rng = np.random.default_rng(seed)
    while True:
        nets = [convolutional(space, most, rng) for space, most in _SPACES]
        yield [*nets, *(transforming(int(rng.choice(_HIDDEN)), length, rng) for length in _LENGTHS)]
