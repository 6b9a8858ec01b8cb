"""If, Loop and Scan: axes across the borders of bodies, weights inside and captured from outside."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphprune.costs import CostModel
from graphprune.graph import operator_graph
from graphprune.groups import couple
from graphprune.normalize import normalize
from graphprune.sizes import choose
from graphprune.trace import trace
from tests.oracles import Net, check, solved


class Inside(Net):
    """A body in the making: nodes and weights of its own, and all that is known outside."""

    def __init__(self, outer: Net, prefix: str) -> None:
        super().__init__(outer.opset, outer.ir_version, outer.dtype)
        self.rng, self.prefix = outer.rng, prefix

    def name(self, base: str) -> str:
        return f"{self.prefix}{super().name(base)}"

    def graph(self, *outputs: str, kinds: tuple[int, ...] = ()) -> onnx.GraphProto:
        kinds = kinds or (TensorProto.FLOAT,) * len(outputs)
        infos = [helper.make_tensor_value_info(n, k, None) for n, k in zip(outputs, kinds, strict=True)]
        return helper.make_graph(self.nodes, self.prefix or "body", self.inputs, infos, self.initializers)


def condition(net: Net) -> str:
    flag = net.input("flag", [], np.int64, between=(0, 2))
    return str(net("Equal", flag, net.const(np.int64(1))))


@pytest.mark.parametrize("prefix", ["t_", "e_"])
def test_weights_inside_branches(prefix: str) -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 6]), 6, 8, name="a")
    bodies = {}
    for attribute, p in (("then_branch", prefix), ("else_branch", "e_")):  # once with equal names in both
        inner = Inside(net, p)
        hidden = inner("Relu", inner.matmul(x, 8, 12, name=f"{p}in"))
        bodies[attribute] = inner.graph(inner.matmul(hidden, 12, 10, name=f"{p}out"))
    y = net("If", condition(net), **bodies)
    net.output(net.matmul(net("Relu", y), 10, 3, name="b"))
    other = "e_in__body1" if prefix == "e_" else "t_in"
    checked = check(net, groups=4, free={"a:1": "8", f"{other}:1": "12", "e_in:1": "12", "e_out:1": "10", "b:0": "10"})
    assert checked.group("e_in:1") != checked.group(f"{other}:1")
    assert checked.group("e_in:0") == checked.group(f"{other}:0") == checked.group("a:1")


def test_a_captured_value_is_the_output_of_a_branch() -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 6]), 6, 8, name="a")
    same, changed = Inside(net, "s_"), Inside(net, "c_")
    then, other = same.graph(same("Identity", x)), changed.graph(changed.matmul(x, 8, 8, name="w"))
    y = net("If", condition(net), then_branch=then, else_branch=other)
    net.output(net.matmul(y, 8, 3, name="b"))
    check(net, groups=1, free=["a:1", "w:0", "w:1", "b:0"])


def test_nested_branches() -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 6]), 6, 8, name="a")
    flag = condition(net)
    inner, leaf, other = Inside(net, "i_"), Inside(net, "l_"), Inside(net, "o_")
    w = inner.weight(8, 10, name="w")  # captured by the innermost
    y = inner("If", flag, then_branch=leaf.graph(leaf("MatMul", x, w)), else_branch=other.graph(other("MatMul", x, w)))
    outer = Inside(net, "z_")
    z = net("If", flag, then_branch=inner.graph(y), else_branch=outer.graph(outer.matmul(x, 8, 10, name="v")))
    net.output(net.matmul(z, 10, 3, name="b"))
    check(net, groups=2, free={"a:1": "8", "w:1": "10", "v:1": "10", "b:0": "10"})


def squeezed(net: Net, x: str, condition: str) -> None:
    """What TorchScript makes of `squeeze(2)`: a branch with the axis, and one without it."""
    then, other = Inside(net, "t_"), Inside(net, "o_")
    bodies = {
        "then_branch": then.graph(then("Squeeze", x, then.ints(2))),
        "else_branch": other.graph(other("Identity", x)),
    }
    net.output(net.matmul(net("If", condition, **bodies), 8, 3, name="b"))


def test_a_branch_of_another_rank_that_is_never_taken() -> None:
    net = Net()
    x = net.conv(net.input("x", [None, 4, 1]), 4, 8, name="a", dims=1)
    size = net("Gather", net("Shape", x), net.const(np.int64(2)))
    squeezed(net, x, net("Equal", size, net.const(np.int64(1))))
    check(net, groups=1, free=["a:0", "b:0"])


def test_a_branch_of_another_rank_that_may_be_taken() -> None:
    net = Net()
    x = net.conv(net.input("x", [None, 4, 1]), 4, 8, name="a", dims=1)
    squeezed(net, x, condition(net))
    _, coupling = solved(net)
    assert not coupling.groups
    reasons = {place: reason for place, reason, _ in coupling.pins()}
    assert reasons["a:0"] == "the shape of 'if_4' is not known [If 'n2_If']"


def test_branches_that_disagree_in_size_pin() -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 6]), 6, 8, name="a")
    bodies = {}
    for attribute, n in (("then_branch", 10), ("else_branch", 12)):
        inner = Inside(net, attribute)
        bodies[attribute] = inner.graph(inner.matmul(x, 8, n, name=attribute))
    y = net("If", condition(net), **bodies)
    net.output(net("ReduceMax", y, axes=[1]))
    check(net, groups=1, free=["a:1"], pinned={"then_branch:1": "", "else_branch:1": ""})


def rnn_by_loop(net: Net, x: str, n: int, hidden: int, *, trips: Any = 5) -> tuple[str, str]:
    """Return the last state and all states of a recurrent net spelled out as a Loop."""
    body = Inside(net, "body_")
    step = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    keep = helper.make_tensor_value_info("keep", TensorProto.BOOL, [])
    state = helper.make_tensor_value_info("h", TensorProto.FLOAT, None)
    body.inputs = [step, keep, state]
    row = body("Gather", x, "i", axis=0)
    new = body("Tanh", body("Add", body.matmul(row, n, hidden, name="wx"), body.matmul("h", hidden, hidden, name="wh")))
    graph = body.graph(body("Identity", "keep"), new, body("Mul", new, body.weight(hidden, name="scale")),
                       kinds=(TensorProto.BOOL, TensorProto.FLOAT, TensorProto.FLOAT))
    batch = net("Slice", net("Shape", x), net.ints(1), net.ints(2))
    zero = net("Expand", net.const(np.zeros([1, hidden])), net("Concat", batch, net.ints(hidden), axis=0))
    last, every = net("Loop", net.const(np.int64(trips)), "", zero, n=2, body=graph)
    return last, every


def test_a_recurrent_net_as_a_loop() -> None:
    net = Net()
    x = net.matmul(net.input("x", [5, None, 4]), 4, 6, name="a")
    last, every = rnn_by_loop(net, x, 6, 8)
    net.output(net.matmul(last, 8, 3, name="b"), net.matmul(every, 8, 2, name="c"))
    checked = check(net, groups=2, free={"wx:0": "6", "wx:1": "8", "wh:0": "8", "wh:1": "8", "b:0": "8", "c:0": "8"})
    assert checked.group("wh:0") == checked.group("scale:0") == checked.group("c:0")
    assert checked.macs("MatMul") > 5 * (6 * 8 + 8 * 8)  # the body counts for every iteration


def test_a_state_that_grows() -> None:
    """A loop that concatenates: the growing axis is not known, the others go along."""
    net = Net(opset=17)
    x = net.matmul(net.input("x", [None, 2, 4]), 4, 6, name="a")
    body = Inside(net, "body_")
    body.inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
        helper.make_tensor_value_info("grown", TensorProto.FLOAT, None),
    ]
    graph = body.graph(body("Identity", "keep"), body("Concat", "grown", x, axis=1), kinds=(TensorProto.BOOL, 1))
    net.output(net.matmul(net("Loop", net.const(np.int64(3)), "", x, body=graph), 6, 3, name="b"))
    check(net, groups=1, free=["a:1", "b:0"])


def test_scan() -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 5, 4]), 4, 6, name="a")
    body = Inside(net, "body_")
    body.inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("h", "row")]
    new = body("Relu", body("Add", body.matmul("h", 8, 8, name="wh"), body.matmul("row", 6, 8, name="wx")))
    graph = body.graph(new, body.matmul(new, 8, 7, name="out"))
    batch = net("Slice", net("Shape", x), net.ints(0), net.ints(1))
    start = net("Expand", net.weight(1, 8, name="h0"), net("Concat", batch, net.ints(8), axis=0))
    last, every = net("Scan", start, x, n=2, body=graph, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])
    net.output(net.matmul(last, 8, 3, name="b"), net.matmul(every, 7, 2, name="c"))
    check(net, groups=3, free={"h0:1": "8", "wx:0": "6", "out:1": "7", "wh:0": "8", "b:0": "8", "c:0": "7"})


def test_old_scan_and_unknown_bodies_pin() -> None:
    """What is inside of a body that no rule knows stays, with what it uses, and counts as not prunable."""
    net = Net(opset=17)
    x = net.matmul(net.input("x", [None, 2, 4]), 4, 6, name="a")
    body = Inside(net, "body_")
    body.inputs = [helper.make_tensor_value_info("element", TensorProto.FLOAT, None)]
    graph = body.graph(body("Add", body.matmul("element", 6, 6, name="w"), x))
    listed = net("SequenceConstruct", x)
    mapped = net("SequenceMap", listed, body=graph)
    net.output(net("SequenceAt", mapped, net.const(np.int64(0))))
    model = normalize(ir.from_proto(net.model()))
    coupling = couple(trace(model, choose(model, {})))
    reasons = {place: reason for place, reason, _ in coupling.pins()}
    assert "inside a body of SequenceMap" in reasons["w:0"]
    assert not coupling.groups


def test_the_branch_that_is_not_taken_costs_nothing() -> None:
    net = Net()
    x = net.matmul(net.input("x", [4, 6]), 6, 8, name="a")
    bodies = {}
    for attribute in ("then_branch", "else_branch"):
        inner = Inside(net, attribute)
        bodies[attribute] = inner.graph(inner.matmul(x, 8, 10, name=attribute))
    net.output(net.matmul(net("If", net.const(np.bool_(True)), **bodies), 10, 3, name="b"))
    _, coupling = solved(net)
    assert sum(CostModel(coupling).op_macs({}).values()) == 4 * (6 * 8 + 8 * 10 + 10 * 3)
    check(net, groups=2, free=["a:1", "then_branch:1", "else_branch:1"])


def test_a_loop_without_states() -> None:
    """Its second input is absent, and must be written all the same."""
    net = Net()
    x = net.matmul(net.input("x", [5, None, 4]), 4, 6, name="a")
    body = Inside(net, "body_")
    body.inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
    ]
    row = body("Relu", body.matmul(body("Gather", x, "i", axis=0), 6, 8, name="w"))
    graph = body.graph(body("Identity", "keep"), row, kinds=(TensorProto.BOOL, TensorProto.FLOAT))
    net.output(net.matmul(net("Loop", net.const(np.int64(5)), "", body=graph), 8, 3, name="b"))
    check(net, groups=2, free=["a:1", "w:0", "w:1", "b:0"])


def test_bodies_are_in_the_exported_graph() -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 6]), 6, 8, name="a")
    inner, other = Inside(net, "i_"), Inside(net, "o_")
    y = net("If", condition(net), then_branch=inner.graph(inner.matmul(x, 8, 8, name="w")),
            else_branch=other.graph(other("Identity", x)))
    _, coupling = solved(net.output(net.matmul(y, 8, 3, name="b")))
    graph = operator_graph(coupling)
    assert networkx.has_path(graph, "value:w", f"value:{y}")
    assert networkx.has_path(graph, "value:a", f"value:{y}")
