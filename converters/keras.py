"""Keras to ONNX: .keras and .h5 files, and `module:attribute`, by Keras' own export or tf2onnx."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from graphprune.converters.source import Asked, Converted, load_object
from graphprune.errors import UsageError

_OPSET = 18


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert a Keras model; code inside of the file (Lambda layers) is only run with `asked.trust`.

    >>> len(to_onnx("net.keras", Asked()).model.graph.input)  # doctest: +SKIP
    1
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    path = Path(source)
    if not path.exists():
        model = load_object(source)
    else:
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=not asked.trust)
        except ValueError as error:
            if "safe_mode" not in str(error) and "unsafe" not in str(error).lower():
                raise
            raise UsageError(f"{path}: has Python code in it, which loading runs: --trust allows it") from error
    inputs = [keras.InputSpec(shape=_shape(x, asked), dtype=x.dtype, name=x.name) for x in model.inputs]
    if not getattr(model, "_called", True):  # export wants a model that was called
        model([keras.ops.zeros([n or 1 for n in x.shape], x.dtype) for x in model.inputs])
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        target = Path(folder) / "model.onnx"
        signature = inputs if len(inputs) > 1 else inputs[:1]
        model.export(str(target), format="onnx", verbose=False, input_signature=signature,
                     opset_version=asked.opset or _OPSET)
        converted = onnx.load(target)

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        answer = model(list(arrays) if len(arrays) > 1 else arrays[0], training=False)
        return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(answer)]

    return Converted(converted, run)


def _shape(tensor: Any, asked: Asked) -> tuple[int | None, ...]:
    given = asked.shapes.get(tensor.name)
    sizes = tuple(given[k] if n is None and given else n for k, n in enumerate(tensor.shape))
    return (sizes[0] or 1, *sizes[1:]) if asked.fixed else (None, *sizes[1:])
