"""TensorFlow Lite to ONNX, by tf2onnx, and ONNX to TensorFlow Lite, by LiteRT's converter of torch programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.converters.source import Asked, Converted
from graphprune.converters.target import Exported, Wanted
from graphprune.errors import UsageError
from graphprune.execute import Outputs

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


def from_onnx(path: Path, written: Path, feed: Outputs, wanted: Wanted) -> Exported:
    """Write a .tflite file of fixed sizes, with the signature of the ONNX names; whole numbers have 32 bits.

    >>> from_onnx(Path("net.onnx"), Path("net.tflite"), {"x": x}, Wanted())  # doctest: +SKIP

    Axes stay in the order that they have: channels are not moved to the end.
    """
    if wanted.half:
        raise UsageError("--half: files of TensorFlow Lite are written in 32 bits; its own tools quantise them")
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    from graphprune.converters.fixed import Named, fixed

    program = fixed(path, feed)
    names = tuple(program.examples)
    litert_torch.convert(Named(program).eval(), sample_kwargs=program.examples).export(str(written))
    runner = Interpreter(str(written)).get_signature_runner()
    kinds = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        given = {name: np.asarray(a).astype(kinds[name]) for name, a in zip(names, arrays, strict=True)}
        answer = runner(**given)
        return [answer[name] for name in program.outputs]

    return Exported(run, "LiteRT", program.notes)
