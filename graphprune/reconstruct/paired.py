"""Statistics of two models side by side: what a pruned layer reads now, and what the dense one gave then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.padding import real_rows, real_tokens
from graphprune.calibrate.samples import Feed
from graphprune.calibrate.statistics import Watched, held_back, sampler_of
from graphprune.calibrate.waiting import Rows, Waiting, enough_for
from graphprune.reconstruct.layers import Layer

Matrix = npt.NDArray[np.float64]
Arrange = Callable[[Feed], Feed]
_BLOCK = 4096


class Pair:
    """Sums over rows of one block, in float64: x [K] are the pruned layer's rows, y [O] the dense layer's outputs.

    `xx` [K, K], `xy` [K, O], `x`, `y`, and `yy`, the sum of squares.

    >>> pair = Pair(1, 2)
    >>> pair.add(np.array([[2.0]]), np.array([[1.0, 3.0]]))
    >>> pair.xx.tolist(), pair.xy.tolist(), pair.yy
    ([[4.0]], [[2.0, 6.0]], 10.0)
    """

    def __init__(self, columns: int, outputs: int) -> None:
        self._xx, self._xy = np.zeros((columns, columns)), np.zeros((columns, outputs))
        self.x, self.y = np.zeros(columns), np.zeros(outputs)
        self.yy, self.rows = 0.0, 0
        self._waiting = Waiting(enough_for(columns, _BLOCK))

    @property
    def xx(self) -> Matrix:
        self._sum_up(self._waiting.rest())
        return self._xx

    @property
    def xy(self) -> Matrix:
        self._sum_up(self._waiting.rest())
        return self._xy

    def add(self, x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> None:
        """Add rows [n, K] and answers [n, O]."""
        for start in range(0, len(x), _BLOCK):
            a, b = x[start : start + _BLOCK], y[start : start + _BLOCK]
            self.x += a.sum(0, dtype=np.float64)
            self.y += b.sum(0, dtype=np.float64)
            self.yy += float(np.square(b, dtype=np.float64).sum())
            self._sum_up(self._waiting.add(a, b))
        self.rows += len(x)

    def _sum_up(self, blocks: tuple[Rows, ...]) -> None:
        if blocks:
            a, b = blocks
            self._xx += a.T @ a
            self._xy += a.T @ b


def gather_pairs(
    dense: ir.Model, pruned: ir.Model, layer: Layer, known: Knowledge, arrange: Arrange, threads: int = 0
) -> tuple[Sequence[Pair], Sequence[Pair] | None]:
    """Run both models on all samples, and return for each block of a layer the sums to fit with, and those held back.

    `arrange` gives the dense model's inputs as the pruned one takes them. Where no sample is held back: None.
    """
    before = Watched(dense, [layer.consumer.output], threads)
    after = Watched(pruned, [layer.consumer.data], threads)
    fit, held = ([Pair(len(p.columns), len(p.outputs)) for p in layer.parts] for _ in range(2))
    samples, answers = known.samples, layer.consumer.design.answers
    assert answers is not None
    is_held = held_back(samples, known.batch)
    for number, feed in enumerate(samples.batches(known.batch)):
        were, are = before(feed)[layer.consumer.output], after(arrange(feed))[layer.consumer.data]
        sampler = sampler_of(layer.consumer, samples, known.seed, number)
        x = layer.design.rows(np.asarray(are, np.float32), sampler)
        y = answers(np.asarray(were, np.float32), sampler)
        there = real_rows(are, real_tokens(feed), layer.design.key, sampler)
        rows = slice(None) if there is None else there
        for g, (part, pair) in enumerate(zip(layer.parts, held if is_held(number) else fit, strict=True)):
            pair.add(x[g][rows], y[part.block][rows][:, part.outputs])
    return fit, held if any(pair.rows for pair in held) else None
