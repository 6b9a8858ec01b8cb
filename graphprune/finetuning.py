"""The command `finetune`: tune a pruned model to the dense one, or to labels, and write it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.errors import UsageError
from graphprune.terminal import JsonOpt, LengthOpt, ModelArg, PresetOpt, QuietOpt, Talk, TokenizerOpt

if TYPE_CHECKING:
    from graphprune.converters.tune import Tuning

_Path = Path | None


def finetune(
    model: ModelArg,
    data: Annotated[str, typer.Option("--data", help="Samples: what `prune --calibration` takes.", show_default=False)],
    teacher: Annotated[_Path, typer.Option("--teacher", help="The dense model, whose outputs are the aim.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Labels are the aim: their key in an .npz.")] = None,
    output: Annotated[_Path, typer.Option("--output", "-o", help="Default: NAME.tuned.onnx.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the samples.")] = 5,
    batch: Annotated[int, typer.Option("--batch", help="Samples per step.")] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Largest learning rate.")] = 1e-3,
    decay: Annotated[float, typer.Option("--decay", help="Weight decay of AdamW.")] = 0.01,
    temperature: Annotated[float, typer.Option("--temperature", help="Of softmax in the distance of logits.")] = 2.0,
    norms: Annotated[str, typer.Option("--norms", help="Batch normalisations: train or frozen.")] = "train",
    only: Annotated[str | None, typer.Option("--only", help="bias, norm, patterns of names; by commas.")] = None,
    patience: Annotated[int, typer.Option("--patience", help="Epochs without gain, then it stops.")] = 3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Compute in bfloat16 where that is safe.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
    checkpoint: Annotated[_Path, typer.Option("--checkpoint", help="Keep the state here after every epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of samples.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0: one per core.")] = 0,
    preset: PresetOpt = None, tokenizer: TokenizerOpt = None, length: LengthOpt = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Tune a pruned model to the dense model's outputs, or to labels; needs torch."""
    talk = Talk(json_, quiet)
    target = output if output is not None else model.with_name(f"{model.stem}.tuned.onnx")
    _agree(teacher, labels, checkpoint, resume)
    from graphprune.calibrate.choice import parse_calibration
    from graphprune.converters.pytorch import need_torch
    from graphprune.output import guard, guard_data
    from graphprune.tuned import write

    need_torch("fine-tuning")
    from graphprune.converters.finetune import Saving
    from graphprune.converters.finetune import finetune as tune_file
    from graphprune.converters.tune import Tuning

    for other in (model, teacher):
        if other is not None:
            guard(target, other, force=force)
    asked = Tuning(
        epochs, batch, lr, decay, temperature, norms, tuple((only or "").split(",")) if only else (), patience,
        bfloat16, labels is not None, device, seed,
    )
    _prepare(asked, threads)
    with talk.progress() as progress:
        from graphprune.model import load

        guard_data(target, load(model), model)
        chosen = parse_calibration(data, preset, tokenizer, length)
        tuned = tune_file(
            model, teacher, chosen, asked, labels=labels, saving=Saving(checkpoint, resume), progress=progress
        )
        write(tuned.model, target, model)
    talk.show({**tuned.record, "output": str(target)}, _print)


def _agree(teacher: Path | None, labels: str | None, checkpoint: Path | None, resume: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if (teacher is None) == (labels is None):
        raise UsageError("say what to tune to: --teacher DENSE.onnx, or --labels KEY of the .npz of --data")
    if resume and (checkpoint is None or not checkpoint.is_file()):
        raise UsageError("--resume goes on from the file of --checkpoint, which is not there")


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
    for before, after in zip(record["divergence_before"], record["divergence_after"], strict=True):
        line = f"{before['output']}: cosine {before['cosine']:.4f} -> {after['cosine']:.4f}"
        if before["kl"] is not None and after["kl"] is not None:
            line += f", kl {before['kl']:.4f} -> {after['kl']:.4f}"
            line += f", same answer {before['agree']:.1%} -> {after['agree']:.1%}"
        console.print(line)
    console.print(f"written: {record['output']}")
