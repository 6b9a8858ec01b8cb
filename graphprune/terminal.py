"""What the commands share: their options, how these are read, and where output goes."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast, get_args

import typer

from graphprune.errors import UsageError

if TYPE_CHECKING:
    from graphprune.options import Calibrating, Choosing, Looking

ModelArg = Annotated[Path, typer.Argument(help="The model, an .onnx file.", show_default=False)]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
VerboseOpt = Annotated[bool, typer.Option("--verbose", "-v", help="Print more.")]
ShapeOpt = Annotated[
    list[str] | None, typer.Option("--input-shape", help="NAME:1,3,224,224 for an input with open sizes; repeatable.")
]
InputsOpt = Annotated[Path | None, typer.Option("--inputs", help="An .npz with one array per input, to run with.")]
ProviderOpt = Annotated[str, typer.Option("--provider", help="cpu, cuda, tensorrt, openvino, or onnxruntime's name.")]
ThreadsOpt = Annotated[
    int | None,
    typer.Option("--threads", help="Threads; 0: one per core; default: one, but one per core where nothing is timed."),
]
ProvidersOpt = Annotated[
    list[str] | None, typer.Option("--provider", help="cpu, cuda, ...; several by commas or repeated; default: cpu.")
]
ThreadCountsOpt = Annotated[
    list[str] | None,
    typer.Option("--threads", help="Threads, such as 1,2,4 (0: one per core); also repeatable; default: 1."),
]
BatchesOpt = Annotated[
    list[str] | None, typer.Option("--batch", help="Samples per run where that is open, such as 1,8; also repeatable.")
]
ReportOpt = Annotated[
    Path | None, typer.Option("--report", help="Write a page about it, one .html that loads nothing.")
]
PlotsOpt = Annotated[Path | None, typer.Option("--plots", help="Write its charts as PNG into this folder.")]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
BatchOpt = Annotated[int | None, typer.Option("--batch", min=1, help="Samples per run where that is open.")]
SeedOpt = Annotated[int, typer.Option("--seed", help="Seed of made-up inputs and of the proof's permutations.")]
SecondsOpt = Annotated[float, typer.Option("--seconds", help="About how long to time.")]
SparsityOpt = Annotated[float | None, typer.Option("--sparsity", help="Fraction to remove from every group, [0, 1).")]
TargetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="macs, params, bytes, latency, memory or energy-proxy =F: the fraction to keep; repeatable."
    ),
]
MachineOpt = Annotated[
    Path | None, typer.Option("--machine", help="Times of another machine, by profile-machine: latency is for that.")
]
AtOpt = Annotated[
    list[str] | None, typer.Option("--at", help="batch=8,threads=4,NAME=SIZE: how the model will be run; repeatable.")
]
SpeedOpt = Annotated[float | None, typer.Option("--speedup", help="How many times faster, measured on this machine.")]
CriterionOpt = Annotated[
    str,
    typer.Option(
        "--criterion",
        help="obs; by what layers read: wanda, flap, activation, apoz, cfsp; by weights: l1, l2, lamp, fpgm, bn_scale; "
        "random; by gradients: taylor, taylor2, fisher, group_taylor, group_taylor_vector, nirvana, snip, grasp, crop, "
        "synflow; auto: obs or l2.",
    ),
]
LabelsOpt = Annotated[
    str | None, typer.Option("--labels", help="Labels for criteria from gradients: their key in the .npz.")
]
ReinitOpt = Annotated[
    int | None, typer.Option("--reinit", help="Prune before training: random weights by this seed; no repair.")
]
CalibrationOpt = Annotated[
    str | None,
    typer.Option("--calibration", help="Data: a file, a folder, ood:PATH; none: made up; noise; off: not calibrated."),
]
PresetOpt = Annotated[str | None, typer.Option("--preset", help="How images are scaled: imagenet, 0..1, -1..1, ...")]
TokenizerOpt = Annotated[str | None, typer.Option("--tokenizer", help="A tokenizer.json, for text.")]
LengthOpt = Annotated[int | None, typer.Option("--length", help="Length of sequences made of text or sound.")]
SamplesOpt = Annotated[int | None, typer.Option("--samples", help="At most so many samples (512; made-up: 2048).")]
MemoryOpt = Annotated[float, typer.Option("--memory", help="GB that statistics may take at a time.")]
RepairOpt = Annotated[
    str, typer.Option("--repair", help="auto, none, weights, fold, bias, symmetric, sequential, matched.")
]
EffortOpt = Annotated[
    str, typer.Option("--effort", help="low, medium or high: how long trials, search and repair may take.")
]
ParetoOpt = Annotated[
    Path | None, typer.Option("--pareto", help="Make the whole curve down to what is asked for, in this folder.")
]
PointsOpt = Annotated[int, typer.Option("--points", min=2, help="Plans of the curve.")]
EvaluateOpt = Annotated[
    str | None,
    typer.Option("--evaluate", help="Your own metric, module:function: takes a model's path, returns numbers."),
]
JobsOpt = Annotated[
    int, typer.Option("--jobs", min=0, help="Processes that share the work; 1: none beside this one; 0: one per core.")
]
SchedulerOpt = Annotated[
    str | None, typer.Option("--scheduler", help="Share the work over a running Dask cluster: tcp://HOST:PORT.")
]
TrustOpt = Annotated[bool, typer.Option("--trust", help="Load a source that runs code of its own (pickles).")]
AggregateOpt = Annotated[str, typer.Option("--aggregate", help="Over a group's weights: sum, mean, max or prod.")]
NormaliseOpt = Annotated[
    str, typer.Option("--normalise", help="Within a group: none, sum, mean, max, gaussian or lamp.")
]
AllocationOpt = Annotated[
    str, typer.Option("--allocation", help="error: least summed error; uniform; global: one threshold; precrop; auto.")
]
AlignOpt = Annotated[str, typer.Option("--align", help="Keep multiples of this; auto: of the machine's vector width.")]
FloorOpt = Annotated[float, typer.Option("--floor", help="Fraction of every group that always stays.")]
IncludeOpt = Annotated[list[str] | None, typer.Option("--include", help="Only groups with this pattern; repeatable.")]
LayersOpt = Annotated[
    bool, typer.Option("--layers/--no-layers", help="Let residual branches go as a whole where trials say so.")
]
CleanupOpt = Annotated[
    bool, typer.Option("--cleanup/--no-cleanup", help="Remove what does nothing any more; outputs stay the same.")
]
ExcludeOpt = Annotated[list[str] | None, typer.Option("--exclude", help="Not groups with this pattern; repeatable.")]
AllowOpt = Annotated[
    list[str] | None,
    typer.Option("--allow-io", help="Inputs and outputs whose sizes may change (state), by pattern; repeatable."),
]
AdaptersOpt = Annotated[
    bool, typer.Option("--adapters/--no-adapters", help="Free widths behind inputs and outputs that keep theirs.")
]
TurnOpt = Annotated[
    bool, typer.Option("--turn/--no-turn", help="Turn widths that have no basis of their own: heads, linear streams.")
]
VaryOpt = Annotated[
    bool, typer.Option("--vary/--no-vary", help="Use sequences of tokens a second time, with some random tokens.")
]


class Talk:
    """Where output goes: tables or JSON to standard output, progress and errors to standard error.

    `answered` says that the one JSON object has been printed.
    """

    answered: ClassVar[bool] = False

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

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[str], None]]:
        """Yield a function that says which of a known number of things is begun, with a bar."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda text: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            begun = itertools.count()
            yield lambda text: bar.update(task, description=text, completed=next(begun))

    def warn(self, message: str) -> None:
        """Say something to a person on standard error."""
        if not self.quiet:
            print(f"graphprune: {message}", file=sys.stderr)

    def warn_if_whole(self, keep: Mapping[str, object]) -> None:
        """Say so if a plan removes nothing."""
        if not keep:
            self.warn("nothing is removed: alignment and floor leave every group whole; --align 1 allows any count")

    def show(self, record: dict[str, Any], printer: Callable[..., None], *args: Any) -> None:
        """Print a record, as JSON or by a table printer."""
        if self.as_json:
            from graphprune.report.record import plain

            Talk.answered = True
            print(json.dumps(plain(record)))
        elif not self.quiet:
            from rich.console import Console

            width = None if sys.stdout.isatty() else 120
            printer(Console(highlight=False, markup=False, soft_wrap=True, width=width), record, *args)


