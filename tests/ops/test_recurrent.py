"""LSTM, GRU and RNN: units through both matrices, biases, peepholes, states and directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from oracles import Feeds, Net, Runs, check, solved
from recurrent import BATCH, GATES, HIDDEN, IN, OUT, flat, gates, layer

from graphprune.feeds import index_bounds
from graphprune.runtime import Runtime, open_session, run


def sequence(net: Net, cin: int = IN, steps: int | str = 4) -> str:
    return net.input("x", [steps, BATCH, cin])


@pytest.mark.parametrize("opset", [7, 13, 14, 22])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", GATES)
def test_layer(operator: str, direction: str, opset: int) -> None:
    """Units go from both matrices and from the biases of W and R; the direction stays."""
    net, d = Net(opset), 1 + (direction == "bidirectional")
    x = net.matmul(sequence(net), IN, 7, name="a")
    y = flat(net, layer(net, operator, x, 7, direction=direction), d * HIDDEN)
    net.output(net.matmul(y, d * HIDDEN, OUT, name="o"))
    g = gates(operator)
    free = {
        "a:1": "7", "r.w:2": "7", "r.w:1": g, "r.r:1": g, "r.r:2": "6",
        "r.b:1": f"({g} + {g})", "o:0": "([2] 6)" if d == 2 else "6",
    }
    got = check(net, groups=2, free=free, pinned={"r.w:0": "directions of a recurrence"} if d == 2 else None)
    assert got.macs(operator) == 4 * BATCH * d * GATES[operator] * HIDDEN * (7 + HIDDEN)


@pytest.mark.parametrize(("operator", "opset"), [("LSTM", 6), ("GRU", 6), ("GRU", 2), ("LSTM", 1), ("RNN", 6)])
def test_before_opset_7(operator: str, opset: int) -> None:
    """Neither onnx infers sizes there nor does onnxruntime run them; onnx's reference does, except for RNN."""
    net = Net(opset, ir_version=4)
    extra = {"output_sequence": 1} if operator == "RNN" else {}
    y, h = layer(net, operator, sequence(net), n=2, **extra)
    net.output(net("MatMul", net("Squeeze", y, axes=[1]), net.weight(HIDDEN, OUT, name="o")))
    net.output(net("MatMul", net("Squeeze", h, axes=[0]), net.weight(HIDDEN, OUT, name="p")))
    if operator == "RNN":
        _, coupling = solved(net)
        assert [(g.size, len(g.occurrences)) for g in coupling.groups] == [(6, 6)]
    else:
        check(net, groups=1, free={"r.r:2": "6", "o:0": "6", "p:0": "6"}, reference=True)


def test_both_directions_before_opset_7() -> None:
    net = Net(6, ir_version=4)
    y = net("Transpose", layer(net, "GRU", sequence(net), direction="bidirectional"), perm=[0, 2, 1, 3])
    y = net("Reshape", y, net.ints(4 * BATCH, 2 * HIDDEN))
    _, coupling = solved(net.output(net("MatMul", y, net.weight(2 * HIDDEN, OUT))))
    assert [g.size for g in coupling.groups] == [6]


@pytest.mark.parametrize("operator", GATES)
def test_hidden_size_follows(operator: str) -> None:
    net = Net()
    y = net("Squeeze", layer(net, operator, sequence(net)), net.ints(1))
    got = check(net.output(net.matmul(y, HIDDEN, OUT)), groups=1)
    model = got.pruned({got.group("r.r:2"): np.array([0, 3, 5])})
    (node,) = [n for n in model.graph.node if n.op_type == operator]
    assert {a.name: a.i for a in node.attribute} == {"hidden_size": 3}
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    assert shapes["r.r"] == [1, 3 * GATES[operator], 3] and shapes["r.b"] == [1, 6 * GATES[operator]]


