"""How much residual branches change what flows past them: one minus the cosine of what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.axes import leaves
from graphprune.calibrate.knowledge import Knowledge, threads_of
from graphprune.calibrate.padding import real_tokens
from graphprune.calibrate.statistics import Watched
from graphprune.groups import Coupling
from graphprune.ops import Operand
from graphprune.quality import check_feeds
from graphprune.transform.branches import Branch

_SAMPLES = 32
_TINY = 1e-12


def influences(analysis: Analysis, known: Knowledge, branches: Sequence[Branch]) -> dict[str, float]:
    """Return by name how much each branch changes what flows past it: 1 - E[cos(x, x + f(x))], over rows of channels.

    The model is run on at most 32 of the samples that check fits. Branches whose sum is no value of its own (a
    normalisation is fused to it) are left out.

    >>> influences(analysis, known, analysis.coupling.branches.free)  # doctest: +SKIP
    {'/layer1/Add': 0.21, '/layer2/Add': 0.02}

    Source: Men et al., ShortGPT (2024), section 3.1, the block influence; here of single branches.
    """
    ends = {b.name: e for b in branches if (e := _ends(b)) is not None}
    watched = Watched(analysis.model, [o.name for e in ends.values() for o in e], threads_of(analysis))
    sums = {name: [0.0, 0] for name in ends}
    for feed in islice(check_feeds(known), max(1, _SAMPLES // known.batch)) if ends else ():
        values, real = watched(feed), real_tokens(feed)
        for name, (before, after) in ends.items():
            axis = _channels(analysis.coupling, after)
            a, b = (np.moveaxis(np.asarray(values[o.name], np.float64), axis, -1) for o in (before, after))
            if real is not None and a.shape[:2] == real.shape:
                a, b = a[real], b[real]
            found = cosines(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]))
            sums[name][0] += float(found.sum())
            sums[name][1] += len(found)
    return {name: 1 - total / count for name, (total, count) in sums.items() if count}


def cosines(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosine of each row with its counterpart; rows of zeros and rows that are not finite are left out.

    >>> cosines(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 1.0]])).tolist()
    [0.0]
    """
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    some = np.isfinite(norms) & (norms > _TINY)
    return np.asarray(np.sum(before[some] * after[some], axis=1) / norms[some])


def _ends(branch: Branch) -> tuple[Operand, Operand] | None:
    """Return what a branch is added to, and the sum; None where the sum is not given."""
    others = [k for k in branch.residual.summands if k != branch.summand]
    total = branch.residual.without(branch.summand).totals
    after = branch.join.output(min(total)) if total else None
    return (branch.join.x(others[0]), after) if after is not None and len(others) == 1 else None


def _channels(coupling: Coupling, value: Operand) -> int:
    """Return the axis of channels: the first that groups lie on, else the second of four or the last."""
    for k, axis in enumerate(value.axes):
        if any(d in coupling.dims for d in leaves(coupling.expand(axis))):
            return k
    return 1 if value.rank == 4 else -1
