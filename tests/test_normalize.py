"""Normalising: constants in every form, ties that are accidents and ties that are meant, functions, float types."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small import FLOAT, array_of, cnn, mlp, mlp_nodes, model, nodes, rand, shapes_of, tensor, weights

import graphprune
from graphprune.as_float32 import as_float32, other_floats
from graphprune.normalize import normalize
from graphprune.prove import prove

FAST = {"time": False, "align": 1, "calibration": "off"}


def sizes(proto: onnx.ModelProto) -> list[int]:
    return sorted(g.size for g in graphprune.analyse(proto).coupling.groups)


def pruned(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Prune by half, with validation and proof; return the result."""
    result = graphprune.prune(proto, 0.5, **FAST, **options)
    assert result.report["proof"]["passed"]
    return result.model


def with_constants(proto: onnx.ModelProto, code: Any) -> onnx.ModelProto:
    """Turn initializers into Constant nodes by `code(name, array)`."""
    made = [code(w.name, onnx.numpy_helper.to_array(w)) for w in proto.graph.initializer]
    del proto.graph.initializer[:]
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*made, *rest])
    return proto


def test_weights_in_constant_nodes() -> None:
    proto = with_constants(cnn(), lambda n, a: helper.make_node("Constant", [], [n], value=tensor("", a)))
    got = pruned(proto)
    kept = {n.output[0]: list(n.attribute[0].t.dims) for n in got.graph.node if n.op_type == "Constant"}
    assert kept["w1"] == [16, 3, 3, 3] and kept["w2"] == [24, 16, 3, 3] and kept["b2"] == [24] and kept["w3"] == [5, 24]


def test_value_float_and_value_floats() -> None:
    proto = mlp()
    proto.graph.node[1].CopyFrom(helper.make_node("Mul", ["h", "scale"], ["s"], name="scaling"))
    extra = [
        helper.make_node("Constant", [], ["scale"], value_floats=[0.5 + 0.01 * i for i in range(64)]),
        helper.make_node("Constant", [], ["one"], value_float=1.5),
        helper.make_node("Add", ["s", "one"], ["a"], name="plus"),
    ]
    body = [extra[0], extra[1], proto.graph.node[0], proto.graph.node[1], extra[2], proto.graph.node[2]]
    built = model(body, list(proto.graph.initializer), [("x", FLOAT, ["b", 8])], [("y", FLOAT, ["b", 4])])
    assert sizes(built) == [64]
    got = pruned(built, cleanup=False)  # which would fold the scale into the weights before it
    (scale,) = [n for n in got.graph.node if n.output[0] == "scale"]
    assert list(scale.attribute[0].t.dims) == [32]


@pytest.mark.parametrize("version,opset", [(3, 8), (8, 17)])
def test_initializers_that_are_inputs_too(version: int, opset: int) -> None:
    proto = cnn(opset, version)
    if version >= 4:
        proto.graph.input.append(helper.make_tensor_value_info("w1", FLOAT, [32, 3, 3, 3]))
    assert sizes(proto) == [32, 48]
    got = pruned(proto)
    stated = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in got.graph.input}
    assert stated["w1"] == [16, 3, 3, 3]


def test_weights_behind_identity() -> None:
    proto = mlp()
    proto.graph.node.insert(0, helper.make_node("Identity", ["w1"], ["w1_same"]))
    proto.graph.node[1].input[1] = "w1_same"
    assert sizes(proto) == [64]
    assert shapes_of(pruned(proto))["w1"] == [8, 32]


def test_float16_weights_behind_casts() -> None:
    proto = mlp(TensorProto.FLOAT16)
    built = model(
        [
            helper.make_node("Cast", ["w1"], ["w1_32"], to=FLOAT),
            helper.make_node("Cast", ["w2"], ["w2_32"], to=FLOAT),
            helper.make_node("MatMul", ["x", "w1_32"], ["h"]), helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("MatMul", ["a", "w2_32"], ["y"]),
        ],
        list(proto.graph.initializer), [("x", FLOAT, ["b", 8])], [("y", FLOAT, ["b", 4])],
    )
    assert sizes(built) == [64]
    got = pruned(built)
    assert shapes_of(got) == {"w1": [8, 32], "w2": [32, 4]}
    assert {w.data_type for w in got.graph.initializer} == {TensorProto.FLOAT16}


