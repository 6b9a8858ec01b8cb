"""Recurrent layers in graphs: stacked, in two directions, with states from elsewhere, as exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check
from recurrent import BATCH, GATES, IN, OUT, flat, gates, layer

from graphprune.axes import Origin, Pin, Same, concat, fresh, solve
from graphprune.ops import Op, Operand
from graphprune.ops.recurrent import gate_axis, recurrent


def free_of(operator: str, name: str, h: int, cin: str) -> dict[str, str]:
    return {f"{name}.w:1": gates(operator, h), f"{name}.r:2": str(h), f"{name}.w:2": cin}


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("style", ["reshape", "split", "gather"])
def test_two_layers_of_both_directions(operator: str, style: str) -> None:
    """The second layer reads what both directions of the first have made: `(2 h)`, or `(h + h)` by a Concat."""
    net = Net()
    y = layer(net, operator, net.input("x", [4, None, IN]), h=6, name="a", direction="bidirectional")
    if style == "reshape":
        y = flat(net, y, 12)
    else:
        if style == "split":
            parts = [net("Squeeze", p, net.ints(1)) for p in net("Split", y, net.ints(1, 1), n=2, axis=1)]
        else:
            parts = [net("Gather", y, net.const(k), axis=1) for k in range(2)]
        y = net("Concat", *parts, axis=2)
    y = flat(net, layer(net, operator, y, 12, h=7, name="b", direction="bidirectional"), 14)
    net.output(net.matmul(y, 14, OUT, name="o"))
    both = {"reshape": "([2] 6)"}.get(style, "(6 + 6)")
    check(net, groups=2, free={**free_of(operator, "b", 7, both), "a.r:2": "6", "o:0": "([2] 7)"})


@pytest.mark.parametrize("operator", GATES)
def test_one_operator_for_each_direction(operator: str) -> None:
    """As Keras exports: one layer forwards and one in reverse have units of their own."""
    net = Net()
    x = net.input("x", [4, None, IN])
    parts = [
        net("Squeeze", layer(net, operator, x, h=h, name=d, direction=d), net.ints(1))
        for d, h in (("forward", 6), ("reverse", 5))
    ]
    net.output(net.matmul(net("Concat", *parts, axis=2), 11, OUT, name="o"))
    check(net, groups=2, free={"o:0": "(6 + 5)", "forward.r:2": "6", "reverse.r:2": "5"})


def test_directions_by_a_concat_of_their_own_axis() -> None:
    """Outputs side by side along the axis of directions have the same units."""
    net = Net()
    x = net.input("x", [4, None, IN])
    parts = [layer(net, "GRU", x, h=6, name=d, direction=d) for d in ("forward", "reverse")]
    net.output(net.matmul(flat(net, net("Concat", *parts, axis=1), 12), 12, OUT, name="o"))
    got = check(net, groups=1, free={"o:0": "(2 6)", "forward.r:2": "6"})
    assert got.group("forward.r:2") is got.group("reverse.r:2")


@pytest.mark.parametrize("operator", GATES)
def test_samples_first(operator: str) -> None:
    """Samples lead outside and steps inside, as Keras and `batch_first` have it; the last step is taken."""
    net = Net()
    x = net("Transpose", net.input("x", [None, 4, IN]), perm=[1, 0, 2])
    y = net("Squeeze", layer(net, operator, x, h=6), net.ints(1))
    last = net("Gather", net("Transpose", y, perm=[1, 0, 2]), net.const(-1), axis=1)
    check(net.output(net.gemm(last, 6, OUT, name="o")), groups=1, free={"o:1": "6"})


def test_last_states_of_all_layers_and_directions() -> None:
    """Y_h and Y_c of both directions, put together in one row, feed a head."""
    net = Net()
    _, h, c = layer(net, "LSTM", net.input("x", [4, BATCH, IN]), h=6, n=3, direction="bidirectional")
    rows = [net("Reshape", net("Transpose", s, perm=[1, 0, 2]), net.ints(-1, 12)) for s in (h, c)]
    got = check(net.output(net.gemm(net("Concat", *rows, axis=1), 24, OUT, name="o")), groups=1)
    assert got.axis("o:1") == "(([2] 6) + ([2] 6))"


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("made", ["fixed", "dynamic", "expand", "weight", "projected"])
def test_initial_states(operator: str, made: str) -> None:
    """Zeros, learned states, states computed from something else: the units of the state are those of the layer."""
    net, batch = Net(), 2
    x = net.input("x", [4, batch if made in ("fixed", "weight") else None, IN])
    count = net("Shape", x, start=1, end=2)
    states = []
    for k in range(2 if operator == "LSTM" else 1):
        if made == "fixed":
            states.append(net("ConstantOfShape", net.ints(1, batch, 6)))
        elif made == "dynamic":
            states.append(net("ConstantOfShape", net("Concat", net.ints(1), count, net.ints(6), axis=0)))
        elif made == "weight":
            states.append(net.weight(1, batch, 6, name=f"s{k}"))
        elif made == "expand":
            shape = net("Concat", net.ints(1), count, net.ints(6), axis=0)
            states.append(net("Expand", net.weight(1, 1, 6, name=f"s{k}"), shape))
        else:
            first = net("Gather", x, net.const(0), axis=0)
            states.append(net("Unsqueeze", net.gemm(first, IN, 6, name=f"s{k}"), net.ints(0)))
    y = net("Squeeze", layer(net, operator, x, h=6, states=tuple(states)), net.ints(1))
    place = {"weight": "s0:2", "expand": "s0:2", "projected": "s0:0"}.get(made, "r.r:2")
    check(net.output(net.matmul(y, 6, OUT)), groups=1, free={"r.r:2": "6", place: "6"})


@pytest.mark.parametrize("which", ["in", "out", "y"])
def test_states_at_the_border_are_pinned(which: str) -> None:
    """The units of a state that comes in or goes out stay; what the layer reads may go."""
    net = Net()
    x = net.matmul(net.input("x", [4, BATCH, IN]), IN, 7, name="a")
    states = (net.input("h", [1, BATCH, 6]),) if which == "in" else ()
    y, h = layer(net, "GRU", x, 7, h=6, n=2, states=states)
    net.output(net.matmul(net("Squeeze", y, net.ints(1)), 6, OUT, name="o"))
    if which != "in":
        net.output(h if which == "out" else y)
    reason = "graph input" if which == "in" else "graph output"
    check(net, groups=1, free={"r.w:2": "7"}, pinned={"r.r:2": reason, "r.b:1": reason, "o:0": reason})


@pytest.mark.parametrize("operator", GATES)
def test_encoder_and_decoder(operator: str) -> None:
    """The encoder's last state starts the decoder, which attends to all that the encoder has said."""
    net = Net()
    source, target = net.input("x", ["s", BATCH, IN]), net.input("t", [3, BATCH, IN])
    number = 3 if operator == "LSTM" else 2
    memory, *states = layer(net, operator, source, h=6, name="e", n=number)
    said = layer(net, operator, target, h=6, name="d", states=tuple(states))
    memory, said = net("Squeeze", memory, net.ints(1)), net("Squeeze", said, net.ints(1))
    query = net.matmul(net("Transpose", said, perm=[1, 0, 2]), 6, 6, name="q")
    weights = net("Softmax", net("MatMul", query, net("Transpose", memory, perm=[1, 2, 0])), axis=-1)
    seen = net("MatMul", weights, net("Transpose", memory, perm=[1, 0, 2]))
    both = net("Concat", seen, net("Transpose", said, perm=[1, 0, 2]), axis=2)
    net.output(net.matmul(both, 12, OUT, name="o"))
    got = check(net, groups=1, free={"e.r:2": "6", "d.r:2": "6", "q:1": "6", "o:0": "(6 + 6)"})
    assert got.group("e.r:2") is got.group("d.r:2")


