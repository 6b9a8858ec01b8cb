"""Where the time goes, by onnxruntime's own profiler: every node of the optimised graph, its shapes and nanoseconds.

Times of single nodes in their real context are better than those of nodes timed alone: layouts, caches and fused
operators are as they will be. Models are run in turn, quick ones several times in a row, since the first runs find the
weights of others in the caches. Of each node's times the lower ones count, so that neither these matter nor what else
the machine does.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from graphprune.errors import SessionError
from graphprune.ops import BODIES
from graphprune.ops.workloads import ELEMENT, Seen
from graphprune.runtime import Feeds, ModelSource, Runtime, bind, open_session

Event: TypeAlias = "Mapping[str, Any]"
_SUFFIX = "_kernel_time"
_LOW = 0.5  # of a node's runs, so many of the quickest count
_WHOLE = "model_run"
_FEWEST = 5
_ROW, _SETTLED = 32, 0.02  # runs in a row, and seconds, in which caches are a model's own again


@dataclass(frozen=True)
class Timed:
    """A node of the optimised graph: its key in the profile, what it was seen to do, and nanoseconds of a run.

    `owner` is the model's own node that it comes from, the key itself where none is known.
    """

    key: str
    seen: Seen
    ns: float
    owner: str = ""


@dataclass(frozen=True)
class Profile:
    """The nodes of one model in the order in which they ran."""

    nodes: tuple[Timed, ...]

    @property
    def ns(self) -> float:
        return sum(n.ns for n in self.nodes)


def profiles(
    models: Sequence[tuple[ModelSource, Feeds]], runtime: Runtime, rounds: int, seconds: float
) -> list[Profile | None]:
    """Run models in turn and return where the time goes in each; None for one that does not open or run.

    There are `rounds` runs of each, or fewer where they take more than `seconds`, but at least five if so many are
    wanted. The first does not count.

    >>> profiles([("resnet50.onnx", {"x": x})], Runtime(), 10, 2.0)[0].nodes[0].seen.operator  # doctest: +SKIP
    'Conv'
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        opened: list[_Opened | None] = []
        for k, (model, feeds) in enumerate(models):
            opened.append(None)
            with suppress(SessionError):
                session = open_session(model, replace(runtime, profile=str(Path(folder) / str(k))))
                opened[k] = _Opened(session, bind(session, feeds))
        there = [one for one in opened if one is not None]
        began = time.perf_counter()
        order = np.random.default_rng(0)
        fewest = min(_FEWEST, rounds)
        turns = max(ceil(rounds / max((one.row for one in there), default=1)), fewest)
        for done in range(turns):
            for k in order.permutation(len(there)):
                there[k].turn()
            if done + 1 >= fewest and time.perf_counter() - began > seconds:
                break
        return [None if one is None else one.profile() for one in opened]


class _Opened:
    """A model that is open, and how often it is run in a row: until the caches are its own again."""

    def __init__(self, session: Any, once: Callable[[], object]) -> None:
        self.session, self.once = session, once
        once()
        began = time.perf_counter()
        once()
        self.row = int(np.clip(_SETTLED / (time.perf_counter() - began), 1, _ROW))

    def turn(self) -> None:
        for _ in range(self.row):
            self.once()

    def profile(self) -> Profile:
        return read_profile(Path(self.session.end_profiling()))


def read_profile(path: Path) -> Profile:
    """Read a profile file: nodes of all runs but the first, times of equal nodes of a run added up."""
    events = json.loads(path.read_text(encoding="utf-8"))
    starts = [ts for ts, _ in whole_runs(events)][1:]
    found: dict[str, dict[int, float]] = {}
    seen: dict[str, Seen] = {}
    for name, run, event in kernels(events, starts):
        args = event.get("args", {})
        operator = str(args.get("op_name", ""))
        if not operator or _has_body(operator):
            continue
        key = f"{name}:{operator}"
        found.setdefault(key, {})
        found[key][run] = found[key].get(run, 0.0) + float(event["dur"])
        if key not in seen:
            seen[key] = Seen(operator, _shapes(args.get("input_type_shape")), _shapes(args.get("output_type_shape")))
    runs = len(starts)
    return Profile(tuple(Timed(key, seen[key], _typical(times.values(), runs)) for key, times in found.items()))


def whole_runs(events: Iterable[Event]) -> list[tuple[float, float]]:
    """Return when runs of the model began, and how long they took, in microseconds."""
    return sorted((e["ts"], e["dur"]) for e in events if e.get("name") == _WHOLE)


def kernels(events: Iterable[Event], starts: Sequence[float]) -> Iterator[tuple[str, int, Event]]:
    """Yield what nodes took: the node's name, which of the runs that began at `starts` it was in, and the event.

    What was before the first of them is left out.
    """
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
            if run >= 0:
                yield name.removesuffix(_SUFFIX), run, event


def _has_body(operator: str) -> bool:
    return any(name == operator for _, name, _, _ in BODIES.operators())


def _typical(times: Iterable[float], runs: int) -> float:
    """Return nanoseconds of a run: the mean of the quicker half; a node that is not run in all of them counts less."""
    ordered = sorted(times)
    quick = ordered[: max(round(len(ordered) * _LOW), 1)]
    return 1000.0 * float(np.mean(quick)) * len(ordered) / max(runs, 1)


def _shapes(described: object) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """Return element bytes and shapes; sequences and the like have none."""
    out = []
    for entry in described if isinstance(described, list) else ():
        if isinstance(entry, Mapping):
            for kind, sizes in entry.items():
                if isinstance(sizes, list):
                    out.append((float(ELEMENT.get(str(kind), 4)), tuple(int(n) for n in sizes)))
    return tuple(out)