def looking_of(
    input_shape: list[str] | None, inputs: Path | None, provider: str, threads: int | None, batch: int | None,
    seed: int, model: Path, allow_io: Iterable[str] | None = None, at: list[str] | None = None,
    reinit: int | None = None, adapters: bool = True,
) -> Looking:
    """Read the options that say how a model is looked at and run; raises UsageError."""
    from graphprune.deployment import parse_at
    from graphprune.feeds import read_inputs
    from graphprune.inputs import parse_input_shapes
    from graphprune.model import load
    from graphprune.options import Looking
    from graphprune.runtime import Runtime

    arrays = read_inputs(inputs, load(model)) if inputs is not None else {}
    shapes, runtime = parse_input_shapes(input_shape or []), Runtime(provider, 1 if threads is None else threads)
    looking = Looking(
        shapes, arrays, batch, tuple(allow_io or ()), runtime, seed, threads=threads, reinit=reinit, adapters=adapters
    )
    return parse_at(at).looking(looking) if at else looking


def choosing_of(
    sparsity: float | None, target: list[str] | None, speedup: float | None, criterion: str, aggregate: str,
    normalise: str, allocation: str, align: str, floor: float, include: list[str] | None, exclude: list[str] | None,
    layers: bool = True, machine: Path | None = None, curve: bool = False,
) -> Choosing:
    """Read the options that say what goes; raises UsageError. A `curve` need not be told where it ends."""
    from graphprune.options import Allocation, Choosing, parse_targets

    aimed = bool(target) or speedup is not None
    if (sparsity is not None) == aimed and not (curve and not aimed):
        raise UsageError("say how much to prune by one of --sparsity and --plan, or by --target, --speedup or both")
    if align != "auto" and not (align.isdigit() and int(align) > 0):
        raise UsageError(f"--align {align!r} is neither auto nor a whole number above 0")
    if allocation not in get_args(Allocation):
        raise UsageError(f"--allocation {allocation!r}: choose {', '.join(get_args(Allocation))}")
    return Choosing(
        sparsity, parse_targets(target or []), speedup, criterion, aggregate, normalise,
        cast(Allocation, allocation), "auto" if align == "auto" else int(align), floor,
        tuple(include or ()), tuple(exclude or ()), layers, machine,
    )


