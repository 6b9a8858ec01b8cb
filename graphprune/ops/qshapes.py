"""Types and sizes that com.microsoft's quantised operators answer with: mostly those of the float operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphprune.ops.inference import Answer, Question, ShapeRule, Sizes, like_first
from graphprune.ops.registry import Row, normalise_axis, row

DOMAIN = "com.microsoft"
_OPSET = 17
_OWN = frozenset(["channels_last", "alpha"])


def plain(operator: str, asked: Question, places: Sequence[int], attributes: Mapping[str, Any] | None = None) -> Sizes:
    """Return the sizes that onnx infers for a float operator on some of a node's inputs; raises ValueError."""
    schema = onnx.defs.get_schema(operator, _OPSET)
    types, names = {}, []
    for i in places:
        shape = asked.shape(i)
        names.append(f"i{i}" if shape is not None else "")
        if shape is not None:
            types[f"i{i}"] = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape)
    given = attributes if attributes is not None else asked.attributes
    kept = {k: v for k, v in given.items() if k not in _OWN and k in schema.attributes}
    node = onnx.helper.make_node(operator, names, ["y"], **kept)
    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    try:
        got = onnx.shape_inference.infer_node_outputs(schema, node, types, opset_imports=opsets)["y"]
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(str(error)) from error
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in got.tensor_type.shape.dim)


def as_plain(operator: str, places: Sequence[int], dtype: Callable[[Question], int]) -> ShapeRule:
    """Return the rule that the output has the sizes that a float operator gives, and a type."""

    def rule(asked: Question) -> list[Answer]:
        return [(dtype(asked), plain(operator, asked, places))]

    return rule


def broadcast(*places: int) -> ShapeRule:
    """Return the rule that some inputs broadcast to the output, which has the type of the last of them."""

    def rule(asked: Question) -> list[Answer]:
        shapes = [s for s in map(asked.shape, places) if s is not None]
        assert len(shapes) == len(places)
        return [(asked.dtype(places[-1]), np.broadcast_shapes(*shapes))]

    return rule


def with_channels_last(operator: str, places: Sequence[int]) -> ShapeRule:
    """Return the rule of a convolution or pooling whose channels may be the last axis."""

    def rule(asked: Question) -> list[Answer]:
        if not asked.attributes.get("channels_last", 0):
            return [(asked.dtype(), plain(operator, asked, places))]
        n, *positions, c = asked.shape() or ()
        first = asked.inputs[0]
        assert first is not None
        turned = type(first)(first.dtype, (n, c, *positions), None)
        got = plain(operator, Question((turned, *asked.inputs[1:]), asked.attributes, 1), places)
        return [(asked.dtype(), (got[0], *got[2:], got[1]))]

    return rule


def multiplied(asked: Question) -> list[Answer]:
    """Two of the inputs broadcast to the output, which holds products."""
    ((_, sizes),) = [a for a in broadcast(0, 2)(asked) if a is not None]
    return [(_whole(asked), sizes)]


def quantize(asked: Question) -> list[Answer]:
    """The sizes of the input, with the type of the zero point."""
    return [(asked.dtype(2) or onnx.TensorProto.UINT8, asked.shape())]


def dequantize(asked: Question) -> list[Answer]:
    """The sizes of the input, with the type of the scale."""
    return [(asked.dtype(1), asked.shape())]


def concatenated(asked: Question) -> list[Answer]:
    """The sum along one axis, of every third input from the third on."""
    shapes = [asked.shape(i) for i in range(2, len(asked.inputs), 3)]
    first = shapes[0]
    assert first is not None
    axis = normalise_axis(asked.attributes["axis"], len(first))
    total = sum(s[axis] for s in shapes if s is not None)
    return [(asked.dtype(1), (*first[:axis], total, *first[axis + 1 :]))]


