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
from graphprune.calibrate.statistics import HELD
from graphprune.execute import session
from graphprune.runtime import Runtime, run

Array = npt.NDArray[Any]
Arrange = Callable[[Mapping[str, Array]], Mapping[str, Array]]
_MOST = 16
_TINY = 1e-12
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
    """Run both models on held-back batches (every fifth; all where there are fewer), at most 16.

    `arrange` gives inputs and outputs of the dense model as the pruned one takes and gives them. Outputs whose sizes
    depend on data and differ are left out.

    >>> measure(dense, pruned, known)[0].kl  # doctest: +SKIP
    0.03
    """
    left, right = (session(m, Runtime(threads=threads)) for m in (dense, pruned))
    batches = list(islice(enumerate(known.samples.batches(known.batch)), _MOST * HELD))
    held = [feed for k, feed in batches if k % HELD == HELD - 1] or [feed for _, feed in batches]
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for feed in held:
        a, b = arrange(run(left, feed)), run(right, arrange(feed))
        for name, before in a.items():
            after = b.get(name)
            if after is not None and before.dtype.kind == "f" and before.shape == after.shape and before.size:
                pairs.setdefault(name, []).append((_rows(before), _rows(after)))
    return [_compare(name, *map(np.concatenate, zip(*found, strict=True))) for name, found in pairs.items()]


def _rows(array: Array) -> npt.NDArray[np.float64]:
    return np.asarray(array, np.float64).reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def _compare(name: str, dense: Array, pruned: Array) -> Divergence:
    relative = float(np.sqrt(np.square(dense - pruned).mean() / max(float(np.square(dense).mean()), _TINY)))
    norms = np.linalg.norm(dense, axis=1) * np.linalg.norm(pruned, axis=1)
    cosine = float((np.sum(dense * pruned, axis=1) / np.maximum(norms, _TINY))[norms > _TINY].mean()) if (
        norms > _TINY
    ).any() else 1.0
    kl = agree = None
    if dense.shape[1] > 1:
        p, q = _probabilities(dense), _probabilities(pruned)
        if p is not None and q is not None:
            kl = float((p * (np.log(p + _TINY) - np.log(q + _TINY))).sum(axis=1).mean())
            agree = float((p.argmax(1) == q.argmax(1)).mean())
    return Divergence(name, relative, cosine, kl, agree)


def _probabilities(rows: Array) -> Array | None:
    """Return rows of logits or probabilities as probabilities; None for rows that are neither."""
    sums = rows.sum(axis=1)
    if (rows >= -1e-6).all():
        return np.maximum(rows, 0.0) if np.allclose(sums, 1, atol=1e-2) else None
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
