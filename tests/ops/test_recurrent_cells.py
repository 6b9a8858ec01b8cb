"""Recurrent cells spelled out in plain operators and unrolled: weights that every step uses again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import Net, check
from recurrent import BATCH, IN, OUT

H, STEPS = 6, 4


def linear(net: Net, kind: str, x: str, weight: str, bias: str) -> str:
    """Apply one matrix as exporters do: a Gemm with [out, in], or a MatMul with [in, out] and an Add."""
    if kind == "gemm":
        return str(net("Gemm", x, weight, bias, transB=1))
    return str(net("Add", net("MatMul", x, weight), bias))


def cut(net: Net, kind: str, gates: str, number: int) -> list[str]:
    """Cut the gates apart: one Split, a Slice for each, or ends that are computed from the size."""
    if kind == "split":
        return list(net("Split", gates, net.ints(*[H] * number), n=number, axis=1))
    if kind == "slice":
        return [net("Slice", gates, net.ints(k * H), net.ints((k + 1) * H), net.ints(1)) for k in range(number)]
    if kind == "grid":
        grid = net("Reshape", gates, net.ints(0, number, H))
        return [net("Gather", grid, net.const(k), axis=1) for k in range(number)]
    size = net("Shape", gates, start=1, end=2)
    part = net("Div", size, net.ints(number))
    ends = [net("Mul", part, net.ints(k)) for k in range(number + 1)]
    return [net("Slice", gates, ends[k], ends[k + 1], net.ints(1)) for k in range(number)]


def matrices(net: Net, number: int, kind: str) -> dict[str, str]:
    """Add the weights of a cell, each once."""
    shapes = {"w": (number * H, IN), "r": (number * H, H)}
    out = {k: net.weight(*(s if kind == "gemm" else s[::-1]), name=k) for k, s in shapes.items()}
    return out | {k + ".b": net.weight(number * H, name=k + ".b") for k in shapes}


def lstm_step(net: Net, p: dict[str, str], x: str, state: list[str], kind: str, cutting: str) -> list[str]:
    read, kept = linear(net, kind, x, p["w"], p["w.b"]), linear(net, kind, state[0], p["r"], p["r.b"])
    i, f, g, o = cut(net, cutting, net("Add", read, kept), 4)
    cell = net("Add", net("Mul", net("Sigmoid", f), state[1]), net("Mul", net("Sigmoid", i), net("Tanh", g)))
    return [net("Mul", net("Sigmoid", o), net("Tanh", cell)), cell]


def gru_step(net: Net, p: dict[str, str], x: str, state: list[str], kind: str, cutting: str) -> list[str]:
    read = cut(net, cutting, linear(net, kind, x, p["w"], p["w.b"]), 3)
    kept = cut(net, cutting, linear(net, kind, state[0], p["r"], p["r.b"]), 3)
    r, z = (net("Sigmoid", net("Add", read[k], kept[k])) for k in range(2))
    new = net("Tanh", net("Add", read[2], net("Mul", r, kept[2])))
    old = net("Sub", state[0], new)
    return [net("Add", new, net("Mul", z, old))]


CELLS: dict[str, tuple[int, int, Any]] = {"LSTM": (4, 2, lstm_step), "GRU": (3, 1, gru_step)}


def zeros(net: Net, x: str) -> str:
    shape = net("Concat", net("Shape", x, start=0, end=1), net.ints(H), axis=0)
    return str(net("ConstantOfShape", shape))


@pytest.mark.parametrize("steps", ["inputs", "gathered"])
@pytest.mark.parametrize("cutting", ["split", "slice", "grid", "computed"])
@pytest.mark.parametrize("kind", ["gemm", "matmul"])
@pytest.mark.parametrize("cell", CELLS)
def test_unrolled(cell: str, kind: str, cutting: str, steps: str) -> None:
    """All steps use the same weights: one group of units, whatever the steps are read from."""
    number, states, step = CELLS[cell]
    net = Net()
    if steps == "inputs":
        xs = [net.input(f"x{t}", [BATCH, IN]) for t in range(STEPS)]
    else:
        x = net.input("x", [None, STEPS, IN])
        xs = [net("Gather", x, net.const(t), axis=1) for t in range(STEPS)]
    p = matrices(net, number, kind)
    state = [zeros(net, xs[0]) for _ in range(states)]
    said = []
    for x in xs:
        state = step(net, p, x, state, kind, cutting)
        said.append(net("Unsqueeze", state[0], net.ints(1)))
    net.output(net.matmul(net("Concat", *said, axis=1), H, OUT, name="o"))
    out = 0 if kind == "gemm" else 1
    rows = {"split": " + ".join(["6"] * number), "slice": " + ".join(["6"] * number), "grid": f"{number} 6"}
    text = f"({rows.get(cutting, rows['split'])})"
    free = {f"w:{out}": text, f"r:{out}": text, f"r:{1 - out}": "6", "r.b:0": text, "o:0": "6"}
    got = check(net, groups=1, free=free)
    shapes = {t.name: list(t.dims) for t in got.pruned({got.group("o:0"): np.array([1, 4])}).graph.initializer}
    assert sorted(shapes["r"]) == [2, 2 * number] and "r__use1" not in shapes


@pytest.mark.parametrize("cell", CELLS)
def test_two_cells_one_above_the_other(cell: str) -> None:
    """Each layer has its own units, though both start from one tensor of zeros."""
    number, states, step = CELLS[cell]
    net = Net()
    x = net.input("x", [None, 3, IN])
    lower, upper = matrices(net, number, "gemm"), {}
    for k, columns in (("w", H), ("r", H)):
        upper[k] = net.weight(number * H, columns, name="u" + k)
        upper[k + ".b"] = net.weight(number * H, name="u" + k + ".b")
    start = zeros(net, x)
    below, above = [start] * states, [start] * states
    for t in range(3):
        below = step(net, lower, net("Gather", x, net.const(t), axis=1), below, "gemm", "split")
        above = step(net, upper, below[0], above, "gemm", "split")
    got = check(net.output(net.gemm(above[0], H, OUT, name="o")), groups=2, free={"uw:1": "6", "r:1": "6", "ur:1": "6"})
    assert got.group("r:1") is not got.group("ur:1") and got.group("uw:1") is got.group("r:1")


def test_a_state_of_the_border_pins_the_cell() -> None:
    net = Net()
    p = matrices(net, 4, "gemm")
    x = net.gemm(net.input("x", [BATCH, IN]), IN, IN, name="a")
    h, c = lstm_step(net, p, x, [net.input("h", [BATCH, H]), net.input("c", [BATCH, H])], "gemm", "split")
    net.output(net.gemm(net("Add", h, c), H, OUT, name="o"))
    check(net, groups=1, free={"w:1": "5"}, pinned={"r:1": "graph input", "o:1": "graph input"})


def test_a_cell_with_a_matrix_for_each_gate() -> None:
    """Old exporters write eight matrices; the gates are not cut, and one group goes through all of them."""
    net = Net()
    xs = [net.input(f"x{t}", [BATCH, IN]) for t in range(3)]
    w = {g: net.weight(IN, H, name="w" + g) for g in "ifgo"}
    r = {g: net.weight(H, H, name="r" + g) for g in "ifgo"}
    h = c = zeros(net, xs[0])
    for x in xs:
        i, f, g, o = (net("Add", net("MatMul", x, w[k]), net("MatMul", h, r[k])) for k in "ifgo")
        c = net("Add", net("Mul", net("Sigmoid", f), c), net("Mul", net("Sigmoid", i), net("Tanh", g)))
        h = net("Mul", net("Sigmoid", o), net("Tanh", c))
    free = {f"{m}{k}:1": "6" for m in "wr" for k in "ifgo"} | {f"r{k}:0": "6" for k in "ifgo"}
    check(net.output(net.gemm(h, H, OUT)), groups=1, free=free)


def test_layer_norm_in_a_cell() -> None:
    """A cell whose gates are normalised together: still one group of units, which are normalised over."""
    net = Net()
    xs = [net.input(f"x{t}", [BATCH, IN]) for t in range(3)]
    p = matrices(net, 3, "gemm")
    scale, shift = net.weight(3 * H, name="s", positive=True), net.weight(3 * H, name="t")
    h = zeros(net, xs[0])
    for x in xs:
        read = net("LayerNormalization", net("Gemm", x, p["w"], p["w.b"], transB=1), scale, shift)
        kept = linear(net, "gemm", h, p["r"], p["r.b"])
        a, b, c = cut(net, "split", net("Add", read, kept), 3)
        h = net("Add", net("Mul", net("Sigmoid", a), h), net("Mul", net("Sigmoid", b), net("Tanh", c)))
    got = check(net.output(net.gemm(h, H, OUT)), groups=1, free={"r:1": "6", "s:0": "(6 + 6 + 6)"})
    assert got.coupling.groups[0].normalised
