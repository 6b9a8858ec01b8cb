"""What validation and the proof catch: wrong rules, broken files, outputs of another form; and what they let pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small import FAST, FLOAT, cli, cnn, mlp, model, put, rand, refused, tensor

import graphprune
from graphprune.axes import Free, Same
from graphprune.errors import SessionError, ValidationError
from graphprune.ops import AXES
from graphprune.prove import prove
from graphprune.reference import Reference, usable
from graphprune.validate import check_file, validate


def wrong_concat(op: Any) -> Any:
    """A rule that forgets the second input: its channels take part in no equation but their own."""
    first = op.x(0)
    for k, (a, b) in enumerate(zip(first.axes, op.y().axes, strict=True)):
        if a.size == b.size:
            yield Same(a, b)
            yield Same(op.x(1).axes[k], b)
    yield Free(first.axes[1])
    yield Free(op.x(1).axes[1])
    yield Free(op.y().axes[1])


def test_a_wrong_rule_is_caught_named_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model(
        [
            helper.make_node("Conv", ["x", "wa"], ["a"]), helper.make_node("Conv", ["x", "wb"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1), helper.make_node("Conv", ["c", "wc"], ["d"]),
            helper.make_node("Relu", ["d"], ["r"]), helper.make_node("Conv", ["r", "wd"], ["y"]),
        ],
        [tensor(n, rand(*s)) for n, s in
         {"wa": (16, 3, 1, 1), "wb": (24, 3, 1, 1), "wc": (32, 40, 1, 1), "wd": (5, 32, 1, 1)}.items()],
        [("x", FLOAT, ["b", 3, 4, 4])], [("y", FLOAT, ["b", 5, 4, 4])],
    )
    path = put(tmp_path / "net.onnx", proto)
    assert cli("prove", path).code == 0
    right = AXES.get
    monkeypatch.setattr(AXES, "get", lambda d, o, v: wrong_concat if o == "Concat" else right(d, o, v))
    proved = cli("prove", path)
    assert (proved.code == 1 and "FAILED" in proved.out and "wa:0" in proved.err) or "wb:0" in proved.err
    ran = cli("prove", path, "--json")
    answer = json.loads(ran.out)
    assert ran.code == 1 and answer["passed"] is False and set(answer["culprits"]) & {"wa:0", "wb:0", "wc:1"}
    assert "wc:0" not in answer["culprits"], "this group is right"
    plan = tmp_path / "plan.json"
    keep = {n: {"size": s, "keep": f"0-{s - 1}"} for n, s in (("wa:0", 16), ("wb:0", 24))}
    keep["wc:0"] = {"size": 32, "keep": "0-15"}
    plan.write_text(json.dumps({"format": "graphprune plan 1", "model": {}, "meta": {}, "groups": keep}))
    refused(tmp_path, "prune", path, "--plan", plan, "--no-time", code=1, says="nothing was written")
    assert "wa:0" in (said := cli("prune", path, "--plan", plan, "--no-time").err) or "wb:0" in said
    refused(tmp_path, "prune", path, "--sparsity", 0.5, *FAST, code=1, says="failed its checks")


def reference(proto: onnx.ModelProto, **feeds: Any) -> Reference:
    given = feeds or {"x": rand(2, 3, 8, 8)}
    return Reference(ir.from_proto(proto), (given,))


def failed(path: Path, dense: Reference) -> dict[str, str]:
    return {c.name: c.detail for c in validate(path, dense).checks if not c.passed}


def test_a_model_passes_its_own_checks(tmp_path: Path) -> None:
    verdict = validate(put(tmp_path / "a.onnx", cnn()), reference(cnn()))
    assert verdict.passed and not verdict.failures
    names = {c.name for c in verdict.checks}
    assert names >= {"onnx checker", "runs at full optimisation", "runs without optimisation"}


def test_other_outputs_are_told(tmp_path: Path) -> None:
    renamed = cnn()
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "z"
    assert "['z'] instead of ['y']" in failed(put(tmp_path / "a.onnx", renamed), reference(cnn()))["same outputs"]
    cast = cnn()
    cast.graph.node[-1].output[0] = "y32"
    cast.graph.node.append(helper.make_node("Cast", ["y32"], ["y"], to=onnx.TensorProto.DOUBLE))
    cast.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert "y is float64" in failed(put(tmp_path / "b.onnx", cast), reference(cnn()))["same outputs"]


def test_sizes_may_differ_only_where_they_depend_on_data(tmp_path: Path) -> None:
    longer = cnn()
    last = longer.graph.node[-1]
    last.output[0] = "one"
    longer.graph.node.append(helper.make_node("Concat", ["one", "one"], ["y"], axis=0))
    path = put(tmp_path / "a.onnx", longer)
    assert "sizes differ" in failed(path, reference(cnn()))["same outputs"]
    assert validate(path, reference(cnn()), sizes_may_differ=True).passed


def test_optimisation_levels_that_disagree_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, dense = put(tmp_path / "a.onnx", cnn()), reference(cnn())
    assert dense.noise < 1e-4
    right = Reference.open

    def misled(self: Reference, model: Any, optimise: bool) -> Any:
        if optimise and isinstance(model, Path):
            other = cnn()
            other.graph.initializer[4].CopyFrom(tensor("w3", -rand(5, 48)))
            return right(self, put(tmp_path / "b.onnx", other), optimise)
        return right(self, model, optimise)

    monkeypatch.setattr(Reference, "open", misled)
    assert "optimiser" in failed(path, dense)["both levels agree"]


def test_models_that_do_not_run_are_told(tmp_path: Path) -> None:
    broken = cnn()
    broken.graph.initializer[2].CopyFrom(tensor("w2", rand(48, 31, 3, 3)))
    told = failed(put(tmp_path / "a.onnx", broken), reference(cnn()))
    assert {"runs at full optimisation", "runs without optimisation"} <= set(told)
    invalid = cnn()
    invalid.graph.node[0].input[0] = "nowhere"
    assert "onnx checker" in failed(put(tmp_path / "b.onnx", invalid), reference(cnn()))


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    wild = cnn()
    wild.graph.initializer[4].CopyFrom(tensor("w3", np.full((5, 48), np.inf)))
    assert "finite outputs" in failed(put(tmp_path / "a.onnx", wild), reference(cnn()))
    assert validate(tmp_path / "a.onnx", reference(wild)).passed, "the dense model gives them too"


def test_a_dense_model_that_fails_the_checker_may_stay_so(tmp_path: Path) -> None:
    odd = cnn()
    odd.graph.node[1].attribute.append(helper.make_attribute("made_up", 1))
    path = put(tmp_path / "a.onnx", odd)
    if check_file(path).passed:
        pytest.skip("this checker lets it pass")
    try:
        dense = usable(reference(odd))
    except SessionError:
        pytest.skip("onnxruntime refuses it as well")
    assert validate(path, dense, dense_passes_checker=lambda: False).passed
    assert not validate(path, dense, dense_passes_checker=lambda: True).passed


def test_inputs_that_the_model_refuses_are_left_out() -> None:
    fixed = cnn(batch=2)
    good, bad = {"x": rand(2, 3, 8, 8)}, {"x": rand(3, 3, 8, 8)}
    assert len(usable(Reference(ir.from_proto(fixed), (good, bad))).feeds) == 1
    found = usable(Reference(ir.from_proto(fixed), (bad,)), lambda: [(bad,), (good,)])
    assert found.feeds[0]["x"].shape == (2, 3, 8, 8) and found.plain[0]["y"].shape == (2, 5)
    with pytest.raises(SessionError):
        usable(Reference(ir.from_proto(fixed), (bad,)))


def test_a_wrong_axis_is_named_by_the_proof() -> None:
    analysis = graphprune.analyse(cnn())
    assert prove(analysis.model, analysis.coupling, analysis.calmest).culprits == ()
    forgetful = replace(
        analysis.coupling.graph,
        constants={k: v for k, v in analysis.coupling.graph.constants.items() if k != "w2"},
    )
    proof = prove(analysis.model, replace(analysis.coupling, graph=forgetful), analysis.calmest)
    assert not proof.passed and set(proof.culprits) == {"w1:0", "w2:0"} and proof.worst_output == "y"


def test_prune_raises_what_the_checks_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = AXES.get
    monkeypatch.setattr(AXES, "get", lambda d, o, v: free_matmul if o == "MatMul" else right(d, o, v))
    with pytest.raises(ValidationError, match="nothing was written"):
        graphprune.prune(mlp(), 0.5, time=False, align=1)


def free_matmul(op: Any) -> Any:
    yield from (Free(a) for o in (op.x(0), op.x(1), op.y()) for a in o.axes)


def test_empty_outputs_are_said_to_prove_nothing() -> None:
    proto = mlp()
    proto.graph.node[-1].output[0] = "m"
    proto.graph.initializer.append(tensor("low", np.float32(-1e9)))
    proto.graph.node.append(helper.make_node("Less", ["m", "low"], ["l"]))
    proto.graph.node.append(helper.make_node("NonZero", ["l"], ["y"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2, "n"]))
    result = graphprune.prune(proto, 0.5, time=False, align=1)
    assert any("nothing was compared" in text for text in result.report["assumed"])
    assert not any("compared" in text for text in graphprune.prune(mlp(), 0.5, time=False).report["assumed"])
