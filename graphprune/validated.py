"""The checks of a written model against its analysis, as a stage of the pipeline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from graphprune.analysis import Analysis, Progress
from graphprune.errors import ValidationError
from graphprune.model import write_into
from graphprune.rewrite import Chosen, arranged
from graphprune.validate import Verdict, check_file, validate


def validated(analysis: Analysis, written: Path, chosen: Chosen, progress: Progress) -> Verdict:
    """Check a written model; raises ValidationError."""
    verdict = validate(
        written,
        analysis.reference,
        sizes_may_differ=analysis.coupling.graph.worlds.sizes_unknown,
        dense_passes_checker=lambda: _passes(analysis),
        arrange=lambda arrays: arranged(arrays, analysis.coupling, chosen),
        progress=progress,
    )
    if not verdict.passed:
        raise ValidationError(f"the pruned model failed its checks, nothing was written: {verdict.failures}")
    return verdict


def _passes(analysis: Analysis) -> bool:
    """Return whether the dense model itself passes onnx's checker."""
    if analysis.source is not None:
        return check_file(analysis.source).passed
    with tempfile.TemporaryDirectory() as folder:
        return check_file(write_into(analysis.original, Path(folder), "model.onnx", external=False)).passed
