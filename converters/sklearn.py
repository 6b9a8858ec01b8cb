"""scikit-learn to ONNX: multi-layer perceptrons, alone or in a pipeline, by skl2onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.converters.source import Asked, Converted, load_object
from graphprune.errors import UsageError

_OPSET = 18


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert `module:attribute`, or a pickled estimator (.pkl, .joblib) that is trusted: unpickling runs code.

    >>> [o.name for o in to_onnx("models:perceptron", Asked()).model.graph.output]  # doctest: +SKIP
    ['probabilities']

    Classifiers give their probabilities, columns in the order of `classes_`. Raises UsageError without `asked.trust`.
    """
    import skl2onnx

    path = Path(source)
    model = _unpickled(path, asked) if path.exists() else load_object(source)
    width = getattr(model, "n_features_in_", None)
    if width is None:
        raise UsageError(f"{source}: is not fitted: it does not know how many features it takes")
    classifies = hasattr(model, "predict_proba")
    size = asked.shapes.get("x", (1,))[0] if asked.fixed else None
    kind = skl2onnx.common.data_types.FloatTensorType([size, width])
    converted = skl2onnx.to_onnx(
        model, initial_types=[("x", kind)], target_opset={"": asked.opset or _OPSET, "ai.onnx.ml": 3},
        options=_options(model, classifies),
    )
    if classifies:
        del converted.graph.output[:-1]  # the label is the largest probability, and strings run nowhere else
        converted = _without_unused(converted)

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        answer = (model.predict_proba if classifies else model.predict)(arrays[0])
        return [np.asarray(answer).reshape(len(arrays[0]), -1)]

    return Converted(converted, run)


def _options(model: Any, classifies: bool) -> dict[int, dict[str, Any]]:
    """Return plain outputs for the last step, and plain arithmetic for scalers, which have an operator of their own."""
    steps = [step for _, step in getattr(model, "steps", [])] or [model]
    options: dict[int, dict[str, Any]] = {
        id(step): {"div": "div"} for step in steps if hasattr(step, "scale_") and not hasattr(step, "data_max_")
    }
    if classifies:
        options[id(model)] = {"zipmap": False}
    return options


def _unpickled(path: Path, asked: Asked) -> Any:
    if not asked.trust:
        raise UsageError(f"{path}: is a pickle, and loading it runs code that is in it: --trust allows it")
    import joblib

    return joblib.load(path)


def _without_unused(model: Any) -> Any:
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    return ir.to_proto(RemoveUnusedNodesPass()(ir.from_proto(model)).model)
