"""Statistics of two models side by side: what a pruned layer reads now, and what the dense one gave then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.padding import real_rows, real_tokens
from graphprune.calibrate.samples import Feed, Samples
from graphprune.calibrate.statistics import Sampler, Watched, held_back, positions_wanted
from graphprune.calibrate.waiting import Rows, Waiting, enough_for
from graphprune.reconstruct.layers import Layer

Matrix = npt.NDArray[np.float64]
Progress = Callable[[str], None]
Arrange = Callable[[Feed], Feed]
_BLOCK = 4096


class Pair:
    """Sums over rows of one block, in float64: x [K] are the pruned layer's rows, y [O] the dense layer's outputs.

    `xx` [K, K], `xy` [K, O], `x`, `y`, and `yy` [O], the sums of squares.

    >>> pair = Pair(1, 2)
    >>> pair.add(np.array([[2.0]]), np.array([[1.0, 3.0]]))
    >>> pair.xx.tolist(), pair.xy.tolist(), pair.yy.tolist()
    ([[4.0]], [[2.0, 6.0]], [1.0, 9.0])
    """

    def __init__(self, columns: int, outputs: int) -> None:
        self._xx, self._xy = np.zeros((columns, columns)), np.zeros((columns, outputs))
        self.x, self.y, self.yy = np.zeros(columns), np.zeros(outputs), np.zeros(outputs)
        self.rows = 0
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
            self.yy += np.square(b, dtype=np.float64).sum(0)
            self._sum_up(self._waiting.add(a, b))
        self.rows += len(x)

    def _sum_up(self, blocks: tuple[Rows, ...]) -> None:
        if blocks:
            a, b = blocks
            self._xx += a.T @ a
            self._xy += a.T @ b


@dataclass(frozen=True)
class Paired:
    """For every layer's blocks the sums to fit with and those held back."""

    fit: Mapping[str, Sequence[Pair]]
    held: Mapping[str, Sequence[Pair]]


def gather_pairs(
    dense: ir.Model, pruned: ir.Model, layers: Sequence[Layer], samples: Samples, *, batch: int = 16, seed: int = 0,
    threads: int = 0, arrange: Arrange = lambda feed: feed, progress: Progress = lambda text: None,
    floors: Mapping[str, tuple[str, float]] = MappingProxyType({}),
) -> Paired:
    """Run both models on the same samples and sum up, for layers whose output is a plain product.

    `arrange` gives the dense model's inputs as the pruned one takes them. `floors` has for nodes the name of their
    output in the pruned model and a number below which all outputs are as good as each other: where both models'
    outputs are below, that of the pruned model is right as it is.
    """
    before = Watched(dense, [x.consumer.output for x in layers], threads)
    after = Watched(pruned, [*(x.consumer.data for x in layers), *(o for o, _ in floors.values())], threads)
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
            now, floor = None, 0.0
            if each.node in floors:
                output, floor = floors[each.node]
                assert each.design.answers is not None
                now = each.design.answers(np.asarray(are[output], np.float32), sampler)
            pairs = into.setdefault(
                each.node, [Pair(len(p.columns), len(p.outputs)) for p in each.parts]
            )
            for g, (part, pair) in enumerate(zip(each.parts, pairs, strict=True)):
                wanted_here = y[part.block][:, part.outputs]
                if now is not None:
                    wanted_here = np.where((wanted_here <= floor) & (now[g] <= floor), now[g], wanted_here)
                pair.add(x[g][there], wanted_here[there])
    return Paired(fit, held)
