"""The command line: reads options, calls the pipeline, prints one table or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.errors import GraphPruneError, UsageError, ValidationError

if TYPE_CHECKING:
    from graphprune.pipeline import Analysis, Choosing, Looking

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Prune any ONNX model: whole channels, heads and neurons go, and the result is run, proven and timed.",
)

ModelArg = Annotated[Path, typer.Argument(help="The model, an .onnx file.", show_default=False)]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
VerboseOpt = Annotated[bool, typer.Option("--verbose", "-v", help="Print more.")]
ShapeOpt = Annotated[
    list[str] | None, typer.Option("--input-shape", help="NAME:1,3,224,224 for an input with open sizes; repeatable.")
]
InputsOpt = Annotated[Path | None, typer.Option("--inputs", help="An .npz with one array per input, to run with.")]
ProviderOpt = Annotated[str, typer.Option("--provider", help="cpu, cuda, tensorrt, openvino, or onnxruntime's name.")]
ThreadsOpt = Annotated[int, typer.Option("--threads", help="Threads of onnxruntime; 0: one per core.")]
BatchOpt = Annotated[int | None, typer.Option("--batch", min=1, help="Samples per run where that is open.")]
SeedOpt = Annotated[int, typer.Option("--seed", help="Seed of made-up inputs and of the proof's permutations.")]
SecondsOpt = Annotated[float, typer.Option("--seconds", help="About how long to time.")]
SparsityOpt = Annotated[float | None, typer.Option("--sparsity", help="Fraction to remove from every group, [0, 1).")]
TargetOpt = Annotated[
    list[str] | None, typer.Option("--target", help="macs=F, params=F or bytes=F: the fraction to keep; repeatable.")
]
SpeedOpt = Annotated[float | None, typer.Option("--speedup", help="How many times faster, measured on this machine.")]
CriterionOpt = Annotated[str, typer.Option("--criterion", help="l1, l2, lamp, fpgm, bn_scale or random.")]
AggregateOpt = Annotated[str, typer.Option("--aggregate", help="Over a group's weights: sum, mean, max or prod.")]
NormaliseOpt = Annotated[
    str, typer.Option("--normalise", help="Within a group: none, sum, mean, max, gaussian or lamp.")
]
AllocationOpt = Annotated[str, typer.Option("--allocation", help="uniform: every group alike; global: one threshold.")]
AlignOpt = Annotated[str, typer.Option("--align", help="Keep multiples of this; auto: of the machine's vector width.")]
FloorOpt = Annotated[float, typer.Option("--floor", help="Fraction of every group that always stays.")]
IncludeOpt = Annotated[list[str] | None, typer.Option("--include", help="Only groups with this pattern; repeatable.")]
ExcludeOpt = Annotated[list[str] | None, typer.Option("--exclude", help="Not groups with this pattern; repeatable.")]


class Talk:
    """Where output goes: tables or JSON to standard output, progress and errors to standard error."""

    def __init__(self, as_json: bool, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """Yield a function that says what is going on, with a spinner and the time it has taken."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda text: None
            return
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("loading", total=None)
            yield lambda text: bar.update(task, description=text)

    def show(self, record: dict[str, Any], printer: Callable[..., None], *args: Any) -> None:
        """Print a record, as JSON or by a table printer."""
        if self.as_json:
            print(json.dumps(_plain(record)))
        elif not self.quiet:
            from rich.console import Console

            width = None if sys.stdout.isatty() else 120
            printer(Console(highlight=False, markup=False, soft_wrap=True, width=width), record, *args)


