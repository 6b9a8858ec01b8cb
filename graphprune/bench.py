"""Compare and time models as files: costs, memory, latency, outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphprune.execute import relative_error
from graphprune.measure import bench, compare_latency, peak_memory_mb
from graphprune.pipeline import Analysis, Looking, analyse
from graphprune.report.record import costs_record, timing_record
from graphprune.runtime import open_session, run


def compare_models(
    before: Path, after: Path, looking: Looking, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what `compare --json` prints; raises a GraphPruneError."""
    one, two = analyse(before, looking, progress), analyse(after, looking, progress)
    feed = one.reference.feeds[0]
    progress("running")
    outputs = [run(open_session(p, looking.runtime), feed) for p in (before, after)]
    progress("timing")
    timing = compare_latency(before, after, feed, feed, looking.runtime, seconds)
    memory = [peak_memory_mb(p, feed, looking.runtime) for p in (before, after)]
    return {
        "before": costs_record(one.dense, timing.before.median_ms, memory[0]),
        "after": costs_record(two.dense, timing.after.median_ms, memory[1]),
        **timing_record(timing),
        "max_relative_difference": relative_error(*outputs)[0],
        "proof": None,
        "plan": None,
        "assumed": list(one.assumed),
        "seconds": {"before": sum(one.seconds.values()), "after": sum(two.seconds.values())},
    }


def bench_models(
    models: Sequence[Path], looking: Looking, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what `bench --json` prints: percentiles and peak memory of each model."""
    first = analyse(models[0], looking, progress)
    feed = first.reference.feeds[0]
    progress("timing")
    timings = bench([str(m) for m in models], feed, looking.runtime, seconds)
    rows = []
    for (name, timing), path in zip(timings.items(), models, strict=True):
        progress(f"measuring the memory of {path.name}")
        rows.append({"model": name, **asdict(timing), "peak_memory_mb": peak_memory_mb(path, feed, looking.runtime)})
    return {"models": rows, "inputs": _shapes(first), "assumed": list(first.assumed)}


def _shapes(analysis: Analysis) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in analysis.reference.feeds[0].items()}
