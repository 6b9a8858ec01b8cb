"""Gradients of an ONNX model's loss by its weights, summed over samples batch by batch: what criteria read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphprune.calibrate.labelled import inputs_of
from graphprune.calibrate.samples import Feed, Samples, rows_of
from graphprune.converters.own_labels import Loss
from graphprune.converters.pytorch import to_module
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Tensor
from graphprune.errors import GraphPruneError, ModelError, UsageError
from graphprune.score.gradients import (
    COOLED,
    FLOW,
    MEAN,
    OUTPUT,
    PARTS,
    SQUARES,
    TIMES_GRADIENT,
    TIMES_WEIGHTS,
    Array,
    Gradients,
)

Progress = Callable[[str], None]
Weights = dict[str, Tensor]
COOL = 200.0
_PARTS = 16
_SINGLY = 128
"""Samples that are looked at one by one, evenly spaced."""


@dataclass(frozen=True)
class Asked:
    """Which statistics; `batch` samples go into one run; `labels`: they stand in the feeds."""

    needs: Sequence[str]
    batch: int = 16
    labels: bool = False
    seed: int = 0


def gradients(
    model: ir.Model, samples: Samples | None, asked: Asked, ones: Feed | None = None,
    progress: Progress = lambda text: None,
) -> Gradients:
    """Return the statistics that are asked for, one array of its shape for each weight.

    >>> gradients(model, samples, Asked([MEAN])).of[MEAN]["conv1.weight"].shape  # doctest: +SKIP
    (64, 3, 7, 7)

    The module is in evaluation mode: batch normalisations use their running statistics. Every batch is let go of
    before the next; one statistic takes as much memory as the weights. `ones` is what SynFlow feeds. Raises UsageError
    without torch, where labels do not fit and where no sample is given, ModelError for operators without a torch rule
    or without a second derivative, and for gradients that are not finite.
    """
    module = to_module(model)
    module.eval()
    if not dict(module.named_parameters()):
        raise UsageError("the model has no weights in floating point that can be trained, so it has no gradients")
    if FLOW in asked.needs:
        return Gradients(flow=Flowing(module.double(), ones or {}))
    if samples is None:
        raise UsageError("criteria from gradients need samples: --calibration DATA, or none for made-up ones")
    passes = Passes(module.float(), samples, asked, Loss.of(module, samples, asked.labels, asked.seed), progress)
    found: dict[str, Weights] = {}
    parts: dict[tuple[str, int], Any] = {}
    try:
        if MEAN in asked.needs:
            found[MEAN] = passes.gradient()
        if SQUARES in asked.needs:
            found[SQUARES] = passes.squares()
        if PARTS in asked.needs:
            parts = passes.parts()
        if TIMES_WEIGHTS in asked.needs:
            weights = {n: w.detach() for n, w in passes.weights.items()}
            found[TIMES_WEIGHTS] = passes.times(weights, 1.0)
        for name, temperature in ((TIMES_GRADIENT, 1.0), (COOLED, COOL)):
            if name in asked.needs:
                found[name] = passes.times(passes.gradient(temperature), temperature)
        if OUTPUT in asked.needs:
            found[OUTPUT] = passes.mean(lambda f, k: passes.first(passes.loss.output(f)))
    except GraphPruneError:
        raise
    except RuntimeError as error:
        said = str(error).splitlines()[0][:200]
        raise ModelError(f"torch cannot differentiate this model as often as is needed: {said}") from error
    of = {name: {n: w.numpy() for n, w in weights.items()} for name, weights in found.items()}
    return Gradients(_finite(of), parts, None, passes.loss.said(asked.needs))


def _finite(of: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    for statistic, arrays in of.items():
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ModelError(f"the {statistic} of weight {name!r} is not finite: check the samples and the model")
    return of


@dataclass
class Passes:
    """Runs over the samples; every method is one or two."""

    module: OnnxModule
    samples: Samples
    asked: Asked
    loss: Loss
    progress: Progress
    weights: Weights = field(init=False)

    def __post_init__(self) -> None:
        held = dict(self.module.named_parameters())
        self.weights = {self.module.onnx_names[key]: w for key, w in held.items()}

    def first(self, value: Tensor, deep: bool = False) -> Weights:
        """Return the gradient of a number by all weights; 0 for those that it does not depend on."""
        if not value.requires_grad:
            return {n: torch.zeros_like(w) for n, w in self.weights.items()}
        found = torch.autograd.grad(value, list(self.weights.values()), create_graph=deep, allow_unused=True)
        return {
            n: torch.zeros_like(w) if g is None else g
            for (n, w), g in zip(self.weights.items(), found, strict=True)
        }

    def feeds(self, samples: Samples, size: int) -> Iterator[tuple[int, Feed, int]]:
        """Yield (number, feed, samples in it)."""
        for k, feed in enumerate(samples.batches(size)):
            self.progress(f"gradients, batch {k + 1}")
            yield k, feed, rows_of(feed, samples.axes)

    def mean(self, gradient: Callable[[Feed, int], Weights]) -> Weights:
        """Return the mean over samples of what a batch's mean loss gives."""
        total, count = {n: torch.zeros_like(w) for n, w in self.weights.items()}, 0
        for k, feed, rows in self.feeds(self.samples, self.asked.batch):
            for n, g in gradient(feed, k).items():
                total[n].add_(g.detach(), alpha=rows)
            count += rows
        if not count:
            raise UsageError("criteria from gradients need samples, and there are none")
        return {n: t / count for n, t in total.items()}

    def gradient(self, temperature: float = 1.0) -> Weights:
        """Return the gradient of the mean loss."""
        return self.mean(lambda f, k: self.first(self.loss.value(f, k, temperature)))

    def squares(self) -> Weights:
        """Return the mean of squared gradients of single samples."""
        total, count = {n: torch.zeros_like(w) for n, w in self.weights.items()}, 0
        some = self.samples.limited(_SINGLY, self.asked.seed)
        for k, feed, _ in self.feeds(some, 1):
            for n, g in self.first(self.loss.value(feed, k, drawn=True)).items():
                total[n].addcmul_(g, g)
            count += 1
        return {n: t / max(count, 1) for n, t in total.items()}

    def parts(self) -> dict[tuple[str, int], Any]:
        """Return sums of gradient times weight onto the slots of each axis, part by part."""
        count = self.samples.count or sum(rows for _, _, rows in self.feeds(self.samples, self.asked.batch))
        size = max(1, min(self.asked.batch, -(-count // _PARTS)))
        batches = -(-count // size)
        each = -(-batches // _PARTS)
        stream = self.feeds(self.samples, size)
        rows: dict[tuple[str, int], list[Array]] = {}
        while part := list(islice(stream, each)):
            total = {n: torch.zeros_like(w) for n, w in self.weights.items()}
            for k, feed, number in part:
                for n, g in self.first(self.loss.value(feed, k)).items():
                    total[n].add_(g, alpha=number)
            for n, w in self.weights.items():
                product = (total[n] * w.detach()).double() / sum(number for _, _, number in part)
                for axis in range(w.dim()):
                    summed = product.sum([a for a in range(w.dim()) if a != axis]) if w.dim() > 1 else product
                    rows.setdefault((n, axis), []).append(summed.numpy())
        return {key: np.stack(found) for key, found in rows.items()}

    def times(self, vector: Mapping[str, Tensor], temperature: float) -> Weights:
        """Return the Hessian of the mean loss times a vector (Pearlmutter 1994): the gradient of gradient . vector."""

        def product(feed: Feed, k: int) -> Weights:
            found = self.first(self.loss.value(feed, k, temperature), deep=True)
            return self.first(torch.stack([(g * vector[n]).sum() for n, g in found.items()]).sum())

        return self.mean(product)


class Flowing:
    """SynFlow's network: all weights and moments positive, in float64 because sums of positive numbers grow."""

    def __init__(self, module: OnnxModule, ones: Feed) -> None:
        self._module, self._ones = module, inputs_of(ones)
        self._names = dict(module.onnx_names)
        self._weights = {k: w.detach().abs() for k, w in module.named_parameters()}
        with torch.no_grad():
            for key, name in self._names.items():
                if name in module.statistics:
                    dict(module.named_buffers())[key].abs_()

    def __call__(self, masks: Mapping[str, Array]) -> dict[str, Array]:
        """Return |w| dR / d|w| for every weight, R the sum of all outputs, of the network that masks leave."""
        with torch.no_grad():
            for key, w in self._module.named_parameters():
                mask = masks.get(self._names[key])
                w.copy_(self._weights[key] if mask is None else self._weights[key] * torch.from_numpy(mask))
        outputs = [
            torch.where(torch.isfinite(y), y, 0).sum() for y in self._module(**self._ones).values()
            if isinstance(y, torch.Tensor) and y.requires_grad
        ]
        if not outputs:
            raise UsageError("--criterion synflow: no output depends on a weight")
        keys, weights = zip(*self._module.named_parameters(), strict=True)
        found = torch.autograd.grad(torch.stack(outputs).sum(), weights, allow_unused=True)
        return {
            self._names[k]: (torch.zeros_like(w) if g is None else (w * g).detach().abs()).detach().numpy()
            for k, w, g in zip(keys, weights, found, strict=True)
        }

