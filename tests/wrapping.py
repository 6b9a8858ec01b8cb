"""Put a stretch of a graph into a body: both branches of an If, or a Loop that runs once. What it computes stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLAG = "wrapped.flag"


def wrapped(model: onnx.ModelProto, rng: np.random.Generator, opset: int) -> tuple[onnx.ModelProto, str]:
    """Return the model with some of its nodes inside of a body, and the kind of body.

    Weights that the nodes read are captured from outside, Constant nodes go inside. An If gets a new input, `FLAG`, an
    int64 without axes; either branch computes what was there.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    nodes = list(out.graph.node)
    begin = int(rng.integers(len(nodes)))
    end = int(rng.integers(begin + 1, len(nodes) + 1))
    kind = "If" if rng.random() < 0.6 else "Loop"
    inside, names = nodes[begin:end], _leaving(out.graph, nodes, begin, end)
    types = _types(model)
    if not names or any(n not in types for n in names):
        return out, ""
    made = _branches(inside, names, types) if kind == "If" else _loop(inside, names, types, opset)
    del out.graph.node[:]
    out.graph.node.extend([*nodes[:begin], *made, *nodes[end:]])
    if kind == "If":
        out.graph.input.append(helper.make_tensor_value_info(FLAG, TensorProto.INT64, []))
    return out, kind


def _leaving(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], begin: int, end: int) -> list[str]:
    """Return the values made inside that something outside reads."""
    made = [o for n in nodes[begin:end] for o in n.output if o]
    read = {i for n in nodes[end:] for i in n.input} | {o.name for o in graph.output}
    return [name for name in made if name in read]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}


def _body(
    inside: Sequence[onnx.NodeProto], names: Sequence[str], types: dict[str, int], prefix: str
) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]:
    """Return copies of nodes whose values are named anew, and what leaves them."""
    own = {o for n in inside for o in n.output if o}
    copies = []
    for node in inside:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for field in (copy.input, copy.output):
            for k, name in enumerate(field):
                field[k] = f"{prefix}{name}" if name in own else name
        copies.append(copy)
    return copies, [helper.make_tensor_value_info(f"{prefix}{n}", types[n], None) for n in names]


def _branches(
    inside: Sequence[onnx.NodeProto], names: Sequence[str], types: dict[str, int]
) -> list[onnx.NodeProto]:
    bodies = {}
    for attribute, prefix in (("then_branch", "then."), ("else_branch", "else.")):
        nodes, outputs = _body(inside, names, types, prefix)
        bodies[attribute] = helper.make_graph(nodes, attribute, [], outputs)
    condition = helper.make_node("Cast", [FLAG], ["wrapped.condition"], to=TensorProto.BOOL)
    return [condition, helper.make_node("If", ["wrapped.condition"], list(names), name="wrapped", **bodies)]


def _loop(
    inside: Sequence[onnx.NodeProto], names: Sequence[str], types: dict[str, int], opset: int
) -> list[onnx.NodeProto]:
    nodes, outputs = _body(inside, names, types, "body.")
    nodes.append(helper.make_node("Identity", ["body.keep"], ["body.kept"]))
    inputs = [("body.step", TensorProto.INT64), ("body.keep", TensorProto.BOOL)]
    kept = helper.make_tensor_value_info("body.kept", TensorProto.BOOL, [])
    infos = [helper.make_tensor_value_info(name, kind, []) for name, kind in inputs]
    body = helper.make_graph(nodes, "body", infos, [kept, *outputs])
    one = numpy_helper.from_array(np.asarray(1, np.int64), "wrapped.once")
    axes = numpy_helper.from_array(np.asarray([0], np.int64), "wrapped.axis")
    stacked = [f"stacked.{n}" for n in names]
    made = [
        helper.make_node("Constant", [], ["wrapped.once"], value=one),
        helper.make_node("Constant", [], ["wrapped.axis"], value=axes),
        helper.make_node("Loop", ["wrapped.once", ""], stacked, name="wrapped", body=body),
    ]
    for name, whole in zip(names, stacked, strict=True):
        inputs_of = [whole, "wrapped.axis"] if opset >= 13 else [whole]
        given = {} if opset >= 13 else {"axes": [0]}
        made.append(helper.make_node("Squeeze", inputs_of, [name], name=f"unstack.{name}", **given))
    return made
