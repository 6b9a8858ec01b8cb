"""Models of other frameworks as ONNX files: what `convert` writes, and what pruning a source begins with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import ValidationError

if TYPE_CHECKING:
    from graphprune.calibrate.folder import Folder
    from graphprune.model import ModelLike

SUFFIX = ".onnx"


@dataclass(frozen=True)
class Conversion:
    """How a source is converted, and whether outputs are compared; see `converters.Asked`."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    opset: int | None = None
    fixed: bool = False
    trust: bool = False
    check: bool = True
    norms: bool = False


def converted(source: str, target: Path, how: Conversion) -> dict[str, Any]:
    """Convert a source and write it, once it has passed; return what `convert --json` prints."""
    from graphprune.converters import Asked, framework_of, to_onnx
    from graphprune.converters.parity import parity
    from graphprune.model import EMBED_LIMIT, load, publish, tensor_bytes, write_into
    from graphprune.output import workspace

    found = to_onnx(source, Asked(how.opset, how.shapes, how.fixed, how.trust, how.norms))
    model = load(found.model)
    with workspace(target.parent) as work:
        written = write_into(model, work, target.name, external=tensor_bytes(model) > EMBED_LIMIT)
        try:
            error = parity(found, written) if how.check else None
        except ValidationError as wrong:
            raise ValidationError(f"{source}: {wrong}; nothing was written; --no-check writes it") from wrong
        publish(written, target)
    return {
        "source": source, "framework": framework_of(source).name, "output": str(target),
        "opset": model.graph.opset_imports.get("", 0), "notes": list(found.notes),
        "inputs": {v.name: [str(n) for n in v.shape or ()] for v in model.graph.inputs},
        "outputs": {v.name: [str(n) for n in v.shape or ()] for v in model.graph.outputs},
        "compared": error is not None, "max_relative_difference": error,
    }


def stem_of(source: str | Path) -> str:
    """Return the path of a source without its ending; for `module:attribute` the attribute.

    >>> stem_of("a/net.keras"), stem_of("models:zoo.net"), stem_of("folder/")
    ('a/net', 'net', 'folder')
    """
    text = str(source)
    if ":" in text and not Path(text).exists():
        return text.rpartition(":")[2].rpartition(".")[2]
    path = Path(text)
    return str(path if path.is_dir() else path.with_suffix(""))


@cache
def _kept() -> Folder:
    """Return where models are converted to that are pruned and not kept; it goes at exit."""
    from graphprune.calibrate.folder import Folder

    return Folder()


def as_file(source: str | Path, how: Conversion) -> tuple[Path, dict[str, Any]]:
    """Convert a source into a file that lasts as long as this process; return it with the record of `converted`."""
    folder = Path(tempfile.mkdtemp(dir=_kept().path))  # one each: names of sources may be the same
    path = folder / f"{Path(stem_of(source)).name}{SUFFIX}"
    return path, converted(str(source), path, how)


def onnx_of(model: ModelLike, shapes: Mapping[str, tuple[int, ...]], trust: bool) -> ModelLike:
    """Return a model as it is, or the ONNX file that a path or `module:attribute` of another framework becomes.

    >>> onnx_of("net.onnx", {}, False)
    'net.onnx'

    Raises what `converted` raises.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    from graphprune.converters import is_source

    return as_file(os.fspath(model), Conversion(shapes, trust=trust))[0] if is_source(model) else model