def test_biases_are_sliced_gate_by_gate() -> None:
    """The bias is all gates of W, then all gates of R."""
    net = Net()
    y = net("Squeeze", layer(net, "GRU", sequence(net), h=2), net.ints(1))
    got = check(net.output(net.matmul(y, 2, OUT)), groups=1)
    model = got.pruned({got.group("r.r:2"): np.array([1])})
    (before,) = [t for t in net.initializers if t.name == "r.b"]
    (after,) = [t for t in model.graph.initializer if t.name == "r.b"]
    assert np.array_equal(onnx.numpy_helper.to_array(after), onnx.numpy_helper.to_array(before)[:, 1::2])


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_peepholes(direction: str) -> None:
    net, d = Net(), 1 + (direction == "bidirectional")
    y = flat(net, layer(net, "LSTM", sequence(net), peepholes=True, direction=direction), d * HIDDEN)
    check(net.output(net.matmul(y, d * HIDDEN, OUT)), groups=1, free={"r.p:1": "(3 6)", "r.r:1": "(4 6)"})


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("bias", [False, True])
def test_lengths(operator: str, bias: bool) -> None:
    """Lengths of the samples' sequences are as many as there are samples."""
    net = Net()
    lengths = net.input("lengths", [BATCH], np.int32, between=(1, 4))
    y = layer(net, operator, sequence(net), lengths=lengths, bias=bias, direction="bidirectional")
    check(net.output(net.matmul(flat(net, y, 12), 12, OUT)), groups=1, free={"r.r:2": "6"})


EXTRAS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"clip": 0.5}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Affine"], "activation_alpha": [0.3, 1.5],
              "activation_beta": [0.4, 0.1]}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 1, "clip": 0.7}),
    ("GRU", {"activations": ["Sigmoid", "Relu"]}),
    ("RNN", {"activations": ["Relu"]}),
    ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}),
]


