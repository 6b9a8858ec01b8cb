"""ONNX to OpenVINO IR, by OpenVINO's own reader of ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphprune.converters.target import Exported, Wanted
from graphprune.execute import Outputs


def from_onnx(path: Path, written: Path, feed: Outputs, wanted: Wanted) -> Exported:
    """Write `written` (.xml) and the weights beside it (.bin); open sizes stay open where no sizes are given.

    >>> from_onnx(Path("net.onnx"), Path("net.xml"), {"x": x}, Wanted())  # doctest: +SKIP

    `read_model` takes ONNX as it is; `convert_model` would ask the network about telemetry.
    """
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    if wanted.shapes:
        model.reshape({name: list(array.shape) for name, array in feed.items()})
    ov.save_model(model, str(written), compress_to_fp16=wanted.half)
    # Where the CPU has bfloat16, OpenVINO computes in it unless told not to; what is compared is the conversion.
    compiled = core.compile_model(core.read_model(written), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        answer = compiled(list(arrays))
        return [answer[k] for k in range(len(compiled.outputs))]

    return Exported(run, "OpenVINO")
