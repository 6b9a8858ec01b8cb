"""How small files are written: beside their place, then renamed, so that they are never there by halves."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from graphprune.errors import UsageError


def put(output: Path, content: str | bytes) -> None:
    """Write a file beside its place, then rename it; raises UsageError where that is not possible.

    >>> put(Path("plan.json"), "{}")  # doctest: +SKIP
    """
    if not output.parent.is_dir():
        raise UsageError(f"{output}: cannot be written: no folder {output.parent}")
    try:
        with tempfile.TemporaryDirectory(prefix=".graphprune-", dir=output.parent) as folder:
            written = Path(folder) / output.name
            written.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(written, output)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror or error}") from error
