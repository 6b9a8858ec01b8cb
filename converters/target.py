"""Where models go: which formats of other runtimes there are, what each needs, and the one way to write them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.analysis import analyse
from graphprune.converters.parity import ALLOWED, Sides, differing
from graphprune.converters.source import Run
from graphprune.errors import GraphPruneError, ModelError, UsageError, ValidationError
from graphprune.execute import Outputs
from graphprune.model import load
from graphprune.options import Looking
from graphprune.output import guard_new, workspace

_BATCH = 3
_HALF = 1e-2  # eleven bits of every weight are left
_SHOWN = 200


@dataclass(frozen=True)
class Wanted:
    """How a model is exported: sizes of inputs, which are fixed then; weights in 16 bits; whether outputs are compared.

    >>> Wanted({"input_ids": (1, 128)})
    Wanted(shapes={'input_ids': (1, 128)}, half=False, check=True)
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    half: bool = False
    check: bool = True


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote: `run` runs it on the feed's arrays; `compared` says what that is; `notes` for people."""

    run: Run
    compared: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """One format: the module here, the extra to install, its packages, the endings of its files, first the main one.

    `fixed`: files of this format have one size for every input.
    """

    name: str
    module: str
    extra: str
    packages: tuple[str, ...]
    suffixes: tuple[str, ...]
    fixed: bool = False

    @property
    def suffix(self) -> str:
        """Return the ending of the file that a user names."""
        return self.suffixes[0]


TARGETS = {
    "openvino": Target("OpenVINO", "openvino", "openvino", ("openvino",), (".xml", ".bin")),
    "tflite": Target("TensorFlow Lite", "tflite", "tflite", ("torch", "litert_torch", "ai_edge_litert"), (".tflite",),
                     True),
    "coreml": Target("Core ML", "coreml", "coreml", ("torch", "coremltools"), (".mlpackage",), True),
}


def from_onnx(
    path: Path, to: str, output: Path, wanted: Wanted | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Write an ONNX model in another runtime's format, by that runtime's own converter, once outputs agree.

    >>> from_onnx(Path("pruned.onnx"), "openvino", Path("pruned.xml"))["max_relative_difference"]  # doctest: +SKIP
    4e-07

    Returns what `export --json` prints. Raises UsageError for an unknown format, a missing package (it says which extra
    to install), a file that exists, or open sizes that the format cannot have; ModelError where the converter fails;
    ValidationError where outputs differ by more than 1e-4 of the largest, with `half` 1e-2. Then nothing is written.
    """
    wanted = wanted or Wanted()
    target = known(to)
    _guard(path, output, target, force)
    feed = _feed(path, target, wanted)
    with workspace(output.absolute().parent) as work:
        written = work / output.name
        try:
            # Converters talk; standard output is for JSON.
            with contextlib.redirect_stdout(sys.stderr):
                module = importlib.import_module(f"graphprune.converters.{target.module}")
                exported: Exported = module.from_onnx(path, written, feed, wanted)
                error = _compared(exported, path, feed, wanted) if wanted.check else None
        except ValidationError as wrong:
            raise ValidationError(f"{path}: {wrong}; nothing was written; --no-check writes it") from wrong
        except GraphPruneError:
            raise
        except Exception as wrong:  # converters raise anything
            said = " ".join(f"{type(wrong).__name__}: {wrong}".split())[:_SHOWN]
            raise ModelError(f"{path}: cannot be exported to {target.name}: {said}") from wrong
        size = sum(_bytes(file) for file in _files(written, target))
        _publish(written, output, target)
    return {
        "model": str(path), "format": target.name, "output": str(output), "bytes": size,
        "inputs": {name: list(array.shape) for name, array in feed.items()} if _is_fixed(target, wanted) else {},
        "compared": exported.compared if wanted.check else None, "max_relative_difference": error,
        "notes": list(exported.notes),
    }


def known(to: str) -> Target:
    """Return a format; raises UsageError if there is no such, or its packages are missing."""
    if to not in TARGETS:
        raise UsageError(f"--to {to!r}: give {', '.join(TARGETS)}")
    target = TARGETS[to]
    missing = [p for p in target.packages if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(
            f"exporting to {target.name} needs {' and '.join(missing)}: pip install 'graphprune[{target.extra}]'"
        )
    return target


def _guard(path: Path, output: Path, target: Target, force: bool) -> None:
    if output.suffix != target.suffix:
        raise UsageError(f"{output}: a file of {target.name} ends in {target.suffix}")
    for file in _files(output, target):
        if not (file.is_dir() and force):
            guard_new(file, [path], force)


def _files(output: Path, target: Target) -> list[Path]:
    return [output.with_suffix(suffix) for suffix in target.suffixes]


def _is_fixed(target: Target, wanted: Wanted) -> bool:
    return target.fixed or bool(wanted.shapes)


def _feed(path: Path, target: Target, wanted: Wanted) -> dict[str, Any]:
    """Return made-up inputs, of the sizes that the file will have; raises UsageError where some are not known."""
    shapes = {name: tuple(shape) for name, shape in wanted.shapes.items()}
    if target.fixed:
        for value in load(path).graph.inputs:
            sizes = list(value.shape or ())
            if value.name not in shapes and any(not isinstance(n, int) for n in sizes[1:]):
                told = ", ".join(str(n) for n in sizes)
                raise UsageError(
                    f"{path}: input {value.name!r} is [{told}], and files of {target.name} have fixed sizes: "
                    f"--input-shape {value.name}:1,..."
                )
    looking = Looking(batch=None if shapes else 1 if target.fixed else _BATCH, input_shapes=shapes)
    return dict(analyse(path, looking).reference.feeds[0])


def _compared(exported: Exported, path: Path, feed: Outputs, wanted: Wanted) -> float:
    sides = Sides("the ONNX model", exported.compared, _HALF if wanted.half else ALLOWED)
    error: float = differing(exported.run, path, feed, sides)
    return error


def _bytes(file: Path) -> int:
    return sum(f.stat().st_size for f in ([file] if file.is_file() else file.rglob("*")) if f.is_file())


def _publish(written: Path, output: Path, target: Target) -> None:
    """Rename all files into their place, the main one last; a folder that was there goes first."""
    for new, old in reversed(list(zip(_files(written, target), _files(output, target), strict=True))):
        if old.is_dir():
            shutil.rmtree(old)
        os.replace(new, old)
