"""A pass for Microsoft Olive: pruning as a step of an Olive workflow, before its quantisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from graphprune.errors import UsageError
from graphprune.pipeline import prune

NAME = "GraphPrune"
_MODEL = "model.onnx"


class GraphPrune(Pass):  # type: ignore[misc]
    """Prune an ONNX model; the result is checked and proven as `graphprune.prune` does it.

    A workflow has it as `{"type": "GraphPrune", "target": {"macs": 0.5}, "calibration": "images.npz"}`, before a pass
    that quantises.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        """Return what a workflow can say."""
        return {
            "sparsity": PassConfigParam(type_=float, default_value=None, description="fraction to remove, [0, 1)"),
            "target": PassConfigParam(type_=dict[str, float], default_value=None, description="fractions to keep"),
            "calibration": PassConfigParam(type_=str, default_value=None, description="samples, as --calibration"),
            "options": PassConfigParam(
                type_=dict[str, Any], default_value=None, description="further options of graphprune.prune"
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        """Prune the model of one step; raises what `graphprune.prune` raises."""
        said = {k: getattr(config, k) for k in ("target", "calibration") if getattr(config, k) is not None}
        folder = Path(output_model_path).with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        output = folder / _MODEL
        prune(model.model_path, config.sparsity, output=output, **{**(config.options or {}), **said})
        return ONNXModelHandler(model_path=str(folder), onnx_file_name=_MODEL)


def package_config() -> dict[str, Any]:
    """Return Olive's own list of passes with this one added, for `olive.run(..., package_config=...)`.

    >>> "graphprune" in package_config()["passes"]  # doctest: +SKIP
    True
    """
    found: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    if any(name.lower() == NAME.lower() for name in found["passes"]):
        raise UsageError(f"Olive has a pass of the name {NAME} already")
    every = ["*"]
    found["passes"][NAME] = {
        "module_path": f"graphprune.converters.olive.{NAME}", "supported_providers": every,
        "supported_accelerators": every, "supported_precisions": every, "supported_algorithms": [],
        "supported_quantization_encodings": [], "dataset": "dataset_optional",
    }
    return found
