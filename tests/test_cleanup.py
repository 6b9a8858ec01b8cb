"""Clean-up: names and outputs stay, quantised patterns stay, and what would change outputs is not done."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import small
from oracles import Net, solved

import graphprune
from graphprune.execute import evaluate
from graphprune.rewrite import rearranged
from graphprune.transform import cleanup
from graphprune.transform.cleanup import Cleaned, bitwise, cleaned


def always(one: ir.Model, other: ir.Model, allowed: float) -> bool:
    return not allowed


def done(net: Net) -> tuple[ir.Model, ir.Model, Cleaned]:
    model, coupling = solved(net)
    made, said = cleaned(model, coupling, {}, always)
    return model, made, said


X = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}


def test_nothing_to_do_gives_the_model_itself() -> None:
    net = Net()
    model, made, said = done(net.output(net.gemm(net("Relu", net.gemm(net.input("x", [None, 4]), 4, 8)), 8, 3)))
    assert made is model and said == Cleaned()


def test_outputs_keep_their_names() -> None:
    """Of an input, of a constant, of a value that is an output already, and of an inner value."""
    net = Net()
    x = net.input("x", [None, 4])
    y = net("Relu", x)
    names = [net("Identity", v) for v in (x, net.weight(3, name="w"), y, y)]
    z = net("Identity", net("Identity", net("Sigmoid", x)))
    model, made, said = done(net.output(*names, y, z))
    assert [o.name for o in made.graph.outputs] == [*names, y, z]
    assert bitwise(evaluate(model, X), evaluate(made, X)) and said.nodes >= 2
    assert [o.name for o in model.graph.outputs] == [*names, y, z] and len(model.graph) == 8


def test_equal_nodes_and_small_constants_are_one() -> None:
    net = Net()
    x = net.input("x", [None, 4])
    parts = [net("Add", net("Tanh", x), net.const(np.array([1.0, 2.0, 3.0, 4.0]))) for _ in range(3)]
    model, made, said = done(net.output(net("Concat", *parts, axis=1)))
    assert [n.op_type for n in made.graph] == ["Tanh", "Add", "Concat"]
    assert said == Cleaned(4, 2) and bitwise(evaluate(model, X), evaluate(made, X))


def test_random_and_quantised_nodes_stay() -> None:
    net = Net()
    x = net.input("x", [None, 4])
    made = [net("RandomUniformLike", x, seed=1.0) for _ in range(2)]
    assert done(net.output(net("Sub", *made)))[2] == Cleaned()
    net = Net()
    x = net.input("x", [None, 4])
    unit = net.const(np.float32(0.1), name="unit"), net.const(np.uint8(128), name="zero")
    ends = []
    for _ in range(2):
        whole = net("QuantizeLinear", x, *unit)
        ends.append(net("Relu", net("Identity", net("DequantizeLinear", whole, *unit))))
    assert done(net.output(net("Add", *ends)))[2] == Cleaned()


def test_a_pass_that_changes_outputs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ir.Model, sizes: Any) -> None:
        node = next(n for n in model.graph if n.op_type == "Neg")
        node.outputs[0].replace_all_uses_with(node.inputs[0])

    monkeypatch.setattr(cleanup, "PASSES", {"wrong": wrong, **cleanup.PASSES})
    net = Net()
    hidden = net("Identity", net("Neg", net.gemm(net.input("x", [None, 4]), 4, 8, name="a")))
    net.output(net.gemm(hidden, 8, 3))
    result = graphprune.prune(net.model(), 0.5, align=1, calibration="off", time=False, prove=False)
    assert result.report["cleanup"] == {"nodes": 1, "constants": 0, "dropped": ["wrong"]}
    assert [n.op_type for n in result.model.graph.node] == ["Gemm", "Neg", "Gemm"]


def test_pruning_makes_reductions_of_one_and_they_go(tmp_path: Any) -> None:
    """A maximum over experts of which one is left; without clean-up it stays."""
    net = Net()
    x = net.matmul(net.input("x", [None, 4]), 4, 6, name="a")
    top = net("ReduceMax", net("Unsqueeze", x, net.ints(1)), axes=[2], keepdims=1)
    net.output(net("Squeeze", top, net.ints(1)))
    path = small.put(tmp_path / "m.onnx", net.model())
    options = ("--sparsity", "0.9", "--floor", "0", "--align", "1", *small.FAST, "-o", tmp_path / "out.onnx")
    tidy, plain = (small.record("prune", path, *options, *more) for more in ((), ("--no-cleanup", "--force")))
    assert plain["groups"] == tidy["groups"] and tidy["groups"][0]["kept"] == 1
    assert tidy["cleanup"]["nodes"] == 1 and plain["cleanup"] is None


def test_bits_are_compared() -> None:
    a = {"y": np.array([1.0, np.nan], np.float32)}
    assert bitwise(a, {"y": a["y"].copy()})
    assert not bitwise(a, {"y": a["y"] + np.float32(1e-7)}) and not bitwise(a, {"z": a["y"]})
    assert not bitwise(a, {"y": a["y"].astype(np.float64)})


def test_what_a_bypass_leaves_is_cleaned_up() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 4]), 4, 8)
    x = net("Add", x, net.gemm(net("Relu", net.gemm(x, 8, 12)), 12, 8))
    model, coupling = solved(net.output(net.gemm(x, 8, 3)))
    (branch,) = coupling.branches.free
    chosen = {branch.gate: np.zeros(0, np.int64)}
    bypassed = rearranged(model, coupling, chosen)
    made, said = cleaned(bypassed, coupling, chosen, always)
    assert [n.op_type for n in made.graph] == ["Gemm", "Gemm"] and said.nodes == 1
    assert bitwise(evaluate(bypassed, X), evaluate(made, X))


SCALED: dict[str, Any] = {
    "Gemm": lambda net, x, c: net("Mul", net.gemm(x, 4, 8), net.const(c)),
    "Gemm, turned": lambda net, x, c: net("Mul", net.const(c), net("Gemm", x, net.weight(4, 8), net.weight(8))),
    "MatMul": lambda net, x, c: net("Mul", net.matmul(x, 4, 8), net.const(c)),
    "MatMul and bias": lambda net, x, c: net("Mul", net("Add", net.matmul(x, 4, 8), net.weight(8)), net.const(c)),
    "Div": lambda net, x, c: net("Div", net("Add", net.weight(8), net.matmul(x, 4, 8)), net.const(c)),
}
CHANNELS = np.array([0.5, 2.0, -1.0, 3.0, 0.25, 1.5, 7.0, -0.1])
ALLOWED = 1e-6


def nearly(one: ir.Model, other: ir.Model, allowed: float) -> bool:
    from graphprune.execute import relative_error

    return relative_error(evaluate(one, X), evaluate(other, X))[0] <= allowed


@pytest.mark.parametrize("scale", [CHANNELS, CHANNELS[None], np.float32(0.3)], ids=["vector", "row", "number"])
@pytest.mark.parametrize("kind", SCALED)
def test_scales_behind_layers_are_folded(kind: str, scale: Any) -> None:
    net = Net()
    y = SCALED[kind](net, net.input("x", [None, 4]), scale)
    model, coupling = solved(net.output(net.gemm(net("Relu", y), 8, 3)))
    made, said = cleaned(model, coupling, {}, nearly)
    assert not {"Mul", "Div"} & {n.op_type for n in made.graph} and not said.dropped and said.nodes == 1
    assert nearly(model, made, ALLOWED)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_scales_behind_convolutions(kind: str, group: int) -> None:
    net = Net()
    x = net.input("x", [None, 4, 5, 5])
    w = net.weight(8, 4 // group, 3, 3) if kind == "Conv" else net.weight(4, 8 // group, 3, 3)
    y = net("Mul", net(kind, x, w, net.weight(8), group=group), net.const(CHANNELS.reshape(8, 1, 1)))
    model, coupling = solved(net.output(net("Relu", y)))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)}

    def same(one: ir.Model, other: ir.Model, allowed: float) -> bool:
        from graphprune.execute import relative_error

        return relative_error(evaluate(one, feeds), evaluate(other, feeds))[0] <= allowed

    made, said = cleaned(model, coupling, {}, same)
    assert said.nodes == (kind == "Conv" or group == 1) and same(model, made, ALLOWED)


@pytest.mark.parametrize(
    "build",
    [
        lambda net, x: net("Mul", net.gemm(x, 4, 8), net.const(np.array([1.0, 0, 1, 1, 1, 1, 1, 1]))),
        lambda net, x: net("Mul", net("Relu", net.gemm(x, 4, 8)), net.const(CHANNELS)),
        lambda net, x: net("Mul", y := net.gemm(x, 4, 8), net("Neg", net("Mul", y, net.const(CHANNELS)))),
        lambda net, x: net("Mul", net.gemm(x, 4, 8), net.const(np.ones((2, 1, 1)) * 3)),
        lambda net, x: net("Div", net.const(CHANNELS), net("Exp", net.gemm(x, 4, 8))),
    ],
    ids=["a zero", "a rectifier before", "read twice", "more axes", "a quotient"],
)
def test_scales_that_stay(build: Any) -> None:
    net = Net()
    model, coupling = solved(net.output(net("Tanh", build(net, net.input("x", [None, 4])))))
    assert cleaned(model, coupling, {}, nearly)[1] == Cleaned()


def test_folding_that_rounds_too_much_is_left_out() -> None:
    net = Net()
    y = net("Mul", net.gemm(net.input("x", [None, 4]), 4, 8), net.const(CHANNELS))
    model, coupling = solved(net.output(net("Relu", y)))
    made, said = cleaned(model, coupling, {}, lambda one, other, allowed: False)
    assert made is model and said == Cleaned(dropped=("scales behind layers",))
