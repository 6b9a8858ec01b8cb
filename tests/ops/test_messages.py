"""Message passing: nodes and edges are indexed by data, features go along."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Net, check

NODES, EDGES = 6, 9


class Graph:
    """Nodes with features, and edges as an input [2, edges] of numbers of nodes."""

    def __init__(self, opset: int = 18, width: int = 8) -> None:
        self.net = net = Net(opset)
        edges = net.input("edges", [2, EDGES], np.int64, between=(0, NODES))
        self.source, self.target = (net("Gather", edges, net.const(i), axis=0) for i in range(2))
        self.width = width
        self.x = net("Relu", net.matmul(net.input("x", [NODES, 5]), 5, width, name="a"))

    def zeros(self, width: int, value: float = 0.0) -> str:
        return self.net.const(np.full((NODES, width), value))

    def column(self, width: int) -> str:
        """The target of each edge, once for each feature."""
        net = self.net
        return str(net("Expand", net("Unsqueeze", self.target, net.ints(1)), net.ints(EDGES, width)))

    def messages(self) -> str:
        return str(self.net("Gather", self.x, self.source, axis=0))

    def out(self, y: str, width: int = 8) -> Net:
        return self.net.output(self.net.matmul(y, width, 3, name="out"))


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scattered_elements(reduction: str) -> None:
    g = Graph()
    base = g.zeros(8, float(reduction == "mul"))
    y = g.net("ScatterElements", base, g.column(8), g.messages(), axis=0, reduction=reduction)
    check(g.out(g.net("Add", y, g.x)), groups=1, free={"a:1": "8", "out:0": "8"})


@pytest.mark.parametrize("whole", ["known", "run time"])
def test_messages_cut_to_the_size_of_the_index(whole: str) -> None:
    """Some exporters cut what is scattered to the shape of the index, which is its own."""
    g = Graph()
    net, column, messages = g.net, g.column(8), g.messages()
    ends = net("Shape", column) if whole == "run time" else net.ints(EDGES, 8)
    messages = net("Slice", messages, net.ints(0, 0), ends, net.ints(0, 1))
    y = net("ScatterElements", g.zeros(8), column, messages, axis=0, reduction="add")
    check(g.out(net("Add", y, g.x)), groups=1, free={"a:1": "8", "out:0": "8"})


def test_a_part_cut_at_run_time_pins() -> None:
    g = Graph()
    end = g.net.input("end", [1], np.int64, between=(4, 5))
    y = g.net("Slice", g.x, g.net.ints(0), end, g.net.ints(1))
    y = g.net("ReduceSum", y, g.net.ints(1), keepdims=1)
    check(g.out(g.net("Add", g.x, y)), pinned={"a:1": ""})


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "none"])
def test_scattered_rows(reduction: str) -> None:
    g = Graph()
    net = g.net
    rows = net("Unsqueeze", g.target if reduction != "none" else net.ints(*range(NODES)), net.ints(1))
    messages = g.messages() if reduction != "none" else net("Tanh", g.x)
    y = net("ScatterND", g.zeros(8, 1.0), rows, messages, reduction=reduction)
    check(g.out(net("Add", y, g.x)), groups=1, free={"a:1": "8", "out:0": "8"})


def test_updates_of_a_weight() -> None:
    """What is added at the same places may come in any order; that it is gone is as if it were zero."""
    net = Net(18)
    updates = net("MatMul", net.weight(7, 9, name="mix"), net.matmul(net.weight(9, 4, name="in"), 4, 8, name="u"))
    rows = net.const([[0], [1], [1], [4], [5], [0], [2]])
    y = net("ScatterND", net.matmul(net.input("x", [6, 4]), 4, 8, name="a"), rows, updates, reduction="add")
    check(net.output(net.matmul(y, 8, 3)), free={"mix:0": "7", "mix:1": "9", "u:1": "8"})


def test_attention_over_neighbours() -> None:
    """Softmax over the edges of each node, by heads."""
    g = Graph(width=12)
    net = g.net
    y = net("Reshape", g.x, net.ints(NODES, 3, 4))
    halves = [net("ReduceSum", net("Mul", y, net.weight(3, 4, name=n)), net.ints(2), keepdims=0) for n in "st"]
    scores = net("Add", net("Gather", halves[0], g.source, axis=0), net("Gather", halves[1], g.target, axis=0))
    column = g.column(3)
    top = net("ScatterElements", g.zeros(3, -9.0), column, scores, axis=0, reduction="max")
    weights = net("Exp", net("Sub", scores, net("Gather", top, g.target, axis=0)))
    total = net("ScatterElements", g.zeros(3), column, weights, axis=0, reduction="add")
    weights = net("Div", weights, net("Gather", total, g.target, axis=0))
    messages = net("Mul", net("Gather", y, g.source, axis=0), net("Unsqueeze", weights, net.ints(2)))
    z = net("ScatterND", net.const(np.zeros((NODES, 3, 4))), net("Unsqueeze", g.target, net.ints(1)), messages,
            reduction="add")
    check(g.out(net("Reshape", z, net.ints(NODES, 12)), 12), groups=2, free={"a:1": "(3 4)", "s:0": "3", "s:1": "4"})


def test_neighbours_by_distance() -> None:
    """Points with their nearest points: positions of points pick rows of features, and features are free."""
    net = Net()
    x = net.input("x", [2, 7, 5])
    y = net("Relu", net.matmul(x, 5, 8, name="a"))
    near = net("MatMul", x, net("Transpose", x, perm=[0, 2, 1]))
    _, index = net("TopK", near, net.ints(3), n=2)
    index = net("Expand", net("Unsqueeze", index, net.ints(3)), net.ints(2, 7, 3, 8))
    rows = net("Expand", net("Unsqueeze", y, net.ints(1)), net.ints(2, 7, 7, 8))
    z = net("ReduceMax", net("GatherElements", rows, index, axis=2), axes=[2], keepdims=0)
    check(net.output(net.matmul(z, 8, 3)), groups=1, free={"a:1": "8"})


def test_pairs_of_features_pin_nothing_but_places() -> None:
    """Products of all pairs of embeddings: the pairs are picked by number, the width is free."""
    net = Net()
    ids = net.input("ids", [None, 3], np.int64, between=(0, 11))
    parts = [net("Gather", net.weight(11, 8, name=f"t{k}"), net("Gather", ids, net.const(k), axis=1)) for k in range(3)]
    stacked = net("Concat", *[net("Unsqueeze", p, net.ints(1)) for p in parts], axis=1)
    grid = net("MatMul", stacked, net("Transpose", stacked, perm=[0, 2, 1]))
    grid = net("GatherND", net("Transpose", grid, perm=[1, 2, 0]), net.const([[1, 0], [2, 0], [2, 1]]))
    got = check(net.output(net.gemm(net("Transpose", grid), 3, 2)), groups=2, free={"t0:1": "8", "t2:1": "8"})
    assert got.group("t0:1") is got.group("t1:1")


def test_rows_that_data_select() -> None:
    """NonZero and Compress pick rows, the features of which go along."""
    g = Graph()
    net = g.net
    live = net("Greater", net("ReduceSum", g.x, net.ints(1), keepdims=0), net.const(0.5))
    y = net("Compress", g.x, live, axis=0)
    rows = net("Squeeze", net("NonZero", live), net.ints(0))
    y = net("Add", net("ReduceMean", y, net.ints(0), keepdims=1), net("Gather", g.x, rows, axis=0))
    check(g.out(net("ReduceMean", y, net.ints(0), keepdims=1)), groups=1, free={"a:1": "8", "out:0": "8"})


def test_a_triangle_of_pairs() -> None:
    net = Net()
    y = net.matmul(net.input("x", [None, 6, 5]), 5, 8, name="a")
    grid = net("Trilu", net("MatMul", y, net("Transpose", y, perm=[0, 2, 1])), upper=0)
    check(net.output(net.matmul(net("MatMul", grid, y), 8, 3)), groups=1, free={"a:1": "8"})
