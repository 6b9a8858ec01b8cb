"""Proofs of models whose own weights would hide a wrong group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_validate import wrong_concat

import graphprune
from graphprune.ops import AXES
from graphprune.prove import prove


def branches(fill: float | None) -> Any:
    """Return two convolutions that are concatenated and read by a third; `fill`: all weights are this number."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        array = rng.standard_normal(shape) if fill is None else np.full(shape, fill)
        return numpy_helper.from_array(array.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], "left"),
        helper.make_node("Conv", ["x", "b"], ["q"], "right"),
        helper.make_node("Concat", ["p", "q"], ["r"], "join", axis=1),
        helper.make_node("Conv", ["r", "c"], ["y"], "last"),
    ]
    weights = [weight("a", 4, 3, 1, 1), weight("b", 4, 3, 1, 1), weight("c", 5, 8, 1, 1)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 4, 4])
    graph = helper.make_graph(nodes, "branches", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def proof_of(model: Any) -> Any:
    analysis = graphprune.analyse(model)
    return prove(analysis.model, analysis.coupling, analysis.calmest)


@pytest.mark.parametrize("fill", [0.0, 0.1])
def test_uniform_weights_are_proven_on_random_ones(fill: float) -> None:
    proof = proof_of(branches(fill))
    assert proof.random_weights
    assert proof.passed
    assert proof.max_relative_error > 0


def test_random_weights_are_proven_on_their_own() -> None:
    assert not proof_of(branches(None)).random_weights


@pytest.mark.parametrize("fill", [0.0, 0.1])
def test_uniform_weights_do_not_hide_a_wrong_rule(fill: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {k: list(v) for k, v in AXES._rows.items()}
    rows["", "Concat"] = [type(r)(wrong_concat, r.operators, r.domain, r.since, r.until) for r in rows["", "Concat"]]
    monkeypatch.setattr(AXES, "_rows", rows)
    proof = proof_of(branches(fill))
    assert proof.random_weights
    assert not proof.passed
    assert proof.culprits
