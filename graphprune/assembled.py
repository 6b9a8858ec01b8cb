"""Candidates of a search: real pruned and refitted models, put together from what is there, run beside the dense one.

Nothing is fitted twice (`reconstruct/reused.py`), the dense model runs once over the samples, and a candidate that is
looked at again on more samples goes on where it was. Samples that results are told by are not looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.calibrate.folder import Folder
from graphprune.calibrate.knowledge import Knowledge, threads_of
from graphprune.calibrate.padding import real_tokens
from graphprune.calibrate.samples import Feed
from graphprune.errors import SessionError
from graphprune.execute import session
from graphprune.quality import Comparison, Divergence, together
from graphprune.reconstruct.reused import Reused, Store
from graphprune.rewrite import Chosen, arranged, rearranged
from graphprune.runtime import Runtime, run

if TYPE_CHECKING:
    import onnxruntime

    from graphprune.allocate.knapsack import Levels

Array = npt.NDArray[Any]
MEMORY = 1e9
"""Bytes of refits that candidates keep in memory; more are in files."""
_ENTRIES = 8_000_000  # of one output and feed that are compared: rows of more are thinned out
_AXES = 3  # an output with more axes is a map of features, and stays whole
_IN_MEMORY = 500_000_000  # bytes of dense outputs; more are kept in files
_SESSIONS = 1_500_000_000  # bytes of weights of models that are kept open
_MOST = 24  # of them
_WIDEST = 1024  # numbers in a row of an output that an affine map is fitted for
_ROWS_PER_COLUMN = 4
_RIDGE = 1e-2  # of the mean square of the inputs of that map


@dataclass(frozen=True)
class Compared:
    """One feed with the dense model's outputs, and which of an output's rows are compared (None: all).

    Large outputs are in files, in `folder`.
    """

    feed: Feed
    dense: Mapping[str, Array]
    rows: Mapping[str, npt.NDArray[np.int64] | None]
    folder: Folder

    def thinned(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the same rows of a pruned model's outputs."""
        return {name: _taken(a, self.rows.get(name)) for name, a in outputs.items()}


def compared(analysis: Analysis, feeds: Sequence[Feed]) -> list[Compared]:
    """Run the dense model on feeds."""
    opened = session(analysis.model, Runtime(threads=threads_of(analysis)))
    folder, used = Folder(), 0
    whole = bool(analysis.coupling.graph.ports)
    out = []
    for k, feed in enumerate(feeds):
        outputs = run(opened, feed)
        rows = {name: None if whole else _rows(a, feed, k) for name, a in outputs.items()}
        dense = {name: _taken(a, rows[name]) for name, a in outputs.items()}
        used += sum(a.nbytes for a in dense.values() if isinstance(a, np.ndarray))
        if used > _IN_MEMORY:
            dense = {
                name: folder.park(f"{k}_{i}", a) if isinstance(a, np.ndarray) else a
                for i, (name, a) in enumerate(dense.items())
            }
        out.append(Compared(feed, dense, rows, folder))
    return out


