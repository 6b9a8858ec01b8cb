"""Fine-tuning from file to file: a pruned ONNX model is tuned to the dense one or to labels, and written by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.labelled import inputs_of
from graphprune.calibrate.samples import Feed, Samples
from graphprune.calibrate.statistics import Watched
from graphprune.converters.augment import changing
from graphprune.converters.features import Matched, kept_slots, matched, shared
from graphprune.converters.lora import merge
from graphprune.converters.losses import Distance, kinds
from graphprune.converters.pytorch import to_module, write_back
from graphprune.converters.ranks import ALONE, Ranks
from graphprune.converters.restored import fold, restored
from graphprune.converters.subset import prepare
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.towards import penalty_of
from graphprune.converters.tune import Tuner
from graphprune.converters.tuning import Tuning
from graphprune.converters.tuning_data import Answer, Batches, open_tuning
from graphprune.errors import UsageError, ValidationError
from graphprune.execute import relative_error, session
from graphprune.model import ModelLike, load
from graphprune.normalize import normalize
from graphprune.plan import PruningPlan
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
    saving: Saving | None = None, plan: PruningPlan | None = None, towards: PruningPlan | None = None,
    ranks: Ranks = ALONE, progress: Progress = lambda text: None,
) -> Tuned:
    """Tune a model and return it with a record; the result is never worse on held-back samples than the start.

    >>> finetune("pruned.onnx", "dense.onnx", parse_calibration("train.npz"), Tuning(epochs=5)).record["loss"]
    ... # doctest: +SKIP
    [0.31, 0.12, 0.09, 0.08, 0.07, 0.07]

    Without labels the loss is the distance to the teacher's answers, which the teacher, run in onnxruntime, gives for
    each batch; with labels and a teacher it is both. A tenth of the samples, at most 2,000, is held back. `plan` says
    which slots of inner values the model kept, where these are an aim. `towards` is a plan that the model, a dense one,
    is prepared for: held-back samples judge it without what that removes. Raises UsageError, ModelError, PlanError,
    ValidationError.
    """
    start = load(model)
    dense = load(teacher) if teacher is not None else start
    samples = open_tuning(start, data, asked.batch, labels, asked.seed)
    fraction = min(_HELD, _MOST_HELD / samples.count) if samples.count else _HELD
    fit, held = samples.split(fraction, asked.seed)
    if held.count == 0:
        raise UsageError("tuning needs two samples or more, one of them to be held back")
    first = next(held.batches(asked.batch), None)
    if first is None:
        raise UsageError("tuning needs more samples: none is left to be held back")
    module = to_module(start)
    numbers = prepare(module, asked)
    distance, answer = _aim(module, (start, dense), first, asked, teacher is not None, plan)
    if asked.labels and teacher is None:
        answer = _nothing
    fitted = Batches(
        fit, answer, asked.batch, 1e9 * asked.memory, asked.seed, changing(asked.augment, inputs_of(first)), ranks
    )
    layers = restored(module, asked, towards is not None, fitted)
    asked = asked.settled(bool(layers))
    judged = Batches(held, answer, asked.batch, 1e9 * asked.memory, asked.seed, ranks=ranks)
    penalty = penalty_of(module, start, towards, asked.penalty, asked.strength) if towards is not None else None
    size = penalty.size(module) if penalty is not None else 0.0
    tuner = Tuner(module, fitted, judged, distance, asked, progress, ranks, penalty)
    saving = saving or Saving()
    state = tuner.run(saving.checkpoint, saving.resume)
    progress("comparing the result")
    removed = {} if penalty is None else {"removed_size": [size, penalty.size(module)]}
    merge(module)
    fold(module, layers)
    best = state.losses.index(state.best)
    tuned = write_back(module.to("cpu"), start) if best else start
    record = {
        "samples": samples.count, "held_back": held.count, "assumed": list(samples.assumed), "tuned_numbers": numbers,
        "restored_norms": len(layers), "lr": asked.rate,
        "epochs": state.epoch, "best_epoch": best, "loss": state.losses, "skipped_steps": state.skipped,
        "against": _words(asked, teacher is not None), "features": _compared(distance.matched),
        "divergence_before": _divergence(dense, start, held, asked.batch),
        "divergence_after": _divergence(dense, tuned, held, asked.batch), "module_error": _agree(module, tuned, first),
        **removed,
    }  # fmt: skip
    return Tuned(tuned, record)


def _aim(
    module: OnnxModule, models: tuple[ir.Model, ir.Model], first: Feed, asked: Tuning, taught: bool,
    plan: PruningPlan | None,
) -> tuple[Distance, Answer]:
    """Return the loss, and what the dense model answers to a feed: its outputs, and inner values that are an aim."""
    start, dense = (normalize(m) if asked.features else m for m in models)
    names = shared(start, dense, asked.features) if asked.features else []
    if names and not taught:
        raise UsageError("--features are the dense model's: give --teacher DENSE.onnx")
    ask = _answers(dense, names)
    told = ask(inputs_of(first))
    outputs = {k: v for k, v in told.items() if k not in names}
    inner = Matched()
    if names:
        module.watch(names)
        kept = kept_slots(dense, plan, names) if plan is not None else {}
        with torch.no_grad():
            inner = matched(names, module.eval()(**inputs_of(first)), told, kept, asked.feature_weight)
    alpha = 1.0 if not asked.labels else asked.alpha if taught else 0.0
    return Distance(kinds(outputs), asked.temperature, alpha, asked.smoothing, inner), lambda feed: inner.cut(ask(feed))


def _nothing(feed: Feed) -> dict[str, Any]:
    return {}


def _words(asked: Tuning, taught: bool) -> str:
    return " and ".join([*(["labels"] if asked.labels else []), *(["the dense model"] if taught else [])])


def _compared(inner: Matched) -> dict[str, str]:
    """Say of inner values how they were compared."""
    kept, similar = inner.kept, inner.similar
    return {n: "kept slots" if n in kept else "similarities" if n in similar else "values" for n in inner.names}


def _answers(model: ir.Model, inner: Sequence[str] = ()) -> Answer:
    """Return what runs a model: its outputs and inner values, for a feed without labels."""
    if inner:
        return Watched(model, [*(v.name or "" for v in model.graph.outputs), *inner], torch.get_num_threads())
    opened = session(model, Runtime(threads=torch.get_num_threads()))  # waiting threads would slow down torch's
    return lambda feed: run(opened, feed)


def _agree(module: Any, tuned: ir.Model, feed: Feed) -> float:
    """Run the written model at both optimisation levels beside the module; raises ValidationError."""
    with torch.no_grad():
        made = {k: v.numpy() for k, v in module(**inputs_of(feed)).items() if isinstance(v, torch.Tensor)}
    worst = 0.0
    for optimise in (True, False):
        got = run(session(tuned, Runtime(optimise=optimise)), inputs_of(feed))
        error, name = relative_error({k: v for k, v in got.items() if k in made}, made)
        worst = max(worst, error)
        if not error <= _APART:
            raise ValidationError(f"output {name!r} of the tuned file is {error:.1e} from the module's: not written")
    return worst


def _divergence(dense: ir.Model, other: ir.Model, held: Samples, batch: int) -> list[dict[str, Any]]:
    left, right, found = _answers(dense), _answers(other), Comparison()
    for feed in islice(held.batches(batch), _COMPARED):
        inputs = inputs_of(feed)
        found.add(left(inputs), right(inputs), inputs)
    return [d.record() for d in found.divergences()]
