"""PaddlePaddle to ONNX: inference models (.pdmodel or .json, with .pdiparams), by paddle2onnx."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from graphprune.converters.source import Asked, Converted
from graphprune.errors import UsageError

_OPSET = 18


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert a saved inference model; its sizes are open where the file leaves them open.

    >>> to_onnx("inference.pdmodel", Asked()).model.graph.name  # doctest: +SKIP
    'PaddlePaddle'
    """
    import paddle
    import paddle2onnx

    weights = Path(source).with_suffix(".pdiparams")
    programs = [weights.with_suffix(end) for end in (".json", ".pdmodel") if weights.with_suffix(end).is_file()]
    if not programs or not weights.is_file():
        raise UsageError(f"{source}: an inference model is two files, NAME.pdmodel (or NAME.json) and NAME.pdiparams")
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        target = Path(folder) / "model.onnx"
        paddle2onnx.export(str(programs[0]), str(weights), str(target), opset_version=asked.opset or _OPSET,
                           verbose=False)
        model = onnx.load(target)
    loaded = paddle.jit.load(str(weights.with_suffix("")))
    loaded.eval()

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        answer = loaded(*[paddle.to_tensor(a) for a in arrays])
        return [x.numpy() for x in (answer if isinstance(answer, (list, tuple)) else [answer])]

    return Converted(model, run)
