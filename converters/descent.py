"""Steps down the gradient: AdamW, the rate's way up and down, and what computing in 16 bits asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from graphprune.converters.torch_ops.registry import Tensor
from graphprune.converters.tuning import FLOAT16, FLOAT32, Tuning
from graphprune.errors import UsageError

_WARMING = 0.1
_LONGEST = 1.0
_LEAST = 2.0**-16
"""The scale below which float16 is given up: 32 halvings from where it begins."""


class Descent:
    """The optimizer, its schedule over `total` steps, and for float16 the scale of the loss.

    In float16 gradients below 6e-8 are 0, so the loss is multiplied by a scale that is as large as gradients allow
    (Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2; torch's GradScaler: it begins with 65,536,
    is halved when a gradient overflows and doubled after 2,000 steps without). A step that overflowed is left out: no
    weight moves, and the rate stays where it is.
    """

    def __init__(self, weights: Sequence[Tensor], asked: Tuning, total: int) -> None:
        self._weights, self._total = weights, total
        device = torch.device(asked.device).type
        self._device, self._dtype = device, getattr(torch, asked.precision)
        self._optimizer = torch.optim.AdamW(weights, lr=asked.rate, weight_decay=asked.decay)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, risen(total))
        self._scaler = torch.amp.GradScaler(device, enabled=asked.precision == FLOAT16)

    @property
    def share(self) -> float:
        """The share of all steps that was taken."""
        return float(self._schedule.last_epoch / self._total)

    def computing(self) -> AbstractContextManager[Any]:
        """Return where outputs are computed: in 16 bits if that is asked for, as far as torch holds it safe."""
        low = self._dtype is not getattr(torch, FLOAT32)
        return torch.autocast(self._device, dtype=self._dtype) if low else nullcontext()

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self._optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add up the gradients of a loss, times the scale."""
        self._scaler.scale(loss).backward()

    def step(self) -> bool:
        """Move the weights by gradients that are the same in all processes; return False where these overflowed.

        Raises UsageError where no scale keeps gradients finite.
        """
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._weights, _LONGEST)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() < scale:
            if self._scaler.get_scale() < _LEAST:
                raise UsageError("--precision float16: gradients are not finite at any scale: give bfloat16 or float32")
            return False
        self._schedule.step()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all that going on needs."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])

    def _parts(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer, "schedule": self._schedule, "scaler": self._scaler}


def risen(total: int) -> Callable[[int], float]:
    """Return the rate at each step: up evenly over a tenth of the steps, then down to 0 by a cosine.

    >>> [round(risen(20)(k), 2) for k in (0, 1, 2, 11, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(int(_WARMING * total), 1)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min((step - warm) / max(total - warm, 1), 1.0)))

    return rate
