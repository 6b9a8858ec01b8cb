"""Latency and memory of the dense and the pruned model, as the report has them."""

from __future__ import annotations

import time
from pathlib import Path

from graphprune.analysis import Analysis
from graphprune.execute import runnable
from graphprune.measure import Clock, Comparison, compare_latency
from graphprune.memory import peak_memory_mb
from graphprune.rewrite import Chosen, arranged
from graphprune.runtime import Runtime, resolve_provider


def latency(analysis: Analysis, written: Path, chosen: Chosen, seconds: float) -> Comparison:
    """Time both models in turn on the same inputs."""
    feed = analysis.reference.feeds[0]
    other = arranged(feed, analysis.coupling, chosen)
    with runnable(analysis.original, analysis.source) as dense:
        return compare_latency(dense, str(written), feed, other, analysis.looking.runtime, seconds)


def memory(analysis: Analysis, written: Path, chosen: Chosen) -> tuple[float | None, float | None]:
    """Return the peak memory in MB of loading and running the dense and the pruned model once."""
    feed, runtime = analysis.reference.feeds[0], analysis.looking.runtime
    other = arranged(feed, analysis.coupling, chosen)
    with runnable(analysis.original, analysis.source) as dense:
        return peak_memory_mb(dense, feed, runtime), peak_memory_mb(str(written), other, runtime)


def clock_of(runtime: Runtime) -> Clock:
    """Return the clock that other work on the machine disturbs least.

    With one thread on the CPU a run is in the calling thread, and that thread's own time counts; else it is the wall's.

    >>> clock_of(Runtime())() <= clock_of(Runtime())()
    True
    """
    alone = runtime.threads == 1 and resolve_provider(runtime.provider) == resolve_provider("cpu")
    return time.thread_time_ns if alone else time.perf_counter_ns
