"""Compare two models as files: costs, memory, latency, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune import feeds as feeding
from graphprune.errors import UsageError
from graphprune.execute import relative_error
from graphprune.measure import compare_latency
from graphprune.memory import peak_memory_mb
from graphprune.metric import Metric, judge, name_of
from graphprune.model import load
from graphprune.pipeline import Looking, analyse
from graphprune.report.record import costs_record, timing_record
from graphprune.runtime import open_session, run
from graphprune.sizes import input_symbols


def compare_models(
    before: Path, after: Path, looking: Looking, seconds: float, progress: Callable[[str], None],
    metric: Metric | None = None,
) -> dict[str, Any]:
    """Return what `compare --json` prints; raises a GraphPruneError.

    `metric` is the caller's own, asked about both files.

    Where inputs of the second model are smaller (a state with fewer heads), it is given the leading part of the
    first one's; outputs of other sizes are named in `other_sizes` and not compared.
    """
    one = analyse(before, looking, progress)
    second = load(after)
    feed = one.reference.feeds[0]
    feeds = [feed, fitted(feed, second)]
    same = replace(looking, input_shapes=one.coupling.graph.worlds.natural_inputs)
    two = analyse(after, fitted_looking(same, second), progress)
    progress("running")
    outputs = [run(open_session(p, looking.runtime), f) for p, f in zip((before, after), feeds, strict=True)]
    inputs_moved, moved = (_moved(*pair) for pair in (feeds, outputs))
    first = {name: a for name, a in outputs[0].items() if name not in moved}
    evaluation = _evaluation(metric, before, after, progress)
    progress("timing")
    timing = compare_latency(before, after, feeds[0], feeds[1], looking.runtime, seconds)
    memory = [peak_memory_mb(p, f, looking.runtime) for p, f in zip((before, after), feeds, strict=True)]
    return {
        "before": costs_record(one.dense, timing.before.median_ms, memory[0]),
        "after": costs_record(two.dense, timing.after.median_ms, memory[1]),
        **timing_record(timing),
        "max_relative_difference": relative_error(first, outputs[1])[0],
        "other_sizes": {"inputs": inputs_moved, "outputs": moved},
        "evaluation": evaluation,
        "proof": None,
        "plan": None,
        "assumed": list(one.assumed),
        "seconds": {"before": sum(one.seconds.values()), "after": sum(two.seconds.values())},
    }


def _evaluation(
    metric: Metric | None, before: Path, after: Path, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    if metric is None:
        return None
    progress("evaluating")
    found = {key: judge(metric, path, str(path)) for key, path in (("before", before), ("after", after))}
    return {"metric": name_of(metric), **found}


def fitted(feed: Mapping[str, Any], model: ir.Model) -> feeding.Feeds:
    """Return inputs of one model for another: the leading part of those that are smaller there; raises UsageError."""
    symbols = input_symbols(model)
    if set(symbols) != set(feed):
        raise UsageError(f"the models have different inputs: {_names(feed)} and {_names(symbols)}")
    return {name: a[tuple(slice(n) for n in _fit(name, a.shape, symbols[name]))] for name, a in feed.items()}


def fitted_looking(looking: Looking, model: ir.Model) -> Looking:
    """Return how a second model is looked at, whose inputs may be smaller; raises UsageError."""
    symbols = input_symbols(model)
    shapes = {k: _fit(k, s, symbols[k]) if k in symbols else s for k, s in looking.input_shapes.items()}
    return replace(looking, input_shapes=shapes, inputs=fitted(looking.inputs, model) if looking.inputs else {})


def _fit(name: str, shape: Sequence[int], wanted: Sequence[int | str]) -> tuple[int, ...]:
    sizes = list(wanted) if wanted else list(shape)
    if len(sizes) != len(shape) or any(isinstance(w, int) and w > n for w, n in zip(sizes, shape, strict=False)):
        raise UsageError(
            f"input {name!r} is {list(shape)} in the first model and {sizes} in another: give the larger model first"
        )
    return tuple(w if isinstance(w, int) else n for w, n in zip(sizes, shape, strict=True))


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _moved(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Return the names of arrays that have other sizes in the second."""
    return [name for name, a in one.items() if name in two and a.shape != two[name].shape]
