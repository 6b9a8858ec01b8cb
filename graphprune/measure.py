"""Latency, measured so that a difference means something.

Two models timed one after the other differ by what the machine did in between. Here every round runs both, in random
order, and the medians of the rounds are compared. A comparison also times the dense model against itself, and calls
nothing a speed-up that this says could be noise. Only two models run in turn: each further one takes from the caches
what the large model would find there and the small one does not miss, and makes the speed-up look larger than it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.errors import UsageError
from graphprune.runtime import Feeds, ModelSource, Runtime, bind, open_session

Samples: TypeAlias = npt.NDArray[np.float64]
Pair: TypeAlias = tuple[Samples, Samples]
"""Milliseconds of two models that were run in turn."""
Clock: TypeAlias = Callable[[], int]
"""Tells nanoseconds."""
Entry: TypeAlias = tuple[ModelSource, Feeds]

_MIN_ROUNDS = 10
_ENOUGH_FOR_P99 = 100
_OPENINGS = 6
_STRETCHES = 5  # a single opening is cut into so many
_PATIENCE = 4  # a comparison may take so many times as long as asked for, to open the models anew
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def interleaved(
    callables: Mapping[str, Callable[[], object]], *, seconds: float = 2.0, warmup: int = 3, min_rounds: int = 10,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Samples]:
    """Time functions in turn, round after round, each round in a new random order.

    >>> samples = interleaved({"a": lambda: sum(range(99)), "b": lambda: None}, seconds=0.01)
    >>> len(samples["a"]) == len(samples["b"]) >= 10
    True

    Returns milliseconds, one per round and name: entry i of every array comes from round i. Rounds go on for
    `seconds` and until there are `min_rounds`, after `warmup` rounds that do not count; of those a slow model has
    fewer, as they end once they have taken `seconds`. `clock` may be the thread's own. Whatever a function raises is
    passed on.
    """
    names = list(callables)
    order = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(warmup):
        for name in names:
            callables[name]()
        if time.perf_counter() - began >= seconds:
            break
    samples: dict[str, list[int]] = {name: [] for name in names}
    began, rounds = time.perf_counter(), 0
    while names and (rounds < min_rounds or time.perf_counter() - began < seconds):
        for index in order.permutation(len(names)):
            call = callables[names[index]]
            start = clock()
            call()
            samples[names[index]].append(clock() - start)
        rounds += 1
    return {name: np.array(values, dtype=np.float64) / 1e6 for name, values in samples.items()}


@dataclass(frozen=True)
class Timing:
    """Sum up the timings of one model, in milliseconds.

    >>> Timing.from_samples(np.array([1.0, 2.0, 3.0])).median_ms
    2.0

    `p99_ms` is None below a hundred rounds, where it would only be the slowest of them.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float | None
    rounds: int

    @classmethod
    def from_samples(cls, samples: Samples) -> Timing:
        """Sum up an array of milliseconds; raises `UsageError` if it is empty."""
        if not samples.size:
            raise UsageError("there are no timings to sum up: time at least one round")
        p10, median, p90, p99 = (float(value) for value in np.percentile(samples, [10, 50, 90, 99]))
        return cls(median, p10, p90, p99 if samples.size >= _ENOUGH_FOR_P99 else None, int(samples.size))


class Opening(NamedTuple):
    """Timings in milliseconds of three sessions opened together: two of the dense model, then it and the pruned one."""

    twins: Pair
    pair: Pair


@dataclass(frozen=True)
class Comparison:
    """Say how much faster the pruned model is, and whether that is more than noise.

    >>> steady = np.full(50, 3.0)
    >>> Comparison.from_openings([Opening((steady, steady), (steady, steady / 2))] * 6).speedup
    2.0

    `speedup` is the dense median over the pruned one, of their runs in turn, all openings pooled. `noise_band` is
    relative: two models that are equally fast show a `speedup` within 1 +- `noise_band` in at least 95 % of
    comparisons. `significant` says that this one lies outside.
    """

    before: Timing
    after: Timing
    speedup: float
    noise_band: float
    significant: bool

    @classmethod
    def from_openings(cls, openings: Sequence[Opening]) -> Comparison:
        """Compare timings, one entry per time that the three sessions were opened; raises `UsageError` on none."""
        if not openings:
            raise UsageError("there are no timings to compare: open the models at least once")
        before, after = map(Timing.from_samples, _pooled([opening.pair for opening in openings]))
        speedup = before.median_ms / after.median_ms
        band = _noise_band(openings)
        return cls(before, after, speedup, band, abs(speedup - 1) > band)


def _noise_band(openings: Sequence[Opening]) -> float:
    """Return the half width of the range in which the speed-up of an equally fast model falls.

    A session differs from its twin for as long as it lives, by where its memory lies: for a model of 40 us by 0.6 %,
    which no number of rounds averages out and only opening again does. So the openings are the sample. They give
    two estimates of the standard error of the speed-up: how much the dense model differs from itself, and how much
    the speed-up differs from opening to opening. Student's t makes a 95 % band of each; the wider one counts.

    With one opening the difference between the twins cannot be averaged and is taken whole, and what stands in for
    the openings is five stretches of the rounds.
    """
    count = len(openings)
    twins = [math.log(_ratio(opening.twins)) for opening in openings]
    if count == 1:
        stretches = min(_STRETCHES, openings[0].pair[0].size)
        parts = zip(*(np.array_split(samples, stretches) for samples in openings[0].pair), strict=True)
        return math.expm1(abs(twins[0]) + _scatter(list(parts)))
    itself = _student(count) * math.sqrt(sum(twin**2 for twin in twins)) / count
    return math.expm1(max(itself, _scatter([o.pair for o in openings])))


