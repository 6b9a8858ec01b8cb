"""The loss that gradients are of: labels, or where there are none what the model itself answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from graphprune.calibrate.labelled import LABELS, inputs_of
from graphprune.calibrate.samples import Feed, Samples
from graphprune.converters.losses import FEATURES, LOGITS, Distance, as_logits, kinds
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Tensor
from graphprune.errors import UsageError
from graphprune.score.gradients import OUTPUT, SQUARES

_TINY = 1e-12


@dataclass(frozen=True)
class Loss:
    """The mean loss of a batch.

    With labels: the cross-entropy. Without: the sum over outputs of the cross-entropy with the model's own most likely
    class (for squared gradients: a class drawn from its probabilities), and for outputs that are no logits of
    |f - y|^2 / (2 s^2), the mean over rows, where y = f + s e, e standard normal, s the root mean square of f: what
    drawing is where answers are normal. The distance to the model's own answers would have no gradient.
    """

    module: OnnxModule
    kinds: dict[str, str]
    labelled: bool
    seed: int

    @classmethod
    def of(cls, module: OnnxModule, samples: Samples, labelled: bool, seed: int) -> Loss:
        """Look at one batch to see what the outputs are; raises UsageError where there is none, or nothing to learn."""
        feed = next(samples.batches(16), None)
        if feed is None:
            raise UsageError("criteria from gradients need samples, and there are none")
        with torch.no_grad():
            made = module(**inputs_of(feed))
        found = kinds({n: y.numpy() for n, y in made.items() if isinstance(y, torch.Tensor) and y.is_floating_point()})
        if not found:
            raise UsageError("no output of the model is made of real numbers: there are no gradients")
        return cls(module, found, labelled, seed)

    def value(self, feed: Feed, number: int, temperature: float = 1.0, drawn: bool = False) -> Tensor:
        """Return the loss of a batch, the `number`-th; the same numbers are drawn for it each time."""
        made = self.module(**inputs_of(feed))
        if self.labelled:
            return Distance(self.kinds).to_labels(made, feed[LABELS], temperature)
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        parts = [
            _normal(made[n], random) if kind == FEATURES
            else _own(as_logits(made[n].float(), kind) / temperature, random if drawn else None)
            for n, kind in self.kinds.items()
        ]
        return torch.stack(parts).sum()

    def output(self, feed: Feed) -> Tensor:
        """Return NIRVANA's f: the mean of logits, each where it is largest along positions."""
        made = self.module(**inputs_of(feed))
        outputs = [as_logits(made[n].float(), kind) for n, kind in self.kinds.items()]
        return torch.stack([(y.amax(1) if y.dim() > 2 else y).mean() for y in outputs]).sum()

    def said(self, needs: Iterable[str]) -> str:
        """Return what a report says of it."""
        if set(needs) == {OUTPUT}:
            return "gradients of the outputs' mean"
        if self.labelled:
            return "gradients of the cross-entropy with labels"
        draws = "classes drawn from" if set(needs) == {SQUARES} else "the most likely class by"
        kinds = {FEATURES: "own answers plus noise", LOGITS: f"{draws} own answers"}
        found = dict.fromkeys(kinds[FEATURES if k == FEATURES else LOGITS] for k in self.kinds.values())
        return f"gradients without labels: against {', '.join(found)}"


def _own(logits: Tensor, random: Any) -> Tensor:
    """Return the cross-entropy with the most likely class, or with one that is drawn."""
    rows = logits.reshape(-1, logits.shape[-1])
    with torch.no_grad():
        drawn = rows.argmax(-1) if random is None else torch.multinomial(rows.softmax(-1), 1, generator=random)[:, 0]
    return F.cross_entropy(rows, drawn)


def _normal(made: Tensor, random: Any) -> Tensor:
    real = torch.where(torch.isfinite(made), made, 0).float()
    scale = real.detach().square().mean().sqrt().clamp(min=_TINY)
    noise = torch.randn(real.shape, generator=random)
    apart = (real - real.detach()) / scale - noise
    rows = max(real.shape[0] if real.dim() else 1, 1)
    return apart.square().sum() / (2 * rows)