def shared_bias(node: bool = False, bias: Any = None, ir_version: int = 8, opset: int = 17) -> onnx.ModelProto:
    """Two pairs of convolutions of one width whose groups share a bias (zeros, as exporters merge them)."""
    bias = np.zeros(16) if bias is None else bias
    arrays = [tensor("wa", rand(16, 3, 1, 1)), tensor("wb", rand(16, 16, 1, 1, seed=1))]
    arrays.append(tensor("wc", rand(4, 16, 1, 1)))
    body = [
        helper.make_node("Conv", ["x", "wa", "zero"], ["a"], name="a"), helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "wb", "zero"], ["b"], name="b"), helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("Conv", ["rb", "wc"], ["y"], name="c"),
    ]
    if node:
        body.insert(0, helper.make_node("Constant", [], ["zero"], value=tensor("", bias)))
    else:
        arrays.append(tensor("zero", bias))
    return model(
        body, arrays, [("x", FLOAT, ["b", 3, 4, 4])], [("y", FLOAT, ["b", 4, 4, 4])], ir_version=ir_version, opset=opset
    )


@pytest.mark.parametrize("node", [False, True])
@pytest.mark.parametrize("ir_version,opset", [(3, 8), (8, 17)])
def test_equal_biases_merged_by_an_exporter_do_not_tie(node: bool, ir_version: int, opset: int) -> None:
    proto = shared_bias(node, ir_version=ir_version, opset=opset)
    assert sizes(proto) == [16, 16]
    got = pruned(proto)
    biases = [n.input[2] for n in got.graph.node if n.op_type == "Conv" and len(n.input) > 2]
    assert biases == ["zero", "zero"], "still equal, so shared again"
    assert not [n for n in shapes_of(got) if "__use" in n]
    assert len([n for n in got.graph.node if n.op_type == "Constant"]) == node


@pytest.mark.parametrize("node", [False, True])
def test_a_shared_bias_that_is_cut_differently_stays_apart(node: bool) -> None:
    proto = shared_bias(node, np.arange(16) / 8)
    got = pruned(proto)
    one, two = [n.input[2] for n in got.graph.node if n.op_type == "Conv" and len(n.input) > 2]
    assert one == "zero" and two == "zero__use1"


def test_names_of_copies_avoid_the_models_own() -> None:
    proto = shared_bias(bias=np.arange(16) / 8)
    proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = "zero__use1"
    got = pruned(proto)
    assert [n.input[2] for n in got.graph.node if n.op_type == "Conv" and len(n.input) > 2] == ["zero", "zero__use2"]


def test_uniform_matrices_shared_by_accident_do_not_tie() -> None:
    ones = tensor("ones", np.full((1, 16, 1, 1), 2.0))
    proto = shared_bias()
    body = list(proto.graph.node)
    body[1] = helper.make_node("Mul", ["a", "ones"], ["ra"])
    body[3] = helper.make_node("Mul", ["b", "ones"], ["rb"])
    sides = [("x", FLOAT, ["b", 3, 4, 4])], [("y", FLOAT, ["b", 4, 4, 4])]
    built = model(body, [*proto.graph.initializer, ones], *sides)
    assert sizes(built) == [16, 16]
    assert "ones__use1" not in shapes_of(pruned(built))
    square = tensor("wb", np.full((16, 16, 1, 1), 0.1))
    body = [
        helper.make_node("Conv", ["x", "wa"], ["a"]), helper.make_node("Conv", ["a", "wb"], ["b"]),
        helper.make_node("Conv", ["b", "wb"], ["c"]), helper.make_node("Conv", ["c", "wc"], ["y"]),
    ]
    built = model(
        body, [tensor("wa", rand(16, 3, 1, 1)), square, tensor("wc", rand(4, 16, 1, 1))],
        [("x", FLOAT, ["b", 3, 4, 4])], [("y", FLOAT, ["b", 4, 4, 4])],
    )
    assert sizes(built) == [16, 16, 16]


def test_a_layer_applied_twice_stays_tied() -> None:
    body = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]), helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("MatMul", ["d", "w1"], ["y"]),
    ]
    arrays = [tensor("w0", rand(4, 16)), tensor("w", rand(16, 16)), tensor("w1", rand(16, 3))]
    built = model(body, arrays, [("x", FLOAT, ["b", 4])], [("y", FLOAT, ["b", 3])])
    assert sizes(built) == [16]
    assert shapes_of(pruned(built)) == {"w0": [4, 8], "w": [8, 8], "w1": [8, 3]}


