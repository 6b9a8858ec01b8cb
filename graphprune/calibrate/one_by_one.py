"""Samples of which each is made from one file, or one piece of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from graphprune.calibrate.samples import Feed, Samples, Source, joined, of_items
from graphprune.calibrate.wanted import Wanted
from graphprune.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Making:
    """How samples are made: `make` returns the arrays of one, `where` says which it is; `per_run` go into a run."""

    wanted: Wanted
    where: Callable[[object], str]
    per_run: int = 1


def one_by_one(
    items: Sequence[T], make: Callable[[T], Feed], making: Making, source: Source, assumed: tuple[str, ...]
) -> Samples:
    """Return samples, each made from an item when it is read; the first one is made at once, to see what is wrong.

    A model whose batch is fixed at `per_run` takes so many items at a time; those left over are not used.
    """
    wanted, size = making.wanted, making.per_run
    runs = [(k, items[k * size : (k + 1) * size]) for k in range(len(items) // size)]
    if not runs:
        raise UsageError(f"calibration data: {len(items)} samples, but the model takes {size} at a time: give more")

    def load(run: tuple[int, Sequence[T]]) -> Feed:
        number, some = run
        given = [make(item) for item in some]
        return wanted.complete(joined(given, None), making.where(some[0]), number)

    first = joined([make(item) for item in runs[0][1]], None)
    said = [*assumed, *wanted.said_missing(wanted.fit(first, making.where(items[0])))]
    if size > 1:
        said.append(f"{size} samples a run, as the model's batch is fixed")
    return of_items(runs, load, source, tuple(said), wanted.axes)
