"""Adapters: inputs and outputs keep their sizes, and the width behind them is pruned all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from oracles import Net, subsets
from small import cli, put, record

import graphprune
from graphprune import border
from graphprune.analysis import Analysis, analyse
from graphprune.execute import evaluate, relative_error
from graphprune.groups import couple
from graphprune.lively import lively
from graphprune.options import Looking
from graphprune.prove import prove
from graphprune.report.record import border_record
from graphprune.rewrite import masked, rearranged

WIDTH = 12


def cell(dtype: Any = np.float32, ir_version: int = 10, rank: int = 2, steps: int = 0) -> Net:
    """s' = tanh(x A + s B), y = s' C: the state s goes in and out, and no weight is free of it."""
    net = Net(dtype=dtype, ir_version=ir_version)
    x = net.input("x", [None, 40])
    state = net.input("state", [None, WIDTH] if rank == 2 else [1, WIDTH, 3], between=(-1, 1))
    if rank == 3:  # the width in the middle
        state = net("ReduceMean", state, axes=[0, 2], keepdims=0)
    new = net("Tanh", net("Add", net.matmul(x, 40, WIDTH, name="a"), net.matmul(state, WIDTH, WIDTH, name="b")))
    y = net.matmul(new, WIDTH, 3, name="c")
    out = new
    if rank == 3:
        stacked = net("Transpose", net("Slice", new, net.ints(0), net.ints(3), net.ints(0)), perm=[1, 0])
        out = net("Unsqueeze", stacked, net.ints(0))
    net.nodes.append(onnx.helper.make_node("Identity", [out], ["state_out"], name="carry"))
    return net.output(y, "state_out")


def encoder() -> Net:
    """A stream as wide as what is put out, an embedding and layers that add to it; half of it tells the rest."""
    net = Net()
    ids = net.input("ids", [None, None], np.int64, between=(0, 200))
    basis = net.rng.standard_normal((WIDTH // 2, WIDTH))
    x = net("Gather", net.const(net.rng.standard_normal((200, WIDTH // 2)) @ basis, name="table"), ids)
    for k in range(2):
        inner = net("Relu", net.matmul(x, WIDTH, 10, name=f"up{k}"))
        down = net.const(net.rng.standard_normal((10, WIDTH // 2)) @ basis / 9, name=f"down{k}")
        x = net("Add", x, net("MatMul", inner, down))
    last = net("LayerNormalization", x, net.weight(WIDTH, name="g", positive=True), net.weight(WIDTH, name="h"))
    return net.output(last)


def looked(net: Net, **how: Any) -> Analysis:
    return analyse(net.model(), Looking(**how))


def ports(analysis: Analysis) -> list[tuple[str, str, int]]:
    return [(a.side, a.port, a.axis) for a in analysis.coupling.graph.adapters]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("ir_version", [3, 10])
def test_both_oracles(dtype: Any, ir_version: int) -> None:
    analysis = looked(cell(dtype, ir_version))
    assert ports(analysis) == [("input", "state", 1), ("output", "state_out", 1)]
    assert analysis.coupling.coverage == 1.0
    proof = prove(analysis.model, analysis.coupling, analysis.reference)
    assert proof.passed and proof.groups == len(analysis.coupling.groups) == 1
    chosen = subsets(analysis.coupling, False)
    zeroed, pruned = (f(analysis.model, analysis.coupling, chosen) for f in (masked, rearranged))
    allowed = 1e-4 if dtype != np.float16 else 2e-2
    for feed in analysis.reference.feeds:
        got = evaluate(pruned, feed)
        assert got["state_out"].shape == feed["state"].shape
        assert relative_error(evaluate(zeroed, feed), got)[0] < allowed


def test_a_model_with_adapters_is_the_same_to_the_bit() -> None:
    for net in (cell(), cell(rank=3), encoder()):
        analysis = looked(net)
        assert ports(analysis)
        original = ir.serde.deserialize_model(net.model())
        for feed in analysis.reference.feeds:
            one, other = evaluate(original, feed), evaluate(analysis.model, feed)
            assert one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_an_axis_in_the_middle() -> None:
    analysis = looked(cell(rank=3))
    assert ports(analysis) == [("input", "state", 1), ("output", "state_out", 1)]
    assert [n.op_type for n in analysis.model.graph if "adapter" in (n.name or "")].count("Transpose") == 4
    proof = prove(analysis.model, analysis.coupling, analysis.reference)
    assert proof.passed and proof.max_relative_error > 0


def test_what_lost_nothing_is_not_in_the_file() -> None:
    analysis = looked(encoder())
    assert ports(analysis) == [("output", analysis.original.graph.outputs[0].name, 2)]
    inner = {g.dim: np.arange(5) for g in analysis.coupling.groups if g.name.startswith("up")}
    pruned = rearranged(analysis.model, analysis.coupling, inner)
    assert len(inner) == 2 and len(pruned.graph) == len(analysis.original.graph)
    assert not [n.name for n in pruned.graph if "adapter" in (n.name or "")]
    assert [o.name for o in pruned.graph.outputs] == [o.name for o in analysis.original.graph.outputs]
    stream = {g.dim: np.arange(6) for g in analysis.coupling.groups if not g.name.startswith("up")}
    smaller = rearranged(analysis.model, analysis.coupling, stream)
    assert len(stream) == 1 and [n.op_type for n in smaller.graph][-1] == "MatMul"


def test_costs_are_those_of_the_file(tmp_path: Path) -> None:
    """Dense costs know of no adapters; of a pruned model the parameters are those in its file."""
    path = put(tmp_path / "m.onnx", encoder().model())
    with_, without = record("inspect", path), record("inspect", path, "--no-adapters")
    assert with_["model"] == without["model"] and with_["coverage"] == 1.0 and without["coverage"] < 0.2
    assert sum(g["macs"] for g in without["groups"]) < sum(g["macs"] for g in with_["groups"])
    out = tmp_path / "out.onnx"
    done = record("prune", path, "-o", out, "--sparsity", 0.5, "--align", 1, "--seconds", 0.05, "--repair", "none")
    held = [numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer]
    floats = sum(a.size for a in held if a.dtype == np.float32)
    assert done["after"]["parameters"] == floats and done["proof"]["passed"]
    assert [(a["size"], a["inside"]) for a in done["adapters"]] == [(WIDTH, WIDTH // 2)]
    assert done["before"]["parameters"] == with_["model"]["parameters"] == 200 * WIDTH + 4 * 10 * WIDTH + 2 * WIDTH


def test_the_table_says_so(tmp_path: Path) -> None:
    path = put(tmp_path / "m.onnx", cell().model())
    assert "input 'state' keeps its size 12 on axis 1; inside it is free" in cli("inspect", path).out
    told = cli("prune", path, "-o", tmp_path / "out.onnx", "--sparsity", 0.5, "--align", 1, "--seconds", 0.05).out
    assert "output 'state_out' keeps its size 12 on axis 1, inside it is 6: a matrix between" in told
    assert "axis 1, inside it is 6" in cli("plan", path, "--sparsity", 0.5, "--align", 1).out
    assert cli("inspect", path, "--no-adapters").out.count("keeps its size") == 0
    assert cli("explain", path, "b:0", "--no-adapters").out != cli("explain", path, "b:0").out
    assert cli("prune", path, "-o", tmp_path / "x.onnx", "--sparsity", 0.5, "--no-adapters").code == 3


def test_the_state_of_the_pruned_model_can_be_fed_back(tmp_path: Path) -> None:
    """Removed parts of a state are read by nothing: after a step it matters no more what they were."""
    net, out = cell(), tmp_path / "out.onnx"
    result = graphprune.prune(net.model(), 0.5, align=1, time=False, calibration="off", repair="none", output=out)
    model = ir.load(out)
    rng = np.random.default_rng(0)
    state = rng.uniform(-1, 1, (2, WIDTH)).astype(np.float32)
    (group,) = result.plan.keep
    kept = np.zeros(WIDTH, bool)
    kept[list(result.plan.keep[group])] = True
    other = np.where(kept, state, -5).astype(np.float32)
    for _ in range(3):
        x = rng.standard_normal((2, 40)).astype(np.float32)
        one, two = evaluate(model, {"x": x, "state": state}), evaluate(model, {"x": x, "state": other})
        assert all(np.array_equal(one[k], two[k]) for k in one)
        state, other = one["state_out"], two["state_out"]
        assert state.shape == (2, WIDTH) and not state[:, ~kept].any() and state[:, kept].all()


def test_the_repair_fits_what_is_gone(tmp_path: Path) -> None:
    """The matrix makes the lost part of an output out of the rest: the output is nearer than with zeros in it."""
    ids = np.random.default_rng(0).integers(0, 200, (64, 8))
    model, found = encoder().model(), []
    groups = [g.name for g in analyse(model).coupling.groups if not g.name.startswith("up")]
    dense = evaluate(ir.serde.deserialize_model(model), {"ids": ids})
    for repair in ("none", "symmetric"):
        out = tmp_path / f"{repair}.onnx"
        how = {"align": 1, "include": groups, "calibration": {"ids": ids}, "repair": repair, "time": False}
        graphprune.prune(model, 0.25, output=out, **how)
        found.append(relative_error(dense, evaluate(ir.load(out), {"ids": ids}))[0])
    assert found[1] < 0.8 * found[0], found


def test_where_it_does_not_pay_there_is_none() -> None:
    """A class or feature is not a width of the inside; a cache would be multiplied whole; a free width needs none."""
    net = Net()
    net.output(net.gemm(net("Relu", net.gemm(net.input("x", [None, 30]), 30, 50, name="a")), 50, 40, name="b"))
    assert ports(looked(net)) == []
    net = Net()
    net.output(net.gemm(net.input("x", [None, 300]), 300, 200, name="a"))
    assert ports(looked(net)) == []
    net = Net()
    past = net.input("past", [None, "length", WIDTH])
    rows = net("Concat", past, net.matmul(net.input("x", [None, 1, 40]), 40, WIDTH, name="a"), axis=1)
    net.nodes.append(onnx.helper.make_node("Identity", [rows], ["present"], name="keep"))
    net.output(net.matmul(net("ReduceSum", rows, net.ints(1), keepdims=0), WIDTH, 2, name="c"), "present")
    assert ports(looked(net)) == [] and looked(net).coupling.groups == ()


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_free_border_is_solved_once_for_a_model(with_adapters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    if with_adapters:
        net = cell()
    else:
        net.output(net.gemm(net("Relu", net.gemm(net.input("x", [None, 30]), 30, 50, name="a")), 50, 40, name="b"))
    solved: list[int] = []
    monkeypatch.setattr(border, "couple", lambda graph: solved.append(len(graph.ops)) or couple(graph))
    analysis = looked(net)
    assert len(solved) == 1 and bool(ports(analysis)) == with_adapters
    records = [border_record(a) for a in (analysis, analysis, analysis.pricing(), analysis.turning(
        analysis.model, analysis.coupling, ()))]
    assert len(solved) == 1 + with_adapters, "of the model with adapters, once more"
    assert all(r == records[0] for r in records) and records[0]["coverage"] == 1.0


def test_what_may_change_needs_none() -> None:
    analysis = looked(cell(), allow_io=("state*",))
    assert ports(analysis) == [] and analysis.coupling.coverage == 1.0
    assert ports(looked(cell(), adapters=False)) == [] and looked(cell(), adapters=False).coupling.groups == ()


def test_an_input_that_is_an_output_too() -> None:
    net = cell()
    net.outputs.append(onnx.helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, ["batch", WIDTH]))
    assert ports(looked(net)) == []


def test_names_that_are_taken() -> None:
    net = cell()
    net.nodes.append(onnx.helper.make_node("Relu", ["x"], ["state/adapter/matrix"], name="state_out/adapter"))
    net.output("state/adapter/matrix")
    analysis = looked(net)
    assert len(ports(analysis)) == 2
    assert prove(analysis.model, analysis.coupling, analysis.reference).passed


def test_the_copy_with_random_weights_has_them_too() -> None:
    analysis = looked(cell())
    made = lively(analysis.model, analysis.coupling, 1.0)
    assert made is not None and made[1].graph.adapters == analysis.coupling.graph.adapters
    assert made[1].idle.keys() == analysis.coupling.idle.keys()
