"""Statistics of two models side by side: what a pruned layer reads now, and what the dense one gave then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.padding import real_rows, real_tokens
from graphprune.calibrate.parts import Parts
from graphprune.calibrate.samples import Feed
from graphprune.calibrate.statistics import Sampler, Watched, sampler_of
from graphprune.calibrate.waiting import Rows, Waiting, enough_for
from graphprune.reconstruct.layers import Layer

Matrix = npt.NDArray[np.float64]
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


Pairs: TypeAlias = "tuple[Sequence[Pair], Sequence[Pair] | None]"


@dataclass(frozen=True)
class Aim:
    """What is wanted of a layer beside its dense outputs; values are named as in the pruned model, or in both.

    `floor`: the layer's output, and a number below which all outputs are as good as each other; where both models' are
    below, that of the pruned model is right as it is. `past`: what is added to the outputs, in the dense model and in
    the pruned one: what the latter lacks is wanted, too.
    """

    floor: tuple[str, float] | None = None
    past: tuple[str, str] | None = None

    @property
    def before(self) -> tuple[str, ...]:
        """What is to be known of the dense model."""
        return self.past[:1] if self.past is not None else ()

    @property
    def after(self) -> tuple[str, ...]:
        """What is to be known of the pruned model."""
        return (*([self.floor[0]] if self.floor is not None else []), *(self.past[1:] if self.past is not None else ()))


@dataclass(frozen=True)
class SideBySide:
    """A dense model, the one pruned from it, and `arrange`, which gives inputs of the one as the other takes them."""

    dense: ir.Model
    pruned: ir.Model
    known: Knowledge
    arrange: Arrange
    threads: int = 0

    def pairs(self, layer: Layer, aim: Aim = Aim()) -> Pairs:
        """Run both models on samples, and return for each block of a layer sums to fit with and those to confirm it.

        Where no sample is there to check by: None.
        """
        before = Watched(self.dense, [layer.consumer.output, *aim.before], self.threads)
        after = Watched(self.pruned, [layer.consumer.data, *aim.after], self.threads)
        fit, check = ([Pair(len(p.columns), len(p.outputs)) for p in layer.parts] for _ in range(2))
        samples = self.known.samples
        part_of = Parts.of(samples, self.known.batch)
        for number, feed in enumerate(samples.batches(self.known.batch)):
            if (use := part_of(number)) == "told":
                continue
            were, now = before(feed), after(self.arrange(feed))
            are = now[layer.consumer.data]
            sampler = sampler_of(layer.consumer, samples, self.known.seed, number)
            x = layer.design.rows(np.asarray(are, np.float32), sampler)
            wanted = _wanted(layer, aim, (were, now), sampler)
            there = real_rows(are, real_tokens(feed), layer.design.key, sampler)
            rows = slice(None) if there is None else there
            for g, pair in enumerate(fit if use == "fit" else check):
                pair.add(x[g][rows], wanted[g][rows])
        return fit, check if any(pair.rows for pair in check) else None


Values: TypeAlias = Mapping[str, npt.NDArray[Any]]


def _wanted(layer: Layer, aim: Aim, values: tuple[Values, Values], sampler: Sampler) -> list[npt.NDArray[np.float32]]:
    """Return what each block of a pruned layer is to put out, from inner values of the dense and the pruned model."""
    were, are = values
    answers, answers_now = layer.consumer.design.answers, layer.design.answers
    assert answers is not None and answers_now is not None

    def dense(name: str) -> list[npt.NDArray[np.float32]]:
        found = answers(np.asarray(were[name], np.float32), sampler)
        return [found[p.block][:, p.outputs] for p in layer.parts]

    def now(name: str) -> npt.NDArray[np.float32]:
        return answers_now(np.asarray(are[name], np.float32), sampler)

    wanted = dense(layer.consumer.output)
    if aim.past is not None:
        wanted = [y + a - b for y, a, b in zip(wanted, dense(aim.past[0]), now(aim.past[1]), strict=True)]
    if aim.floor is not None:
        name, floor = aim.floor
        wanted = [np.where((y <= floor) & (g <= floor), g, y) for y, g in zip(wanted, now(name), strict=True)]
    return wanted
