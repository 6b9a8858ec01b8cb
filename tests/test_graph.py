"""Explanations as paths of operators, and exports that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import onnx
import pydot
import pytest
from onnx import helper
from small import FLOAT, cnn, mlp, model, rand, tensor

import graphprune
from graphprune.errors import UsageError
from graphprune.graph import explain, export, find_axes, operator_graph


def coupling(proto: onnx.ModelProto) -> Any:
    return graphprune.analyse(proto).coupling


def test_the_operator_graph_holds_every_node_and_value() -> None:
    graph = operator_graph(coupling(cnn()))
    assert {n for n in graph if n.startswith("op:")} == {f"op:{n.name}" for n in cnn().graph.node}
    assert graph.nodes["value:w2"]["kind"] == "weight" and graph.nodes["value:w2"]["shape"] == "48x32x3x3"
    assert graph.nodes["value:c1"]["groups"] == "w1:0" and graph.nodes["value:w2"]["groups"] == "w1:0, w2:0"
    assert nx.is_directed_acyclic_graph(graph) and nx.has_path(graph, "value:x", "value:y")


NAMES = ["a:b/c.d", 'quote"inside', "back\\slash", "<html&>", "über", "node", "a b", "semi;colon"]
NAMES += ["new\nline", "control\x01", "a\\\"b"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind_are_exported(tmp_path: Path, name: str) -> None:
    proto = mlp()
    proto.graph.node[1].name = name
    proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = f"{name}_out"
    found = coupling(proto)
    export(found, tmp_path / "g.graphml")
    graph = nx.read_graphml(tmp_path / "g.graphml")
    assert len(graph) == 3 + 6 and graph.number_of_edges() == 8
    export(found, tmp_path / "g.dot")
    (dot,) = pydot.graph_from_dot_file(str(tmp_path / "g.dot"))
    assert len(dot.get_edges()) == 8
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_graph_is_not_exported_over_a_model(tmp_path: Path) -> None:
    for name in ("g.onnx", "g", "g.png"):
        with pytest.raises(UsageError, match="graphml"):
            export(coupling(mlp()), tmp_path / name)


def test_two_axes_of_one_group_are_explained_by_a_path() -> None:
    (found,) = explain(coupling(cnn()), "w1:0", "w2:1")
    operators = [s.origin.operator for s in found.steps]
    assert operators[0] == "Conv" and "Relu" in operators and operators[-1] == "Conv"


def test_axes_of_different_groups_are_said_to_be() -> None:
    (found,) = explain(coupling(cnn()), "w1:0", "w2:0")
    assert "not" in found.verdict and not found.steps


def test_a_pinned_axis_is_explained() -> None:
    found = explain(coupling(cnn()), "w3:0")
    assert any("graph output" in e.verdict for e in found)


def test_names_stand_for_groups_values_nodes_and_axes() -> None:
    found = coupling(cnn())
    assert [t for t, _ in find_axes(found, "w1:0")] == ["w1:0"]
    assert len(find_axes(found, "w2")) == 4 and len(find_axes(found, "c1:1")) == 1
    assert [t for t, _ in find_axes(found, "conv1")] == [f"c1:{k}" for k in range(4)]
    with pytest.raises(UsageError, match="'conv1'"):
        find_axes(found, "conv_1")


def test_scalars_have_no_axes_to_explain() -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "k"], ["m"]),
         helper.make_node("MatMul", ["m", "v"], ["y"])],
        [tensor("w", rand(4, 8)), tensor("k", rand()), tensor("v", rand(8, 2))],
        [("x", FLOAT, ["b", 4])], [("y", FLOAT, ["b", 2])],
    )
    assert explain(coupling(proto), "k") == []
    with pytest.raises(UsageError):
        explain(coupling(proto), "k:0")
    assert explain(coupling(proto), "k", "w:0") == []
