"""What is asked for as a budget, and which kinds of cost that needs beside those that cost nothing to count."""

from __future__ import annotations

from graphprune.allocate import Budget
from graphprune.allocate.align import detect_alignment
from graphprune.analysis import Analysis
from graphprune.errors import UsageError
from graphprune.machine.energy import energy
from graphprune.machine.memory import memory
from graphprune.options import Choosing


def budget_of(choosing: Choosing, calibrated: bool) -> Budget:
    """Return what is asked for; a speed-up stands for as much of the multiply-accumulates, until something is timed.

    Raises UsageError for a speed-up that is none.
    """
    targets = dict(choosing.targets)
    if choosing.speedup is not None:
        if not choosing.speedup > 1:
            raise UsageError(f"a speed-up of {choosing.speedup:g} asks for nothing: give a number above 1")
        targets.setdefault("macs", 1 / choosing.speedup)
    return Budget(
        sparsity=choosing.sparsity,
        targets=targets,
        allocation=choosing.settled(calibrated)[1],
        align=align_of(choosing),
        floor=choosing.floor,
        include=choosing.include,
        exclude=choosing.exclude,
    )


def align_of(choosing: Choosing) -> int:
    """Return the step of kept counts: as asked for, or as this machine's processor has it."""
    return detect_alignment() if choosing.align == "auto" else int(choosing.align)


def priced(analysis: Analysis, choosing: Choosing) -> Analysis:
    """Return the analysis with a price for every kind that has a target; those that it has are not priced again."""
    for kind in choosing.targets:
        if analysis.costs.columns_of(kind):
            continue
        if kind == "memory":
            analysis = analysis.pricing(memory(analysis.costs))
        elif kind == "energy-proxy":
            analysis = analysis.pricing(energy())
    return analysis
