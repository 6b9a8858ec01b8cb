"""Who contracts a channel group, by which columns, and what is left out with a reason."""

from __future__ import annotations

from typing import Any

import layered
import numpy as np
import onnx
import pytest
from oracles import Net

import graphprune
from graphprune.axes import slots
from graphprune.consumers import Consumer, Consumers, consumers


def found(net: Net, **looking: Any) -> Consumers:
    return consumers(graphprune.analyse(net.model(), graphprune.Looking(**looking)).coupling)


def by_weight(net: Net) -> dict[str, Consumer]:
    return {c.weight: c for c in found(net).found}


COLUMNS = {  # weight: width of a block, columns for each slot, blocks
    "conv": (72, 9, 1), "grouped": (36, 9, 2), "gemm": (12, 1, 1), "matmul": (12, 1, 1), "turned": (32, 4, 1),
    "lstm": (10, 1, 1), "gru": (10, 1, 1), "rnn": (10, 1, 1), "joined": (90, 9, 1), "heads": (8, 1, 1),
    "depthwise": (8, 1, 1), "flat": (96, 1, 1),
}


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_layers_are_found_with_their_columns(kind: str) -> None:
    one = by_weight(layered.KINDS[kind]())["b"]
    assert (one.width, one.columns, one.groups) == COLUMNS[kind]
    assert not found(layered.KINDS[kind]()).left_out


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_the_columns_of_an_index_are_those_that_go_with_it(kind: str) -> None:
    """Zeroing the slices of the weight that pruning removes zeroes just these columns of every block."""
    analysis = graphprune.analyse(layered.KINDS[kind]().model())
    everyone = consumers(analysis.coupling)
    one = next(c for c in everyone.found if c.weight == "b")
    groups = [g for g in analysis.coupling.groups if one in everyone.by_dim.get(g.dim, [])]
    assert groups
    for group in groups:
        columns = one.columns_of(group.dim)
        assert len(columns) == group.size
        everything = np.sort(np.concatenate(columns))
        assert len(set(everything.tolist())) == len(everything)
        for index in range(group.size):
            marked = np.ones(analysis.coupling.graph.weights["b"].shape)
            kept = slots(one.axis, {group.dim: np.delete(np.arange(group.size), index)})
            gone = np.setdiff1d(np.arange(one.axis.size), kept)
            np.moveaxis(marked, one.design.axis, 0)[gone] = 0
            zero = (one.design.matrix(marked) == 0).all(axis=2)
            for block in zero:
                assert np.flatnonzero(block).tolist() == sorted(columns[index].tolist())


