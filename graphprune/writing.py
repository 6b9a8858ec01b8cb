"""How small files are written: beside their place, then renamed, so that they are never there by halves."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError


def put(output: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file beside its place, then rename it; raises UsageError where that is not possible.

    >>> put(Path("plan.json"), "{}")  # doctest: +SKIP

    `content` may be a function that writes a file where it is told to.
    """
    if not output.parent.is_dir():
        raise UsageError(f"{output}: cannot be written: no folder {output.parent}")
    try:
        with tempfile.TemporaryDirectory(prefix=".graphprune-", dir=output.parent) as folder:
            written = Path(folder) / output.name
            if callable(content):
                content(written)
            else:
                written.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(written, output)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror or error}") from error


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as comma separated values with a header; what a row lacks is empty.

    >>> as_csv([{"a": 1, "b": 2}], ["a"])
    'a\\n1\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