def test_a_tied_embedding_and_head_stay_tied() -> None:
    body = [
        helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]), helper.make_node("MatMul", ["r", "v"], ["o"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["o", "t"], ["y"]),
    ]
    arrays = [tensor("table", rand(40, 16)), tensor("w", rand(16, 24)), tensor("v", rand(24, 16))]
    built = model(body, arrays, [("ids", TensorProto.INT64, ["b", "s"])], [("y", FLOAT, ["b", "s", 40])])
    assert sizes(built) == [16, 24]
    assert shapes_of(pruned(built)) == {"table": [40, 8], "w": [8, 12], "v": [12, 8]}


def test_a_bias_used_inside_a_body_as_well() -> None:
    proto = shared_bias(bias=np.arange(16) / 8)
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["zero"], [f"t{op}"])], op, [], [helper.make_tensor_value_info(f"t{op}", FLOAT, [16])]
        )
        for op in ("Relu", "Neg")
    ]
    proto.graph.initializer.append(helper.make_tensor("cond", TensorProto.BOOL, [], [True]))
    proto.graph.node.append(helper.make_node("If", ["cond"], ["side"], then_branch=branch[0], else_branch=branch[1]))
    proto.graph.output.append(helper.make_tensor_value_info("side", FLOAT, [16]))
    got = pruned(proto)
    assert shapes_of(got)["wa"][0] in (8, 16) and shapes_of(got)["wb"][0] in (8, 16)


