"""Sizes used as numbers, values made from sizes, and what depends on positions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from oracles import Net, check, solved, subsets

from graphprune.rewrite import rearranged


def token_net(opset: int = 17) -> tuple[Net, str]:
    net = Net(opset)
    return net, net.matmul(net.input("x", [None, "s", 5]), 5, 8, name="a")


@pytest.mark.parametrize("pick", ["Gather", "Slice", "Shape-15", "Size"])
def test_scale_by_the_width(pick: str) -> None:
    """A scale computed from a width at run time keeps its value when the width shrinks."""
    net = Net()
    x = net.input("x", [2, 6, 5])
    q, k = net.matmul(x, 5, 8, name="q"), net.matmul(x, 5, 8, name="k")
    if pick == "Gather":
        width = net("Gather", net("Shape", q), net.const(-1))
    elif pick == "Slice":
        width = net("Slice", net("Shape", q), net.ints(-1), net.ints(2**63 - 1))
    elif pick == "Shape-15":
        width = net("Shape", q, start=2)
    else:
        width = net("Div", net("Size", q), net.const(12))
    q = net("Div", q, net("Sqrt", net("Cast", width, to=1)))
    y = net("MatMul", q, net("Transpose", k, perm=[0, 2, 1]))
    check(net.output(net.matmul(y, 6, 4)), groups=1, free={"q:1": "8", "k:1": "8"})


def test_scale_with_open_sizes() -> None:
    net = Net()
    x = net.input("x", [None, "s", 5])
    q, k = net.matmul(x, 5, 8, name="q"), net.matmul(x, 5, 8, name="k")
    width = net("Cast", net("Gather", net("Shape", q), net.const(2)), to=1)
    q = net("Mul", q, net("Div", net.const(1.0), net("Sqrt", width)))
    y = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])))
    check(net.output(net.matmul(net("MatMul", y, q), 8, 4)), groups=1, free={"q:1": "8"})


def test_whole_shape_as_numbers() -> None:
    """A Shape that is read as a whole, with open sizes among it."""
    net, y = token_net()
    number = net("ReduceProd", net("Cast", net("Shape", y), to=1), keepdims=0)
    check(net.output(net.matmul(net("Div", y, number), 8, 4)), groups=1, free={"a:1": "8"})


def test_mean_by_the_number_of_elements() -> None:
    net = Net()
    y = net.conv(net.input("x", [2, 3, 4, 4]), 3, 8, name="a")
    total = net("ReduceSum", y, net.ints(1, 2, 3), keepdims=0)
    y = net("Div", total, net("Cast", net("Size", y), to=1))
    check(net.output(y), groups=1, free={"a:0": "8"})


def test_size_of_open_axes_pins() -> None:
    net, y = token_net()
    y = net("Div", y, net("Cast", net("Size", y), to=1))
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"a:1": "number of elements"})


@pytest.mark.parametrize("sizes", ["constant", "run time"])
@pytest.mark.parametrize("value", [None, 0.5])
def test_constant_of_shape(sizes: str, value: float | None) -> None:
    net, y = token_net()
    attributes = {} if value is None else {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [value])}
    made = net("ConstantOfShape", net.ints(8) if sizes == "constant" else net("Shape", y), **attributes)
    check(net.output(net.matmul(net("Add", y, made), 8, 4)), groups=1, free={"a:1": "8"})


def test_zeros_beside_channels() -> None:
    """A zero-padded shortcut made by Concat with a constant of zeros."""
    net = Net()
    x = net.input("x", [2, 3, 4, 4])
    y = net("Concat", net.conv(x, 3, 5, name="a"), net("ConstantOfShape", net.ints(2, 4, 4, 4)), axis=1)
    check(net.output(net.conv(net("Add", y, net.conv(x, 3, 9, name="c")), 9, 4)), groups=2, free={"c:0": "(5 + 4)"})


def test_positions_from_range() -> None:
    net, y = token_net()
    length = net("Gather", net("Shape", y), net.const(1))
    places = net("Range", net.const(0), length, net.const(1))
    y = net("Add", y, net("Gather", net.weight(64, 8, name="table"), places))
    check(net.output(net.matmul(y, 8, 4)), groups=1, free={"a:1": "8", "table:1": "8"})


def test_range_over_channels_pins() -> None:
    net = Net()
    y = net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a")
    width = net("Gather", net("Shape", y), net.const(2))
    y = net("Mul", y, net("Cast", net("Range", net.const(0), width, net.const(1)), to=1))
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"a:1": ""})


def test_eye_pins() -> None:
    net = Net()
    y = net("Reshape", net.matmul(net.input("x", [2, 5]), 5, 16, name="a"), net.ints(0, 4, 4))
    y = net("Mul", y, net("EyeLike", net.weight(4, 4, name="like")))
    check(net.output(net.gemm(net("Flatten", y), 16, 3)), groups=0, pinned={"a:1": "positions"})


@pytest.mark.parametrize("op_type", ["NonZero", "Unique"])
def test_found_by_value_pins(op_type: str) -> None:
    net = Net()
    y = net("ReduceSum", net.matmul(net.input("x", [2, 5]), 5, 8, name="a"), net.ints(0), keepdims=0)
    y = net("Relu", net(op_type, y))
    net.output(net("ReduceMax", y, keepdims=0), dtype=np.int64 if op_type == "NonZero" else np.float32)
    check(net, groups=0, pinned={"a:1": "positions"})


def test_unknown_operator_pins() -> None:
    net = Net()
    net.domains.append("com.microsoft")
    y = net.matmul(net.input("x", [2, 5]), 5, 8, name="a")
    y = net("NobodyKnows", y, net.weight(8, name="bias"), domain="com.microsoft")
    net.nodes[-1].output[0] = y
    check(net.output(net.matmul(y, 8, 4)), groups=0, pinned={"a:1": "no axis rule for com.microsoft.NobodyKnows"})


def test_captured_by_a_body() -> None:
    """What the branches of an If use from outside has the axes of the If's output where they hand them on."""
    net = Net()
    x = net.input("x", [2, 5])
    y, z = net.matmul(x, 5, 8, name="a"), net.matmul(x, 5, 6, name="c")
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 8])
    branches = {
        f"{kind}_branch": helper.make_graph([helper.make_node(op, [y], ["out"])], kind, [], [out])
        for kind, op in (("then", "Relu"), ("else", "Neg"))
    }
    y = net("If", net("Greater", net("ReduceSum", x, keepdims=0), net.const(0.0)), **branches)
    y = net("Add", net.matmul(y, 8, 4), net.matmul(z, 6, 4))
    check(net.output(y), groups=2, free={"c:1": "6", "a:1": "8"})


def test_size_as_an_output() -> None:
    """A Shape or Size that leaves the graph says what it was."""
    net, y = token_net()
    net.output(net.matmul(y, 8, 4)).output(net("Shape", y), dtype=np.int64)
    check(net.output(net("Size", net.weight(3, 7, name="w")), dtype=np.int64), free={"a:1": "8"})


def test_stated_sizes_follow() -> None:
    """The pruned file states no size that is not so."""
    net = Net()
    y = net("Relu", net.matmul(net.input("x", [2, 5]), 5, 8, name="a"))
    net.output(net.matmul(y, 8, 4))
    model, coupling = solved(net)
    proto = ir.to_proto(rearranged(model, coupling, subsets(coupling, thin=True)))
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True), full_check=True)
    assert not any(d.dim_value == 8 for v in proto.graph.value_info for d in v.type.tensor_type.shape.dim)
