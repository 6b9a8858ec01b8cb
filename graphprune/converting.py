"""The command `convert`, and what lets `prune` take a model of another framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.errors import UsageError, ValidationError
from graphprune.terminal import ForceOpt, JsonOpt, QuietOpt, ShapeOpt, Talk, TrustOpt

if TYPE_CHECKING:
    from graphprune.calibrate.folder import Folder

SourceArg = Annotated[
    str,
    typer.Argument(help="A model of PyTorch, Keras, TensorFlow, TFLite, JAX, scikit-learn, Paddle or Hugging Face: a "
                        "file, a folder, or module:attribute.", show_default=False),
]
_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Conversion:
    """How a source is converted, as options say it; see `converters.Asked`."""

    input_shape: Sequence[str] | None = None
    opset: int | None = None
    fixed: bool = False
    trust: bool = False
    check: bool = True


def convert(
    source: SourceArg,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The ONNX file; default: NAME.onnx.")] = None,
    opset: Annotated[int | None, typer.Option("--opset", min=13, help="Default: 18, from JAX 21.")] = None,
    input_shape: ShapeOpt = None,
    fixed: Annotated[bool, typer.Option("--fixed-batch", help="Keep the batch as it is, rather than open.")] = False,
    trust: TrustOpt = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare outputs with the source's.")] = True,
    force: ForceOpt = False, json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Convert a model of another framework to ONNX, and check that it computes the same."""
    talk = Talk(json_, quiet)
    target = output if output is not None else Path(f"{stem_of(source)}{_SUFFIX}")
    from graphprune.converters import is_source
    from graphprune.output import guard_new

    if not is_source(source) and Path(source).suffix == _SUFFIX:
        raise UsageError(f"{source}: is ONNX already")
    guard_new(target, [Path(source)], force)
    with talk.progress() as progress:
        progress("converting")
        record = converted(source, target, Conversion(input_shape, opset, fixed, trust, check))
    talk.show(record, _print)


def converted(source: str, target: Path, how: Conversion) -> dict[str, Any]:
    """Convert a source and write it, once it has passed; return what `convert --json` prints."""
    from graphprune.converters import Asked, framework_of, to_onnx
    from graphprune.converters.parity import parity
    from graphprune.inputs import parse_input_shapes
    from graphprune.model import EMBED_LIMIT, load, publish, tensor_bytes, write_into
    from graphprune.output import workspace

    found = to_onnx(source, Asked(how.opset, parse_input_shapes(how.input_shape or []), how.fixed, how.trust))
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


def as_onnx(
    model: Path, output: Path | None, input_shape: Sequence[str] | None, trust: bool, talk: Talk
) -> tuple[Path, Path]:
    """Return an ONNX file, converted where the model is of another framework, and where the pruned model goes."""
    from graphprune.converters import is_source

    target = output if output is not None else Path(f"{stem_of(model)}.pruned{_SUFFIX}")
    if not is_source(model):
        return model, target
    path = _kept().path / f"{Path(stem_of(model)).name}{_SUFFIX}"
    with talk.progress() as progress:
        progress("converting")
        record = converted(str(model), path, Conversion(input_shape, trust=trust))
    for line in (_said(record), *record["notes"]):
        talk.warn(line)
    return path, target


def _print(console: Any, record: dict[str, Any]) -> None:
    console.print(_said(record))
    for side in ("inputs", "outputs"):
        told = [f"{name} [{', '.join(sizes)}]" for name, sizes in record[side].items()]
        console.print(f"{side}: {', '.join(told)}")
    for note in record["notes"]:
        console.print(note)
    console.print(f"written: {record['output']}")


def _said(record: dict[str, Any]) -> str:
    error = record["max_relative_difference"]
    same = f"outputs differ by {error:.1e} of their largest" if record["compared"] else "outputs were not compared"
    return f"converted from {record['framework']} to ONNX, opset {record['opset']}: {same}"
