"""Where results are written: never over the model itself, never over what is not ours, never by halves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from graphprune.errors import PlanError, UsageError
from graphprune.model import external_files, is_marked
from graphprune.plan import PruningPlan

MARK = "graphprune"
"""The metadata entry that every model written here has."""


def guard(output: Path, model: Path, plan_file: Path | None = None, force: bool = False) -> None:
    """Raise UsageError if writing an output file would destroy something or cannot work."""
    for other, what in ((model, "the model itself"), (plan_file, "the plan")):
        if other is not None and _same(output, other):
            raise UsageError(f"{output}: is {what}: give another output")
    if output.is_dir():
        raise UsageError(f"{output}: is a folder: give a file name")
    check_folder(output.parent)
    if not force:
        _check_ours(output)


def guard_new(output: Path, inputs: Iterable[Path], force: bool = False) -> None:
    """Raise UsageError if a report or table must not be written there: a model, a folder, or a file that exists."""
    for other in inputs:
        if _same(output, other):
            raise UsageError(f"{output}: is a model that is read: give another name")
    if output.is_dir():
        raise UsageError(f"{output}: is a folder: give a file name")
    check_folder(output.parent)
    if output.exists() and not force:
        raise UsageError(f"{output}: exists: give another name, or --force")


def check_folder(folder: Path) -> None:
    """Raise UsageError if nothing can be written into a folder."""
    if not folder.is_dir():
        raise UsageError(f"cannot write into {folder}: no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {folder}: permission denied")


def _check_ours(output: Path) -> None:
    data = output.with_name(output.name + ".data")
    foreign = output.exists() and output.stat().st_size and not is_marked(output, MARK)
    for path, wrong in ((output, foreign), (data, data.exists() and not output.exists())):
        if wrong:
            raise UsageError(f"{path}: exists and was not written by graphprune: give another name, or --force")


def guard_plan(output: Path, model: Path) -> None:
    """Raise UsageError if writing a plan would destroy anything but a plan, or cannot work."""
    guard(output, model, force=True)
    if output.exists() and output.stat().st_size:
        try:
            PruningPlan.load(output)
        except PlanError:
            raise UsageError(f"{output}: exists and is not a plan: give another name") from None


def guard_data(output: Path, original: ir.Model, source: Path | None) -> None:
    """Raise UsageError if the output or its data file is a file that the model consists of."""
    data = output.with_name(output.name + ".data")
    for file in external_files(original):
        if _same(output, file) or _same(data, file):
            raise UsageError(f"{output}: would overwrite {file.name}, the model's own data: give another output")
    if source is not None and (_same(output, source) or _same(data, source)):
        raise UsageError(f"{output}: is the model itself: give another output")


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


@contextmanager
def workspace(folder: Path | None) -> Iterator[Path]:
    """Yield a temporary folder beside the output, so that publishing is a rename."""
    if folder is not None:
        check_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".graphprune-", dir=folder) as name:
            yield Path(name)
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise UsageError(f"cannot write into {where}: {error.strerror or error}") from error
