"""A table of a machine without any model at hand: common operators at many widths, for use there or elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

import numpy as np

from graphprune.machine.latency import records_of
from graphprune.machine.profile import profiles
from graphprune.machine.table import Table, Where
from graphprune.ops.probes import probes
from graphprune.runtime import Runtime

_ROUNDS = 12
_MOST = 40
_SHARE = 8.0  # seconds that one set of models may be run


def profile_machine(
    runtime: Runtime, seconds: float, progress: Callable[[str], None] = lambda text: None
) -> Table:
    """Return what this machine takes for common operators; it ends after about so many seconds.

    >>> profile_machine(Runtime(), 60.0).save("here.json")  # doctest: +SKIP
    """
    began = time.perf_counter()
    table = Table(Where.here(runtime))
    for k, models in enumerate(islice(probes(), _MOST)):
        rng = np.random.default_rng(k)
        feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _, shape in models]
        opened = [(model, feed) for (model, _), feed in zip(models, feeds, strict=True)]
        started = time.perf_counter()
        found = profiles(opened, runtime, _ROUNDS, _SHARE)
        table = table.with_records(records_of(p for p in found if p is not None))
        now = time.perf_counter()
        progress(f"timed {len(table.records)} nodes, {now - began:.0f} of {seconds:.0f} seconds")
        if now - began + (now - started) > seconds:
            break
    return table
