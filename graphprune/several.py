"""Commands that look at several models, or at none: `compare`, `bench`, `pins` and `profile-machine`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune.errors import UsageError
from graphprune.terminal import (
    BatchesOpt,
    BatchOpt,
    EvaluateOpt,
    ForceOpt,
    InputsOpt,
    JsonOpt,
    ModelArg,
    ProviderOpt,
    ProvidersOpt,
    QuietOpt,
    SecondsOpt,
    SeedOpt,
    ShapeOpt,
    Talk,
    ThreadCountsOpt,
    ThreadsOpt,
    looking_of,
)

_TOP = 20


def compare(
    before: ModelArg, after: ModelArg, json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None,
    inputs: InputsOpt = None, provider: ProviderOpt = "cpu", threads: ThreadsOpt = None,
    batch: BatchOpt = None, seed: SeedOpt = 0, seconds: SecondsOpt = 2.0, evaluate: EvaluateOpt = None,
) -> None:
    """Compare two models of the same inputs: costs, memory, latency, and how far their outputs differ."""
    talk = Talk(json_, quiet)
    from graphprune.bench import compare_models
    from graphprune.metric import find_metric
    from graphprune.report import quality, text

    metric = find_metric(evaluate)
    with talk.progress() as progress:
        looking = looking_of(input_shape, inputs, provider, threads, batch, seed, before)
        record = compare_models(before, after, looking, seconds, progress, metric)

    def show(console: Any, record: dict[str, Any]) -> None:
        console.print(text.costs_table(record))
        console.print(text.speed_line(record))
        moved = record["other_sizes"]
        if moved["inputs"]:
            console.print(f"smaller inputs get the leading part: {', '.join(moved['inputs'])}")
        if moved["outputs"]:
            console.print(f"outputs of other sizes are not compared: {', '.join(moved['outputs'])}")
        console.print(f"outputs differ by {record['max_relative_difference']:.2g} of their largest magnitude")
        quality.print_evaluation(console, record)

    talk.show(record, show)


def bench(
    models: Annotated[list[Path], typer.Argument(help="One or more models; speed is against the first.",
                                                 show_default=False)],
    json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None, inputs: InputsOpt = None,
    provider: ProvidersOpt = None, threads: ThreadCountsOpt = None, batch: BatchesOpt = None, seed: SeedOpt = 0,
    seconds: SecondsOpt = 2.0,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table here, too, as CSV.")] = None,
    force: ForceOpt = False,
) -> None:
    """Time models in turn on the same inputs, over a grid of providers, threads and batch sizes."""
    talk = Talk(json_, quiet)
    from graphprune.grid import Grid, as_csv, bench_models, numbers, words
    from graphprune.output import guard_new
    from graphprune.report.timings import print_bench
    from graphprune.writing import put

    grid = Grid(
        tuple(words(provider)) or ("cpu",), tuple(dict.fromkeys(numbers(threads, "--threads", 0))) or (1,),
        tuple(dict.fromkeys(numbers(batch, "--batch", 1))) or (None,),
    )
    if csv is not None:
        guard_new(csv, models, force)
    with talk.progress() as progress:
        looking = looking_of(input_shape, inputs, grid.providers[0], grid.threads[0], None, seed, models[0])
        record = bench_models(models, looking, grid, seconds, progress)
    if csv is not None:
        put(csv, as_csv(record))
    talk.show(record, print_bench)


def pins(
    places: Annotated[list[Path], typer.Argument(help="Models, or folders of models.", show_default=False)],
    json_: JsonOpt = False, quiet: QuietOpt = False,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="So many operators; default: 20, all in JSON.")
    ] = None,
) -> None:
    """Rank operators by the share of weights that they pin, over many models: what to add to the tables next."""
    talk = Talk(json_, quiet)
    from graphprune.pins import model_files, survey
    from graphprune.report.record import survey_record
    from graphprune.report.text import print_survey

    files = model_files(places)
    with talk.steps(len(files)) as progress:
        record = survey_record(survey(files, progress), top)
    talk.show(record, print_survey, top or _TOP)


def profile_machine(
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the table here.", show_default=False)],
    json_: JsonOpt = False, quiet: QuietOpt = False, provider: ProviderOpt = "cpu", threads: ThreadsOpt = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="About how long to measure.")] = 60.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Measure what this machine takes for common operators, as a table for --machine, here or elsewhere."""
    talk = Talk(json_, quiet)
    from graphprune.machine import general
    from graphprune.output import check_folder
    from graphprune.runtime import Runtime

    check_folder(output.parent)
    if output.exists() and not force:
        raise UsageError(f"{output}: exists: give another name, or --force")
    with talk.progress() as progress:
        table = general.profile_machine(Runtime(provider, 1 if threads is None else threads), seconds, progress)
    table.save(output)
    record = {"output": str(output), "records": len(table.records), "machine": asdict(table.where)}

    def show(console: Any, record: dict[str, Any]) -> None:
        console.print(f"{record['records']} times of nodes on {table.where}")
        console.print(f"written: {record['output']}")

    talk.show(record, show)
