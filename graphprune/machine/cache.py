"""Where times are kept between runs: one file for each machine, onnxruntime, provider and number of threads."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from graphprune.errors import UsageError
from graphprune.machine.table import Table, Where

VARIABLE = "GRAPHPRUNE_CACHE"
"""The environment variable that names another folder; where it is empty nothing is kept."""


def folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path | None:
    """Return the folder of caches, None where nothing is to be kept.

    >>> folder({"GRAPHPRUNE_CACHE": "/somewhere"}).name
    'somewhere'
    >>> folder({"GRAPHPRUNE_CACHE": ""}) is None
    True
    """
    if VARIABLE in environment:
        return Path(environment[VARIABLE]) if environment[VARIABLE] else None
    home = Path(environment.get("HOME") or environment.get("USERPROFILE") or Path.home())
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "graphprune"
    if platform == "darwin":
        return home / "Library" / "Caches" / "graphprune"
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "graphprune"


def place(where: Where, root: Path) -> Path:
    """Return the file of one machine and way to run."""
    name = hashlib.sha256(repr(astuple(where)).encode()).hexdigest()[:16]
    return root / f"machine-{name}.json"


def remembered(where: Where, root: Path | None) -> tuple[Table, str]:
    """Return what is kept of a machine, and a remark where a file is there and cannot be used."""
    empty = Table(where)
    if root is None or not place(where, root).is_file():
        return empty, ""
    try:
        found = Table.load(place(where, root))
    except UsageError as error:
        return empty, f"kept times are ignored: {error}"
    return (found, "") if found.where == where else (empty, "kept times are ignored: they are of another machine")


def remember(table: Table, root: Path | None) -> str:
    """Keep a table; return a remark where that is not possible."""
    if root is None:
        return ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        table.save(place(table.where, root))
    except (OSError, UsageError) as error:
        return f"times are not kept for the next run: {error}"
    return ""
