"""Build small ONNX graphs in tests: one call per node, sizes known all along, names counted by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
from onnx import TensorProto, helper, numpy_helper

BATCH = 3


_SAME_SHAPE = frozenset(["GroupNormalization", "MeanVarianceNormalization", "CastLike"])
"""Operators whose schema tells no sizes."""


class CannotBuild(Exception):
    """The asked-for node does not fit its inputs."""


class Builder:
    """A graph in the making; values are names, axis 0 of every activation is the batch.

    `batch` makes axis 0 of the inputs open in the file, `everything` all their axes.
    """

    def __init__(self, opset: int = 17, seed: int = 0, batch: bool = True, everything: bool = False) -> None:
        self.everything = everything
        self.opset = opset
        self.batch = batch
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.count: Counter[str] = Counter()

    def name(self, kind: str) -> str:
        self.count[kind] += 1
        return f"{kind.lower()}{self.count[kind]}"

    def input(self, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        """Add an input of BATCH samples of a shape."""
        name = self.name("x")
        self.inputs.append(name)
        self.shapes[name], self.types[name] = (BATCH, *shape), kind
        return name

    def constant(self, content: npt.ArrayLike, kind: str = "c", node: bool = False) -> str:
        """Add a constant as an initializer, or as a Constant node."""
        array = np.asarray(content)
        name = self.name(kind)
        self.constants[name] = array
        self.shapes[name], self.types[name] = array.shape, helper.np_dtype_to_tensor_dtype(array.dtype)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    def ints(self, *content: int) -> str:
        return self.constant(np.asarray(content, dtype=np.int64), "i")

    def weight(self, *shape: int, fan: int | None = None, near: float = 0.0) -> str:
        """Add random float weights around `near`, scaled by the number of terms that are summed."""
        scale = (fan or 1) ** -0.5 if fan else 0.3
        return self.constant((self.rng.standard_normal(shape) * scale + near).astype(np.float32), "w")

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return its output's name, or a list of names.

        Raises CannotBuild where onnx's inference refuses it or leaves a size open.
        """
        names = [self.name(kind) for _ in range(outputs)]
        given = {k: v for k, v in attributes.items() if v is not None}
        node = helper.make_node(kind, list(inputs), names, name=self.name(f"{kind}_node"), **given)
        for name, found in zip(names, self.infer(node), strict=True):
            if found is None or any(n < 1 for n in found[1]):
                raise CannotBuild(f"{kind} of {[self.shapes.get(i) for i in inputs]}")
            self.types[name], self.shapes[name] = found
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def forced(self, kind: str, *inputs: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """Add a node whose output's sizes inference cannot tell; it is a float."""
        name = self.name(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=self.name(f"{kind}_node"), **attributes))
        self.shapes[name], self.types[name] = shape, TensorProto.FLOAT
        return name

    def infer(self, node: onnx.NodeProto) -> list[tuple[int, tuple[int, ...]] | None]:
        types = {n: helper.make_tensor_type_proto(self.types[n], self.shapes[n]) for n in node.input if n}
        data = {n: numpy_helper.from_array(self.constants[n]) for n in node.input if n in self.constants}
        try:
            got = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, self.opset, ""), node, types, data,
                opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8,
            )
        except Exception as error:
            raise CannotBuild(str(error)) from error
        found = [_read(got.get(o)) for o in node.output]
        if found == [None] and node.op_type in _SAME_SHAPE:
            return [(self.types[node.input[0]], self.shapes[node.input[0]])]
        return found

    # Operators whose form depends on the opset.

    def reduce(self, kind: str, x: str, axes: Sequence[int], keep: int = 1) -> str:
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, self.ints(*axes), keepdims=keep)
        return self.op(kind, x, axes=list(axes), keepdims=keep)

    def squeeze(self, x: str, axes: Sequence[int], kind: str = "Squeeze") -> str:
        return self.op(kind, x, self.ints(*axes)) if self.opset >= 13 else self.op(kind, x, axes=list(axes))

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        if self.opset >= 13:
            return self.op("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)
        return self.op("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))

    def halves(self, x: str, axis: int) -> list[str]:
        """Split in two without saying the sizes."""
        return self.op("Split", x, outputs=2, axis=axis, num_outputs=2 if self.opset >= 18 else None)

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def shape(self, x: str, *rest: int, first: int = 0) -> str:
        """Reshape: `rest` are the sizes after the batch, of which one may be -1."""
        return self.op("Reshape", x, self.ints(first, *rest))

    def conv(self, x: str, out: int, kernel: int = 3, group: int = 1, bias: bool = True, **attributes: Any) -> str:
        rank = len(self.shapes[x]) - 2
        into = self.shapes[x][1] // group
        w = self.weight(out, into, *[kernel] * rank, fan=into * kernel**rank)
        attributes.setdefault("pads", [kernel // 2] * 2 * rank)
        return self.op("Conv", x, w, *([self.weight(out)] if bias else []), group=group, **attributes)

    def linear(self, x: str, out: int, bias: bool = True) -> str:
        into = self.shapes[x][-1]
        y = self.op("MatMul", x, self.weight(into, out, fan=into))
        return self.op("Add", y, self.weight(out)) if bias else y

    def batch_norm(self, x: str) -> str:
        c = self.shapes[x][1]
        variance = self.constant((self.rng.random(c) + 0.5).astype(np.float32), "w")
        return self.op("BatchNormalization", x, self.weight(c, near=1), self.weight(c), self.weight(c), variance)

    def layer_norm(self, x: str, axis: int = -1) -> str:
        """LayerNormalization, or its parts where the opset has none."""
        shape = self.shapes[x]
        axis = axis % len(shape)
        if self.opset >= 17:
            scale, shift = self.weight(*shape[axis:], near=1), self.weight(*shape[axis:])
            return self.op("LayerNormalization", x, scale, shift, axis=axis)
        axes = list(range(axis, len(shape)))
        centred = self.op("Sub", x, self.reduce("ReduceMean", x, axes))
        square = self.op("Pow", centred, self.constant(np.float32(2)))
        spread = self.op("Add", self.reduce("ReduceMean", square, axes), self.constant(np.float32(1e-3)))
        y = self.op("Div", centred, self.op("Sqrt", spread))
        return self.op("Add", self.op("Mul", y, self.weight(*shape[axis:], near=1)), self.weight(*shape[axis:]))

    def softmax(self, x: str) -> str:
        return self.op("Softmax", x, axis=-1 if self.opset >= 13 else len(self.shapes[x]) - 1)

    def swish(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def readout(self, x: str) -> str:
        """Reduce a value to one number per sample that depends on the place of every slot."""
        shape = self.shapes[x]
        weighted = self.op("Mul", x, self.weight(*shape[1:], fan=prod(shape[1:])))
        return self.reduce("ReduceSum", weighted, list(range(1, len(shape))), keep=0)

    def output(self, x: str) -> str:
        """Add an output; a value that is an input or an output already gets a name of its own."""
        if x in self.outputs or x in self.inputs:
            x = self.op("Identity", x)
        self.outputs.append(x)
        return x

    def model(self) -> onnx.ModelProto:
        """Return the finished, checked model."""
        def info(name: str, rank_only: bool) -> onnx.ValueInfoProto:
            shape = [None if rank_only and k == 0 else n for k, n in enumerate(self.shapes[name])]
            open_axes = len(shape) if self.everything else 1 if self.batch else 0
            named = [f"{name}_{k}" if k else "batch" for k in range(0 if rank_only else open_axes)]
            return helper.make_tensor_value_info(name, self.types[name], [*named, *shape[len(named) :]])

        made = {n for node in self.nodes for n in node.output}
        weights = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n not in made]
        graph = helper.make_graph(
            self.nodes, "built", [info(n, False) for n in self.inputs], [info(n, True) for n in self.outputs], weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def feeds(self, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Return random inputs; integers stay below 4."""
        rng = np.random.default_rng(seed)
        return {
            n: rng.standard_normal(self.shapes[n]).astype(np.float32)
            if self.types[n] == TensorProto.FLOAT
            else rng.integers(0, 4, self.shapes[n])
            for n in self.inputs
        }


def _read(proto: onnx.TypeProto | None) -> tuple[int, tuple[int, ...]] | None:
    if proto is None or not proto.tensor_type.HasField("shape"):
        return None
    sizes = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in proto.tensor_type.shape.dim)
    return proto.tensor_type.elem_type, sizes
