"""Fine-tuning from file to file: a pruned ONNX model is tuned to the dense one or to labels, and written by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.samples import Feed, Samples
from graphprune.converters.losses import Distance, kinds
from graphprune.converters.pytorch import to_module, write_back
from graphprune.converters.subset import choose
from graphprune.converters.tune import Tuner, Tuning
from graphprune.converters.tuning_data import LABELS, Batches, open_tuning
from graphprune.errors import UsageError, ValidationError
from graphprune.execute import relative_error, session
from graphprune.model import ModelLike, load
from graphprune.pipeline import prune
from graphprune.quality import Comparison
from graphprune.runtime import Runtime, run

Progress = Callable[[str], None]
_HELD = 0.1
_MOST_HELD = 2000
_COMPARED = 16
_APART = 1e-3
"""How far the file and the module may be apart, in units of the largest output."""


@dataclass(frozen=True)
class Tuned:
    """A tuned model and what was seen."""

    model: ir.Model
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Saving:
    """Where the state is kept while tuning runs, and whether to go on from there."""

    checkpoint: Path | None = None
    resume: bool = False


def finetune(
    model: ModelLike, teacher: ModelLike | None, data: Calibration, asked: Tuning, *, labels: str | None = None,
    saving: Saving | None = None, progress: Progress = lambda text: None,
) -> Tuned:
    """Tune a model and return it with a record; the result is never worse on held-back samples than the start.

    >>> finetune("pruned.onnx", "dense.onnx", parse_calibration("train.npz"), Tuning(epochs=5)).record["loss"]
    ... # doctest: +SKIP
    [0.31, 0.12, 0.09, 0.08, 0.07, 0.07]

    Without labels the loss is the distance to the teacher's answers, which the teacher, run in onnxruntime, gives for
    each batch. A tenth of the samples, at most 2,000, is held back. Raises UsageError, ModelError, ValidationError.
    """
    start = load(model)
    dense = load(teacher) if teacher is not None else start
    samples = open_tuning(start, data, asked.batch, labels, asked.seed)
    fraction = min(_HELD, _MOST_HELD / samples.count) if samples.count else _HELD
    fit, held = samples.split(fraction, asked.seed)
    if held.count == 0:
        raise UsageError("tuning needs two samples or more, one of them to be held back")
    answer = _answers(dense)
    first = next(held.batches(asked.batch), None)
    if first is None:
        raise UsageError("tuning needs more samples: none is left to be held back")
    module = to_module(start)
    numbers = choose(module, asked.only)
    tuner = Tuner(
        module, Batches(fit, answer, asked.batch, seed=asked.seed), Batches(held, answer, asked.batch, seed=asked.seed),
        Distance(kinds(answer(first)), asked.temperature), asked, progress,
    )
    saving = saving or Saving()
    state = tuner.run(saving.checkpoint, saving.resume)
    progress("comparing the result")
    tuned = write_back(module.to("cpu"), start)
    error = _agree(module, tuned, first)
    record = {
        "samples": samples.count, "held_back": held.count, "assumed": list(samples.assumed), "tuned_numbers": numbers,
        "epochs": state.epoch, "best_epoch": state.losses.index(state.best), "loss": state.losses,
        "against": "labels" if asked.labels else "the dense model",
        "divergence_before": _divergence(dense, start, held, asked.batch),
        "divergence_after": _divergence(dense, tuned, held, asked.batch), "module_error": error,
    }  # fmt: skip
    return Tuned(tuned, record)


def prune_in_steps(
    model: ModelLike, target: Mapping[str, float], steps: int, data: Calibration, asked: Tuning,
    *, progress: Progress = lambda text: None, **options: Any,
) -> Tuned:
    """Prune in equal steps and tune to the dense model after each, as Adapt-Pruner does (arXiv 2502.03460).

    >>> prune_in_steps("dense.onnx", {"macs": 0.25}, 5, parse_calibration("x.npz"), Tuning(epochs=1)).record["steps"]
    ... # doctest: +SKIP

    `target` is what is left at the end, of the dense model; every step keeps the same fraction of what it finds.
    `options` are those of `graphprune.prune`. The record is that of the last step, with all of them in `steps`.
    """
    if steps < 1:
        raise UsageError(f"{steps} steps: give 1 or more")
    dense = now = load(model)
    records: list[Mapping[str, Any]] = []
    for k in range(steps):
        progress(f"step {k + 1}/{steps}: pruning")
        part = {name: keep ** (1 / steps) for name, keep in target.items()}
        smaller = prune(now, target=part, calibration=data.data, progress=progress, **options)
        done = finetune(smaller.ir_model, dense, data, asked, progress=progress)
        records.append({**done.record, "after": smaller.report["after"]})
        now = done.model
    return Tuned(now, {**records[-1], "steps": records})


def _inputs(feed: Feed) -> dict[str, Any]:
    return {k: v for k, v in feed.items() if k != LABELS}


def _answers(model: ir.Model) -> Callable[[Feed], Mapping[str, Any]]:
    opened = session(model, Runtime(threads=0))
    return lambda feed: run(opened, _inputs(feed))


def _agree(module: Any, tuned: ir.Model, feed: Feed) -> float:
    """Run the written model at both optimisation levels beside the module; raises ValidationError."""
    import torch

    with torch.no_grad():
        made = {k: v.numpy() for k, v in module(**_inputs(feed)).items() if isinstance(v, torch.Tensor)}
    worst = 0.0
    for optimise in (True, False):
        got = run(session(tuned, Runtime(optimise=optimise)), _inputs(feed))
        error, name = relative_error({k: v for k, v in got.items() if k in made}, made)
        worst = max(worst, error)
        if not error <= _APART:
            raise ValidationError(f"output {name!r} of the tuned file is {error:.1e} from the module's: not written")
    return worst


def _divergence(dense: ir.Model, other: ir.Model, held: Samples, batch: int) -> list[dict[str, Any]]:
    left, right, found = _answers(dense), _answers(other), Comparison()
    for feed in islice(held.batches(batch), _COMPARED):
        found.add(left(feed), right(feed), _inputs(feed))
    return [d.record() for d in found.divergences()]
