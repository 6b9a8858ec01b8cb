"""TensorFlow Lite to ONNX, by tf2onnx."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from graphprune.converters.source import Asked, Converted

_OPSET = 18


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert a .tflite file; the batch is open where the file leaves it open.

    >>> to_onnx("net.tflite", Asked()).model.graph.name  # doctest: +SKIP
    'net'
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tf2onnx

    model, _ = tf2onnx.convert.from_tflite(source, opset=asked.opset or _OPSET)
    interpreter = tf.lite.Interpreter(source)
    inputs = {d["name"]: d for d in interpreter.get_input_details()}
    wanted = [inputs.get(value.name) for value in model.graph.input]

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        for detail, array in zip(wanted, arrays, strict=True):
            interpreter.resize_tensor_input(detail["index"], array.shape)  # type: ignore[index]
        interpreter.allocate_tensors()
        for detail, array in zip(wanted, arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)  # type: ignore[index]
        interpreter.invoke()
        return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]

    return Converted(model, run if all(d is not None for d in wanted) else None)
