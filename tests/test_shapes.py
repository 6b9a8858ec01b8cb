"""Sizes and small contents at concrete input sizes, without running the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small import FLOAT, cnn, model, rand, tensor

from graphprune.shapes import World, infer

INT = TensorProto.INT64


def ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def world(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: tuple[int, ...], **more: Any) -> World:
    symbols = [f"d{k}" for k in range(len(shape))]
    proto = model(nodes, weights, [("x", FLOAT, symbols)], [("y", FLOAT, None)], opset=more.pop("opset", 17))
    return infer(ir.from_proto(proto), {"x": shape}, **more)


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21, 26])
def test_a_network_at_two_sizes(opset: int) -> None:
    for batch, side in ((3, 8), (1, 13)):
        proto = cnn(opset)
        got = infer(ir.from_proto(proto), {"x": (batch, 3, side, side)})
        assert got.shapes["r2"] == (batch, 48, side, side) and got.shapes["y"] == (batch, 5)
        assert not got.conflicts and not got.open_axes


def test_sizes_computed_by_the_graph_itself() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.int64(0), "zero"), ints("axes", 0), ints("rest", 4, -1)]
    got = world(nodes, weights, (7, 12, 5))
    assert got.contents["target"].tolist() == [7, 4, -1] and got.shapes["y"] == (7, 4, 15)


def test_sizes_that_depend_on_data_are_primes_of_their_own() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Transpose", ["i"], ["t"], perm=[1, 0]),
        helper.make_node("GatherND", ["x", "t"], ["y"]),
    ]
    got = world(nodes, [], (4, 6))
    assert got.open_axes["i"] == (False, True) and got.shapes["i"][0] == 2 and got.shapes["i"][1] >= 1009
    assert got.shapes["y"] == got.shapes["i"][1:]
    other = world(nodes, [], (4, 6), first_prime=2003)
    assert other.shapes["i"][1] != got.shapes["i"][1]


def test_what_was_seen_fills_what_no_rule_tells() -> None:
    nodes = [helper.make_node("Mystery", ["x"], ["m"], domain="some.where"), helper.make_node("Relu", ["m"], ["y"])]
    assert "m" not in world(nodes, [], (2, 3)).shapes
    got = world(nodes, [], (2, 3), observed={"m": (FLOAT, (2, 9))})
    assert got.shapes["y"] == (2, 9) and got.dtypes["y"] == FLOAT


def test_objections_are_noted_and_do_not_stop() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="odd"), helper.make_node("Relu", ["x"], ["y"])]
    got = world(nodes, [tensor("w", rand(5, 2))], (2, 3))
    assert len(got.conflicts) == 1 and "odd" in got.conflicts[0] and got.shapes["y"] == (2, 3)


def test_bodies_are_walked() -> None:
    out = helper.make_tensor_value_info("b", FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "b", [], [out])
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    got = world(nodes, [helper.make_tensor("c", TensorProto.BOOL, [], [True])], (2, 3))
    assert got.shapes["y"] == (2, 3) and got.shapes["z"] == (2, 3)
