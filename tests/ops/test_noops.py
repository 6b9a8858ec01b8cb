"""Nodes that do nothing: each rule answers where it should and nowhere else, and clean-up gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import Net, solved

from graphprune.execute import evaluate
from graphprune.ops import NOOPS, RESIDUALS
from graphprune.transform.cleanup import bitwise, cleaned

Build = Callable[[Net, str], Any]


def tidy(build: Build, shape: list[int | None], opset: int = 17) -> bool:
    """Put a node between two layers of 4; return whether clean-up takes it away. Either way numbers stay the same."""
    net = Net(opset=opset)
    x = net.input("x", shape)
    y = net("Relu", net("Mul", x, net.const(np.float32(1.5))))
    y = build(net, y)
    kind = net.nodes[-1].op_type
    net.output(net("Tanh", y))
    model, coupling = solved(net)
    feeds = {"x": np.random.default_rng(0).standard_normal([3 if n is None else n for n in shape]).astype(np.float32)}
    done, said = cleaned(model, coupling, {}, lambda one, other, allowed: not allowed)
    assert bitwise(evaluate(model, feeds), evaluate(done, feeds))
    left = [n.op_type for n in done.graph]
    assert said.nodes == len(model.graph) - len(done.graph)
    return left.count(kind) < sum(n.op_type == kind for n in model.graph)


MAP, ROWS, ONE = [None, 4, 1, 1], [None, 4], [None, 1, 4]

NOTHING: dict[str, tuple[Build, list[int | None]]] = {
    "Identity": (lambda net, x: net("Identity", x), ROWS),
    "Concat": (lambda net, x: net("Concat", x, axis=1), ROWS),
    "Sum": (lambda net, x: net("Sum", x), ROWS),
    "Max": (lambda net, x: net("Max", x), ROWS),
    "Split": (lambda net, x: net("Split", x, net.ints(4), axis=1), ROWS),
    "Dropout": (lambda net, x: net("Dropout", x), ROWS),
    "Dropout, told": (lambda net, x: net("Dropout", x, net.const(np.float32(0.3)), net.const(np.bool_(False))), ROWS),
    "Cast": (lambda net, x: net("Cast", x, to=1), ROWS),
    "Reshape": (lambda net, x: net("Reshape", x, net.ints(-1, 4)), ROWS),
    "Reshape of two open sizes": (lambda net, x: net("Reshape", x, net.ints(0, 0, 4)), [None, None, 4]),
    "Flatten": (lambda net, x: net("Flatten", x), ROWS),
    "Transpose": (lambda net, x: net("Transpose", x, perm=[0, 1]), ROWS),
    "Transpose of sizes of one": (lambda net, x: net("Transpose", x, perm=[0, 1, 3, 2]), MAP),
    "Slice": (lambda net, x: net("Slice", x, net.ints(0), net.ints(9), net.ints(1)), ROWS),
    "Slice without an end": (lambda net, x: net("Slice", x, net.ints(0), net.ints(2**62), net.ints(0)), ROWS),
    "Gather": (lambda net, x: net("Gather", x, net.ints(0, 1, 2, 3), axis=1), ROWS),
    "Pad": (lambda net, x: net("Pad", x, net.ints(0, 0, 0, 0)), ROWS),
    "Expand": (lambda net, x: net("Expand", x, net.ints(1, 4)), ROWS),
    "Tile": (lambda net, x: net("Tile", x, net.ints(1, 1)), ROWS),
    "ReduceSum": (lambda net, x: net("ReduceSum", x, net.ints(1), keepdims=1), ONE),
    "ReduceMean": (lambda net, x: net("ReduceMean", x, axes=[2, 3]), MAP),
    "GlobalAveragePool": (lambda net, x: net("GlobalAveragePool", x), MAP),
    "AveragePool": (lambda net, x: net("AveragePool", x, kernel_shape=[1, 1]), [None, 4, 3, 3]),
    "Mul": (lambda net, x: net("Mul", x, net.const(np.ones(4))), ROWS),
    "Mul, turned": (lambda net, x: net("Mul", net.const(np.float32(1)), x), ROWS),
    "Div": (lambda net, x: net("Div", x, net.const(np.ones((1, 4)))), ROWS),
    "Add": (lambda net, x: net("Add", x, net.const(np.zeros(4))), ROWS),
    "Sub": (lambda net, x: net("Sub", x, net.const(np.float32(0))), ROWS),
}

SOMETHING: dict[str, tuple[Build, list[int | None]]] = {
    "Concat of two": (lambda net, x: net("Concat", x, x, axis=1), ROWS),
    "Dropout in training": (
        lambda net, x: net("Dropout", x, net.const(np.float32(0.0)), net.const(np.bool_(True))), ROWS
    ),
    "Cast to another type": (lambda net, x: net("Cast", net("Cast", x, to=11), to=1), ROWS),
    "Reshape of two open sizes": (
        lambda net, x: net("Reshape", x, net("Gather", net("Shape", x), net.ints(1, 0, 2))), [None, None, 4]
    ),
    "Reshape": (lambda net, x: net("Reshape", x, net.ints(0, 2, 2)), ROWS),
    "Transpose": (lambda net, x: net("Transpose", x, perm=[0, 2, 1]), [None, 4, 4]),
    "Slice": (lambda net, x: net("Slice", x, net.ints(0), net.ints(3), net.ints(1)), ROWS),
    "Slice backwards": (
        lambda net, x: net("Slice", x, net.ints(-1), net.ints(-9), net.ints(1), net.ints(-1)), ROWS
    ),
    "Slice of an open size": (lambda net, x: net("Slice", x, net.ints(0), net.ints(7), net.ints(0)), ROWS),
    "Gather of another order": (lambda net, x: net("Gather", x, net.ints(0, 2, 1, 3), axis=1), ROWS),
    "Gather of some": (lambda net, x: net("Gather", x, net.ints(0, 1, 2), axis=1), ROWS),
    "Pad": (lambda net, x: net("Pad", x, net.ints(0, 0, 0, 1)), ROWS),
    "Expand": (lambda net, x: net("Expand", x, net.ints(2, 1, 1)), ROWS),
    "Tile": (lambda net, x: net("Tile", x, net.ints(1, 2)), ROWS),
    "ReduceSum of more": (lambda net, x: net("ReduceSum", x, net.ints(2), keepdims=1), ONE),
    "ReduceSum of a rank": (lambda net, x: net("ReduceSum", x, net.ints(1), keepdims=0), ONE),
    "ReduceL2": (lambda net, x: net("ReduceL2", net("Neg", x), axes=[1]), ONE),
    "GlobalAveragePool": (lambda net, x: net("GlobalAveragePool", x), [None, 4, 1, 2]),
    "AveragePool with a step": (
        lambda net, x: net("AveragePool", x, kernel_shape=[1, 1], strides=[2, 2]), [None, 4, 3, 3]
    ),
    "Mul by others": (lambda net, x: net("Mul", x, net.const(np.array([1.0, 1.0, 1.0, 2.0]))), ROWS),
    "Mul that makes larger": (lambda net, x: net("Mul", x, net.const(np.ones((2, 1, 1)))), ROWS),
    "Div of one": (lambda net, x: net("Div", net.const(np.float32(1)), net("Exp", x)), ROWS),
    "Add": (lambda net, x: net("Add", x, net.const(np.full(4, 1e-30))), ROWS),
    "Sub of zero": (lambda net, x: net("Sub", net.const(np.float32(0)), x), ROWS),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_does_nothing_goes(name: str) -> None:
    assert tidy(*NOTHING[name])


@pytest.mark.parametrize("name", SOMETHING)
def test_what_does_something_stays(name: str) -> None:
    assert not tidy(*SOMETHING[name])


def test_parameters_as_attributes() -> None:
    assert tidy(lambda net, x: net("Slice", x, starts=[0], ends=[9], axes=[1]), ROWS, opset=9)
    assert not tidy(lambda net, x: net("Slice", x, starts=[1], ends=[9], axes=[1]), ROWS, opset=9)
    assert tidy(lambda net, x: net("Pad", x, pads=[0, 0, 0, 0]), ROWS, opset=9)
    assert tidy(lambda net, x: net("ReduceSum", x, axes=[1]), ONE, opset=11)
    assert tidy(lambda net, x: net("ReduceMean", x, net.ints(1)), ONE, opset=18)


def test_every_row_is_tried() -> None:
    tried = {name.split()[0].rstrip(",") for name in (*NOTHING, *SOMETHING)}
    alike = {"Min": "Max", "Mean": "Max", "MaxPool": "AveragePool", "GlobalMaxPool": "GlobalAveragePool"}
    alike |= dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd"), "ReduceSum")
    assert {alike.get(o, o) for _, o, _, _ in NOOPS.operators()} <= tried


def test_residual_sums_are_those_of_the_tests_of_branches() -> None:
    """`test_branches.py` tries each of them."""
    from pathlib import Path

    text = (Path(__file__).parents[1] / "test_branches.py").read_text(encoding="utf-8")
    assert all(f'"{operator}"' in text for _, operator, _, _ in RESIDUALS.operators())