def test_a_residual_ties_layers_to_the_stream() -> None:
    net = Net()
    x = net.matmul(net.input("x", [4, BATCH, IN]), IN, 6, name="a")
    for name in ("f", "g"):
        x = net("Add", x, net("Squeeze", layer(net, "LSTM", x, 6, h=6, name=name), net.ints(1)))
    check(net.output(net.matmul(x, 6, OUT)), groups=1, free={**free_of("LSTM", "g", 6, "6"), "a:1": "6"})


def test_columns_of_a_feature_map() -> None:
    """A convolutional front: the layer reads channels and rows of each column, `(c y)`."""
    net = Net()
    y = net("Relu", net.conv(net.input("x", [None, 1, 4, 9]), 1, 6, 3, name="c", pads=[1, 1, 1, 1]))
    y = net("Transpose", net("Reshape", y, net.ints(0, 24, 9)), perm=[2, 0, 1])
    y = layer(net, "LSTM", y, 24, h=5, direction="bidirectional")
    net.output(net.matmul(flat(net, y, 10), 10, OUT))
    check(net, groups=2, free={"c:0": "6", "r.w:2": "(6 [4])", "r.r:2": "5"})


@pytest.mark.parametrize("fold", ["transpose", "gates", "directions"])
def test_weights_put_together_in_the_graph(fold: str) -> None:
    """Gates in another order, matrices of both directions, transposed ones: the parts are the weights."""
    net: Net = Net()
    h, x = 6, net.input("x", [4, BATCH, IN])

    def matrix(name: str, columns: int) -> Any:
        if fold == "transpose":
            w = net("Transpose", net.weight(columns, 4 * h, name=name), perm=[1, 0])
        else:
            w = net.weight(4 * h, columns, name=name)
            order = [(0, h), (3 * h, 4 * h), (h, 2 * h), (2 * h, 3 * h)]
            w = net("Concat", *[net("Slice", w, net.ints(a), net.ints(b), net.ints(0)) for a, b in order], axis=0)
        return net("Unsqueeze", w, net.ints(0))

    def bias(name: str) -> Any:
        parts = [net("Unsqueeze", net.weight(4 * h, name=name + k), net.ints(0)) for k in "wr"]
        return net("Concat", *parts, axis=1)

    names = ("f", "g") if fold == "directions" else ("f",)
    parts = [(matrix(n + ".w", IN), matrix(n + ".r", h), bias(n + ".b")) for n in names]
    if fold == "directions":
        operands = [net("Concat", *p, axis=0) for p in zip(*parts, strict=True)]
        y = flat(net, net("LSTM", x, *operands, hidden_size=h, direction="bidirectional"), 2 * h)
    else:
        y = net("Squeeze", net("LSTM", x, *parts[0], hidden_size=h), net.ints(1))
    net.output(net.matmul(y, len(names) * h, OUT))
    rows = {"transpose": "(4 6)"}.get(fold, "(6 + 6 + 6 + 6)")
    k = 1 if fold == "transpose" else 0
    free = {f"{n}.{m}:{k}": rows for n in names for m in "wr"} | {f"f.r:{1 - k}": "6", "f.bw:0": "(4 6)"}
    check(net, groups=1, free=free)