def _rows(array: Array, feed: Feed, number: int) -> npt.NDArray[np.int64] | None:
    """Return which rows of an output to compare, None for all; drawn by the number of the feed."""
    if not isinstance(array, np.ndarray) or array.ndim < 2 or array.ndim > _AXES or array.dtype.kind != "f":
        return None
    real = real_tokens(feed)
    count = array.size // max(array.shape[-1], 1)
    padded = real is not None and array.ndim == _AXES and array.shape[:2] == real.shape
    most = max(_ENTRIES // max(array.shape[-1], 1), 1)
    if count <= most:
        return None
    there = np.flatnonzero(real) if padded and real is not None else np.arange(count)
    chosen = np.random.default_rng(number).permutation(there)[:most]
    return np.sort(chosen).astype(np.int64)


def _taken(array: Array, rows: npt.NDArray[np.int64] | None) -> Array:
    return array if rows is None else array.reshape(-1, array.shape[-1])[rows]


@dataclass
class _Open:
    """A candidate that is open, with its outputs for the first feeds."""

    session: onnxruntime.InferenceSession
    outputs: list[dict[str, Array]] = field(default_factory=list)


class Candidates:
    """What states lose: builds and runs them; mutable in what it remembers.

    `chosen` says for levels which indices stay; `runs` are the feeds, the same ones first for every state. Outputs are
    compared after the affine map that brings them nearest to the dense model's: what repair in order takes back anyway
    says nothing about a state.

    >>> Candidates(analysis, known, chosen, compared(analysis, feeds))((3, 5), 2)  # doctest: +SKIP
    0.12
    """

    def __init__(
        self, analysis: Analysis, known: Knowledge, chosen: Callable[[Levels], Chosen], runs: Sequence[Compared],
        memory: float,
    ) -> None:
        self._analysis, self._chosen, self._runs = analysis, chosen, runs
        self._repairs = Reused(analysis.coupling, known, Store(memory))
        self._open: OrderedDict[Levels, _Open] = OrderedDict()
        self._most = max(1, min(_MOST, int(_SESSIONS / max(analysis.dense.bytes, 1))))

    def __call__(self, levels: Levels, samples: int) -> float:
        """Return the divergence from the dense model on so many feeds, infinite where the model does not run."""
        return together(self.outputs(levels, samples))

    def outputs(self, levels: Levels, samples: int) -> list[Divergence]:
        """Return the divergence of every output on so many feeds, of none where the model does not run."""
        chosen, coupling = self._chosen(levels), self._analysis.coupling
        runs = self._runs[:samples]
        try:
            opened = self._opened(levels, chosen)
            for each in runs[len(opened.outputs) :]:
                opened.outputs.append(each.thinned(run(opened.session, arranged(each.feed, coupling, chosen))))
        except SessionError:
            return []
        dense = [arranged(each.dense, coupling, chosen) for each in runs]
        maps = readouts([(d, p, each.feed) for d, p, each in zip(dense, opened.outputs, runs, strict=False)])
        found = Comparison()
        for before, after, each in zip(dense, opened.outputs, runs, strict=False):
            found.add(before, {n: mapped(a, maps.get(n)) for n, a in after.items()}, each.feed)
        return found.divergences()

    def _opened(self, levels: Levels, chosen: Chosen) -> _Open:
        if levels not in self._open:
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            pruned = rearranged(self._analysis.model, self._analysis.coupling, chosen)
            self._repairs.mend(pruned, chosen)
            self._open[levels] = _Open(session(pruned, Runtime(threads=threads_of(self._analysis))))
        self._open.move_to_end(levels)
        return self._open[levels]


def readouts(runs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array], Feed]]) -> dict[str, Array]:
    """Return for each output the affine map [width + 1, width] that adds what a pruned model's rows lack, by ridge.

    Outputs that are wide for their number of rows, maps of features and probabilities have none.
    """
    sums: dict[str, tuple[Array, Array, int]] = {}
    for dense, pruned, feed in runs:
        for name, after in pruned.items():
            before = dense.get(name)
            if before is None or not _linear(before, after):
                continue
            x, y = (_real(a, feed).astype(np.float64) for a in (after, before))
            z = np.hstack([x, np.ones((len(x), 1))])
            square, cross, rows = sums.get(name, (0.0, 0.0, 0))
            sums[name] = square + z.T @ z, cross + z.T @ (y - x), rows + len(x)
    out = {}
    for name, (square, cross, rows) in sums.items():
        if rows >= _ROWS_PER_COLUMN * len(square) and np.isfinite(square).all():
            damped = square + np.diag(_RIDGE * np.diagonal(square).mean() * np.ones(len(square)))
            out[name] = np.linalg.solve(damped, cross)
    return out


def mapped(array: Array, readout: Array | None) -> Array:
    """Return an output with what a map adds to its rows."""
    if readout is None:
        return array
    rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
    return np.asarray((rows + rows @ readout[:-1] + readout[-1]).reshape(array.shape), array.dtype)


def _linear(before: Array, after: Array) -> bool:
    """Return whether an output may have an affine map: rows of not too many numbers that are no probabilities."""
    if not (isinstance(before, np.ndarray) and isinstance(after, np.ndarray)) or before.dtype.kind != "f":
        return False
    if before.shape != after.shape or not 2 <= before.ndim <= _AXES or not 1 < before.shape[-1] <= _WIDEST:
        return False
    return bool(np.isfinite(after).all() and (before < 0).any())


def _real(array: Array, feed: Feed) -> Array:
    """Return the rows of an output that are of real tokens."""
    real = real_tokens(feed)
    padded = real is not None and array.ndim == _AXES and array.shape[:2] == real.shape
    return array[real] if padded else array.reshape(-1, array.shape[-1])
