"""The command `finetune`: tune a pruned model to the dense one, to labels, or to both, and write it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.errors import UsageError
from graphprune.terminal import ForceOpt, JsonOpt, LengthOpt, ModelArg, PresetOpt, QuietOpt, Talk, TokenizerOpt

if TYPE_CHECKING:
    from graphprune.converters.tuning import Tuning

_Path = Path | None
_Words = str | None


def finetune(
    model: ModelArg,
    data: Annotated[str, typer.Option("--data", help="Samples: what `prune --calibration` takes.", show_default=False)],
    teacher: Annotated[_Path, typer.Option("--teacher", help="The dense model, whose outputs are the aim.")] = None,
    labels: Annotated[_Words, typer.Option("--labels", help="Labels are the aim: their key in an .npz.")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="The teacher's share beside labels: 0.5.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Of softmax in the distance of logits.")] = 2.0,
    features: Annotated[_Words, typer.Option("--features", help="Inner values as an aim: patterns, by commas.")] = None,
    feature_weight: Annotated[float, typer.Option("--feature-weight", help="Their weight in the loss.")] = 1.0,
    plan: Annotated[_Path, typer.Option("--plan", help="The plan that it was pruned by: which slots to match.")] = None,
    output: Annotated[_Path, typer.Option("--output", "-o", help="Default: NAME.tuned.onnx.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the samples.")] = 5,
    batch: Annotated[int, typer.Option("--batch", help="Samples per step.")] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Largest learning rate.")] = 1e-3,
    decay: Annotated[float, typer.Option("--decay", help="Weight decay of AdamW.")] = 0.01,
    norms: Annotated[str, typer.Option("--norms", help="Batch normalisations: train or frozen.")] = "train",
    only: Annotated[_Words, typer.Option("--only", help="bias, norm, patterns of names; by commas.")] = None,
    lora: Annotated[int, typer.Option("--lora", min=0, help="Rank of updates that are tuned in place of weights.")] = 0,
    lora_on: Annotated[_Words, typer.Option("--lora-on", help="Of which weights: patterns, by commas.")] = None,
    augment: Annotated[_Words, typer.Option("--augment", help="Change images: mirror,shift=N.")] = None,
    patience: Annotated[int, typer.Option("--patience", help="Epochs without gain, then it stops.")] = 3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Compute in bfloat16 where that is safe.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
    checkpoint: Annotated[_Path, typer.Option("--checkpoint", help="Keep the state here after every epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of samples.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0: one per core.")] = 0,
    memory: Annotated[float, typer.Option("--memory", help="GB that samples may take; more are streamed.")] = 2.0,
    preset: PresetOpt = None, tokenizer: TokenizerOpt = None, length: LengthOpt = None, force: ForceOpt = False,
    json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Tune a pruned model to the dense model's outputs, to labels, or both; needs torch."""
    asked = {
        "epochs": epochs, "batch": batch, "lr": lr, "decay": decay, "temperature": temperature, "norms": norms,
        "only": _words(only), "patience": patience, "bfloat16": bfloat16, "labels": labels is not None,
        "device": device, "seed": seed, "alpha": 0.5 if alpha is None else alpha, "features": _words(features),
        "feature_weight": feature_weight, "augment": _words(augment), "memory": memory,
        "lora": lora, "lora_on": _words(lora_on),
    }  # fmt: skip
    if alpha is not None and (teacher is None or labels is None):
        raise UsageError("--alpha shares the loss between --teacher and --labels: give both")
    files = {
        "model": model, "teacher": teacher, "labels": labels, "plan": plan, "checkpoint": checkpoint, "resume": resume,
        "output": output, "force": force,
    }  # fmt: skip
    _carry_out(asked, files, (data, preset, tokenizer, length), threads, Talk(json_, quiet))


def _carry_out(
    asked: dict[str, Any], files: dict[str, Any], data: tuple[Any, ...], threads: int, talk: Talk
) -> None:
    """Tune, write and tell; every process of a launch tunes, only the first one writes and tells."""
    model, teacher, labels = files["model"], files["teacher"], files["labels"]
    target = files["output"] if files["output"] is not None else model.with_name(f"{model.stem}.tuned.onnx")
    _agree(files, asked)
    from graphprune.calibrate.choice import parse_calibration
    from graphprune.converters.pytorch import need_torch
    from graphprune.output import guard, guard_data
    from graphprune.plan import PruningPlan
    from graphprune.tuned import write

    need_torch("fine-tuning")
    from graphprune.converters.finetune import Saving
    from graphprune.converters.finetune import finetune as tune_file
    from graphprune.converters.ranks import joined
    from graphprune.converters.tuning import Tuning

    for other in (model, teacher):
        if other is not None:
            guard(target, other, files["plan"], files["force"])
    Tuning(**asked)
    ranks, asked["device"] = joined(asked["device"])
    tuning = Tuning(**asked)
    _prepare(tuning, threads)
    with (talk if ranks.first else Talk(False, True)).progress() as progress:
        from graphprune.model import load

        guard_data(target, load(model), model)
        plan = PruningPlan.load(files["plan"]) if files["plan"] is not None else None
        tuned = tune_file(
            model, teacher, parse_calibration(*data), tuning, labels=labels, plan=plan, ranks=ranks,
            saving=Saving(files["checkpoint"], files["resume"]), progress=progress,
        )  # fmt: skip
        if not ranks.first:
            return
        write(tuned.model, target, model)
    talk.show({**tuned.record, "output": str(target)}, _print)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _agree(files: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UsageError for options that do not go together."""
    if files["teacher"] is None and files["labels"] is None:
        raise UsageError("say what to tune to: --teacher DENSE.onnx, --labels KEY of the .npz of --data, or both")
    if files["resume"] and (files["checkpoint"] is None or not files["checkpoint"].is_file()):
        raise UsageError("--resume goes on from the file of --checkpoint, which is not there")
    if files["plan"] is not None and not asked["features"]:
        raise UsageError("--plan says which slots of --features to match: give --features PATTERN")


def _prepare(asked: Tuning, threads: int) -> None:
    """Set the number of threads; raise UsageError where the device cannot be used."""
    import importlib

    torch = importlib.import_module("torch")
    if threads:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=asked.device)
    except Exception as error:
        said = str(error).splitlines()[0][:200]
        raise UsageError(f"--device {asked.device!r} cannot be used: {said}") from error


def _print(console: Any, record: dict[str, Any]) -> None:
    """Print what tuning did, output by output."""
    losses = record["loss"]
    console.print(
        f"tuned {record['tuned_numbers']:,} numbers on {record['samples']} samples to {record['against']}, "
        f"{record['epochs']} epochs, best after {record['best_epoch']}"
    )
    console.print(f"held-back loss {losses[0]:.4f} -> {min(losses):.4f}")
    for name, how in record["features"].items():
        console.print(f"inner value {name}: by {how}")
    for before, after in zip(record["divergence_before"], record["divergence_after"], strict=True):
        line = f"{before['output']}: cosine {before['cosine']:.4f} -> {after['cosine']:.4f}"
        if before["kl"] is not None and after["kl"] is not None:
            line += f", kl {before['kl']:.4f} -> {after['kl']:.4f}"
            line += f", same answer {before['agree']:.1%} -> {after['agree']:.1%}"
        console.print(line)
    console.print(f"written: {record['output']}")