def test_heads_have_columns_by_head_and_within() -> None:
    analysis = graphprune.analyse(layered.heads().model())
    everyone = consumers(analysis.coupling)
    (one,) = (c for c in everyone.found if c.weight == "b")
    by_size = {d.size: one.columns_of(d) for d, members in everyone.by_dim.items() if one in members}
    assert [c.tolist() for c in by_size[2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [c.tolist() for c in by_size[4]] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_concatenation_is_contracted_in_parts() -> None:
    analysis = graphprune.analyse(layered.joined().model())
    everyone = consumers(analysis.coupling)
    (one,) = everyone.found
    columns = [np.concatenate(one.columns_of(dim)) for dim in everyone.by_dim]
    assert sorted((int(c.min()), int(c.max()), len(c)) for c in columns) == [(0, 35, 36), (36, 89, 54)]


def test_depthwise_convolutions_contract_nothing() -> None:
    assert set(by_weight(layered.depthwise())) == {"b"}


def test_a_grouped_transposed_convolution_is_left_out() -> None:
    """Its blocks split the axis that goes: the columns of one block are those of other channels."""
    result = found(layered.turned(group=2))
    assert not result.found and list(result.left_out.values()) == ["its groups split the contracted axis"]


def tied() -> Net:
    net = Net()
    w = net.weight(12, 12, name="w")
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    return net.output(net.matmul(net("Relu", net("MatMul", net("Relu", net("MatMul", x, w)), w)), 12, 3, name="c"))


def read_otherwise() -> Net:
    """The embedding is the head, too."""
    net = Net()
    table = net.weight(20, 12, name="w")
    x = net("Relu", net("Gather", table, net.input("x", [None], np.int64, between=(0, 20))))
    return net.output(net("Gemm", x, table, transB=1))


def at_run_time() -> Net:
    """Integers come from outside, and so does their scale."""
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    q = net("QuantizeLinear", x, net.input("scale", [], np.float32, between=(0.1, 0.2)), net.const(0, np.uint8))
    weight = net.const(net.rng.integers(-90, 90, (12, 5)), np.int8, "b")
    return net.output(net("Cast", net("MatMulInteger", q, weight), to=1))


def without_design() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    return net.output(net("Einsum", x, net.weight(12, 5, name="b"), equation="bi,io->bo"))


def quantised() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    q = net.const(net.rng.integers(-90, 90, (12, 5)), np.int8, "b")
    w = net("DequantizeLinear", q, net.const(np.float32(0.02)), net.const(0, np.int8))
    return net.output(net("MatMul", x, w))


def spelled_out() -> Net:
    """Integers that are cast, and then multiplied by a scale for each output."""
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    q = net.const(net.rng.integers(0, 255, (12, 5)), np.uint8, "b")
    w = net("Sub", net("Cast", q, to=1), net.const(np.full((1, 5), 128.0)))
    return net.output(net("MatMul", x, net("Mul", w, net.const(np.full((1, 5), 0.02)))))


def turned_over() -> Net:
    """Which of both equal axes is contracted is not told by their names."""
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    q = net("Cast", net.const(net.rng.integers(-90, 90, (12, 12)), np.int8, "b"), to=1)
    return net.output(net.matmul(net("Add", x, net("MatMul", x, net("Transpose", q))), 12, 3))


def computed() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    return net.output(net("MatMul", x, net("Tanh", net.weight(12, 5, name="b"))))


def transposed_gemm() -> Net:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    return net.output(net("Gemm", x, net.weight(12, 5, name="b"), net.weight(5), beta=0.5))


@pytest.mark.parametrize(("net", "reason"), [
    (read_otherwise(), "tied: Gather"), (quantised(), "quantised and stays"), (computed(), "computed"),
    (transposed_gemm(), "of this form"), (at_run_time(), "made at run time"),
    (without_design(), "Einsum is not repaired"),
    (spelled_out(), "quantised and stays"), (turned_over(), "computed"),
])
def test_what_cannot_be_fitted_is_left_out_with_a_reason(net: Net, reason: str) -> None:
    result = found(net)
    assert result.left_out and all(reason in said for said in result.left_out.values()), result.left_out


def test_weights_inside_of_a_body_are_left_out() -> None:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    w = net.weight(12, 5, name="b")
    bodies = []
    for k in range(2):
        node = onnx.helper.make_node("MatMul", [x, w] if k == 0 else [x, "b2"], [f"y{k}"], name=f"inside{k}")
        info = onnx.helper.make_tensor_value_info(f"y{k}", 1, None)
        bodies.append(onnx.helper.make_graph([node], f"branch{k}", [], [info]))
    net.weight(12, 5, name="b2")
    switch = net.input("switch", [], np.bool_)
    y = net("If", switch, then_branch=bodies[0], else_branch=bodies[1])
    net.output(y)
    result = found(net)
    assert not result.found and set(result.left_out.values()) <= {"it is inside of a branch or a loop"}


def test_nodes_with_one_weight_are_one_consumer() -> None:
    """Rows of both are rows of the one problem."""
    result = found(tied())
    (one,) = (c for c in result.found if c.weight == "w")
    assert not result.left_out and len(one.others) == 1
    assert len(one.sources) == 2 and one.key[0] == one.sources
    assert len(set(one.nodes)) == 2


@pytest.mark.parametrize("net", [quantised(), spelled_out()])
def test_quantised_weights_are_read_and_stay(net: Net) -> None:
    (one,) = found(net).found
    assert one.frozen and one.weight == "b" and one.data == one.key[0]
