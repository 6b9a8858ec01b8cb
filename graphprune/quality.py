"""How far a pruned model's outputs are from the dense model's, on samples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.statistics import held_back
from graphprune.execute import session
from graphprune.runtime import Runtime, run

Array = npt.NDArray[Any]
Arrange = Callable[[Mapping[str, Array]], Mapping[str, Array]]
_MOST = 16
_TINY = 1e-12
_HUGE = 1e30
_SLACK = 1e-6
_AT_ONCE = 4_000_000
DAMAGED_COSINE, DAMAGED_KL = 0.9, 0.5


@dataclass(frozen=True)
class Divergence:
    """One output of the pruned model against the dense model's.

    `relative` is the root of the mean square of the difference over that of the output, `cosine` the mean over rows
    (the last axis). For rows that are logits or probabilities, `kl` is the mean of KL(dense || pruned) in nats, and
    `agree` the fraction of rows whose largest entry is the same; else None.
    """

    output: str
    relative: float
    cosine: float
    kl: float | None
    agree: float | None

    @property
    def damaged(self) -> bool:
        """Whether so little of the output is left that more than accuracy at the margin is lost."""
        return self.cosine < DAMAGED_COSINE if self.kl is None else self.kl > DAMAGED_KL

    def record(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    dense: ir.Model, pruned: ir.Model, known: Knowledge, arrange: Arrange = lambda arrays: arrays, threads: int = 0
) -> list[Divergence]:
    """Run both models on held-back batches (all where none is held back), at most 16.

    `arrange` gives inputs and outputs of the dense model as the pruned one takes and gives them. Outputs whose sizes
    depend on data and differ are left out, and entries of the dense model's that are not finite.

    >>> measure(dense, pruned, known)[0].kl  # doctest: +SKIP
    0.03
    """
    left, right = (session(m, Runtime(threads=threads)) for m in (dense, pruned))
    is_held = held_back(known.samples, known.batch)
    alone = not known.stats.held
    sums: dict[str, _Sums] = {}
    held = (feed for k, feed in enumerate(known.samples.batches(known.batch)) if alone or is_held(k))
    for feed in islice(held, _MOST):
        a, b = arrange(run(left, feed)), run(right, arrange(feed))
        for name, before in a.items():
            after = b.get(name)
            if after is not None and _comparable(before, after):
                sums.setdefault(name, _Sums()).add(before, after)
    return [found.divergence(name) for name, found in sums.items()]


def _comparable(one: Array, other: Array) -> bool:
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):  # sequences and maps
        return False
    return one.dtype.kind == "f" and one.shape == other.shape and one.size > 0


@dataclass
class _Sums:
    """What is summed up over rows of one output; nothing grows with their number."""

    rows: int = 0
    entries: int = 0
    difference: float = 0.0
    energy: float = 0.0
    cosine: float = 0.0
    directions: int = 0
    as_logits: float = 0.0
    as_probabilities: float = 0.0
    agree: int = 0
    positive: bool = True
    whole: bool = True
    width: int = 1

    def add(self, dense: Array, pruned: Array) -> None:
        self.width = dense.shape[-1] if dense.ndim > 1 else 1
        a, b = dense.reshape(-1, self.width), pruned.reshape(-1, self.width)
        step = max(1, _AT_ONCE // self.width)
        for start in range(0, len(a), step):
            self._add(*(x[start : start + step].astype(np.float64) for x in (a, b)))

    def _add(self, dense: Array, pruned: Array) -> None:
        finite = np.isfinite(dense)
        x = np.where(finite, dense, 0.0)
        y = np.where(finite & np.isfinite(pruned), pruned, 0.0)
        self.rows += len(x)
        self.entries += x.size
        self.difference += float(np.square(x - y).sum())
        self.energy += float(np.square(x).sum())
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        some = np.linalg.norm(x, axis=1) > _TINY
        self.cosine += float((np.sum(x * y, axis=1)[some] / np.maximum(norms[some], _TINY)).sum())
        self.directions += int(some.sum())
        if self.width > 1:
            self._add_rows(*(np.nan_to_num(z, nan=0.0, posinf=_HUGE, neginf=-_HUGE) for z in (dense, pruned)))

    def _add_rows(self, dense: Array, pruned: Array) -> None:
        self.agree += int((dense.argmax(1) == pruned.argmax(1)).sum())
        self.as_logits += _kl(_softmax(dense), _softmax(pruned))
        self.positive &= bool((dense >= -_SLACK).all())
        self.whole &= all(np.allclose(z.sum(axis=1), 1, atol=1e-2) for z in (dense, pruned))
        if self.positive and self.whole:
            self.as_probabilities += _kl(np.maximum(dense, 0.0), np.maximum(pruned, 0.0))

    def divergence(self, name: str) -> Divergence:
        known = self.width > 1 and (self.whole or not self.positive)  # rows of positive numbers may be anything
        kl = self.as_probabilities if self.positive else self.as_logits
        return Divergence(
            name,
            relative=float(np.sqrt(self.difference / max(self.energy, _TINY * self.entries))),
            cosine=self.cosine / self.directions if self.directions else 1.0,
            kl=kl / self.rows if known else None,
            agree=self.agree / self.rows if known else None,
        )


def _kl(p: Array, q: Array) -> float:
    return float((p * (np.log(p + _TINY) - np.log(q + _TINY))).sum())


def _softmax(rows: Array) -> Array:
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
