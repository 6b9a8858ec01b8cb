"""The command `sweep`: many models, criteria and budgets, over many workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune.errors import UsageError
from graphprune.terminal import (
    AllowOpt,
    BatchOpt,
    CalibrationOpt,
    EffortOpt,
    ExcludeOpt,
    FloorOpt,
    IncludeOpt,
    JobsOpt,
    JsonOpt,
    LengthOpt,
    MemoryOpt,
    PresetOpt,
    QuietOpt,
    SamplesOpt,
    SchedulerOpt,
    SecondsOpt,
    ShapeOpt,
    Talk,
    TokenizerOpt,
)

_List = list[str] | None


def sweep(
    models: Annotated[list[Path], typer.Argument(help="Models, or folders of models.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of results; what is in it is not redone.")],
    criterion: Annotated[str, typer.Option("--criterion", help="Criteria, such as obs,wanda,l2.")] = "auto",
    sparsity: Annotated[str | None, typer.Option("--sparsity", help="Fractions to remove, such as 0.3,0.5.")] = None,
    target: Annotated[
        _List, typer.Option("--target", help="macs=0.5, or macs=0.5,params=0.6 for both at once; repeatable.")
    ] = None,
    speedup: Annotated[str | None, typer.Option("--speedup", help="Measured, such as 1.5,2: one job only.")] = None,
    allocation: Annotated[str, typer.Option("--allocation", help="As `prune` has it; several by commas.")] = "auto",
    repair: Annotated[str, typer.Option("--repair", help="As `prune` has it; several by commas.")] = "auto",
    seed: Annotated[str, typer.Option("--seed", help="Seeds, such as 0,1,2.")] = "0",
    jobs: JobsOpt = 1, scheduler: SchedulerOpt = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each task.")] = 1,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep the pruned models, too.")] = False,
    timing: Annotated[bool, typer.Option("--time", help="Time all results at the end, one after the other.")] = False,
    seconds: SecondsOpt = 2.0,
    force: Annotated[bool, typer.Option("--force", help="Do what was done before again.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table here, too, as CSV.")] = None,
    align: Annotated[str, typer.Option("--align", help="As `prune` has it.")] = "auto", floor: FloorOpt = 0.1,
    include: IncludeOpt = None, exclude: ExcludeOpt = None, input_shape: ShapeOpt = None, batch: BatchOpt = None,
    allow_io: AllowOpt = None, calibration: CalibrationOpt = None, preset: PresetOpt = None,
    tokenizer: TokenizerOpt = None, length: LengthOpt = None, samples: SamplesOpt = None, memory: MemoryOpt = 2.0,
    effort: EffortOpt = "medium",
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Prove the groups by permuting them.")] = True,
    json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Prune models in every combination of criteria and budgets; results are files, and a table ranks them."""
    talk = Talk(json_, quiet)
    from graphprune.allocate.align import detect_alignment
    from graphprune.inputs import parse_input_shapes
    from graphprune.pins import model_files
    from graphprune.scale import Pool
    from graphprune.scale.sweep import Keeping, combinations
    from graphprune.scale.sweep import sweep as sweeping

    pool = Pool(jobs, scheduler)
    budgets = _budgets(sparsity, target, speedup, pool.alone)
    varied: dict[str, list[Any]] = {
        "seed": [_whole(s, "--seed") for s in _words(seed)], "repair": _words(repair),
        "criterion": _words(criterion), "allocation": _words(allocation),
    }
    fixed = {
        "align": detect_alignment() if align == "auto" else _whole(align, "--align"), "floor": floor,
        "include": include, "exclude": exclude, "batch": batch, "allow_io": allow_io, "calibration": calibration,
        "input_shapes": {k: list(v) for k, v in parse_input_shapes(input_shape or []).items()} or None,
        "preset": preset, "tokenizer": tokenizer, "length": length, "samples": samples, "memory": memory,
        "effort": effort, "prove": prove, "threads": threads,
    }
    tasks, broken = combinations(model_files(models), varied, budgets, fixed)
    with talk.progress() as progress:
        pool.size()  # a scheduler that does not answer is told before anything is written
        records = sweeping(tasks, Keeping(output, save_models, force, seconds if timing else 0.0), pool, progress)
    _tell(talk, output, [*records, *broken], csv)


def _tell(talk: Talk, folder: Path, records: list[dict[str, Any]], csv: Path | None) -> None:
    """Print the table of all results, and write it; raises UsageError where nothing was done."""
    from graphprune.report.sweep import print_sweep
    from graphprune.scale.ranking import as_csv, rows_of
    from graphprune.writing import put

    rows = rows_of(records)
    failed = [row for row in rows if row["error"]]
    reused = sum(row["reused"] for row in rows)
    counts = {"computed": len(rows) - reused - len(failed), "reused": reused, "failed": len(failed)}
    if csv is not None:
        put(csv, as_csv(rows))
    talk.show({"folder": str(folder), "counts": counts, "results": rows}, print_sweep)
    if failed and len(failed) == len(rows):
        raise UsageError(f"none of {len(rows)} tasks was done; the first: {failed[0]['error']}")


def _budgets(
    sparsity: str | None, target: _List, speedup: str | None, alone: bool
) -> list[dict[str, Any]]:
    """Read all budgets; raises UsageError."""
    from graphprune.options import parse_targets

    found: list[dict[str, Any]] = [
        *({"sparsity": _number(s, "--sparsity")} for s in _words(sparsity or "")),
        *({"targets": parse_targets(_words(text))} for text in target or ()),
        *({"speedup": _number(s, "--speedup")} for s in _words(speedup or "")),
    ]
    if not alone and any("speedup" in each or "latency" in each.get("targets", ()) for each in found):
        raise UsageError("a speed-up is measured, and other workers would disturb that: use --jobs 1, or target MACs")
    if not found:
        raise UsageError("say how much to prune by --sparsity 0.3,0.5, --target macs=0.5 (repeatable) or --speedup")
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a number") from None


def _whole(text: str, option: str) -> int:
    if not text.isdigit():
        raise UsageError(f"{option} {text!r} is not a whole number")
    return int(text)