def function_model(nested: bool) -> onnx.ModelProto:
    """A layer as a local function with its weight passed in; nested: called by another function."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    layer = helper.make_function(
        "local", "Layer", ["v", "w"], ["out"],
        [helper.make_node("MatMul", ["v", "w"], ["m"]), helper.make_node("Relu", ["m"], ["out"])], opsets[:1],
    )
    outer = helper.make_function(
        "local", "Twice", ["v", "a", "b"], ["out"],
        [
            helper.make_node("Layer", ["v", "a"], ["h"], domain="local"),
            helper.make_node("Layer", ["h", "b"], ["out"], domain="local"),
        ],
        opsets,
    )
    arrays = [tensor("wa", rand(6, 32)), tensor("wb", rand(32, 20)), tensor("wc", rand(20, 3))]
    if nested:
        body = [helper.make_node("Twice", ["x", "wa", "wb"], ["h"], domain="local", name="two")]
    else:
        body = [
            helper.make_node("Layer", ["x", "wa"], ["g"], domain="local", name="one"),
            helper.make_node("Layer", ["g", "wb"], ["h"], domain="local", name="two"),
        ]
    body.append(helper.make_node("MatMul", ["h", "wc"], ["y"], name="head"))
    return model(
        body, arrays, [("x", FLOAT, ["b", 6])], [("y", FLOAT, ["b", 3])], opsets=opsets[1:], functions=[layer, outer]
    )


@pytest.mark.parametrize("nested", [False, True])
def test_local_functions_are_inlined(nested: bool) -> None:
    proto = function_model(nested)
    assert sizes(proto) == [20, 32]
    got = pruned(proto)
    assert shapes_of(got) == {"wa": [6, 16], "wb": [16, 10], "wc": [10, 3]} and not got.functions
    assert len(proto.functions) == 2


def test_nodes_without_names_and_with_one_name() -> None:
    proto = cnn()
    for i, node in enumerate(proto.graph.node):
        node.name = "" if i % 2 else "same"
    named = [n.name for n in normalize(ir.from_proto(proto)).graph]
    assert all(named) and len(set(named)) == len(named)
    for node in proto.graph.node:
        node.name = ""
    assert shapes_of(pruned(proto))["w1"] == [16, 3, 3, 3]


def test_values_without_names_in_optional_places() -> None:
    proto = cnn()
    proto.graph.node[1].CopyFrom(helper.make_node("Clip", ["c1", "", "six"], ["r1"], name="relu1"))
    proto.graph.initializer.append(tensor("six", np.float32(6)))
    assert shapes_of(pruned(proto))["w1"] == [16, 3, 3, 3]


CODES = [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]


@pytest.mark.parametrize("code", [FLOAT, *CODES])
def test_every_float_type(code: int) -> None:
    proto = cnn(22, 10, code)
    result = graphprune.prune(proto, 0.5, **FAST)
    assert result.report["proof"]["passed"] and result.report["proof"]["groups"] == 2
    assert {w.data_type for w in result.model.graph.initializer} == {code}
    said = [text for text in result.report["assumed"] if "float32" in text]
    names = [c["name"] for c in result.report["checks"]]
    assert ("run as float32" in names) == bool(said) and (bool(said) or code != TensorProto.BFLOAT16)
    half = array_of(result.model, "w1")
    rows = array_of(proto, "w1").reshape(32, -1).tolist()
    assert half.shape == (16, 3, 3, 3) and all(r in rows for r in half.reshape(16, -1).tolist())


def test_bfloat16_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    result = graphprune.prune(cnn(22, 10, TensorProto.BFLOAT16), 0.5, align=1)
    assert "run as float32: onnxruntime has no bfloat16 kernels here" in result.report["assumed"]
    assert result.report["speedup"] is None, "the time of a float32 copy says nothing"


def test_a_wrong_coupling_of_a_bfloat16_model_is_caught() -> None:
    analysis = graphprune.analyse(mlp(TensorProto.BFLOAT16, opset=22, ir_version=10))
    assert analysis.reference.converted == ("bfloat16",)
    assert prove(analysis.model, analysis.coupling, analysis.calmest).passed
    broken = normalize(ir.from_proto(mlp(TensorProto.BFLOAT16, opset=22, ir_version=10)))
    broken.graph.initializers["w1"].const_value = ir.from_proto(tensor("w1", rand(8, 64, seed=5), TensorProto.BFLOAT16))
    assert not prove(broken, analysis.coupling, analysis.calmest).passed


def test_float32_copies_convert_every_place_a_type_is_named() -> None:
    code = TensorProto.BFLOAT16
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=tensor("", np.ones(4), code)),
            helper.make_node("Add", ["y0", "k"], ["z"]),
        ],
        "then", [], [helper.make_tensor_value_info("z", code, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Cast", ["i"], ["c"], to=code), helper.make_node("Add", ["y0", "c"], ["z2"])],
        "else", [], [helper.make_tensor_value_info("z2", code, None)],
    )
    body = mlp_nodes()
    body[2].output[0] = "y0"
    body += [
        helper.make_node("Constant", [], ["four"], value=helper.make_tensor("", TensorProto.INT64, [1], [4])),
        helper.make_node("ConstantOfShape", ["four"], ["i"], value=tensor("", np.ones(1), code)),
        helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=other),
    ]
    arrays = [tensor("w1", rand(8, 64), code), tensor("w2", rand(64, 4), code)]
    arrays.append(helper.make_tensor("cond", TensorProto.BOOL, [], [False]))
    proto = model(body, arrays, [("x", code, ["b", 8])], [("y", code, ["b", 4])], opset=22, ir_version=10)
    held = ir.from_proto(proto)
    before = ir.to_proto(held).SerializeToString()
    assert other_floats(held) == ["bfloat16"]
    copy = as_float32(held)
    assert other_floats(copy) == [] and ir.to_proto(held).SerializeToString() == before
    assert str(code) not in {str(a.i) for n in ir.to_proto(copy).graph.node for a in n.attribute if a.name == "to"}
    import onnxruntime

    session = onnxruntime.InferenceSession(ir.to_proto(copy).SerializeToString())
    (y,) = session.run(None, {"x": np.ones((2, 8), np.float32)})
    assert y.shape == (2, 4) and y.dtype == np.float32


def test_weights_are_shared_by_many_nodes_of_one_group() -> None:
    proto = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            *[helper.make_node("Mul", ["h", "gain"], [f"g{i}"]) for i in range(3)],
            helper.make_node("Sum", ["g0", "g1", "g2"], ["s"]), helper.make_node("MatMul", ["s", "v"], ["y"]),
        ],
        [tensor("w", rand(4, 16)), tensor("gain", np.arange(16)), tensor("v", rand(16, 2))],
        [("x", FLOAT, ["b", 4])], [("y", FLOAT, ["b", 2])],
    )
    got = pruned(proto)
    assert shapes_of(got) == {"w": [4, 8], "gain": [8], "v": [8, 2]}, "equal copies are merged again"


def test_weight_lists_are_complete() -> None:
    assert sorted(w.name for w in weights()) == sorted({i for n in nodes() for i in n.input if i[0] in "wb"})
