"""Operators without a derivative that onnxruntime computes, one node at a time; what is read is cut off gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from graphprune.converters.torch_ops.registry import Call, Made, TorchRule, host_tensor
from graphprune.errors import SessionError
from graphprune.ops.registry import Row, row
from graphprune.runtime import Runtime, open_session, run

_NEWEST = 22  # opsets that onnxruntime opens; what is run here has not changed since
_EXACT = {torch.bfloat16: torch.float32, torch.float64: torch.float32}


def frozen(call: Call) -> Made:
    """Positions and choices, which have no derivative."""
    arrays: list[Any] = []
    for value in call.values:
        if value is None:
            arrays.append(None)
        else:
            tensor = value.detach().cpu()
            arrays.append(tensor.to(_EXACT.get(tensor.dtype, tensor.dtype)).numpy())
    kinds = tuple(None if a is None else (str(a.dtype), a.ndim) for a in arrays)
    feeds = {f"i{k}": a for k, a in enumerate(arrays) if a is not None}
    try:
        made = run(_session(call.node.source, call.node.version, kinds), feeds)
    except SessionError as error:
        raise call.error(str(error)) from error
    outputs = {k: host_tensor(np.asarray(v)) for k, v in made.items()}
    return tuple(outputs.get(f"o{k}") for k in range(len(call.node.outputs)))


@lru_cache(maxsize=64)
def _session(node: ir.Node, version: int, kinds: tuple[Any, ...]) -> Any:
    """Open a model of one node."""
    attributes = [ir.to_proto(a) for a in node.attributes.values() if isinstance(a, ir.Attr)]
    outputs = [f"o{k}" if v.name else "" for k, v in enumerate(node.outputs)]
    inputs = [f"i{k}" if kind is not None else "" for k, kind in enumerate(kinds)]
    proto = onnx.helper.make_node(node.op_type, inputs, outputs, domain=node.domain)
    proto.attribute.extend(attributes)
    code = onnx.helper.np_dtype_to_tensor_dtype
    given = [
        onnx.helper.make_tensor_value_info(f"i{k}", code(np.dtype(kind[0])), [None] * kind[1])
        for k, kind in enumerate(kinds) if kind is not None
    ]
    results = [onnx.helper.make_empty_tensor_value_info(o) for o in outputs if o]
    opsets = [onnx.helper.make_opsetid("", min(version, _NEWEST) if not node.domain else 17)]
    if node.domain:
        opsets.append(onnx.helper.make_opsetid(node.domain, version))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([proto], "one", given, results), opset_imports=opsets, ir_version=8
    )
    return open_session(model.SerializeToString(), Runtime())


RULES: tuple[Row[TorchRule], ...] = (
    row(frozen, "NonMaxSuppression", "Unique", "MelWeightMatrix"),
    row(frozen, "Unique", domain="com.microsoft"),
)
