"""Where the time goes: onnxruntime's own profile of two models, run in turn with the options that they are timed with.

onnxruntime runs an optimised graph, whose nodes are fused and renamed. What can be told to be the same node of both
models is set side by side; the rest is summed up.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.errors import SessionError
from graphprune.machine.profile import kernels, whole_runs
from graphprune.runtime import Feeds, ModelSource, Runtime, open_session, run

_WARMUP = 2
_FEWEST, _MOST = 5, 100
_BLOCKED = re.compile(r"_(?:nchwc|nhwc)$")  # what onnxruntime adds to the name of an output in blocks of channels


@dataclass(frozen=True)
class NodeTime:
    """One node as onnxruntime runs it: its name, operator, and the milliseconds of its own in a run (median)."""

    name: str
    operator: str
    ms: float


@dataclass(frozen=True)
class Profile:
    """The nodes of one model, and the milliseconds of a whole run; times of both are with the profiler running."""

    nodes: tuple[NodeTime, ...]
    run_ms: float
    runs: int

    def by_operator(self) -> dict[str, float]:
        """Return the milliseconds of each kind of operator.

        >>> Profile((NodeTime("a", "Conv", 2.0), NodeTime("b", "Conv", 1.0)), 3.5, 9).by_operator()
        {'Conv': 3.0}
        """
        out: dict[str, float] = {}
        for node in self.nodes:
            out[node.operator] = out.get(node.operator, 0.0) + node.ms
        return out


def profile_both(
    dense: tuple[ModelSource, Feeds], pruned: tuple[ModelSource, Feeds], runtime: Runtime, seconds: float = 2.0
) -> tuple[Profile, Profile]:
    """Run two models in turn under onnxruntime's profiler, for about `seconds`, and at least five times each.

    >>> before, after = profile_both(("a.onnx", feeds), ("b.onnx", feeds), Runtime())  # doctest: +SKIP

    Sessions have the options of those that are timed. Raises `SessionError` or `RuntimeUnavailable`.
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        places = [os.path.join(folder, name) for name in ("before", "after")]
        models = (dense, pruned)
        opened = [open_session(m[0], replace(runtime, profile=p)) for m, p in zip(models, places, strict=True)]
        began = time.perf_counter()
        for rounds in range(_WARMUP + _MOST):
            for session, (_, feeds) in zip(opened, models, strict=True):
                run(session, feeds)
            if rounds == _WARMUP - 1:
                began = time.perf_counter()
            if rounds + 1 >= _WARMUP + _FEWEST and time.perf_counter() - began > seconds:
                break
        files = [session.end_profiling() for session in opened]
        if not all(files):
            raise SessionError("onnxruntime wrote no profile of a model: is there room for temporary files?")
        before, after = (read(json.loads(Path(f).read_text(encoding="utf-8"))) for f in files)
    return before, after


def read(events: Iterable[Mapping[str, Any]]) -> Profile:
    """Sum up the events of a profile; the first two runs are warm-up, if there are more.

    A node that runs others inside it (a loop) counts what is left without them.
    """
    timed = [e for e in events if e.get("ph") == "X"]
    runs = whole_runs(timed)
    counted = runs[_WARMUP:] if len(runs) > _WARMUP else runs
    found = list(kernels(timed, [ts for ts, _ in counted] or [0.0]))
    sums: dict[tuple[str, str, str], np.ndarray] = {}
    for (name, which, event), own in zip(found, _own([e for _, _, e in found]), strict=True):
        args = event["args"]
        key = (name, args.get("op_name", "?"), str(args.get("node_index", "")))
        sums.setdefault(key, np.zeros(max(len(counted), 1)))[which] += own
    nodes = tuple(NodeTime(name, operator, float(np.median(t)) / 1e3) for (name, operator, _), t in sums.items())
    return Profile(nodes, float(np.median([d for _, d in counted] or [0])) / 1e3, len(counted))


def _own(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the duration of each event without those that ran inside it, in microseconds."""
    own = [float(e["dur"]) for e in events]
    order = sorted(range(len(events)), key=lambda k: (events[k]["tid"], events[k]["ts"], -events[k]["dur"]))
    open_: list[int] = []
    for k in order:
        e = events[k]
        while open_ and not _inside(e, events[open_[-1]]):
            open_.pop()
        if open_:
            own[open_[-1]] -= e["dur"]
        open_.append(k)
    return [max(t, 0.0) for t in own]


def _inside(event: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether an event ran inside another; times are whole microseconds, so a node of none is never a parent."""
    end = other["ts"] + other["dur"]
    same = event["tid"] == other["tid"] and event["args"].get("node_index") != other["args"].get("node_index")
    return bool(same and other["ts"] <= event["ts"] < end and event["ts"] + event["dur"] <= end)


def profile_record(before: Profile, after: Profile, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what a report says: milliseconds by operator, and by node for those that both models have.

    `names` leads from values to the node of the file that gives them: onnxruntime names a fused node after its output.
    What is in one model only is summed up under `rest`.
    """
    kinds = [p.by_operator() for p in (before, after)]
    operators = [
        {"operator": o, "before_ms": kinds[0].get(o, 0.0), "after_ms": kinds[1].get(o, 0.0)}
        for o in dict.fromkeys([*kinds[0], *kinds[1]])
    ]
    sides = [_by_name(p, names or {}) for p in (before, after)]
    both = [n for n in sides[0] if n in sides[1]]
    rest = [sum(t.ms for n, t in side.items() if n not in both) for side in sides]
    return {
        "runs": min(before.runs, after.runs),
        "run_ms": {"before": before.run_ms, "after": after.run_ms},
        "operators": sorted(operators, key=lambda o: -max(o["before_ms"], o["after_ms"])),
        "nodes": [
            {"name": n, "operator": sides[0][n].operator, "before_ms": sides[0][n].ms, "after_ms": sides[1][n].ms}
            for n in both
        ],
        "rest": {"before_ms": rest[0], "after_ms": rest[1]},
    }


def _by_name(profile: Profile, names: Mapping[str, str]) -> dict[str, NodeTime]:
    """Return nodes by the names that they have in the file; of several with one name, their sum."""
    known = set(names.values())
    out: dict[str, NodeTime] = {}
    for node in profile.nodes:
        bare = _BLOCKED.sub("", node.name)
        name = node.name if node.name in known else names.get(bare, node.name)
        ms = node.ms + (out[name].ms if name in out else 0.0)
        out[name] = NodeTime(name, out[name].operator if name in out else node.operator, ms)
    return out