def test_units_go_in_a_file_that_a_second_look_finds_the_same() -> None:
    """Half of the units, and the same outputs as the masked layer, of any sizes that onnxruntime runs."""
    net = Net()
    y = layer(net, "LSTM", net.input("x", ["s", None, IN]), h=8, direction="bidirectional")
    got = check(net.output(net.matmul(flat(net, y, 16), 16, OUT)), groups=1, free={"r.r:2": "8"})
    model = got.pruned({got.group("r.r:2"): np.arange(4)})
    assert {t.name: list(t.dims) for t in model.graph.initializer}["r.w"] == [2, 16, IN]


def test_matrices_the_other_way_round() -> None:
    """A relative that keeps its matrices as `d i (4 h)` and `d h (4 h)` has the same equations."""
    sizes: dict[str, tuple[int, ...]] = {
        "x": (4, 2, 5), "w": (1, 5, 24), "r": (1, 6, 24), "b": (1, 48), "y": (4, 1, 2, 6),
    }
    made = {k: Operand(k, s, tuple(fresh(n) for n in s), (False,) * len(s)) for k, s in sizes.items()}
    op = Op("n", "LSTM", "", 14, tuple(made[k] for k in "xwrb"), (made["y"],), {})
    said = list(recurrent(op, 4, turned=True))
    solution = solve((eq, Origin("n", "LSTM")) for eq in said if isinstance(eq, Same | Pin))
    hidden = solution.expand(made["y"].axes[3])
    stacked = solution.expand(made["w"].axes[2])
    assert solution.expand(made["r"].axes[1]) == hidden and stacked == gate_axis(4, hidden)
    assert solution.expand(made["w"].axes[1]) == solution.expand(made["x"].axes[2])
    assert solution.expand(made["r"].axes[2]) == stacked
    assert solution.expand(made["b"].axes[1]) == concat(stacked, stacked)
