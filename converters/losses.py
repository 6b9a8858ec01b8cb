"""What a tuned model is pulled to: the dense model's answers, each kind of output in its own measure, or labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from graphprune.converters.features import Matched
from graphprune.converters.torch_ops.registry import Tensor
from graphprune.errors import UsageError
from graphprune.quality import Comparison

LOGITS, PROBABILITIES, FEATURES = "logits", "probabilities", "features"
_TINY = 1e-7


def kinds(answers: Mapping[str, Any]) -> dict[str, str]:
    """Return what each output is: logits, probabilities or features; outputs that are no real numbers have no entry.

    >>> kinds({"p": np.array([[0.9, 0.1]], np.float32)})
    {'p': 'probabilities'}
    """
    seen = Comparison()
    seen.add(answers, answers, {})
    found = {}
    for d in seen.divergences():
        rows = np.asarray(answers[d.output])
        whole = bool((rows >= 0).all()) and bool(np.allclose(rows.sum(-1), 1, atol=1e-3))
        found[d.output] = FEATURES if d.kl is None else PROBABILITIES if whole else LOGITS
    return found


@dataclass(frozen=True)
class Distance:
    """The loss of a batch.

    Logits and probabilities: KL(dense || tuned) of softmax at a temperature T, times T^2 (Hinton et al. 2015, section
    2). Features: the mean square of the difference over that of the dense model's, plus one minus the mean cosine of
    rows. Labels: the cross-entropy of the first output of logits or probabilities; where none looks like that, because
    the model is not trained yet, of the first one with a row of several numbers for each sample, as logits. `alpha` is
    the share of the dense model's answers, the rest that of labels: their weighted average, as in the same section.
    `smoothing` s takes s off a label and shares it among all classes (Szegedy et al., arXiv 1512.00567, section 7).
    """

    kinds: Mapping[str, str]
    temperature: float = 2.0
    alpha: float = 1.0
    smoothing: float = 0.0
    matched: Matched = field(default_factory=Matched)

    def of(self, made: Mapping[str, Tensor], answers: Mapping[str, Any], labels: Any = None) -> Tensor:
        """Return the loss of a batch: of answers, labels, or both, and of inner values."""
        parts = [self.matched.loss(made, answers)] if self.matched.names else []
        if self.alpha > 0:
            parts.append(self.alpha * self.to_answers(made, answers))
        if self.alpha < 1:
            parts.append((1 - self.alpha) * self.to_labels(made, labels))
        return torch.stack(parts).sum()

    def to_answers(self, made: Mapping[str, Tensor], answers: Mapping[str, Any]) -> Tensor:
        """Return the summed distance of all outputs from the dense model's."""
        parts = []
        for name, kind in self.kinds.items():
            mine = made[name].float()
            told = torch.as_tensor(np.asarray(answers[name])).to(mine.device, torch.float32)
            parts.append(_features(mine, told) if kind == FEATURES else self._divergence(mine, told, kind))
        if not parts:
            raise UsageError("no output of the model is made of real numbers: there is nothing to tune it to")
        return torch.stack(parts).sum()

    def to_labels(self, made: Mapping[str, Tensor], labels: Any, temperature: float = 1.0) -> Tensor:
        """Return the cross-entropy with labels."""
        rows = [n for n in self.kinds if made[n].dim() == 2 and made[n].shape[1] > 1]
        name = next((n for n in rows if self.kinds[n] != FEATURES), rows[0] if rows else None)  # untrained: even
        if name is None:
            raise UsageError("no output of the model is one row of logits per sample: labels cannot be used")
        scores = as_logits(made[name].float(), self.kinds[name]) / temperature
        told = torch.as_tensor(labels).to(scores.device)
        if int(told.max()) >= scores.shape[1] or int(told.min()) < 0:
            low, high = int(told.min()), int(told.max())
            raise UsageError(f"labels go from {low} to {high}, {name} has {scores.shape[1]} classes")
        return F.cross_entropy(scores, told, label_smoothing=self.smoothing)

    def _divergence(self, mine: Tensor, told: Tensor, kind: str) -> Tensor:
        t = self.temperature
        target = torch.log_softmax(as_logits(told, kind) / t, -1)
        own = torch.log_softmax(as_logits(mine, kind) / t, -1)
        rows = max(own.numel() // own.shape[-1], 1)
        return F.kl_div(own, target, log_target=True, reduction="sum") * t * t / rows


def as_logits(x: Tensor, kind: str) -> Tensor:
    """Return logits of what may be probabilities."""
    return x.clamp(min=_TINY).log() if kind == PROBABILITIES else x


def _features(mine: Tensor, told: Tensor) -> Tensor:
    real = torch.isfinite(told)
    mine, told = torch.where(real, mine, 0), torch.where(real, told, 0)
    relative = (mine - told).square().sum() / told.square().sum().clamp(min=_TINY)
    return relative + 1 - F.cosine_similarity(mine, told, -1).mean()
