"""The ONNX project's own test cases of LSTM, GRU and RNN, with their parameters as weights."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import onnx
import pytest
from recurrent import GATES

from graphprune.errors import SessionError
from graphprune.pipeline import Looking, analyse
from graphprune.prove import prove

NODE = "onnx.backend.test.case.node"
PARAMETERS = ("W", "R", "B", "P")


def cases() -> list[pytest.ParameterSet]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        node = importlib.import_module(NODE)
        for name in ("lstm", "gru", "rnn"):
            importlib.import_module(f"{NODE}.{name}")  # a case is known once its module has been imported
    found = {c.name: c for c in node._NodeTestCases if c.model.graph.node[0].op_type in GATES}
    assert len(found) >= 18
    return [pytest.param(c.model, c.data_sets[0][0], id=name) for name, c in found.items()]


@pytest.mark.parametrize(("case", "inputs"), cases())
def test_case(case: onnx.ModelProto, inputs: list[np.ndarray]) -> None:
    """Everything may change its size, the border too: the units and the features read are two groups."""
    model, rng = onnx.ModelProto(), np.random.default_rng(0)
    model.CopyFrom(case)
    given = {v.name: a for v, a in zip(case.graph.input, inputs, strict=True)}
    del model.graph.input[:]
    model.graph.input.extend(v for v in case.graph.input if v.name not in PARAMETERS)
    for name in PARAMETERS:
        if name in given:
            weight = rng.standard_normal(given[name].shape).astype(np.float32) / 4
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    feeds = {k: a for k, a in given.items() if k not in PARAMETERS}
    analysis = analyse(model, Looking(allow_io=("*",), inputs=feeds))
    units, features = given["R"].shape[2], given["W"].shape[2]
    assert [(g.name, g.size) for g in analysis.coupling.groups] == [("W:1", units), ("W:2", features)]
    if any(a.name == "layout" and a.i for a in model.graph.node[0].attribute):
        with pytest.raises(SessionError, match="Batchwise"):
            prove(analysis.model, analysis.coupling, analysis.calmest)
    else:
        assert prove(analysis.model, analysis.coupling, analysis.calmest).max_relative_error < 1e-5
