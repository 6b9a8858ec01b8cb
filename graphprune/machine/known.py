"""What is known of a machine and a model on it: kept times, those of a file, and what is measured where they lack."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from graphprune.analysis import Analysis
from graphprune.errors import UsageError
from graphprune.execute import runnable
from graphprune.machine.cache import folder, remember, remembered
from graphprune.machine.counted import Counted
from graphprune.machine.latency import Latency, priced, records_of
from graphprune.machine.looked import Looked, Sizes, look, profiled
from graphprune.machine.mixed import Mixed
from graphprune.machine.table import Table, Where
from graphprune.measure import interleaved
from graphprune.runtime import bind, open_session
from graphprune.timed import clock_of

Progress: TypeAlias = Callable[[str], None]
_MEASURED = {"low": (6, 6.0), "medium": (8, 15.0), "high": (12, 40.0)}
"""For each effort how many variants of a model are run, and for how many seconds in all."""

_NEAR = 0.1  # logarithms of loads: records so near tell what a node takes
_ENOUGH = 0.9  # of the time; where records tell as much nothing is measured
_SECONDS = 0.7


@dataclass(frozen=True)
class Known:
    """A model's latency on a machine; `foreign`: the machine is not this one, so nothing was measured here.

    Where `latency` is counted or mixed, it is in no unit of time.
    """

    latency: Latency | Counted | Mixed
    looked: Looked
    table: Table
    foreign: bool
    remarks: tuple[str, ...] = ()

    def refined(self, analysis: Analysis, sizes: Sizes) -> Known:
        """Return the same with one more pruned model run, so that times are best around its sizes."""
        if self.foreign or not isinstance(self.latency, Latency):
            return self
        (profile,) = profiled(analysis, [sizes], 20, _SECONDS)
        if profile is None:
            return self
        looked = replace(self.looked, variants=(*self.looked.variants, (sizes, profile)))
        whole = self.latency.ns({})
        return replace(self, looked=looked, latency=priced(looked, self.table).calibrated(whole))


def know(
    analysis: Analysis, align: int, machine: Table | str | os.PathLike[str] | None, effort: str, progress: Progress
) -> Known:
    """Return a model's latency as a function of its groups' sizes.

    Without the table of a `machine`, or its file, what other runs on this machine have measured counts, and what they
    lack is measured and kept. A table of another machine is taken as it is. Raises UsageError where the model does not
    run, and for a file that is no table.
    """
    where = Where.here(analysis.looking.runtime)
    given = machine if machine is None or isinstance(machine, Table) else Table.load(machine)
    foreign = given is not None and given.where != where
    table, remark = (given, "") if given is not None else remembered(where, folder())
    remarks = [remark] if remark else []
    count, seconds = _MEASURED[effort]
    looked = look(analysis, align, count, 0.0, progress) if foreign or table.records else None
    enough = looked is not None and (foreign or _covered(looked, table))
    if not enough:
        looked = look(analysis, align, count, seconds, progress)
    if looked is None:
        raise UsageError("latency is predicted from runs with onnxruntime's profiler, and the model does not run so")
    if foreign:
        assert given is not None
        remarks.append(f"latency is that of another machine, as predicted: {given.where}")
        return Known(priced(looked, table, own=False), looked, table, True, tuple(remarks))
    if not enough:
        table = table.with_records(records_of(profile for _, profile in looked.variants))
        if given is None:
            remarks += [said for said in (remember(table, folder()),) if said]
    latency = priced(looked, table, own=not enough).calibrated(_dense_ns(analysis))
    return Known(latency, looked, table, False, tuple(remarks))


def _covered(looked: Looked, table: Table) -> bool:
    """Return whether records tell what nodes take that make up most of the dense model's time."""
    times = {n.key: n.ns for n in looked.dense.nodes}
    told = 0.0
    for node in looked.nodes:
        loads = [node.workload(sizes) for sizes, _ in looked.variants]
        found = table.by_family.get(loads[0].family)
        if found is not None and max(found.away(w.loads) for w in loads) < _NEAR:
            told += times[node.key]
    return told >= _ENOUGH * sum(times.values())


def _dense_ns(analysis: Analysis) -> float:
    """Return nanoseconds of a run of the dense model, nothing else being recorded."""
    with runnable(analysis.original, analysis.source) as source:
        runtime = analysis.looking.runtime
        once = bind(open_session(source, runtime), analysis.reference.feeds[0])
        found = interleaved({"dense": once}, seconds=_SECONDS, clock=clock_of(runtime))
    return 1e6 * float(np.median(found["dense"]))
