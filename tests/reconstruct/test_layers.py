"""Layers of a pruned model: every weight that stays is mapped to its place in the dense matrix, and can be written."""

from __future__ import annotations

from typing import Any

import layered
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from layered import keeping, pruned_of
from oracles import Net

import graphprune
from graphprune.analysis import Analysis
from graphprune.consumers import Consumer, consumers
from graphprune.execute import evaluate
from graphprune.model import all_nodes, constant_of
from graphprune.reconstruct.curves import exchanged, of_group
from graphprune.reconstruct.layers import Layer, bias_of, layer, write
from graphprune.reconstruct.swaps import swaps
from graphprune.rewrite import Chosen


def attributes(node: ir.Node) -> dict[str, Any]:
    values = {k: a.value for k, a in node.attributes.items()}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def look(net: Net, weight: str = "b") -> tuple[Analysis, Consumer]:
    analysis = graphprune.analyse(net.model())
    return analysis, next(c for c in consumers(analysis.coupling).found if c.weight == weight)


def made(analysis: Analysis, consumer: Consumer, chosen: Chosen) -> tuple[ir.Model, ir.Node, Layer]:
    pruned = pruned_of(analysis, chosen)
    node = all_nodes(pruned)[consumer.node]
    found = layer(consumer, analysis.coupling, chosen, attributes(node))
    assert found is not None
    return pruned, node, found


LOOKED = {kind: look(build()) for kind, build in layered.KINDS.items()}


@settings(max_examples=120, deadline=None)
@drawn(st.sampled_from(list(LOOKED)), st.data())
def test_parts_map_every_weight_that_stays_to_the_dense_matrix(kind: str, data: st.DataObject) -> None:
    analysis, consumer = LOOKED[kind]
    chosen = {}
    for group in analysis.coupling.groups:
        kept = data.draw(st.lists(st.integers(0, group.size - 1), min_size=group.least, unique=True))
        if len(kept) >= max(group.least, 1):
            chosen[group.dim] = np.sort(np.asarray(kept, np.int64))
    _, node, found = made(analysis, consumer, chosen)
    dense = consumer.design.matrix(analysis.coupling.graph.weights["b"].read())
    tensor = constant_of(node.inputs[1])
    assert tensor is not None and tuple(tensor.shape.numpy()) == found.shape
    now = found.design.matrix(tensor.numpy())
    assert len(now) == len(found.parts)
    for block, part in zip(now, found.parts, strict=True):
        np.testing.assert_array_equal(block, dense[part.block][np.ix_(part.columns, part.outputs)])
    assert found.touched == (now.shape[1] < dense.shape[1])


def test_parts_of_a_plain_convolution() -> None:
    analysis, consumer = look(layered.conv())
    group = next(g for g in analysis.coupling.groups if g.size == 8)
    _, _, found = made(analysis, consumer, {group.dim: np.array([1, 6])})
    (part,) = found.parts
    assert part.block == 0 and part.columns.tolist() == [*range(9, 18), *range(54, 63)]
    assert part.outputs.tolist() == list(range(6)) and found.touched


def test_parts_of_a_grouped_convolution_have_a_block_each() -> None:
    analysis, consumer = look(layered.grouped())
    chosen = keeping(analysis)
    _, _, found = made(analysis, consumer, chosen)
    assert [p.block for p in found.parts] == list(range(len(found.parts)))
    assert len(found.parts) == found.design.key[1].groups


def test_parts_of_a_concatenation_come_from_both() -> None:
    analysis, consumer = look(layered.joined())
    small, large = sorted(analysis.coupling.groups, key=lambda g: g.size)[:2]
    assert (small.size, large.size) == (4, 6)
    _, _, found = made(analysis, consumer, {small.dim: np.array([3]), large.dim: np.array([0, 5])})
    assert found.parts[0].columns.tolist() == [*range(27, 36), *range(36, 45), *range(81, 90)]


def test_parts_of_heads() -> None:
    analysis, consumer = look(layered.heads())
    by_name = {g.name: g.dim for g in analysis.coupling.groups}
    _, _, found = made(analysis, consumer, {by_name["wq:1.0"]: np.array([1]), by_name["wv:1.1"]: np.array([0, 2])})
    assert found.parts[0].columns.tolist() == [4, 6]


def test_nothing_chosen_is_the_dense_layer() -> None:
    for analysis, consumer in LOOKED.values():
        _, _, found = made(analysis, consumer, {})
        assert not found.touched and found.shape == consumer.op.x(1).shape
        assert [p.block for p in found.parts] == list(range(consumer.groups))


# Writing


