"""Statistics of two models side by side: what a pruned layer reads now, and what the dense one gave then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.padding import real_rows, real_tokens
from graphprune.calibrate.samples import Feed, Samples
from graphprune.calibrate.statistics import Sampler, Watched, held_back, positions_wanted
from graphprune.reconstruct.layers import Layer

Matrix = npt.NDArray[np.float64]
Progress = Callable[[str], None]
Arrange = Callable[[Feed], Feed]
_BLOCK = 4096


@dataclass
class Pair:
    """Sums over rows for one block: x the pruned layer's rows [K], y the dense layer's outputs [O], in float64."""

    xx: Matrix
    xy: Matrix
    x: Matrix
    y: Matrix
    yy: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, columns: int, outputs: int) -> Pair:
        return cls(
            np.zeros((columns, columns)), np.zeros((columns, outputs)), np.zeros(columns), np.zeros(outputs)
        )

    def add(self, x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> None:
        """Add rows [n, K] and answers [n, O]."""
        for start in range(0, len(x), _BLOCK):
            a = np.ascontiguousarray(x[start : start + _BLOCK], dtype=np.float32)
            b = np.ascontiguousarray(y[start : start + _BLOCK], dtype=np.float32)
            self.xx += a.T @ a
            self.xy += a.T @ b
            self.x += a.sum(0, dtype=np.float64)
            self.y += b.sum(0, dtype=np.float64)
            self.yy += float(np.square(b, dtype=np.float64).sum())
        self.rows += len(x)


@dataclass(frozen=True)
class Paired:
    """For every layer's blocks the sums to fit with and those held back."""

    fit: Mapping[str, Sequence[Pair]]
    held: Mapping[str, Sequence[Pair]]


def gather_pairs(
    dense: ir.Model, pruned: ir.Model, layers: Sequence[Layer], samples: Samples, *, batch: int = 16, seed: int = 0,
    threads: int = 0, arrange: Arrange = lambda feed: feed, progress: Progress = lambda text: None,
) -> Paired:
    """Run both models on the same samples and sum up, for layers whose output is a plain product.

    `arrange` gives the dense model's inputs as the pruned one takes them.
    """
    before = Watched(dense, [x.consumer.output for x in layers], threads)
    after = Watched(pruned, [x.consumer.data for x in layers], threads)
    fit: dict[str, list[Pair]] = {}
    held: dict[str, list[Pair]] = {}
    is_held = held_back(samples, batch)
    for number, feed in enumerate(samples.batches(batch)):
        progress(f"refitting {layers[0].node}: batch {number + 1}")
        were, are = before(feed), after(arrange(feed))
        real = real_tokens(feed)
        into = held if is_held(number) else fit
        for each in layers:
            wanted = positions_wanted(each.consumer.width, samples.count or 256)
            sampler = Sampler(seed, number, wanted)
            x = each.design.rows(np.asarray(are[each.consumer.data], np.float32), sampler)
            told = real_rows(are[each.consumer.data], real, each.design.key, sampler)
            there = slice(None) if told is None else told
            assert each.consumer.design.answers is not None
            y = each.consumer.design.answers(np.asarray(were[each.consumer.output], np.float32), sampler)
            pairs = into.setdefault(
                each.node, [Pair.empty(len(p.columns), len(p.outputs)) for p in each.parts]
            )
            for g, (part, pair) in enumerate(zip(each.parts, pairs, strict=True)):
                pair.add(x[g][there], y[part.block][there][:, part.outputs])
    return Paired(fit, held)
