"""TensorFlow to ONNX: SavedModel folders, by tf2onnx."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from graphprune.converters.source import Asked, Converted
from graphprune.errors import UsageError

_OPSET = 18
_SIGNATURE = "serving_default"


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert the default signature of a SavedModel; its outputs come in the order of their names.

    >>> to_onnx("saved_model_folder", Asked()).model.graph.name  # doctest: +SKIP
    'tf2onnx'
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tf2onnx

    loaded = tf.saved_model.load(source)
    if _SIGNATURE not in loaded.signatures:
        raise UsageError(f"{source}: has no signature {_SIGNATURE!r}: export it with one")
    signature = loaded.signatures[_SIGNATURE]
    specs = signature.structured_input_signature[1]
    names = list(specs)
    outputs = sorted(signature.structured_outputs)

    @tf.function  # type: ignore[untyped-decorator]
    def call(*tensors: Any) -> Any:
        answer = signature(**dict(zip(names, tensors, strict=True)))
        return [tf.identity(answer[name], name) for name in outputs]

    wanted = [tf.TensorSpec(_shape(specs[n], asked), specs[n].dtype, name=n) for n in names]
    model, _ = tf2onnx.convert.from_function(call, input_signature=wanted, opset=asked.opset or _OPSET)

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        return [x.numpy() for x in call(*[tf.constant(a) for a in arrays])]

    return Converted(model, run)


def _shape(spec: Any, asked: Asked) -> list[int | None]:
    sizes: list[int | None] = spec.shape.as_list()
    given = asked.shapes.get(spec.name)
    if given:
        sizes = [given[k] if n is None and k else n for k, n in enumerate(sizes)]
    if sizes and asked.fixed:
        sizes[0] = sizes[0] or (given[0] if given else 1)
    return sizes