def attention(asked: Question) -> list[Answer]:
    """A third of the matrix's columns; keys and values of the past and of now."""
    x, w, past = asked.shape(0), asked.shape(1), asked.shape(8)
    assert x is not None and w is not None
    hidden, heads = w[1] // 3, asked.attributes["num_heads"]
    keys = x[1] + (past[3] if past is not None else 0)
    dtype = asked.dtype(3)
    return [(dtype, (x[0], x[1], hidden)), (dtype, (2, x[0], heads, keys, hidden // heads))]


def embedded(asked: Question) -> list[Answer]:
    """A row for each token, and how many there are of each sample."""
    ids, table = asked.shape(0), asked.shape(2)
    assert ids is not None and table is not None
    return [(asked.dtype(8), (*ids, table[1])), (onnx.TensorProto.INT32, (ids[0],))]


def product_of_bits(asked: Question) -> list[Answer]:
    """The last axis becomes N."""
    a = asked.shape()
    assert a is not None
    return [(asked.dtype(), (*a[:-1], asked.attributes["N"]))]


def gathered(asked: Question) -> list[Answer]:
    """As Gather; numbers that are packed in bytes are spread out."""
    data, indices = asked.shape(0), asked.shape(1)
    assert data is not None and indices is not None
    packed = 8 // asked.attributes.get("bits", 4) if asked.dtype() == onnx.TensorProto.UINT8 else 1
    real = (*data[:-1], data[-1] * packed)
    axis = normalise_axis(asked.attributes.get("gather_axis", 0), len(data))
    return [(asked.dtype(2), (*real[:axis], *indices, *real[axis + 1 :]))]


def recurrent(asked: Question) -> list[Answer]:
    """All steps, and the last states."""
    x, r = asked.shape(0), asked.shape(2)
    assert x is not None and r is not None
    state = (r[0], x[1], r[1])
    return [(asked.dtype(), (x[0], *state)), (asked.dtype(), state), (asked.dtype(), state)]


def _float(asked: Question) -> int:
    return onnx.TensorProto.FLOAT


def _whole(asked: Question) -> int:
    """Sums of integers: without a sign where nothing summed has one."""
    unsigned = (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16)
    positive = all(seen is None or seen.dtype in unsigned for seen in asked.inputs)
    return onnx.TensorProto.UINT32 if positive else onnx.TensorProto.INT32


def _gemm(asked: Question) -> int:
    return asked.dtype(8) or onnx.TensorProto.FLOAT


SHAPES: tuple[Row[ShapeRule], ...] = (
    row(quantize, "QuantizeLinear", domain=DOMAIN),
    row(dequantize, "DequantizeLinear", domain=DOMAIN),
    row(with_channels_last("Conv", (0, 3)), "QLinearConv", domain=DOMAIN),
    row(as_plain("Gemm", (0, 3), _gemm), "QGemm", domain=DOMAIN),
    row(as_plain("MatMul", (0, 1), _float), "MatMulIntegerToFloat", "DynamicQuantizeMatMul", domain=DOMAIN),
    row(as_plain("MatMul", (0, 1), _whole), "MatMulInteger16", domain=DOMAIN),
    row(multiplied, "MulInteger", domain=DOMAIN),
    row(as_plain("ReduceMean", (0,), _whole), "ReduceSumInteger", domain=DOMAIN),
    row(as_plain("ReduceMean", (0,), Question.dtype), "QLinearReduceMean", domain=DOMAIN),
    row(broadcast(0, 3), "QLinearAdd", "QLinearMul", domain=DOMAIN),
    row(broadcast(0, 1, 4), "QLinearWhere", domain=DOMAIN),
    row(like_first, "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=DOMAIN),
    row(with_channels_last("AveragePool", (0,)), "QLinearAveragePool", domain=DOMAIN),
    row(with_channels_last("GlobalAveragePool", (0,)), "QLinearGlobalAveragePool", domain=DOMAIN),
    row(concatenated, "QLinearConcat", domain=DOMAIN),
    row(attention, "QAttention", domain=DOMAIN),
    row(embedded, "QEmbedLayerNormalization", domain=DOMAIN),
    row(product_of_bits, "MatMulNBits", "MatMulBnb4", domain=DOMAIN),
    row(gathered, "GatherBlockQuantized", domain=DOMAIN),
    row(recurrent, "DynamicQuantizeLSTM", domain=DOMAIN),
)
