"""Write a tuned model: beside its destination, checked by onnx's checker, then renamed."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphprune import __version__
from graphprune.errors import ValidationError
from graphprune.model import EMBED_LIMIT, has_external_data, load, publish, tensor_bytes, write_into
from graphprune.output import MARK, workspace
from graphprune.validate import check_file


def write(model: ir.Model, target: Path, source: Path) -> None:
    """Write a model that was tuned from the file `source`; raises ValidationError if onnx's checker refuses it.

    >>> write(tuned, Path("tuned.onnx"), Path("pruned.onnx"))  # doctest: +SKIP

    Weights go into a file of their own where those of the source do, or where they are too large for one file.
    """
    model.metadata_props.setdefault(MARK, f"{__version__}: tuned")
    external = has_external_data(load(source)) or tensor_bytes(model) > EMBED_LIMIT
    with workspace(target.absolute().parent) as folder:
        written = write_into(model, folder, target.name, external=external)
        check = check_file(written)
        if not check.passed and check_file(source).passed:
            raise ValidationError(f"the tuned model is not valid ONNX: {check.detail}")
        publish(written, target)