def calibrating_of(
    calibration: str | None, preset: str | None, tokenizer: str | None, length: int | None, samples: int | None,
    memory: float, repair: str, effort: str, seed: int, jobs: int = 1, scheduler: str | None = None,
    labels: str | None = None, turn: bool = True, vary: bool = True,
) -> Calibrating:
    """Read the options of calibration and repair; raises UsageError."""
    from graphprune.options import Calibrating
    from graphprune.scale import Pool

    return Calibrating(
        calibration, preset, tokenizer, length, samples, memory, cast(Any, repair), cast(Any, effort), seed,
        Pool(jobs, scheduler), labels, turn=turn, vary=vary,
    )


def fail(message: str, code: int) -> int:
    """Say what went wrong in one line, and as the one JSON object if that was asked for and none was printed."""
    if "--json" in sys.argv and not Talk.answered:
        print(json.dumps({"error": message, "exit_code": code}))
    print(f"graphprune: {message}", file=sys.stderr)
    return code


def unforeseen(error: Exception) -> int:
    """Tell of a wrong command line, or of a mistake of ours."""
    told = getattr(error, "format_message", None)
    if told is not None:
        if len(sys.argv) < 2:
            error.show()  # type: ignore[attr-defined]
            return 2
        return fail(f"{' '.join(told().split())} (see graphprune --help)", 2)
    if os.environ.get("GRAPHPRUNE_DEBUG"):
        raise error
    if isinstance(error, BrokenPipeError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return 1
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return fail(f"internal error, nothing was written: {said} (GRAPHPRUNE_DEBUG=1 shows where)", 1)
