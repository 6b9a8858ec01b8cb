"""The command line: reads options, calls the pipeline, prints one table or one JSON object."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune.converting import as_onnx, convert
from graphprune.curving import along, show_curve, told
from graphprune.errors import GraphPruneError, UsageError, ValidationError
from graphprune.exporting import export
from graphprune.finetuning import finetune
from graphprune.several import bench, compare, pins, profile_machine
from graphprune.sweeping import sweep
from graphprune.terminal import (
    AdaptersOpt,
    AggregateOpt,
    AlignOpt,
    AllocationOpt,
    AllowOpt,
    AtOpt,
    BatchOpt,
    CalibrationOpt,
    CleanupOpt,
    CriterionOpt,
    EffortOpt,
    EvaluateOpt,
    ExcludeOpt,
    FloorOpt,
    ForceOpt,
    IncludeOpt,
    InputsOpt,
    JobsOpt,
    JsonOpt,
    LabelsOpt,
    LayersOpt,
    LengthOpt,
    MachineOpt,
    MemoryOpt,
    ModelArg,
    NormaliseOpt,
    ParetoOpt,
    PlotsOpt,
    PointsOpt,
    PresetOpt,
    ProviderOpt,
    QuietOpt,
    ReinitOpt,
    RepairOpt,
    ReportOpt,
    SamplesOpt,
    SchedulerOpt,
    SecondsOpt,
    SeedOpt,
    ShapeOpt,
    SparsityOpt,
    SpeedOpt,
    Talk,
    TargetOpt,
    ThreadsOpt,
    TokenizerOpt,
    TrustOpt,
    TurnOpt,
    VaryOpt,
    VerboseOpt,
    calibrating_of,
    choosing_of,
    fail,
    looking_of,
    unforeseen,
)

_INTERRUPTED = 130
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Prune any ONNX model: whole channels, heads and neurons go, and the result is run, proven and timed.",
)

@app.command()
def inspect(
    model: ModelArg, json_: JsonOpt = False, quiet: QuietOpt = False, verbose: VerboseOpt = False, at: AtOpt = None,
    input_shape: ShapeOpt = None, batch: BatchOpt = None, allow_io: AllowOpt = None, adapters: AdaptersOpt = True,
    pin: Annotated[bool, typer.Option("--pin", "--pins", help="Show which operators pin which share.")] = False,
    graph: Annotated[Path | None, typer.Option("--graph", help="Write the graph: .graphml or .dot.")] = None,
) -> None:
    """Show every channel group of a model, what is pinned, and why."""
    talk = Talk(json_, quiet, verbose)
    from graphprune.pipeline import analyse
    from graphprune.report import text
    from graphprune.report.record import inspect_record

    with talk.progress() as progress:
        looking = looking_of(input_shape, None, "cpu", None, batch, 0, model, allow_io, at, adapters=adapters)
        analysis = analyse(model, looking, progress)
        record = inspect_record(analysis, pin)
        if graph is not None:
            from graphprune.graph import export

            export(analysis.coupling, graph)
    talk.show(record, text.print_inspect, verbose)


@app.command()
def explain(
    model: ModelArg,
    name: Annotated[str, typer.Argument(help="A group, value, node, or VALUE:AXIS.", show_default=False)],
    other: Annotated[str | None, typer.Argument(help="Another: why are the two coupled?")] = None,
    json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None, allow_io: AllowOpt = None,
    adapters: AdaptersOpt = True,
) -> None:
    """Show the path of operators that couples axes, or why an axis is pinned."""
    talk = Talk(json_, quiet)
    from graphprune.graph import explain as find
    from graphprune.pipeline import analyse

    with talk.progress() as progress:
        looking = looking_of(input_shape, None, "cpu", None, None, 0, model, allow_io, adapters=adapters)
        analysis = analyse(model, looking, progress)
        found = find(analysis.coupling, name, other)
    steps = [{"subject": e.subject, "verdict": e.verdict, "path": [str(s) for s in e.steps]} for e in found]
    record = {"name": name, "other": other, "explanations": steps}

    def show(console: Any, record: dict[str, Any]) -> None:
        for e in record["explanations"]:
            console.print(f"{e['subject']}: {e['verdict']}")
            for step in e["path"]:
                console.print(f"    {step}")

    talk.show(record, show)


@app.command()
def prove(
    model: ModelArg, json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None,
    inputs: InputsOpt = None, threads: ThreadsOpt = None, batch: BatchOpt = None, seed: SeedOpt = 0,
    allow_io: AllowOpt = None, adapters: AdaptersOpt = True,
) -> None:
    """Prove that the groups are right: permuting all of them must not change the outputs."""
    talk = Talk(json_, quiet)
    from graphprune import prove as proving
    from graphprune.pipeline import analyse
    from graphprune.report.record import proof_record
    from graphprune.report.text import print_assumed, proof_words

    with talk.progress() as progress:
        looking = looking_of(input_shape, inputs, "cpu", threads, batch, seed, model, allow_io, adapters=adapters)
        analysis = analyse(model, looking, progress)
        proof = proving.prove(analysis.model, analysis.coupling, analysis.calmest, seed=seed, progress=progress)
    record = {**proof_record(proof), "assumed": list(analysis.assumed)}

    def show(console: Any, record: dict[str, Any]) -> None:
        word = "passed" if record["passed"] else "FAILED"
        console.print(f"{word}: {proof_words(record)}")
        print_assumed(console, record)

    talk.show(record, show)
    if not proof.passed:
        raise ValidationError(proof.failure)


@app.command()
def plan(
    model: ModelArg,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan here, as JSON.")] = None,
    json_: JsonOpt = False, quiet: QuietOpt = False, verbose: VerboseOpt = False,
    sparsity: SparsityOpt = None, target: TargetOpt = None, speedup: SpeedOpt = None, criterion: CriterionOpt = "auto",
    aggregate: AggregateOpt = "sum", normalise: NormaliseOpt = "mean", allocation: AllocationOpt = "auto",
    align: AlignOpt = "auto", floor: FloorOpt = 0.1, include: IncludeOpt = None, exclude: ExcludeOpt = None,
    input_shape: ShapeOpt = None, inputs: InputsOpt = None, provider: ProviderOpt = "cpu", threads: ThreadsOpt = None,
    batch: BatchOpt = None, seed: SeedOpt = 0, allow_io: AllowOpt = None, adapters: AdaptersOpt = True,
    calibration: CalibrationOpt = None, preset: PresetOpt = None, tokenizer: TokenizerOpt = None,
    length: LengthOpt = None, samples: SamplesOpt = None, memory: MemoryOpt = 2.0, jobs: JobsOpt = 1,
    scheduler: SchedulerOpt = None, layers: LayersOpt = True, machine: MachineOpt = None, at: AtOpt = None,
    effort: EffortOpt = "medium", pareto: ParetoOpt = None, points: PointsOpt = 6, vary: VaryOpt = True,
    seconds: SecondsOpt = 2.0, labels: LabelsOpt = None, reinit: ReinitOpt = None, turn: TurnOpt = True,
) -> None:
    """Decide what would be pruned, and write that as a plan, without pruning."""
    talk = Talk(json_, quiet, verbose)
    choosing = choosing_of(
        sparsity, target, speedup, criterion, aggregate, normalise, allocation, align, floor, include, exclude,
        layers, machine, curve=pareto is not None,
    )
    wanted = along(pareto, points, {"--output": output}, models=False)
    asked = calibrating_of(
        calibration, preset, tokenizer, length, samples, memory, "auto" if wanted else "none", effort, seed, jobs,
        scheduler, labels, turn, vary,
    )
    from graphprune.output import guard_plan
    from graphprune.pipeline import Checking, Order, analyse, begun, make_plan
    from graphprune.report import text
    from graphprune.report.record import Findings, prune_record

    if output is not None:
        guard_plan(output, model)
    with talk.progress() as progress:
        looking = looking_of(input_shape, inputs, provider, threads, batch, seed, model, allow_io, at, reinit, adapters)
        analysis = analyse(model, looking, progress)
        if wanted is not None:
            return show_curve(talk, analysis, Order(choosing, Checking(seconds=seconds), asked), wanted, progress)
        analysis, known, _ = begun(analysis, Order(choosing, Checking(), asked), progress)
        decided = make_plan(analysis, choosing, progress, known, effort)
        after = analysis.costs(decided.sizes_of(analysis.coupling))
    if output is not None:
        decided.save(output)
    record = prune_record(analysis, decided, after, Findings(), analysis.seconds)
    talk.show(record, text.print_plan, verbose)
    talk.warn_if_whole(decided.keep)


@app.command()
def prune(
    model: ModelArg,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The pruned model; default: NAME.pruned.onnx.")
    ] = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Replay a plan.")] = None,
    sparsity: SparsityOpt = None, target: TargetOpt = None, speedup: SpeedOpt = None, criterion: CriterionOpt = "auto",
    aggregate: AggregateOpt = "sum", normalise: NormaliseOpt = "mean", allocation: AllocationOpt = "auto",
    align: AlignOpt = "auto", floor: FloorOpt = 0.1, include: IncludeOpt = None, exclude: ExcludeOpt = None,
    input_shape: ShapeOpt = None, inputs: InputsOpt = None, provider: ProviderOpt = "cpu", trust: TrustOpt = False,
    threads: ThreadsOpt = None, batch: BatchOpt = None, seed: SeedOpt = 0, allow_io: AllowOpt = None,
    adapters: AdaptersOpt = True, turn: TurnOpt = True, vary: VaryOpt = True, seconds: SecondsOpt = 2.0,
    calibration: CalibrationOpt = None, preset: PresetOpt = None, tokenizer: TokenizerOpt = None,
    length: LengthOpt = None, samples: SamplesOpt = None, memory: MemoryOpt = 2.0, repair: RepairOpt = "auto",
    effort: EffortOpt = "medium", evaluate: EvaluateOpt = None, jobs: JobsOpt = 1, scheduler: SchedulerOpt = None,
    layers: LayersOpt = True, cleanup: CleanupOpt = True, pareto: ParetoOpt = None, points: PointsOpt = 6,
    labels: LabelsOpt = None, reinit: ReinitOpt = None, force: ForceOpt = False, report: ReportOpt = None,
    plots: PlotsOpt = None, machine: MachineOpt = None, at: AtOpt = None, json_: JsonOpt = False,
    quiet: QuietOpt = False, verbose: VerboseOpt = False,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run the result before it is written.")] = True,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Prove the groups by permuting them.")] = True,
    timing: Annotated[bool, typer.Option("--time/--no-time", help="Time both models.")] = True,
) -> None:
    """Prune a model, prove and time the result, and write it."""
    talk = Talk(json_, quiet, verbose)
    asked = calibrating_of(
        calibration, preset, tokenizer, length, samples, memory, repair, effort, seed, jobs, scheduler, labels, turn,
        vary,
    )
    model, target_path = as_onnx(model, output, input_shape, trust, talk)
    from graphprune.metric import find_metric
    from graphprune.output import guard
    from graphprune.pipeline import Checking, Choosing, Order, analyse, carry_out, runnable
    from graphprune.plan import PruningPlan
    from graphprune.report import text
    from graphprune.reporting import Reporting

    wanted = along(pareto, points, {"--output": output, "--plan": plan_file})
    if wanted is None:
        guard(target_path, model, plan_file, force)
    reporting = Reporting(report, plots, force, run, seconds, plan_file, pareto).guarded([model, target_path])
    if plan_file is not None and (sparsity is not None or target or speedup is not None):
        raise UsageError("--plan says what goes: give no --sparsity, --target or --speedup with it")
    choosing = None if plan_file is not None else choosing_of(
        sparsity, target, speedup, criterion, aggregate, normalise, allocation, align, floor, include, exclude, layers,
        machine, curve=wanted is not None,
    )
    decided = PruningPlan.load(plan_file) if plan_file is not None else None
    checking = Checking(run, prove, timing, seconds, find_metric(evaluate), cleanup)
    with talk.progress() as progress:
        looking = looking_of(input_shape, inputs, provider, threads, batch, seed, model, allow_io, at, reinit, adapters)
        looking = looking.allowing(decided.allow_io if decided is not None else ())
        analysis = runnable(analyse(model, looking, progress), run)
        order = Order(choosing or Choosing(), checking, asked, decided)
        if wanted is not None:
            return show_curve(talk, analysis, order, wanted, progress, reporting)
        result = carry_out(analysis, order, target_path, progress)
        wrong = reporting.attempt(analysis, result, target_path, progress)
    talk.show({**result.report, "output": str(target_path)}, text.print_prune, str(target_path), verbose)
    told(talk, result, speedup if machine is None else None, (target_path, wrong))


for _command in (compare, bench, pins, profile_machine, sweep, finetune, convert, export):
    app.command(_command.__name__.replace("_", "-"))(_command)


def main() -> None:
    """Run the command line; every error graphprune raises is one line, with its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            fail("interrupted, nothing was written", code)
    except GraphPruneError as error:
        code = fail(str(error), error.exit_code)
    except typer.Abort:
        code = fail("interrupted, nothing was written", _INTERRUPTED)
    except Exception as error:
        code = unforeseen(error)
    except KeyboardInterrupt:
        code = fail("interrupted, nothing was written", _INTERRUPTED)
    raise SystemExit(code if isinstance(code, int) else 0)
