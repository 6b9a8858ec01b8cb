"""The loop that tunes a module, epoch by epoch; the best weights on held-back samples stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from graphprune.calibrate.labelled import LABELS, inputs_of
from graphprune.converters.descent import Descent
from graphprune.converters.losses import Distance
from graphprune.converters.ranks import ALONE, Ranks
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Tensor
from graphprune.converters.towards import Penalty
from graphprune.converters.tuning import FLOAT32, FROZEN, Tuning
from graphprune.converters.tuning_data import Batches
from graphprune.errors import UsageError
from graphprune.writing import put

__all__ = ["State", "Tuner", "Tuning"]

Progress = Callable[[str], None]


@dataclass
class State:
    """Where tuning is: epochs done, the held-back loss before and after each, the best weights.

    `skipped` steps had gradients that overflowed, and were left out.
    """

    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    best: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Tuner:
    """A module with what it is tuned on and held against."""

    module: OnnxModule
    data: Batches
    held: Batches
    distance: Distance
    asked: Tuning
    progress: Progress = print
    ranks: Ranks = ALONE
    penalty: Penalty | None = None

    def run(self, checkpoint: Path | None = None, resume: bool = False) -> State:
        """Tune; the module ends with the weights that did best on held-back samples, those it began with included."""
        torch.manual_seed(self.asked.seed)  # the same in all processes: they begin with the same updates
        self.module.to(self.asked.device)
        if self.asked.precision != FLOAT32:  # a quarter less time for convolutions on a CPU
            self.module.to(memory_format=torch.channels_last)
        self.module.batch_statistics = self.asked.norms != FROZEN
        weights = [p for p in self.module.parameters() if p.requires_grad]
        steps = self.data.steps()
        descent, state = Descent(weights, self.asked, steps * self.asked.epochs), State()
        if resume and checkpoint is not None and checkpoint.exists():
            state = self._load(checkpoint, descent)
        else:
            self._judge(state, descent)
            if not math.isfinite(state.best):
                raise UsageError(f"the model gives no finite loss in {self.asked.precision}: there is nothing to tune")
        patience = self.asked.patience or self.asked.epochs
        patience = patience if self.penalty is None else self.asked.epochs  # it has to grow first
        while state.epoch < self.asked.epochs and state.waited < patience:
            for k, loss in enumerate(self._pass(state, descent)):
                if k % 20 == 0:
                    self.progress(f"epoch {state.epoch + 1}/{self.asked.epochs}, step {k + 1}/{steps}, loss {loss:.4f}")
            state.epoch += 1
            self.ranks.settle(self.module)
            self._judge(state, descent)
            if checkpoint is not None and self.ranks.first:
                self._save(checkpoint, state, descent)
        self.module.load_state_dict(state.weights)
        self.module.eval()
        return state

    def _pass(self, state: State, descent: Descent) -> Iterator[float]:
        """Go once through the data and yield the losses.

        Gradients are averaged over all processes before they are looked at: what overflows in one of them is not
        finite in any, so all leave out the same steps.
        """
        self.module.train()
        before = state.skipped
        for feed, answers in self.data.epoch(state.epoch):
            descent.begin()
            rows = len(next(iter(feed.values())))
            loss = self._loss(feed, answers, descent) if rows else torch.zeros(())
            if rows:
                descent.backward(loss)
            self.ranks.averaged(self.module.parameters(), rows)
            if not descent.step():
                state.skipped += 1
            elif self.penalty is not None:
                self.penalty.shrink(self.module, descent.share, self.asked.rate)
            yield float(loss.detach())
        if state.skipped > before:
            left_out = state.skipped - before
            self.progress(f"epoch {state.epoch + 1}: {left_out} steps left out, their gradients overflowed float16")

    def _loss(self, feed: Any, answers: Any, descent: Descent) -> Tensor:
        with descent.computing():
            made = self.module(**inputs_of(feed))
        return self.distance.of(made, answers, feed.get(LABELS))

    def _judge(self, state: State, descent: Descent) -> None:
        """Measure the held-back loss, and keep the weights if they are the best so far."""
        self.module.eval()
        total, count = 0.0, 0
        place = self.penalty.carried_out(self.module) if self.penalty is not None else nullcontext()
        with torch.no_grad(), place:
            for feed, answers in self.held.epoch(0):
                rows = len(next(iter(feed.values())))
                total += float(self._loss(feed, answers, descent)) * rows if rows else 0.0
                count += rows
        total, count = self.ranks.totals((total, count), self.asked.device)
        loss = total / max(count, 1)
        state.losses.append(loss)
        state.waited = 0 if loss < state.best else state.waited + 1
        if loss < state.best:
            state.best = loss
            state.weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.progress(f"epoch {state.epoch}: held-back loss {loss:.4f}")

    def _save(self, path: Path, state: State, descent: Descent) -> None:
        everything = {
            "state": {**vars(state)}, "module": self.module.state_dict(), "descent": descent.state_dict(),
            "asked": asdict(self.asked), "random": torch.get_rng_state(),
        }  # fmt: skip
        put(path, lambda place: torch.save(everything, place))

    def _load(self, path: Path, descent: Descent) -> State:
        try:
            saved = torch.load(path, weights_only=True)
            now = asdict(self.asked)
            then = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["asked"].items()}
            other = sorted(k for k in now if now[k] != then.get(k) and k != "device")
            if other:
                raise UsageError(f"{path}: was made with another {', '.join(other)}: give the same, or no --resume")
            self.module.load_state_dict(saved["module"])
            descent.load_state_dict(saved["descent"])
            torch.set_rng_state(saved["random"])
            return State(**saved["state"])
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"{path}: is no checkpoint of this model ({type(error).__name__})") from error
