"""JAX to ONNX: functions and flax (nnx) modules that `module:attribute` names, by jax2onnx."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from graphprune.converters.source import Asked, Converted, load_object, one_shape

_OPSET = 21


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert a function of arrays, or a flax module, which is put into evaluation mode.

    >>> to_onnx("models:net", Asked(shapes={"x": (1, 28, 28, 1)})).model.opset_import[0].version  # doctest: +SKIP
    21
    """
    import jax
    import jax2onnx
    import numpy as np

    function = load_object(source)
    if hasattr(function, "eval"):
        function.eval()
    wanted = inspect.signature(function).parameters.values()
    names = [p.name for p in wanted if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    shapes = one_shape(source, asked, names)
    sizes = [(s if asked.fixed or not s else ("B", *s[1:])) for s in shapes.values()]
    model = jax2onnx.to_onnx(function, sizes, opset=asked.opset or _OPSET, input_names=names)

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        return [np.asarray(x) for x in jax.tree.leaves(function(*arrays))]

    return Converted(model, run)
