"""ONNX to Core ML by coremltools, which reads torch programs; it gave up reading ONNX in version 6."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.converters.fixed import Plain, fixed
from graphprune.converters.target import Exported, Wanted
from graphprune.execute import Outputs


def from_onnx(path: Path, written: Path, feed: Outputs, wanted: Wanted) -> Exported:
    """Write an ML program (.mlpackage, iOS 16 and macOS 13 or later) of fixed sizes; whole numbers have 32 bits.

    >>> from_onnx(Path("net.onnx"), Path("net.mlpackage"), {"x": x}, Wanted())  # doctest: +SKIP

    Core ML itself runs on macOS only. Elsewhere the torch program that it was made of is what is compared.
    """
    import coremltools as ct
    import torch

    program = fixed(path, feed)
    scripted = torch.jit.trace(Plain(program).eval(), tuple(program.examples.values()), check_trace=False)
    kinds = {name: np.float32 if x.is_floating_point() else np.int32 for name, x in program.examples.items()}
    inputs = [ct.TensorType(name, tuple(x.shape), dtype=kinds[name]) for name, x in program.examples.items()]
    model = ct.convert(
        scripted, inputs=inputs, outputs=[ct.TensorType(name=name) for name in program.outputs],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16 if wanted.half else ct.precision.FLOAT32,
    )
    model.save(str(written))
    if sys.platform != "darwin":
        note = "Core ML runs on macOS only: what was compared is the torch program that it was made of"
        return Exported(program.run, "the torch program", (*program.notes, note))

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        given = zip(kinds.items(), arrays, strict=True)
        answer = model.predict({name: np.asarray(a, kind) for (name, kind), a in given})
        return [answer[name] for name in program.outputs]

    return Exported(run, "Core ML", program.notes)