def built(kind: str) -> Net:
    """Return a net whose layer "b" has its bias, or none, in one of many ways."""
    net = Net()
    if kind.startswith("conv"):
        return layered.conv(bias=kind == "conv")
    x = net("Relu", net.gemm(net.input("x", [None, 6]), 6, 12, name="a"))
    if kind == "gemm":
        return net.output(net.gemm(x, 12, 5, name="b"))
    if kind == "gemm, none":
        return net.output(net("Gemm", x, net.weight(12, 5, name="b")))
    if kind == "gemm, scalar":
        return net.output(net("Gemm", x, net.weight(12, 5, name="b"), net.const(np.float32(2))))
    if kind == "gemm, factor":
        return net.output(net("Gemm", x, net.weight(5, 12, name="b"), net.weight(1, 5), transB=1, alpha=-0.5))
    if kind == "gemm, shared":
        bias = net.weight(5, name="shared")
        return net.output(net("Add", net("Gemm", x, net.weight(12, 5, name="b"), bias), bias))
    if kind == "gemm, computed":
        return net.output(net("Gemm", x, net.weight(12, 5, name="b"), net.matmul(net.input("z", [None, 5]), 5, 5)))
    y = net.matmul(x, 12, 5, name="b")
    if kind == "matmul, relu":
        return net.output(net("Relu", y))
    if kind == "matmul, read twice":
        return net.output(net("Add", net("Relu", y), net("Tanh", y)))
    if kind == "matmul, output read too":
        return net.output(y, net("Relu", y))
    if kind == "matmul, add":
        return net.output(net("Add", net.weight(5, name="shift"), y))
    if kind == "matmul, add shared":
        shift = net.weight(5, name="shift")
        return net.output(net("Add", y, shift), net("Mul", net("Identity", shift), net.const(np.float32(2))))
    if kind == "matmul, add of rows":
        return net.output(net("Add", y, net.weight(1, name="shift")))
    assert kind == "matmul"
    return net.output(y)


CREATED = {  # which nodes are added
    "conv": [], "conv, none": [], "gemm": [], "gemm, none": [], "gemm, scalar": [], "gemm, factor": [],
    "gemm, shared": [], "gemm, computed": ["Add"], "matmul": ["Add"], "matmul, relu": ["Add"],
    "matmul, read twice": ["Add"], "matmul, output read too": ["Add"], "matmul, add": [], "matmul, add shared": [],
    "matmul, add of rows": ["Add"],
}


@pytest.mark.parametrize("kind", list(CREATED))
def test_a_weight_and_a_shift_are_written(kind: str) -> None:
    """Twice the weight and a shift give twice the product and the shift, whatever carries the bias."""
    net = built(kind)
    analysis, consumer = look(net)
    model, node, found = made(analysis, consumer, {})
    before = [n.op_type for n in model.graph]
    feeds = feeds_of(model)
    shift = np.random.default_rng(5).standard_normal(len(found.parts[0].outputs))
    watched = consumer.output
    plain = _value(model, watched, feeds)
    added = bias_of(node, found)
    weight = analysis.coupling.graph.weights["b"].read()
    matrix = np.asarray(consumer.design.matrix(weight), np.float64)
    names = [o.name for o in model.graph.outputs]
    write(model, node, found, list(2 * matrix), [shift])
    assert sorted(n.op_type for n in model.graph) == sorted([*before, *CREATED[kind]])
    spatial = (1,) * (plain.ndim - 2)
    if CREATED[kind]:
        (name,) = (n.outputs[0].name for n in model.graph if n.op_type == "Add" and "bias" in str(n.name))
    elif kind.startswith("matmul, add"):
        name = next(n.outputs[0].name for n in model.graph if n.op_type == "Add")
        plain, added = _dense(net, name, feeds), np.asarray(_initializer(net, "shift"), np.float64)
    else:
        name = watched
    if added is None:  # what is computed is told apart by a run without the weight
        added = _without(net, feeds)
    wide = np.broadcast_to(added, plain.shape) if added.ndim > 1 else added.reshape(-1, *spatial)
    wanted = 2 * (plain - wide) + wide + shift.reshape(-1, *spatial)
    np.testing.assert_allclose(_value(model, str(name), feeds), wanted, rtol=1e-3, atol=1e-3)
    assert [o.name for o in model.graph.outputs] == names


def feeds_of(model: ir.Model, rows: int = 7) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    sizes = {str(v.name): [n if isinstance(n, int) else rows for n in v.shape or ()] for v in model.graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}


def _value(model: ir.Model, name: str, feeds: dict[str, Any]) -> Any:
    from graphprune.calibrate.statistics import Watched

    return Watched(model, [name], 1)(feeds)[name]


