"""Sizes used as numbers keep their value when an axis shrinks, also where the axis depends on the input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.execute import evaluate, relative_error
from graphprune.rewrite import masked, rearranged


def heads(reader: str) -> onnx.ModelProto:
    """Return y = f(x W) whose samples and heads are one axis, with a number made from that axis' size.

    `reader`: "main": a scale of the output reads it; "body": a branch of an If does; "output": it leaves the graph.
    """
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 8)), "v": rng.standard_normal((8, 5))}
    integers = {"split": [0, 4, 2], "merge": [-1, 2], "back": [-1, 8], "first": 0}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "split"], ["h3"]),
        helper.make_node("Reshape", ["h3", "merge"], ["bh"]),
        helper.make_node("Shape", ["bh"], ["s"]),
        helper.make_node("Reshape", ["bh", "back"], ["m"]),
        helper.make_node("MatMul", ["m", "v"], ["z"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 5])]
    if reader == "body":
        yes = helper.make_tensor_value_info("n_yes", TensorProto.FLOAT, [])
        no = helper.make_tensor_value_info("n_no", TensorProto.FLOAT, [])
        inner = [
            helper.make_node("Gather", ["s", "first"], ["g"]),
            helper.make_node("Cast", ["g"], ["n_yes"], to=TensorProto.FLOAT),
        ]
        other = [helper.make_node("Constant", [], ["n_no"], value_float=1.0)]
        branches = {
            "then_branch": helper.make_graph(inner, "yes", [], [yes]),
            "else_branch": helper.make_graph(other, "no", [], [no]),
        }
        nodes += [helper.make_node("If", ["true"], ["n"], **branches)]
    else:
        nodes += [
            helper.make_node("Gather", ["s", "first"], ["g"]),
            helper.make_node("Cast", ["g"], ["n"], to=TensorProto.FLOAT),
        ]
    nodes += [helper.make_node("Div", ["z", "n"], ["y"])]
    if reader == "output":
        outputs.append(helper.make_tensor_value_info("s", TensorProto.INT64, [2]))
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    constants += [numpy_helper.from_array(np.asarray(a, np.int64), n) for n, a in integers.items()]
    constants += [numpy_helper.from_array(np.asarray(True), "true")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 6])
    graph = helper.make_graph(nodes, "heads", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("reader", ["main", "body", "output"])
def test_a_number_made_from_a_size_stays(reader: str) -> None:
    analysis = graphprune.analyse(heads(reader))
    found = [g for g in analysis.coupling.groups if g.size == 4]
    assert found, "the heads are a group"
    chosen = {found[0].dim: np.array([0, 2, 3])}
    for batch in (1, 2, 5):
        feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 6)).astype(np.float32)}
        want = evaluate(masked(analysis.model, analysis.coupling, chosen), feeds)
        got = evaluate(rearranged(analysis.model, analysis.coupling, chosen), feeds)
        assert relative_error(want, got)[0] < 1e-5
        if reader == "output":
            assert got["s"].tolist() == [4 * batch, 2]
