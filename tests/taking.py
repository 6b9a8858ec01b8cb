"""Models of which only the inputs matter: each is passed through. And readers of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from graphprune.calibrate import Samples

F, F16, I64, I32, U8, BOOL, TEXT = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL,
    TensorProto.STRING,
)  # fmt: skip


def taking(**inputs: Sequence[Any]) -> ir.Model:
    """Return a model with inputs, each a type and its sizes: `taking(x=(F, "batch", 3))`; a last {} is metadata."""
    values = [helper.make_tensor_value_info(name, kind, sizes) for name, (kind, *sizes) in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, sizes) for name, (kind, *sizes) in inputs.items()]
    graph = helper.make_graph(nodes, "taking", values, outputs)
    return ir.serde.deserialize_model(helper.make_model(graph, ir_version=8))


def read(samples: Samples, name: str = "x") -> list[np.ndarray[Any, Any]]:
    """Read one input of all feeds, twice: both must be the same, and as many as was said."""
    first, second = ([feed[name] for feed in samples.open()] for _ in range(2))
    assert len(first) == len(second)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))
    assert samples.count in (None, len(first))
    return first
