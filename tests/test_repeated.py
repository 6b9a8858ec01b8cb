"""Numbers repeated everywhere: each use has its own nodes after normalisation, and one again in what is written."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
from oracles import Net, check, solved


def cut(net: Net, zeros: str, k: int) -> str:
    return str(net("Slice", zeros, net.ints(k), net.ints(k + 1), net.ints(0)))


def two_layers(net: Net) -> Net:
    """Two layers of GRU whose initial states are cut from one tensor of zeros."""
    x = net.input("x", [4, None, 5])
    batch = net("Shape", x, start=1, end=2)
    zeros = net("ConstantOfShape", net("Concat", net.ints(2), batch, net.ints(6), axis=0))
    for k, cin in enumerate((5, 6)):
        w = [net.weight(1, 18, n, name=f"{name}{k}") for name, n in (("w", cin), ("r", 6))]
        y = net("GRU", x, *w, "", "", cut(net, zeros, k), hidden_size=6)
        x = net("Squeeze", y, net.ints(1))
    return net.output(net.matmul(x, 6, 3, name="o"))


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_zeros_for_all_layers_tie_none() -> None:
    got = check(two_layers(Net()), groups=2, free={"r0:2": "6", "w1:2": "6", "r1:2": "6", "o:0": "6"})
    assert got.group("r0:2") is not got.group("r1:2")
    assert counts(got.model)["ConstantOfShape"] == 2


def test_what_ends_up_equal_is_merged_again() -> None:
    """Nothing removed, or the same number of units of both layers: the file has the nodes that it had."""
    net = two_layers(Net())
    got = check(net)
    before = Counter(node.op_type for node in net.model().graph.node)
    assert Counter(node.op_type for node in got.pruned({}).graph.node) == before
    one, other = got.group("r0:2"), got.group("r1:2")
    uneven = got.pruned({one: np.arange(3), other: np.arange(4)})
    assert Counter(node.op_type for node in uneven.graph.node)["ConstantOfShape"] == 2
    assert not any("graphprune" in p.key for node in got.pruned({}).graph.node for p in node.metadata_props)


def test_a_number_expanded() -> None:
    """A scalar repeated by Expand and cut apart is taken apart as well: the whole chain is copied."""
    net = Net()
    x = net.input("x", [4, None, 5])
    shape = net("Concat", net("Shape", x, start=0, end=2), net.ints(7), axis=0)
    zeros = net("Unsqueeze", net("Expand", net.const(0.5), shape), net.ints(0))
    flat = net("Squeeze", zeros, net.ints(0))
    for name in ("a", "b"):
        y = net("Add", net.matmul(x, 5, 7, name=name), flat)
        net.output(net.matmul(net("Relu", y), 7, 3, name="o" + name))
    check(net, groups=2, free={"a:1": "7", "b:1": "7"})


def test_what_leaves_the_graph_stays_shared() -> None:
    net = Net()
    x = net.input("x", [2, 5])
    ones = net("ConstantOfShape", net.ints(2, 7), value=net_value(1.5))
    for name in ("a", "b"):
        net.output(net.matmul(net("Mul", net.matmul(x, 5, 7, name=name), ones), 7, 3))
    check(net.output(ones), groups=0, pinned={"a:1": "graph output"})


def test_other_values_stay_shared() -> None:
    """What a Relu makes is no repeated number: both readers read the same."""
    net = Net()
    hidden = net("Relu", net.matmul(net.input("x", [2, 5]), 5, 7, name="a"))
    net.output(*[net.matmul(net("Identity", hidden), 7, 3) for _ in range(2)])
    model, coupling = solved(net)
    assert len(coupling.groups) == 1 and counts(model)["Relu"] == 1


def net_value(number: float) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray([number], np.float32))
