"""The command `finetune`: tune a pruned model to the dense one, to labels, or to both, and write it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.errors import UsageError
from graphprune.terminal import (
    AlignOpt,
    FloorOpt,
    ForceOpt,
    JsonOpt,
    LengthOpt,
    ModelArg,
    PresetOpt,
    QuietOpt,
    Talk,
    TokenizerOpt,
)
from graphprune.tuned import Files, Order, Stepping, carry_out

_Path = Path | None
_Words = str | None


def finetune(
    model: ModelArg,
    data: Annotated[str, typer.Option("--data", help="Samples: what `prune --calibration` takes.", show_default=False)],
    teacher: Annotated[_Path, typer.Option("--teacher", help="The dense model, whose outputs are the aim.")] = None,
    labels: Annotated[_Words, typer.Option("--labels", help="Labels are the aim: their key in an .npz.")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="The teacher's share beside labels: 0.5.")] = None,
    smoothing: Annotated[float, typer.Option("--smoothing", help="Of labels: shared among all classes.")] = 0.0,
    temperature: Annotated[float, typer.Option("--temperature", help="Of softmax in the distance of logits.")] = 2.0,
    features: Annotated[_Words, typer.Option("--features", help="Inner values as an aim: patterns, by commas.")] = None,
    feature_weight: Annotated[float, typer.Option("--feature-weight", help="Their weight in the loss.")] = 1.0,
    plan: Annotated[_Path, typer.Option("--plan", help="The plan that it was pruned by: which slots to match.")] = None,
    prune_to: Annotated[
        list[str] | None, typer.Option("--prune-to", help="Prune it, a little at a time: macs=0.25; repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="In so many steps: 5.")] = None,
    by: Annotated[float | None, typer.Option("--by", help="Or by this fraction each step: 0.05.")] = None,
    align: AlignOpt = "auto", floor: FloorOpt = 0.1,
    towards: Annotated[_Path, typer.Option("--towards", help="A plan to prepare the dense model for.")] = None,
    penalty: Annotated[str, typer.Option("--penalty", help="On what that removes: greg (growing) or mask.")] = "greg",
    strength: Annotated[float | None, typer.Option("--strength", help="Of the penalty: greg 0.1, mask 1.")] = None,
    output: Annotated[_Path, typer.Option("--output", "-o", help="Default: NAME.tuned.onnx.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the samples.")] = 5,
    batch: Annotated[int, typer.Option("--batch", help="Samples per step.")] = 64,
    lr: Annotated[float | None, typer.Option("--lr", help="Largest learning rate: 1e-3, 4e-3 if restored.")] = None,
    decay: Annotated[float, typer.Option("--decay", help="Weight decay of AdamW.")] = 0.01,
    norms: Annotated[str, typer.Option("--norms", help="Normalisations: auto, restored, train, frozen.")] = "auto",
    only: Annotated[_Words, typer.Option("--only", help="bias, norm, patterns of names; by commas.")] = None,
    lora: Annotated[int, typer.Option("--lora", min=0, help="Rank of updates that are tuned in place of weights.")] = 0,
    lora_on: Annotated[_Words, typer.Option("--lora-on", help="Of which weights: patterns, by commas.")] = None,
    augment: Annotated[_Words, typer.Option("--augment", help="Change images: mirror,shift=N.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Epochs without gain, then it stops.")] = None,
    precision: Annotated[_Words, typer.Option("--precision", help="float32, or bfloat16 or float16 if safe.")] = None,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="The same as --precision bfloat16.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
    checkpoint: Annotated[_Path, typer.Option("--checkpoint", help="Keep the state here (steps: a folder).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of samples.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0: one per core.")] = 0,
    memory: Annotated[float, typer.Option("--memory", help="GB that samples may take; more are streamed.")] = 2.0,
    preset: PresetOpt = None, tokenizer: TokenizerOpt = None, length: LengthOpt = None, force: ForceOpt = False,
    json_: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Tune a pruned model to the dense one, to labels, or both, or prune and tune in turn; needs torch."""
    given = dict(locals())
    if bfloat16 and precision not in (None, "bfloat16"):
        raise UsageError(f"--bfloat16 and --precision {precision} contradict each other: give one of them")
    given["precision"] = "bfloat16" if bfloat16 else precision or "float32"
    order = Order(
        Files(**{k: given[k] for k in Files.__dataclass_fields__}),
        Stepping(prune_to, steps, by, align, floor),
        (data, preset, tokenizer, length),
        {k: v for k, v in given.items() if k in _TUNING},
        threads,
    )
    carry_out(order, Talk(json_, quiet))


_TUNING = (
    "alpha", "augment", "batch", "decay", "device", "epochs", "feature_weight", "features", "labels",
    "lora", "lora_on", "lr", "memory", "norms", "only", "patience", "penalty", "precision", "seed", "smoothing",
    "strength", "temperature",
)  # fmt: skip