def _dense(net: Net, name: Any, feeds: dict[str, Any]) -> Any:
    return _value(ir.from_proto(net.model()), name, feeds)


def _without(net: Net, feeds: dict[str, Any]) -> Any:
    model = ir.from_proto(net.model())
    node = next(n for n in model.graph if len(n.inputs) > 1 and n.inputs[1] is model.graph.initializers["b"])
    assert node.inputs[2] is not None and node.inputs[2].name
    return _value(model, node.inputs[2].name, feeds)


def _initializer(net: Net, name: str) -> Any:
    tensor = ir.from_proto(net.model()).graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_a_shared_bias_is_left_to_its_other_reader() -> None:
    for kind, name in (("gemm, shared", "shared"), ("matmul, add shared", "shift")):
        net = built(kind)
        analysis, consumer = look(net)
        model, node, found = made(analysis, consumer, {})
        write(model, node, found, None, [np.ones(5)])
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None and np.array_equal(tensor.numpy(), _initializer(net, name))


def test_one_output_and_a_scalar_behind_it() -> None:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    net.output(net("Add", net.matmul(x, 12, 1, name="b"), net.const(np.float32(3))))
    analysis, consumer = look(net)
    model, node, found = made(analysis, consumer, {})
    feed = {"x": np.ones((4, 6), np.float32)}
    (before,) = evaluate(model, feed).values()
    write(model, node, found, None, [np.array([2.0])])
    (after,) = evaluate(model, feed).values()
    np.testing.assert_allclose(after, before + 2, rtol=1e-5)


def test_names_that_are_taken_are_no_obstacle() -> None:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    y = net("Relu", net.matmul(x, 12, 5, name="b"))
    taken = f"{net.nodes[2].name}.bias"
    net.output(net("Mul", y, net.weight(5, name=taken)))
    analysis, consumer = look(net)
    model, node, found = made(analysis, consumer, {})
    feed = {"x": np.ones((4, 6), np.float32)}
    write(model, node, found, None, [np.full(5, 1e4)])
    (after,) = evaluate(model, feed).values()
    assert (np.abs(after) > 10).all()


@pytest.mark.parametrize("shape", [(3, 5), (3, 1), (5, 1)])
def test_a_bias_for_every_row_is_not_mistaken_for_one_by_output(shape: tuple[int, int]) -> None:
    net = Net()
    x = net("Relu", net.gemm(net.input("x", [shape[0], 6]), 6, 12, name="a"))
    net.output(net("Gemm", x, net.weight(12, 5, name="b"), net.weight(*shape)))
    analysis, consumer = look(net)
    model, node, found = made(analysis, consumer, {})
    assert bias_of(node, found) is None
    feed = {"x": np.ones((shape[0], 6), np.float32)}
    (before,) = evaluate(model, feed).values()
    write(model, node, found, None, [np.arange(5.0)])
    (after,) = evaluate(model, feed).values()
    np.testing.assert_allclose(after, before + np.arange(5.0), atol=1e-4)


def test_float16_stays_float16() -> None:
    for net in (layered.conv(np.float16, bias=False), layered.matmul(np.float16)):
        analysis, consumer = look(net)
        model, node, found = made(analysis, consumer, keeping(analysis))
        matrix = [np.ones((len(p.columns), len(p.outputs))) for p in found.parts]
        write(model, node, found, matrix, [np.ones(len(p.outputs)) for p in found.parts])
        assert {v.dtype for v in model.graph.initializers.values() if v.dtype != ir.DataType.INT64} == {
            ir.DataType.FLOAT16
        }
        evaluate(model, {"x": np.ones([2, *[n for n in model.graph.inputs[0].shape or () if isinstance(n, int)]],
                                      np.float16)})


def test_swaps_of_a_bad_choice_lower_its_exact_error() -> None:
    analysis, learnt = layered.known(layered.KINDS["joined"](), 300)
    coupling, members = analysis.coupling, learnt.consumers.by_dim
    bad = {g.name: list(range(g.size // 2)) for g in coupling.groups if g.size > 3}
    found = exchanged(coupling, bad, learnt.consumers, learnt.stats, lambda text: None)
    assert {n: len(k) for n, k in found.items()} == {n: len(k) for n, k in bad.items()}
    errors = []
    for keep in (bad, found):
        parts = [
            swaps(*of_group(coupling, g, members[g.dim], learnt.stats), np.array(keep[g.name]), rounds=0).error
            for g in coupling.groups if g.name in keep and g.dim in members
        ]
        errors.append(np.array(parts))
    assert len(errors[0]) and (errors[1] <= errors[0]).all() and errors[1].sum() < errors[0].sum()
