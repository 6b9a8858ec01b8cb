"""Graphs that parse but are not sound: each told in one line, and unsorted ones, which onnxruntime runs, sorted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper
from small import cli, cnn, external, put, refused, shapes_of

import graphprune
from graphprune.errors import ModelError


def dangling(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = "nowhere"


def cycle(m: onnx.ModelProto) -> None:
    m.graph.node[1].input[0] = "r2"


def no_output(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = "zzz"


def no_type(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].data_type = 0


def strange_type(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].data_type = 99


def too_long(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].raw_data += b"\0" * 40


def too_few(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].ClearField("raw_data")
    m.graph.initializer[0].float_data.extend([1.0] * 5)


def made_twice(m: onnx.ModelProto) -> None:
    m.graph.node[1].output[0] = "c1"


def cyclic_functions(m: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    m.opset_import.append(opsets[1])
    call = helper.make_node("F", ["a"], ["b"], domain="l")
    m.functions.append(helper.make_function("l", "F", ["a"], ["b"], [call], opsets))
    m.graph.node.append(helper.make_node("F", ["y"], ["z"], domain="l"))


WRONG = {
    dangling: "'conv1' reads 'nowhere'", cycle: "cycle", no_output: "'zzz' is made by no node", no_type: "element type",
    strange_type: "not an ONNX model", too_long: "too long", too_few: "5 of 864 elements",
    made_twice: "not an ONNX model", cyclic_functions: "functions cannot be inlined",
}


@pytest.mark.parametrize("change", WRONG)
def test_graphs_that_are_not_sound(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    proto = cnn()
    change(proto)
    path = put(tmp_path / "m.onnx", proto)
    refused(tmp_path, "inspect", path, says=WRONG[change])
    refused(tmp_path, "prune", path, "--sparsity", 0.5, says=WRONG[change])
    with pytest.raises(ModelError):
        graphprune.analyse(proto)


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    proto = cnn()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    result = graphprune.prune(proto, 0.5, time=False, align=1)
    assert result.report["proof"]["passed"] and shapes_of(result.model)["w1"] == [16, 3, 3, 3]
    onnx.checker.check_model(result.model, full_check=True)
    assert cli("prove", external(proto, tmp_path / "m.onnx")).code == 0


def test_sorted_nodes_keep_their_order() -> None:
    proto = cnn()
    proto.graph.node.insert(3, helper.make_node("Identity", ["x"], ["spare"], name="spare"))
    names = [n.name for n in graphprune.analyse(proto).original.graph]
    assert names == [n.name for n in proto.graph.node]