def _pooled(pairs: Sequence[Pair]) -> Pair:
    return np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs])


def _ratio(pair: Pair) -> float:
    """Return how many times as long the first of two models takes."""
    return float(np.median(pair[0]) / np.median(pair[1]))


def _scatter(pairs: Sequence[Pair]) -> float:
    """Return the 95 % half width of the mean logarithm of the speed-ups, infinite for less than two of them."""
    if len(pairs) < 2:
        return math.inf
    logs = [math.log(_ratio(pair)) for pair in pairs]
    return _student(len(pairs) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(pairs))


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, of the last tabled one beyond the table, which errs to the wide."""
    return _STUDENT[min(freedom, len(_STUDENT)) - 1]


def compare_latency(
    dense: ModelSource,
    pruned: ModelSource,
    feeds_dense: Feeds,
    feeds_pruned: Feeds,
    runtime: Runtime,
    seconds: float = 2.0,
) -> Comparison:
    """Time the pruned model against the dense one, and the dense one against itself.

    >>> compare_latency("resnet50.onnx", "pruned.onnx", {"x": x}, {"x": x}, Runtime()).speedup  # doctest: +SKIP
    1.73

    Opens three sessions, times two at a time in turn, and does so six times with new sessions in each of the orders
    there are, because the one opened last is measurably faster; only once if six would take much longer than `seconds`.
    Raises `SessionError` or `RuntimeUnavailable`.
    """
    return race([(dense, feeds_dense), (pruned, feeds_pruned)], runtime, seconds)[1]


def race(models: Sequence[Entry], runtime: Runtime, seconds: float = 2.0) -> list[Comparison]:
    """Time several models, each in turn with the first, the first also with itself, and compare each with the first.

    >>> [c.speedup for c in race([("a.onnx", {"x": x}), ("b.onnx", {"x": x})], Runtime())]  # doctest: +SKIP
    [1.0, 1.73]

    Sessions are opened anew in at least six orders, each of them equally often at each place; only once if that
    would take much longer than `seconds`. The comparison of the first model is with its twin: its `noise_band` is
    what an equal model has, and its `speedup` is 1 by definition. Raises `SessionError` or `RuntimeUnavailable`.
    """
    if not models:
        raise UsageError("there is nothing to time: give a model")
    twins, *pairs = _against_first([models[0], *models], runtime, seconds, time.perf_counter_ns)
    first = Comparison.from_openings([Opening(pair, pair) for pair in twins])
    others = (Comparison.from_openings(list(map(Opening, twins, pair))) for pair in pairs)
    return [replace(first, after=first.before, speedup=1.0, significant=False), *others]


def speedup_of(dense: Entry, pruned: Entry, runtime: Runtime, seconds: float, clock: Clock) -> float:
    """Return how many times faster a model runs than another, timed in turn as `race` does, without its noise.

    >>> speedup_of(("dense.onnx", {"x": x}), ("pruned.onnx", {"x": x}), Runtime(), 2.0, clock)  # doctest: +SKIP
    1.73
    """
    (found,) = _against_first([dense, pruned], runtime, seconds, clock)
    return _ratio(_pooled(found))


def _against_first(entries: Sequence[Entry], runtime: Runtime, seconds: float, clock: Clock) -> list[list[Pair]]:
    """Return timings of the first model and each other one, run in turn; for each other one, of every opening."""
    orders, others = _orders(len(entries)), range(1, len(entries))
    found: list[list[Pair]] = [[] for _ in others]
    while (done := len(found[0])) < len(orders):
        began = time.perf_counter()
        calls = {k: _opened(entries[k], runtime) for k in orders[done]}
        if not done:
            opened = time.perf_counter()
            for call in calls.values():
                call()
            cost = opened - began + 2 * _MIN_ROUNDS * (time.perf_counter() - opened)
            if cost * len(orders) > _PATIENCE * seconds:
                orders = orders[:1]
        share = seconds / (len(orders) * len(others))
        for k, pairs in zip(others, found, strict=True):
            two = {str(n): calls[n] for n in (0, k)}
            timed = interleaved(two, seconds=share, min_rounds=_MIN_ROUNDS, clock=clock)
            pairs.append((timed["0"], timed[str(k)]))
        calls.clear()  # frees these sessions before the next are opened
    return found


def _orders(count: int) -> list[list[int]]:
    """Return at least six orders of sessions in which each is equally often at each place.

    >>> _orders(2)
    [[0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]]
    """
    out: list[list[int]] = []
    while len(out) < _OPENINGS:
        base = list(range(count))[:: -1 if len(out) // count % 2 else 1]
        out += [base[k:] + base[:k] for k in range(count)]
    return out


def _opened(model: Entry, runtime: Runtime) -> Callable[[], object]:
    source, feeds = model
    return bind(open_session(source, runtime), feeds)
