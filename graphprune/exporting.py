"""The command `export`: write a model in the format of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune.terminal import ForceOpt, JsonOpt, ModelArg, QuietOpt, ShapeOpt, Talk


def export(
    model: ModelArg,
    to: Annotated[str, typer.Option("--to", help="openvino, tflite or coreml.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: NAME with its ending.")] = None,
    input_shape: ShapeOpt = None,
    half: Annotated[bool, typer.Option("--half", help="Weights in 16 bits (OpenVINO, Core ML).")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare outputs with the model's.")] = True,
    force: ForceOpt = False, json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Write a model in the format of OpenVINO, TensorFlow Lite or Core ML, and check that it computes the same."""
    talk = Talk(json_, quiet)
    from graphprune.converters.target import Wanted, from_onnx, known
    from graphprune.inputs import parse_input_shapes

    target = output if output is not None else model.with_suffix(known(to).suffix)
    with talk.progress() as progress:
        progress("exporting")
        wanted = Wanted(parse_input_shapes(input_shape or []), half, check)
        record = from_onnx(model, to, target, wanted, force=force)
    talk.show(record, _print)


def _print(console: Any, record: dict[str, Any]) -> None:
    error = record["max_relative_difference"]
    same = "outputs were not compared" if error is None else f"outputs differ by {error:.1e} of their largest"
    console.print(f"exported to {record['format']}, {record['bytes']:,} bytes: {same}")
    for name, sizes in record["inputs"].items():
        console.print(f"{name} is fixed to {sizes}")
    for note in record["notes"]:
        console.print(note)
    console.print(f"written: {record['output']}")
