"""What onnx itself knows of a node: its type and shape inference, and its reference operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx_ir as ir

from graphprune.ops.inference import Answer

Content = npt.NDArray[Any]
_BFLOAT16 = onnx.TensorProto.BFLOAT16


def outputs_of(
    schema: onnx.defs.OpSchema,
    proto: onnx.NodeProto,
    types: dict[str, onnx.TypeProto],
    data: dict[str, onnx.TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
    ir_version: int,
) -> dict[str, onnx.TypeProto] | str:
    """Return what onnx infers of a node's outputs, or what it objects to."""
    try:
        return onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=opsets, ir_version=ir_version
        )
    except Exception as error:
        return str(error).splitlines()[0][:200]


def reference(node: ir.Node, version: int, contents: list[Content | None]) -> tuple[Any, ...] | None:
    """Run onnx's reference operator; None where there is none or it fails."""
    from onnx.reference.ops import load_op

    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    try:
        kernel = load_op("", node.op_type, version)
        proto = ir.serde.serialize_node(node)
        run = kernel(proto, {"log": _quiet, "opsets": {"": version}, "verbose": 0, "new_ops": None})
        with np.errstate(all="ignore"):
            result = run.run(*contents)
    except Exception:
        return None
    return result if isinstance(result, tuple) else (result,)


def _quiet(*_: object) -> None:
    return None


def as_float(types: dict[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
    """Replace bfloat16, which older opsets do not list, by float."""
    out = {}
    for name, proto in types.items():
        out[name] = onnx.TypeProto()
        out[name].CopyFrom(proto)
        if proto.tensor_type.elem_type == _BFLOAT16:
            out[name].tensor_type.elem_type = onnx.TensorProto.FLOAT
    return out


def type_proto(dtype: int, shape: tuple[int, ...] | None) -> onnx.TypeProto:
    """Return a tensor's type as onnx writes it."""
    return onnx.helper.make_tensor_type_proto(dtype, shape)


def tensor_proto(content: Content, dtype: int) -> onnx.TensorProto:
    """Return a content as onnx writes it."""
    tensor = ir.serde.serialize_tensor(ir.Tensor(np.array(content, order="C"), dtype=ir.DataType(dtype)))
    return tensor


def read_type(proto: onnx.TypeProto | None) -> Answer:
    """Return element type and sizes (None: unknown) of what onnx infers; None where that is no tensor."""
    if proto is None or not proto.HasField("tensor_type"):
        return None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(
        d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
    )
