"""Designs: rows times matrix is what onnxruntime computes, and matrices go back into weights as they came."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphprune.ops import DESIGNS
from graphprune.ops.designs import everywhere
from graphprune.runtime import Runtime, open_session, run
from tests.oracles import Net

CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("MatMul", (4, 6), (6, 5), {}),
    ("MatMul", (2, 3, 6), (6, 5), {}),
    ("MatMul", (2, 3, 4, 6), (6, 5), {}),
    ("Gemm", (4, 6), (6, 5), {}),
    ("Gemm", (4, 6), (5, 6), {"transB": 1}),
    ("Gemm", (6, 4), (6, 5), {"transA": 1, "alpha": 0.5}),
    ("Conv", (2, 6, 9), (5, 6, 3), {"pads": [1, 1]}),
    ("Conv", (2, 6, 9, 7), (5, 6, 3, 3), {}),
    ("Conv", (2, 6, 9, 7), (5, 6, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", (2, 6, 9, 7), (4, 3, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}),
    ("Conv", (2, 6, 9, 7), (6, 1, 3, 3), {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (2, 6, 8, 7), (5, 6, 2, 4), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    ("Conv", (2, 4, 5, 6, 4), (5, 4, 3, 3, 2), {"pads": [1, 1, 0, 1, 1, 0]}),
    ("ConvTranspose", (2, 6, 5), (6, 4, 3), {"strides": [2]}),
    ("ConvTranspose", (2, 6, 5, 4), (6, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", (2, 6, 5, 4), (6, 2, 3, 2), {"group": 3, "dilations": [2, 1]}),
]


def computed(op: str, x: Any, w: Any, attributes: dict[str, Any]) -> Any:
    net = Net()
    net.input("x", list(x.shape))
    net.output(net(op, "x", net.const(w), **attributes))
    (y,) = run(open_session(net.model().SerializeToString(), Runtime(threads=1)), {"x": x}).values()
    return y


def plain(attributes: dict[str, Any], op: str) -> dict[str, Any]:
    """Return attributes as the tables see them."""
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


@pytest.mark.parametrize(("op", "x_shape", "w_shape", "attributes"), CASES)
@pytest.mark.parametrize("some", [False, True])
def test_rows_times_matrix(
    op: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any], some: bool
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    rule = DESIGNS.get("", op, 17)
    assert rule is not None
    design = rule(plain(attributes, op), [x_shape, w_shape], 1)
    assert design is not None and design.answers is not None

    def positions(n: int) -> Any:
        return np.arange(0, n, 2) if some else everywhere(n)

    rows, matrix = design.rows(x, positions), design.matrix(w)
    answers = design.answers(computed(op, x, w, attributes), positions)
    assert np.allclose(rows @ matrix, answers, atol=1e-4)
    assert np.array_equal(design.weights(matrix, w.shape), w)
    per_slot = matrix.shape[1] // w.shape[design.axis]
    assert matrix.shape[1] == per_slot * w.shape[design.axis]


def test_columns_are_ordered_slot_by_slot() -> None:
    """Zeroing one slot of the contracted axis zeroes the columns that belong to it, and no others."""
    rng = np.random.default_rng(0)
    for op, x_shape, w_shape, attributes in CASES:
        rule = DESIGNS.get("", op, 17)
        design = rule(plain(attributes, op), [x_shape, w_shape], 1) if rule else None
        assert design is not None
        w = rng.uniform(1, 2, w_shape).astype(np.float32)
        groups = int(attributes.get("group", 1))
        index: list[Any] = [slice(None)] * w.ndim
        index[design.axis] = 0
        w[tuple(index)] = 0
        zero = np.argwhere((design.matrix(w) == 0).all(axis=(0, 2) if groups == 1 else 2))
        per_slot = design.matrix(w).shape[1] // (w_shape[design.axis] // (groups if op == "ConvTranspose" else 1))
        assert set(zero[:, -1]) == set(range(per_slot))


def test_recurrences_and_fused_attention_put_nothing_out() -> None:
    w = np.arange(2 * 12 * 5.0).reshape(2, 12, 5)
    rule = DESIGNS.get("", "LSTM", 17)
    design = rule({"hidden_size": 3}, [(7, 2, 5), (2, 12, 5)], 1) if rule else None
    assert design is not None and design.answers is None and design.matrix(w).shape == (1, 5, 24)
    assert np.array_equal(design.weights(design.matrix(w), w.shape), w)
    assert design.rows(np.zeros((7, 2, 5)), everywhere).shape == (1, 14, 5)
    fused = DESIGNS.get("com.microsoft", "Attention", 1)
    again = fused({"num_heads": 2}, [(2, 7, 5), (5, 24), (24,)], 1) if fused else None
    assert again is not None and again.answers is None and again.bias == 2


def test_what_is_no_plain_product_has_no_design() -> None:
    for op, shapes, attributes, weight in (
        ("MatMul", [(4, 6), (3, 6, 5)], {}, 1), ("MatMul", [(4, 6), (6, 5)], {}, 0),
        ("Gemm", [(4, 6), (6, 5)], {"beta": 2.0}, 1),
        ("ConvTranspose", [(2, 6, 5), (6, 4, 3)], {"output_shape": [9]}, 1),
    ):
        rule = DESIGNS.get("", op, 17)
        assert rule is not None and rule(attributes, shapes, weight) is None
