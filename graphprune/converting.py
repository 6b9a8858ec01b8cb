"""The command `convert`, and what lets `prune` take a model of another framework."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune.errors import UsageError
from graphprune.terminal import ForceOpt, JsonOpt, QuietOpt, ShapeOpt, Talk, TrustOpt

SourceArg = Annotated[
    str,
    typer.Argument(help="A model of PyTorch, Keras, TensorFlow, TFLite, JAX, scikit-learn, Paddle or Hugging Face: a "
                        "file, a folder, or module:attribute.", show_default=False),
]


def convert(
    source: SourceArg,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The ONNX file; default: NAME.onnx.")] = None,
    opset: Annotated[int | None, typer.Option("--opset", min=13, help="Default: 18, from JAX 21.")] = None,
    input_shape: ShapeOpt = None,
    fixed: Annotated[bool, typer.Option("--fixed-batch", help="Keep the batch as it is, rather than open.")] = False,
    norms: Annotated[
        bool, typer.Option("--keep-norms", help="Leave batch normalisations as nodes, for training.")
    ] = False,
    trust: TrustOpt = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare outputs with the source's.")] = True,
    force: ForceOpt = False, json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Convert a model of another framework to ONNX, and check that it computes the same."""
    talk = Talk(json_, quiet)
    from graphprune.converters import is_source
    from graphprune.inputs import parse_input_shapes
    from graphprune.output import guard_new
    from graphprune.sourced import SUFFIX, Conversion, converted, stem_of

    target = output if output is not None else Path(f"{stem_of(source)}{SUFFIX}")
    if not is_source(source) and Path(source).suffix == SUFFIX:
        raise UsageError(f"{source}: is ONNX already")
    guard_new(target, [Path(source)], force)
    with talk.progress() as progress:
        progress("converting")
        how = Conversion(parse_input_shapes(input_shape or []), opset, fixed, trust, check, norms)
        record = converted(source, target, how)
    talk.show(record, _print)


def as_onnx(
    model: Path, output: Path | None, input_shape: Sequence[str] | None, trust: bool, talk: Talk
) -> tuple[Path, Path]:
    """Return an ONNX file, converted where the model is of another framework, and where the pruned model goes."""
    from graphprune.converters import is_source
    from graphprune.sourced import SUFFIX, stem_of

    target = output if output is not None else Path(f"{stem_of(model)}.pruned{SUFFIX}")
    if not is_source(model):
        return model, target
    from graphprune.inputs import parse_input_shapes
    from graphprune.sourced import Conversion, as_file

    with talk.progress() as progress:
        progress("converting")
        path, record = as_file(model, Conversion(parse_input_shapes(input_shape or []), trust=trust))
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