@pytest.mark.parametrize(("operator", "extra"), EXTRAS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_attributes_by_unit(operator: str, extra: dict[str, Any]) -> None:
    """Clipping, coupled gates and activations act on each unit by itself."""
    net = Net()
    y = net("Squeeze", layer(net, operator, sequence(net), **extra), net.ints(1))
    check(net.output(net.matmul(y, HIDDEN, OUT)), groups=1, free={"r.w:1": gates(operator)})


def test_activations_of_each_direction() -> None:
    net = Net()
    names = ["Sigmoid", "Tanh", "Tanh", "HardSigmoid", "Relu", "Softsign"]
    y = layer(net, "LSTM", sequence(net), direction="bidirectional", activations=names)
    check(net.output(net.matmul(flat(net, y, 12), 12, OUT)), groups=1, free={"r.w:1": "(4 6)"})


def test_an_activation_that_may_mix_units() -> None:
    """What goes in may still go: only the units are pinned."""
    net = Net()
    x = net.matmul(sequence(net), IN, 7, name="a")
    y = net("Squeeze", layer(net, "RNN", x, 7, activations=["Softmax"]), net.ints(1))
    _, coupling = solved(net.output(net.matmul(y, HIDDEN, OUT)))
    assert [g.name for g in coupling.groups] == ["a:1"]
    assert any("'Softmax' may mix units" in reason for place, reason, _ in coupling.pins() if place == "r.r:2")


class Lowered:
    """Runs layout 1 as layout 0 between Transposes, which is what it means: nothing at hand runs it both ways."""

    def __call__(self, model: ir.Model, feeds: Feeds, optimise: bool = False) -> Runs:
        proto, nodes = ir.to_proto(model), []
        for node in proto.graph.node:
            nodes += self.lowered(node) if node.op_type in GATES else [node]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        session = open_session(proto.SerializeToString(), Runtime(threads=1, optimise=optimise))
        return [run(session, f) for f in feeds.values()]

    def lowered(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        orders = {0: [1, 0, 2], 5: [1, 0, 2], 6: [1, 0, 2]}
        before, after = [], []
        for i, order in orders.items():
            if i < len(node.input) and node.input[i]:
                name = f"{node.name}.in{i}"
                before.append(onnx.helper.make_node("Transpose", [node.input[i]], [name], perm=order))
                node.input[i] = name
        for i, output in enumerate(node.output):
            if output:
                order = [1, 0, 2] if i else [2, 0, 1, 3]
                after.append(onnx.helper.make_node("Transpose", [f"{output}.0"], [output], perm=order))
                node.output[i] = f"{output}.0"
        kept = [a for a in node.attribute if a.name != "layout"]
        del node.attribute[:]
        node.attribute.extend(kept)
        return [*before, node, *after]


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layout_1(operator: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples before steps, in the input, the output and the states."""
    net, d = Net(22), 1 + (direction == "bidirectional")
    x = net.matmul(net.input("x", [BATCH, 4, IN]), IN, 7, name="a")
    state = net.input("state", [BATCH, d, 2])
    states = [net.matmul(state, 2, HIDDEN, name=f"s{k}") for k in range(2 if operator == "LSTM" else 1)]
    y, h = layer(net, operator, x, 7, n=2, layout=1, states=tuple(states), direction=direction)
    y = net("Reshape", y, net.ints(0, 0, -1))
    net.output(net.matmul(y, d * HIDDEN, OUT, name="o"), net.matmul(h, HIDDEN, OUT, name="p"))
    free = {"r.r:2": "6", "o:0": "([2] 6)" if d == 2 else "6", "p:0": "6", "s0:1": "6", "a:1": "7"}
    monkeypatch.setattr("oracles._Onnxruntime", Lowered)
    check(net, groups=2, free=free)


def test_layout_1_by_the_reference() -> None:
    net = Net(22)
    y, h = layer(net, "GRU", net.input("x", [BATCH, 4, IN]), n=2, layout=1)
    y, h = net("Squeeze", y, net.ints(2)), net("Squeeze", h, net.ints(1))
    net.output(net.matmul(y, HIDDEN, OUT, name="o"), net.matmul(h, HIDDEN, OUT, name="p"))
    check(net, groups=1, free={"r.r:2": "6", "o:0": "6", "p:0": "6"}, reference=True)


def test_steps_are_pinned() -> None:
    """A recurrence has an order: steps may not move, though a weight lies on them."""
    net = Net()
    x = net("Add", sequence(net), net.weight(4, 1, IN, name="places"))
    y = net("MatMul", net.weight(8, 4, name="mix"), net("Reshape", x, net.ints(4, BATCH * IN)))
    y = layer(net, "RNN", net("Reshape", y, net.ints(8, BATCH, IN)))
    net.output(net.matmul(net("Squeeze", y, net.ints(1)), HIDDEN, OUT))
    check(net, groups=1, free={"r.r:2": "6"}, pinned={"mix:0": "steps of a recurrence"})


def test_roles_of_the_matrix_of_states() -> None:
    """The units that a layer makes are those that it reads at the next step: one dim, two roles in one weight."""
    net = Net()
    y = net("Squeeze", layer(net, "GRU", sequence(net)), net.ints(1))
    got = check(net.output(net.matmul(y, HIDDEN, OUT)), groups=1)
    (group,) = got.coupling.groups
    roles = {f"{o.initializer}:{o.axis}": o.role.value for o in group.occurrences}
    assert roles == {
        "r.w:1": "produced", "r.r:1": "produced", "r.r:2": "contracted", "r.b:1": "produced",
        net.initializers[-1].name + ":0": "contracted",
    }


def test_lengths_are_made_up_to_fit() -> None:
    """Where nobody gives inputs, no sequence is longer than there are steps."""
    net = Net()
    lengths = net.input("lengths", [BATCH], np.int32)
    y = layer(net, "LSTM", sequence(net), lengths=net("Cast", lengths, to=onnx.TensorProto.INT32))
    _, coupling = solved(net.output(net.matmul(net("Squeeze", y, net.ints(1)), HIDDEN, OUT)))
    assert index_bounds(coupling.graph.ops)["lengths"] == 5
