"""Repair of tied, fused and quantised layers: jointly, by their inputs alone, and by their biases alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layered import known, pruned_of, samples_of
from oracles import Net
from quantised import into

from graphprune.analysis import Analysis
from graphprune.execute import evaluate
from graphprune.reconstruct.curves import curves
from graphprune.reconstruct.mend import Mended, mend
from graphprune.score import score

MS = "com.microsoft"


def doubled(net: Net, *names: str) -> Net:
    """Make every other channel (first axis of a weight or bias) the same as the one before it."""
    for tensor in net.initializers:
        if tensor.name.split(".")[0] in names:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[1::2] = array[::2]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return net


def mended(analysis: Analysis, learnt: Any, chosen: Any, sequential: bool = False) -> tuple[ir.Model, list[Mended]]:
    pruned = pruned_of(analysis, chosen)
    done = mend(analysis.model, pruned, analysis.coupling, chosen, learnt, corrections=99 if sequential else 0)
    if all(v.shape is not None for v in pruned.graph.outputs):
        onnx.checker.check_model(ir.to_proto(pruned))
    return pruned, done


def error(analysis: Analysis, pruned: ir.Model) -> float:
    (feed,) = samples_of(analysis, 200, 9).open()
    (before,), (after,) = evaluate(analysis.model, feed).values(), evaluate(pruned, feed).values()
    return float(np.linalg.norm(before - after) / np.linalg.norm(before))


def weights(model: ir.Model) -> dict[str, Any]:
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}


# Tied weights


def tied(bias: str = "own", kind: str = "gemm") -> Net:
    """Two halves of the input through the same two layers; biases are one, each its own, or none."""
    net = Net()
    x = net.input("x", [None, 12])
    halves = net("Split", x, n=2, axis=1)
    first = net.weight(12, 6, name="a"), net.weight(12, name="a.b")
    shared, one = net.weight(5, 12, name="b"), net.weight(5, name="b.b")
    turned = net.const(np.zeros((12, 5)), name="t")
    out = []
    for k, half in enumerate(halves):
        hidden = net("Relu", net("Gemm", net("Mul", half, net.const(1.0 + k)), *first, transB=1))
        added = {"own": [net.weight(5, name=f"b.b{k}")], "one": [one], "none": []}[bias]
        out.append(net("Gemm", hidden, shared, *added, transB=1) if kind == "gemm" else net("MatMul", hidden, turned))
    for tensor in net.initializers:
        if tensor.name == "t":
            array = net.rng.standard_normal((12, 5)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "t"))
    return net.output(net("Concat", *out, axis=1))


FORMS = [("own", "gemm"), ("one", "gemm"), ("none", "gemm"), ("none", "matmul")]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("bias", "kind"), FORMS)
def test_a_tied_weight_is_fitted_for_all_who_read_it(bias: str, kind: str, sequential: bool) -> None:
    """Redundant channels cost nothing, and the weight is still one."""
    analysis, learnt = known(doubled(tied(bias, kind), "a"), 400)
    name = "b" if kind == "gemm" else "t"
    (one,) = (c for c in learnt.consumers.found if c.weight == name)
    assert len(one.nodes) == 2 and not learnt.consumers.left_out
    (group,) = analysis.coupling.groups
    chosen = {group.dim: np.arange(6) * 2 + np.arange(6) % 2}
    plain = error(analysis, pruned_of(analysis, chosen))
    pruned, done = mended(analysis, learnt, chosen, sequential)
    assert plain > 0.2 and error(analysis, pruned) < 1e-3
    assert [x.node for x in done] == [one.node]
    readers = [n for n in pruned.graph if any(v is not None and v.name == name for v in n.inputs)]
    assert len(readers) == 2 and sum(n.startswith(name) and a.ndim == 2 for n, a in weights(pruned).items()) == 1


@pytest.mark.parametrize(("bias", "kind"), FORMS)
def test_a_tied_weight_of_any_channels_errs_less(bias: str, kind: str) -> None:
    analysis, learnt = known(tied(bias, kind), 400)
    (group,) = analysis.coupling.groups
    chosen = {group.dim: np.arange(8)}
    pruned, (one,) = mended(analysis, learnt, chosen)
    assert error(analysis, pruned) < 0.9 * error(analysis, pruned_of(analysis, chosen))
    assert one.after < one.before


def test_a_bias_that_is_one_stays_one() -> None:
    analysis, learnt = known(tied("one"), 400)
    (group,) = analysis.coupling.groups
    pruned, _ = mended(analysis, learnt, {group.dim: np.arange(8)})
    assert sum(n.startswith("b.b") for n in weights(pruned)) == 1


def test_the_rows_of_all_readers_are_summed() -> None:
    """The joint moment is the sum of those of both halves."""
    analysis, learnt = known(tied(), 60)  # ten batches of 6: the eighth is in neither
    (one,) = (c for c in learnt.consumers.found if c.weight == "b")
    parts = [learnt.stats.fit[one.key], learnt.stats.check[one.key]]
    assert sum(g.rows for g in parts) == 2 * 54
    model = analysis.model.clone()
    values = {o.name: o for n in model.graph for o in n.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[s.name] for s in one.sources)
    (feed,) = samples_of(analysis, 60).open()
    read = {name: np.delete(a, range(42, 48), axis=0) for name, a in feed.items()}
    rows = np.concatenate(list(evaluate(model, read).values())).astype(np.float64)
    assert np.allclose(sum(g.second[0] for g in parts), rows.T @ rows, rtol=1e-4, atol=1e-3)


# Fused layers


def fused_conv() -> Net:
    net = Net()
    x = net("Relu", net.conv(net.input("x", [None, 3, 6, 5]), 3, 8, 3, name="a", pads=[1] * 4))
    y = net("FusedConv", x, net.weight(6, 8, 3, 3, name="b"), net.weight(6), pads=[1] * 4, activation="Relu", domain=MS)
    return net.output(net("ReduceMean", y, axes=[2, 3], keepdims=0))


def fused_gemm() -> Net:
    net = Net()
    x = net("Relu", net.gemm(net.input("x", [None, 6]), 6, 8, name="a"))
    return net.output(net("FusedGemm", x, net.weight(5, 8, name="b"), transB=1, activation="Tanh", domain=MS))


def fused_matmul() -> Net:
    net = Net()
    x = net("Relu", net.gemm(net.input("x", [None, 6]), 6, 8, name="a"))
    return net.output(net("FusedMatMul", x, net.weight(5, 8, name="b"), transB=1, alpha=0.4, domain=MS))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("made", [fused_conv, fused_gemm, fused_matmul])
def test_fused_layers(made: Callable[[], Net], sequential: bool) -> None:
    analysis, learnt = known(doubled(made(), "a"), 400)
    (group,) = analysis.coupling.groups
    chosen = {group.dim: np.arange(4) * 2 + np.arange(4) % 2}
    plain = error(analysis, pruned_of(analysis, chosen))
    pruned, done = mended(analysis, learnt, chosen, sequential)
    assert plain > 0.1 and error(analysis, pruned) < 1e-3
    assert done[-1].after < 1e-6 < 0.05 < done[-1].before


# Quantised layers


def narrow(net: Net, *shape: int, name: str = "b") -> str:
    return net.const(net.rng.integers(-60, 100, shape), np.int8, name)


def first(net: Net, axes: int = 2) -> str:
    if axes == 4:
        return str(net("Relu", net.conv(net.input("x", [None, 3, 6, 5]), 3, 8, 3, name="a", pads=[1] * 4)))
    return str(net("Relu", net.gemm(net.input("x", [None, 6]), 6, 8, name="a")))


def dynamic() -> Net:
    """What dynamic quantisation writes for a layer with a bias."""
    net = Net(17)
    value, scale, zero = net("DynamicQuantizeLinear", first(net), n=3)
    y = net("Cast", net("MatMulInteger", value, narrow(net, 8, 5), zero), to=1)
    y = net("Mul", y, net("Mul", scale, net.const(np.float32(0.01))))
    return net.output(net("Add", y, net.weight(5, name="b.b")))


def dynamic_conv_reshaped() -> Net:
    """The bias is a vector that a node gives the shape it needs."""
    return dynamic_conv(reshaped=True)


def dynamic_conv(reshaped: bool = False) -> Net:
    net = Net(17)
    value, scale, zero = net("DynamicQuantizeLinear", first(net, 4), n=3)
    y = net("Cast", net("ConvInteger", value, narrow(net, 5, 8, 3, 3), zero, pads=[1] * 4), to=1)
    bias = net.weight(5, name="b.b") if reshaped else net.weight(1, 5, 1, 1, name="b.b")
    bias = net("Reshape", bias, net.ints(1, -1, 1, 1)) if reshaped else bias
    y = net("Add", net("Mul", y, net("Mul", scale, net.const(np.float32(0.01)))), bias)
    return net.output(net("ReduceMean", y, axes=[2, 3], keepdims=0))


def linear_conv() -> Net:
    """What static quantisation writes: the bias counts in units of both scales."""
    net = Net(17)
    bias = net.const(net.rng.integers(-500, 500, 5), np.int32, "b.b")
    scale = net.const(net.rng.uniform(0.008, 0.012, 5), np.float32)
    out = net.const(np.float32(0.5)), net.const(128, np.uint8)
    y = net("QLinearConv", *into(net, first(net, 4)), narrow(net, 5, 8, 3, 3), scale, net.const(np.zeros(5), np.int8),
            *out, bias, pads=[1] * 4)
    return net.output(net("ReduceMean", net("DequantizeLinear", y, *out), axes=[2, 3], keepdims=0))


def read_back() -> Net:
    """What QDQ files have: the bias is read by a scale of its own."""
    net = Net(17)
    value, scale, zero = into(net, first(net))
    weight = net("DequantizeLinear", narrow(net, 5, 8), net.const(np.float32(0.01)), net.const(0, np.int8))
    bias = net.const(net.rng.integers(-500, 500, 5), np.int32, "b.b")
    bias = net("DequantizeLinear", bias, net.const(np.float32(5e-4)), net.const(0, np.int32))
    return net.output(net("Gemm", net("DequantizeLinear", value, scale, zero), weight, bias, transB=1))


def read_back_conv() -> Net:
    net = Net(17)
    value, scale, zero = into(net, first(net, 4))
    each = net.const(net.rng.uniform(0.008, 0.012, 5), np.float32), net.const(np.zeros(5), np.int8)
    weight = net("DequantizeLinear", narrow(net, 5, 8, 3, 3), *each, axis=0)
    bias = net("DequantizeLinear", net.const(net.rng.integers(-500, 500, 5), np.int32, "b.b"),
               net.const(np.full(5, 5e-4), np.float32), net.const(np.zeros(5), np.int32), axis=0)
    y = net("Conv", net("DequantizeLinear", value, scale, zero), weight, bias, pads=[1] * 4)
    return net.output(net("ReduceMean", y, axes=[2, 3], keepdims=0))


def in_floats() -> Net:
    net = Net(17)
    operands = narrow(net, 8, 5), net.const(np.float32(0.01)), net.const(0, np.int8), net.weight(5, name="b.b")
    return net.output(net("DynamicQuantizeMatMul", first(net), *operands, domain=MS))


CORRECTED = [dynamic, dynamic_conv, dynamic_conv_reshaped, linear_conv, read_back, read_back_conv, in_floats]


@pytest.mark.parametrize("made", CORRECTED)
def test_quantised_layers_keep_their_weights_and_correct_their_biases(made: Callable[[], Net]) -> None:
    analysis, learnt = known(made(), 400)
    (one,) = learnt.consumers.found
    assert one.frozen and list(learnt.consumers.left_out) == [one.node]
    group = next(g for g in analysis.coupling.groups if any(o.initializer == "b" for o in g.occurrences))
    chosen = {group.dim: np.arange(5)}
    plain = pruned_of(analysis, chosen)
    pruned, (done,) = mended(analysis, learnt, chosen, True)
    assert error(analysis, pruned) < 0.9 * error(analysis, plain)
    assert done.strength is None and done.after < done.before
    before, after = weights(plain), weights(pruned)
    assert before.keys() == after.keys()
    assert [n for n in before if not np.array_equal(before[n], after[n])] == ["b.b"]
    assert before["b.b"].dtype == after["b.b"].dtype


def without_bias() -> Net:
    """Nothing is added to it that could be corrected: the next layer quantises at once."""
    net = Net(17)
    out = net.const(np.float32(0.5)), net.const(128, np.uint8)
    parts = *into(net, first(net)), narrow(net, 8, 5), net.const(np.float32(0.01)), net.const(0, np.int8)
    return net.output(net("DequantizeLinear", net("QLinearMatMul", *parts, *out), *out))


def test_where_there_is_no_bias_nothing_is_changed() -> None:
    analysis, learnt = known(without_bias(), 100)
    chosen = {analysis.coupling.groups[0].dim: np.arange(5)}
    plain = weights(pruned_of(analysis, chosen))
    pruned, done = mended(analysis, learnt, chosen)
    assert done == [] and plain.keys() == weights(pruned).keys()
    assert all(np.array_equal(a, weights(pruned)[n]) for n, a in plain.items())


@pytest.mark.parametrize("made", [*CORRECTED, without_bias, tied])
def test_curves_go_by_what_is_read(made: Callable[[], Net]) -> None:
    """A channel that is never there is the first to go, however large its weights are."""
    net = made()
    for tensor in net.initializers:
        if tensor.name in ("a", "a.b"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[3] = 0 if array.ndim > 1 else -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    analysis, learnt = known(net, 100)
    coupling = analysis.coupling
    fallback = score(coupling, "l2").by_group
    found = curves(coupling, coupling.groups, learnt.consumers, learnt.stats, fallback)
    group = next(g for g in coupling.groups if any(o.initializer == "b" for o in g.occurrences))
    assert found[group.name].order[0] == 3 and found[group.name].errors[1] < 1e-6
