"""What the command `finetune` does: read its options, tune, write the model, and tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import UsageError, ValidationError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.converters.tuning import Tuning
    from graphprune.plan import PruningPlan
    from graphprune.terminal import Talk

_WORDS = ("augment", "features", "lora_on", "only")
_STEPS = 5


@dataclass(frozen=True)
class Files:
    """The files of a command, and what may happen to them."""

    model: Path
    teacher: Path | None
    plan: Path | None
    towards: Path | None
    output: Path | None
    checkpoint: Path | None
    resume: bool
    force: bool

    @property
    def target(self) -> Path:
        """Where the tuned model goes."""
        return self.output if self.output is not None else self.model.with_name(f"{self.model.stem}.tuned.onnx")


@dataclass(frozen=True)
class Stepping:
    """How the model is pruned between tuning, if it is."""

    targets: list[str] | None
    steps: int | None
    by: float | None
    align: str
    floor: float


@dataclass(frozen=True)
class Order:
    """All that was asked for on the command line; `tuning` has options of `Tuning` as they were given."""

    files: Files
    stepping: Stepping
    data: tuple[Any, ...]
    tuning: Mapping[str, Any]
    threads: int

    def asked(self) -> Tuning:
        """Return the options of tuning; raises UsageError."""
        from graphprune.converters.tuning import PENALTIES, Tuning

        given = {k: tuple(v.split(",")) if v and k in _WORDS else v for k, v in self.tuning.items()}
        given = {k: () if k in _WORDS and v is None else v for k, v in given.items()}
        given["labels"] = given["labels"] is not None
        given["alpha"] = 0.5 if given["alpha"] is None else given["alpha"]
        if given["strength"] is None:
            given["strength"] = PENALTIES.get(given["penalty"], 1.0)
        return Tuning(**given)


def carry_out(order: Order, talk: Talk) -> None:
    """Tune, write and tell; every process of a launch tunes, only the first one writes and tells."""
    _agree(order)
    from graphprune.converters.pytorch import need_torch
    from graphprune.output import guard, guard_data, guard_plan

    need_torch("fine-tuning")
    from graphprune.converters.ranks import joined, launched, leave

    files, asked = order.files, order.asked()
    for other in (files.model, files.teacher):
        if other is not None:
            guard(files.target, other, files.plan or files.towards, files.force)
    stepping = bool(order.stepping.targets)
    planned = files.target.with_suffix(".plan.json") if stepping else None
    if planned is not None:
        guard_plan(planned, files.model)
    if stepping and launched() > 1:
        raise UsageError("--prune-to works in one process: prune first, then tune in several")
    ranks, device = joined(asked.device)
    _prepare(device, order.threads)
    with (talk if ranks.first else type(talk)(False, True)).progress() as progress:
        from graphprune.model import load

        guard_data(files.target, load(files.model), files.model)
        model, record, plan = (_in_steps if stepping else _at_once)(order, asked, (ranks, device), progress)
        leave()
        if not ranks.first:
            return
        write(model, files.target, files.model)
        if plan is not None and planned is not None:
            plan.save(planned)
        if stepping:
            record = {**record, "plan": str(planned) if plan is not None else None}
    if ranks.world > 1:
        record = {**record, "processes": ranks.world}
    talk.show({**record, "output": str(files.target)}, _print)


def _at_once(
    order: Order, asked: Tuning, place: tuple[Any, str], progress: Callable[[str], None]
) -> tuple[ir.Model, Mapping[str, Any], None]:
    from dataclasses import replace

    from graphprune.calibrate.choice import parse_calibration
    from graphprune.converters.finetune import Saving, finetune
    from graphprune.plan import PruningPlan

    files = order.files
    plan, towards = (PruningPlan.load(p) if p is not None else None for p in (files.plan, files.towards))
    teacher = files.teacher or (files.model if towards is not None and order.tuning["labels"] is None else None)
    done = finetune(
        files.model, teacher, parse_calibration(*order.data), replace(asked, device=place[1]), ranks=place[0],
        labels=order.tuning["labels"], plan=plan, towards=towards, saving=Saving(files.checkpoint, files.resume),
        progress=progress,
    )  # fmt: skip
    return done.model, done.record, None


def _in_steps(
    order: Order, asked: Tuning, place: tuple[Any, str], progress: Callable[[str], None]
) -> tuple[ir.Model, Mapping[str, Any], PruningPlan | None]:
    from graphprune.calibrate.choice import parse_calibration
    from graphprune.converters.stepwise import Steps, prune_in_steps
    from graphprune.options import parse_targets

    said, files = order.stepping, order.files
    align = said.align
    if align != "auto" and not (align.isdigit() and int(align) > 0):
        raise UsageError(f"--align {align!r} is neither auto nor a whole number above 0")
    options = {"align": align if align == "auto" else int(align), "floor": said.floor}
    target = parse_targets(said.targets or ())
    steps = Steps.by(target, said.by, options) if said.by is not None else Steps(target, said.steps or _STEPS, options)
    done = prune_in_steps(
        files.model, steps, parse_calibration(*order.data), asked, labels=order.tuning["labels"],
        folder=files.checkpoint, resume=files.resume, progress=progress,
    )  # fmt: skip
    return done.model, done.record, done.plan


def write(model: ir.Model, target: Path, source: Path) -> None:
    """Write a model that was tuned from the file `source`; raises ValidationError if onnx's checker refuses it.

    >>> write(tuned, Path("tuned.onnx"), Path("pruned.onnx"))  # doctest: +SKIP

    Weights go into a file of their own where those of the source do, or where they are too large for one file.
    """
    from graphprune import __version__
    from graphprune.model import EMBED_LIMIT, has_external_data, load, publish, tensor_bytes, write_into
    from graphprune.output import MARK, workspace
    from graphprune.validate import check_file

    model.metadata_props.setdefault(MARK, f"{__version__}: tuned")
    external = has_external_data(load(source)) or tensor_bytes(model) > EMBED_LIMIT
    with workspace(target.absolute().parent) as folder:
        written = write_into(model, folder, target.name, external=external)
        check = check_file(written)
        if not check.passed and check_file(source).passed:
            raise ValidationError(f"the tuned model is not valid ONNX: {check.detail}")
        publish(written, target)


def _agree(order: Order) -> None:
    """Raise UsageError for options that do not go together."""
    files, given, said = order.files, order.tuning, order.stepping
    itself = bool(said.targets) or files.towards is not None
    if files.teacher is None and given["labels"] is None and not itself:
        raise UsageError("say what to tune to: --teacher DENSE.onnx, --labels KEY of the .npz of --data, or both")
    cut = said.steps is not None or said.by is not None
    both = given["labels"] is not None and (files.teacher is not None or bool(said.targets))
    there = files.checkpoint is not None and (files.checkpoint.is_dir() if said.targets else files.checkpoint.is_file())
    place = files.checkpoint.absolute().parent if files.checkpoint is not None else Path()
    wrong = {
        f"--checkpoint {files.checkpoint}: there is no folder {place}": not place.is_dir(),
        "--alpha shares the loss between --teacher and --labels: give both": given["alpha"] is not None and not both,
        "--resume goes on from what --checkpoint names, which is not there": files.resume and not there,
        "--plan says which slots of --features to match: give --features PATTERN": files.plan and not given["features"],
        "--steps and --by are two ways to say the same: give one": said.steps is not None and said.by is not None,
        "--steps and --by cut what --prune-to asks for: give --prune-to macs=0.25, say": cut and not said.targets,
        "--align and --floor are for --prune-to": (said.align, said.floor) != ("auto", 0.1) and not said.targets,
        "--prune-to prunes the dense model, which is the teacher: give no --teacher": said.targets and files.teacher,
        "--prune-to makes its own plan: give no --plan, no --towards": said.targets and (files.plan or files.towards),
        "--penalty and --strength are for --towards PLAN": not files.towards
            and (given["strength"] is not None or given["penalty"] != "greg"),
        "--towards tunes all weights: give no --only and no --lora": files.towards and (given["only"] or given["lora"]),
        "--towards prepares the dense model for a plan: give no --features": files.towards and given["features"],
    }  # fmt: skip
    for text, is_so in wrong.items():
        if is_so:
            raise UsageError(text)


def _prepare(device: str, threads: int) -> None:
    """Set the number of threads; raise UsageError where the device cannot be used."""
    import importlib

    torch = importlib.import_module("torch")
    if threads:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device)
    except Exception as error:
        said = str(error).splitlines()[0][:200]
        raise UsageError(f"--device {device!r} cannot be used: {said}") from error


def _print(console: Any, record: dict[str, Any]) -> None:
    """Print what tuning did, output by output."""
    for k, step in enumerate(record.get("steps", ())):
        left = step["after"]["macs"] / max(step["dense"]["macs"], 1)
        console.print(
            f"step {k + 1}: {left:.3f} of the MACs, {step['epochs']} epochs, "
            f"held-back loss {step['loss'][0]:.4f} -> {min(step['loss']):.4f}"
        )
    losses = record["loss"]
    console.print(
        f"tuned {record['tuned_numbers']:,} numbers on {record['samples']} samples to {record['against']}, "
        f"{record['epochs']} epochs, best after {record['best_epoch']}"
    )
    if record["restored_norms"]:
        console.print(f"normalisations were put back behind {record['restored_norms']} layers and folded again")
    console.print(f"held-back loss {losses[0]:.4f} -> {min(losses):.4f}")
    if record["skipped_steps"]:
        console.print(f"{record['skipped_steps']} steps were left out: their gradients overflowed float16")
    if "removed_size" in record:
        before, after = record["removed_size"]
        console.print(f"weights that the plan removes, root of the mean square: {before:.2e} -> {after:.2e}")
    for name, how in record["features"].items():
        console.print(f"inner value {name}: by {how}")
    for before, after in zip(record["divergence_before"], record["divergence_after"], strict=True):
        line = f"{before['output']}: cosine {before['cosine']:.4f} -> {after['cosine']:.4f}"
        if before["kl"] is not None and after["kl"] is not None:
            line += f", kl {before['kl']:.4f} -> {after['kl']:.4f}"
            line += f", same answer {before['agree']:.1%} -> {after['agree']:.1%}"
        console.print(line)
    if "plan" in record:
        console.print(f"plan: {record['plan'] or record['no_plan']}")
    console.print(f"written: {record['output']}")