def _plain(value: Any) -> Any:
    """Make infinities and NaN, which JSON does not have, None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _looking(
    input_shape: list[str] | None, inputs: Path | None, provider: str, threads: int, batch: int | None, seed: int,
    model: Path,
) -> Looking:
    from graphprune.feeds import read_inputs
    from graphprune.inputs import parse_input_shapes
    from graphprune.model import load
    from graphprune.pipeline import Looking
    from graphprune.runtime import Runtime

    arrays = read_inputs(inputs, load(model)) if inputs is not None else {}
    return Looking(parse_input_shapes(input_shape or []), arrays, batch, (), Runtime(provider, threads), seed)


def parse_targets(texts: list[str]) -> dict[str, float]:
    """Read `macs=0.5` and the like; raises UsageError.

    >>> parse_targets(["macs=0.5"])
    {'macs': 0.5}
    """
    out = {}
    for text in texts:
        kind, _, number = text.partition("=")
        try:
            fraction = float(number)
        except ValueError:
            raise UsageError(f"target {text!r} is not of the form macs=0.5") from None
        if kind not in ("macs", "params", "bytes"):
            raise UsageError(f"target {text!r}: {kind!r} is not one of macs, params, bytes")
        if not 0 < fraction <= 1:
            raise UsageError(f"target {text!r}: {number} is not a fraction to keep, in (0, 1]")
        out[kind] = fraction
    return out


def _choosing(
    sparsity: float | None, target: list[str] | None, speedup: float | None, criterion: str, aggregate: str,
    normalise: str, allocation: str, align: str, floor: float, include: list[str] | None, exclude: list[str] | None,
) -> Choosing:
    from graphprune.pipeline import Choosing

    if sum(x is not None for x in (sparsity, speedup)) + bool(target) != 1:
        raise UsageError("say how much to prune by one of --sparsity, --target, --speedup or --plan")
    if align != "auto" and not (align.isdigit() and int(align) > 0):
        raise UsageError(f"--align {align!r} is neither auto nor a whole number above 0")
    if allocation not in ("uniform", "global"):
        raise UsageError(f"--allocation {allocation!r} is neither uniform nor global")
    return Choosing(
        sparsity, parse_targets(target or []), speedup, criterion, aggregate, normalise,
        "global" if allocation == "global" else "uniform", "auto" if align == "auto" else int(align), floor,
        tuple(include or ()), tuple(exclude or ()),
    )


@app.command()
def inspect(
    model: ModelArg, json_: JsonOpt = False, quiet: QuietOpt = False, verbose: VerboseOpt = False,
    input_shape: ShapeOpt = None, batch: BatchOpt = None,
    graph: Annotated[Path | None, typer.Option("--graph", help="Write the graph: .graphml or .dot.")] = None,
) -> None:
    """Show every channel group of a model, what is pinned, and why."""
    talk = Talk(json_, quiet, verbose)
    from graphprune.pipeline import analyse
    from graphprune.report import text
    from graphprune.report.record import inspect_record

    with talk.progress() as progress:
        looking = _looking(input_shape, None, "cpu", 1, batch, 0, model)
        analysis = analyse(model, looking, progress)
        record = inspect_record(analysis)
        if graph is not None:
            from graphprune.graph import export

            export(analysis.coupling, graph)
    talk.show(record, text.print_inspect, verbose)


@app.command()
def explain(
    model: ModelArg,
    name: Annotated[str, typer.Argument(help="A group, value, node, or VALUE:AXIS.", show_default=False)],
    other: Annotated[str | None, typer.Argument(help="Another: why are the two coupled?")] = None,
    json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None,
) -> None:
    """Show the path of operators that couples axes, or why an axis is pinned."""
    talk = Talk(json_, quiet)
    from graphprune.graph import explain as find
    from graphprune.pipeline import analyse

    with talk.progress() as progress:
        analysis = analyse(model, _looking(input_shape, None, "cpu", 1, None, 0, model), progress)
        found = find(analysis.coupling, name, other)
    record = {
        "name": name,
        "other": other,
        "explanations": [
            {"subject": e.subject, "verdict": e.verdict, "path": [str(s) for s in e.steps]} for e in found
        ],
    }

    def show(console: Any, record: dict[str, Any]) -> None:
        for e in record["explanations"]:
            console.print(f"{e['subject']}: {e['verdict']}")
            for step in e["path"]:
                console.print(f"    {step}")

    talk.show(record, show)


@app.command()
def prove(
    model: ModelArg, json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None,
    inputs: InputsOpt = None, threads: ThreadsOpt = 1, batch: BatchOpt = None, seed: SeedOpt = 0,
) -> None:
    """Prove that the groups are right: permuting all of them must not change the outputs."""
    talk = Talk(json_, quiet)
    from graphprune import prove as proving
    from graphprune.pipeline import analyse
    from graphprune.report.record import proof_record

    with talk.progress() as progress:
        analysis = analyse(model, _looking(input_shape, inputs, "cpu", threads, batch, seed, model), progress)
        proof = proving.prove(analysis.model, analysis.coupling, analysis.reference, seed=seed, progress=progress)
    record = {**proof_record(proof), "assumed": list(analysis.assumed)}

    def show(console: Any, record: dict[str, Any]) -> None:
        word = "passed" if record["passed"] else "FAILED"
        console.print(
            f"{word}: permuting {record['groups']} groups changes the output by {record['max_relative_error']:.1e} "
            f"(allowed {record['tolerance']:.0e}, rounding alone {record['rounding_noise']:.0e})"
        )
        for text in record["assumed"]:
            console.print(f"assumed input {text}")

    talk.show(record, show)
    if not proof.passed:
        raise ValidationError(
            f"the permutation proof failed: relative error {proof.max_relative_error:.1e} in {proof.worst_output!r}; "
            f"wrong groups: {', '.join(proof.culprits) or 'not found alone'}"
        )


@app.command()
def plan(
    model: ModelArg,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan here, as JSON.")] = None,
    json_: JsonOpt = False, quiet: QuietOpt = False, verbose: VerboseOpt = False,
    sparsity: SparsityOpt = None, target: TargetOpt = None, speedup: SpeedOpt = None, criterion: CriterionOpt = "l2",
    aggregate: AggregateOpt = "sum", normalise: NormaliseOpt = "mean", allocation: AllocationOpt = "uniform",
    align: AlignOpt = "auto", floor: FloorOpt = 0.1, include: IncludeOpt = None, exclude: ExcludeOpt = None,
    input_shape: ShapeOpt = None, inputs: InputsOpt = None, provider: ProviderOpt = "cpu", threads: ThreadsOpt = 1,
    batch: BatchOpt = None, seed: SeedOpt = 0,
) -> None:
    """Decide what would be pruned, and write that as a plan, without pruning."""
    talk = Talk(json_, quiet, verbose)
    choosing = _choosing(
        sparsity, target, speedup, criterion, aggregate, normalise, allocation, align, floor, include, exclude
    )
    from graphprune.pipeline import analyse, make_plan
    from graphprune.report import text
    from graphprune.report.record import Findings, prune_record

    with talk.progress() as progress:
        analysis = analyse(model, _looking(input_shape, inputs, provider, threads, batch, seed, model), progress)
        decided = make_plan(analysis, choosing, progress)
        after = analysis.costs(decided.sizes_of(analysis.coupling))
    if output is not None:
        _guard(output, model, None, force=True)
        decided.save(output)
    record = prune_record(analysis, decided, after, Findings(), analysis.seconds)
    talk.show(record, text.print_plan, verbose)


def _guard(output: Path, model: Path, plan_file: Path | None, force: bool) -> None:
    """Raise UsageError if writing the output would destroy something or cannot work."""
    for other, what in ((model, "the model itself"), (plan_file, "the plan")):
        if other is not None and output.exists() and other.exists() and output.samefile(other):
            raise UsageError(f"{output}: is {what}: give another output")
    if output.is_dir():
        raise UsageError(f"{output}: is a folder: give a file name")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: cannot be written: no folder {output.parent}")
    if output.exists() and output.stat().st_size and not force and not _ours(output):
        raise UsageError(f"{output}: exists and was not written by graphprune: give another name, or --force")


def _ours(path: Path) -> bool:
    """Return whether a file is a model that graphprune wrote."""
    from graphprune.model import load
    from graphprune.pipeline import MARK

    try:
        return MARK in load(path).metadata_props
    except GraphPruneError:
        return False


@app.command()
def prune(
    model: ModelArg,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The pruned model; default: NAME.pruned.onnx.")
    ] = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Replay a plan.")] = None,
    sparsity: SparsityOpt = None, target: TargetOpt = None, speedup: SpeedOpt = None, criterion: CriterionOpt = "l2",
    aggregate: AggregateOpt = "sum", normalise: NormaliseOpt = "mean", allocation: AllocationOpt = "uniform",
    align: AlignOpt = "auto", floor: FloorOpt = 0.1, include: IncludeOpt = None, exclude: ExcludeOpt = None,
    input_shape: ShapeOpt = None, inputs: InputsOpt = None, provider: ProviderOpt = "cpu", threads: ThreadsOpt = 1,
    batch: BatchOpt = None, seed: SeedOpt = 0, seconds: SecondsOpt = 2.0,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run the result before it is written.")] = True,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Prove the groups by permuting them.")] = True,
    timing: Annotated[bool, typer.Option("--time/--no-time", help="Time both models.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json_: JsonOpt = False, quiet: QuietOpt = False, verbose: VerboseOpt = False,
) -> None:
    """Prune a model, prove and time the result, and write it."""
    talk = Talk(json_, quiet, verbose)
    target_path = output if output is not None else model.with_name(f"{model.stem}.pruned.onnx")
    _guard(target_path, model, plan_file, force)
    from graphprune.pipeline import Checking, analyse, make_plan, run_plan
    from graphprune.plan import PruningPlan
    from graphprune.report import text

    if plan_file is not None and (sparsity is not None or target or speedup is not None):
        raise UsageError("--plan says what goes: give no --sparsity, --target or --speedup with it")
    choosing = None
    if plan_file is None:
        choosing = _choosing(
            sparsity, target, speedup, criterion, aggregate, normalise, allocation, align, floor, include, exclude
        )
    decided = PruningPlan.load(plan_file) if plan_file is not None else None
    with talk.progress() as progress:
        looking = _looking(input_shape, inputs, provider, threads, batch, seed, model)
        analysis = _runnable(analyse(model, looking, progress), run)
        if decided is None:
            assert choosing is not None
            decided = make_plan(analysis, choosing, progress)
        result = run_plan(analysis, decided, Checking(run, prove, timing, seconds), target_path, progress)
    talk.show({**result.report, "output": str(target_path)}, text.print_prune, str(target_path), verbose)


def _runnable(analysis: Analysis, run: bool) -> Analysis:
    """Ask for the dense model's outputs early, so that a model that does not run is told before any work."""
    if run and analysis.coupling.groups:
        analysis.reference.plain  # noqa: B018
    return analysis


