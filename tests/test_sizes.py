"""The two choices of input sizes, and what the user says about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small import FLOAT, cnn, model, rand, tensor

from graphprune.errors import UsageError
from graphprune.groups import couple
from graphprune.model import load
from graphprune.normalize import normalize
from graphprune.shapes import infer
from graphprune.sizes import Worlds, alternatives, choose, input_symbols, real_inputs, thin
from graphprune.trace import trace


def worlds(inputs: list[tuple[str, int, Any]], **given: Any) -> Worlds:
    nodes = [helper.make_node("Identity", [name], [f"y_{name}"]) for name, _, _ in inputs]
    proto = model(nodes, [], inputs, [(f"y_{n}", code, None) for n, code, _ in inputs])
    return choose(ir.from_proto(proto), **given)


def test_fixed_sizes_are_taken_as_they_are() -> None:
    got = worlds([("x", FLOAT, [2, 3, 5])])
    assert got.natural_inputs == got.traced_inputs == {"x": (2, 3, 5)} and not got.has_dynamic


def test_open_sizes_get_two_choices_that_differ_everywhere() -> None:
    got = worlds([("x", FLOAT, ["batch", 3, "h", "w"]), ("ids", TensorProto.INT64, ["batch", "seq"])])
    assert got.has_dynamic and got.natural_inputs["x"] == (1, 3, 224, 224)
    for name, sizes in got.traced_inputs.items():
        natural = got.natural_inputs[name]
        assert all(a != b or (name, k) == ("x", 1) for k, (a, b) in enumerate(zip(sizes, natural, strict=True)))
    assert got.traced_inputs["x"][0] == got.traced_inputs["ids"][0], "one symbol, one size"
    assert got.traced_inputs["x"][2] != got.traced_inputs["x"][3]


def test_given_sizes_and_batches_are_natural() -> None:
    got = worlds([("x", FLOAT, ["batch", 3, "h", "w"])], given={"x": (2, 3, 40, 48)})
    assert got.natural_inputs["x"] == (2, 3, 40, 48)
    assert worlds([("x", FLOAT, ["batch", 3])], batch=6).natural_inputs["x"] == (6, 3)
    assert worlds([("x", FLOAT, [2, 3])], batch=6).natural_inputs["x"] == (2, 3), "a fixed size stays"


@pytest.mark.parametrize("given", [{"q": (1, 3)}, {"x": (1, 4)}, {"x": (1, 3, 1)}, {"x": (0, 3)}, {"x": ()}])
def test_given_sizes_that_do_not_fit(given: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        worlds([("x", FLOAT, ["batch", 3])], given=given)


def test_past_and_total_lengths_add_up() -> None:
    got = worlds([
        ("ids", TensorProto.INT64, ["batch", "seq_len"]), ("past", FLOAT, ["batch", 2, "past_len", 4]),
        ("mask", TensorProto.INT64, ["batch", "total_len"]),
    ])
    for sizes in (got.natural_inputs, got.traced_inputs):
        assert sizes["mask"][1] == sizes["ids"][1] + sizes["past"][2]


def test_initializers_and_unnamed_sizes() -> None:
    held = ir.from_proto(cnn(8, 3, batch=None))
    assert [v.name for v in real_inputs(held)] == ["x"]
    assert list(input_symbols(held)) == ["x"] and isinstance(input_symbols(held)["x"][0], str)


def test_a_network_that_accepts_only_some_sizes() -> None:
    """Of 32 x 32 at least: the sizes are tried until no operator objects."""
    weights = [tensor("w", rand(8, 3, 4, 4)), tensor("v", rand(4, 8 * 49))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[32, 32], kernel_shape=[4, 4]),
        helper.make_node("Flatten", ["c"], ["f"]), helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    held = ir.from_proto(model(nodes, weights, [("x", FLOAT, ["n", 3, 224, 224])], [("y", FLOAT, ["n", 4])]))
    got = choose(held)
    assert got.natural.shapes["y"] == (1, 4) and not got.natural.conflicts and not got.traced.conflicts


def test_alternatives_are_new_and_keep_what_is_fixed() -> None:
    sides = [("x", FLOAT, ["b", "t", 8])], [("y", FLOAT, None)]
    held = ir.from_proto(model([helper.make_node("Relu", ["x"], ["y"])], [], *sides))
    found = list(alternatives(held, {"x": (1, 16, 8)}))
    assert found and all(s["x"][0] == 1 and s["x"][2] == 8 and s["x"][1] != 16 for s in found)


def test_traced_sizes_leave_no_open_axis_thin() -> None:
    """Five strides of two make a small prime one position, which could be broadcast or squeezed away."""
    nodes, weights, value = [], [], "x"
    for k in range(5):
        weights.append(tensor(f"w{k}", rand(8, 3 if k == 0 else 8, 3, 3)))
        nodes.append(helper.make_node("Conv", [value, f"w{k}"], [f"y{k}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        value = f"y{k}"
    proto = model(nodes, weights, [("x", FLOAT, ["b", 3, "h", "w"])], [(value, FLOAT, ["b", 8, "p", "q"])])
    worlds = choose(normalize(load(proto)))
    assert not worlds.traced.conflicts and not thin(worlds.traced, worlds.natural)
    assert min(worlds.traced.shapes[value]) > 1


def test_an_axis_that_is_thin_after_all_pins_what_it_touches() -> None:
    """With one position left by the kernel a weight of five looks broadcast, which it is not at other sizes."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Mul", ["h", "m"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    weights = [tensor("a", rand(4, 3, 5)), tensor("m", rand(4, 5)), tensor("v", rand(5, 2))]
    proto = model(nodes, weights, [("x", FLOAT, ["b", 3, "n"])], [("y", FLOAT, ["b", 4, 2])])
    net = normalize(load(proto))

    def free(traced: int) -> set[str]:
        sizes = {"x": (3, 3, traced)}, {"x": (1, 3, 9)}
        looked = Worlds(*sizes, infer(net, sizes[0]), infer(net, sizes[1]))
        return {f"{o.initializer}:{o.axis}" for g in couple(trace(net, looked)).groups for o in g.occurrences}

    assert "m:1" not in free(5), "thin: pinned"
    assert free(9) == set(), "outputs and positions are pinned as ever"


def test_made_up_inputs_stay_small() -> None:
    proto = cnn()
    del proto.graph.input[0].type.tensor_type.shape.dim[2:]
    for name in ("h", "w"):
        proto.graph.input[0].type.tensor_type.shape.dim.add().dim_param = name
    found = list(alternatives(normalize(load(proto)), {"x": (1, 3, 224, 224)}))
    assert found and max(np.prod(s["x"]) for s in found) <= 20_000_000