@app.command()
def compare(
    before: ModelArg, after: ModelArg, json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None,
    inputs: InputsOpt = None, provider: ProviderOpt = "cpu", threads: ThreadsOpt = 1, batch: BatchOpt = None,
    seed: SeedOpt = 0, seconds: SecondsOpt = 2.0,
) -> None:
    """Compare two models of the same inputs: costs, memory, latency, and how far their outputs differ."""
    talk = Talk(json_, quiet)
    from graphprune.bench import compare_models
    from graphprune.report import text

    with talk.progress() as progress:
        looking = _looking(input_shape, inputs, provider, threads, batch, seed, before)
        record = compare_models(before, after, looking, seconds, progress)

    def show(console: Any, record: dict[str, Any]) -> None:
        console.print(text.costs_table(record))
        console.print(text.speed_line(record))
        console.print(f"outputs differ by {record['max_relative_difference']:.2g} of their largest magnitude")

    talk.show(record, show)


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(help="One or more models.", show_default=False)],
    json_: JsonOpt = False, quiet: QuietOpt = False, input_shape: ShapeOpt = None, inputs: InputsOpt = None,
    provider: ProviderOpt = "cpu", threads: ThreadsOpt = 1, batch: BatchOpt = None, seed: SeedOpt = 0,
    seconds: SecondsOpt = 2.0,
) -> None:
    """Time models in turn, on the same inputs."""
    talk = Talk(json_, quiet)
    from graphprune.bench import bench_models
    from graphprune.report import text

    with talk.progress() as progress:
        looking = _looking(input_shape, inputs, provider, threads, batch, seed, models[0])
        record = bench_models(models, looking, seconds, progress)
    talk.show(record, text.print_bench)


def main() -> None:
    """Run the command line; every error graphprune raises is one line, with its exit code."""
    try:
        app(standalone_mode=True)
    except GraphPruneError as error:
        if "--json" in sys.argv and not isinstance(error, ValidationError):
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        print(f"graphprune: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        if os.environ.get("GRAPHPRUNE_DEBUG"):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"graphprune: internal error, nothing was written: {said} (GRAPHPRUNE_DEBUG=1 shows where)", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("graphprune: interrupted, nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
