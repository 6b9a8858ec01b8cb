"""Trials: one channel group alone is pruned and repaired, and the model is run. That is what its errors are worth.

A layer's own error says little about what it does to the outputs: layers differ by orders of magnitude in that, and
groups that no layer with statistics contracts (the width of queries and keys) have no error of a layer at all. What
the outputs lose by single groups nearly adds up, so with these curves the allocation loses least at the outputs.

Sources: output distortion as a sum over layers: Xu et al., Efficient joint optimization of layer-adaptive weight
pruning in deep neural networks (ICCV 2023); layer errors that mislead in language models: Sieberling et al., EvoPress
(ICML 2025). Branches by what the outputs lose without one of them: Zhang et al., FinerCut (2024), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.allocate import allowed_sizes
from graphprune.analysis import Analysis
from graphprune.calibrate.knowledge import Knowledge, sample_scale, threads_of
from graphprune.calibrate.samples import Feed
from graphprune.execute import session
from graphprune.groups import ChannelGroup
from graphprune.quality import held_feeds
from graphprune.reconstruct.obs import Curve
from graphprune.rewrite import Chosen
from graphprune.runtime import Runtime, run
from graphprune.scale.candidates import losses
from graphprune.transform.branches import Branch

Vector = npt.NDArray[np.float64]
Things = Sequence[ChannelGroup | Branch]
Progress = Callable[[str], None]
_KEPT = (0.5, 0.75, 0.25)  # fractions of a group that are tried, in this order while the work permits
_FEWEST, _ENOUGH, _MOST = 2, 16, 128  # samples: at least, where each has many rows, where it has one
_ROWS = 2048
_OPENING = 500  # multiply-accumulates that one weight costs when a model is built and opened
_NONE = np.zeros(0, np.int64)
_PART = 2  # one group of so many must be tried: a few that are known to be cheap would pay for all others
_LEAST = 1e-2  # of what errors are worth elsewhere: no group is free
_RUINED = 2.0  # nats, or times the energy of an output: what is lost no longer grows with what is removed


@dataclass(frozen=True)
class Trial:
    """One group at one width: its curve's error there, and what the outputs lost (`Divergence.loss`, summed).

    Of a branch, `group` is its name, `width` 0, and `error` 0: it was bypassed.
    """

    group: str
    width: int
    error: float
    loss: float


def trials(
    analysis: Analysis, known: Knowledge, found: Mapping[str, Curve], things: Things, work: float,
    progress: Progress = lambda text: None,
) -> list[Trial]:
    """Prune groups one at a time, to a half, three and one quarter of their size, and compare outputs.

    `things` are groups and branches, in the order in which they matter; all groups are tried at a half first, then
    each branch is bypassed. It ends when the models have cost about `work` multiply-accumulates; where that is not
    enough for half of the groups, nothing is tried, and errors of layers decide. Samples are those that
    nothing is fitted to, 2 to 128 of them, as many as the work permits; 16 do where the outputs have a row for each
    token.

    >>> trials(analysis, known, found, analysis.coupling.groups, 1e12)  # doctest: +SKIP
    [Trial(group='conv1.weight:0', width=32, error=0.04, loss=0.003), ...]
    """
    runs = _dense(analysis, known, work / (2 * max(len(things), 1)))
    macs = analysis.dense.macs * sample_scale(analysis, known.samples) * known.batch * len(runs)
    affordable = max(int(work / (macs + _OPENING * analysis.dense.parameters + 1)), 1)
    if affordable * _PART < sum(not isinstance(thing, Branch) for thing in things):
        return []
    wanted = list(islice(_wanted(analysis, things), affordable))
    done = []
    lost = losses(analysis, known, (_choice(found, thing, width) for thing, width in wanted), runs)
    for k, (thing, width) in enumerate(wanted):
        progress(f"trial {k + 1} of {len(wanted)}: {thing.name}")
        loss = next(lost)
        if loss is not None:
            error = 0.0 if isinstance(thing, Branch) else found[thing.name].error(width)
            done.append(Trial(thing.name, width, error, loss))
    return done


def _dense(analysis: Analysis, known: Knowledge, work: float) -> list[tuple[Feed, Mapping[str, Any]]]:
    """Return feeds with the dense model's outputs, as many as one trial may cost."""
    macs = analysis.dense.macs * sample_scale(analysis, known.samples)
    most = int(np.clip(work / max(macs, 1.0), _FEWEST, _MOST))
    opened = session(analysis.model, Runtime(threads=threads_of(analysis)))
    runs: list[tuple[Feed, Mapping[str, Any]]] = []
    for feed in held_feeds(known):
        outputs = run(opened, feed)
        runs.append((feed, outputs))
        rows = max((a.size // max(a.shape[-1], 1) for a in outputs.values() if np.ndim(a)), default=1)
        enough = max(_ENOUGH, _ROWS * known.batch // max(rows, 1))
        if len(runs) * known.batch >= min(most, enough):
            break
    return runs


def _wanted(analysis: Analysis, things: Things) -> Iterator[tuple[ChannelGroup | Branch, int]]:
    """Yield groups and widths to try, each once, and branches after the first round."""
    seen = set()
    groups = [g for g in things if not isinstance(g, Branch)]
    for fraction in _KEPT:
        for group in groups:
            sizes = [n for n in allowed_sizes(group, analysis.coupling, 1)[:-1] if n >= group.least]
            width = min(sizes, key=lambda n: abs(n - fraction * group.size), default=None)
            if width is not None and (group.name, width) not in seen:
                seen.add((group.name, width))
                yield group, width
        if fraction == _KEPT[0]:
            yield from ((b, 0) for b in things if isinstance(b, Branch))


def _choice(found: Mapping[str, Curve], thing: ChannelGroup | Branch, width: int) -> Chosen:
    """Return what a trial keeps: of a branch nothing."""
    return {thing.gate: _NONE} if isinstance(thing, Branch) else {thing.dim: found[thing.name].kept(width)}



def worth(found: Mapping[str, Curve], tried: Sequence[Trial]) -> dict[str, tuple[npt.NDArray[np.int64], Vector]]:
    """Return the curves in what outputs lose: widths and losses, each curve bent so that it meets its trials.

    Between trials, losses are proportional to the curve's rise. Where even the mildest trial of a group ruined the
    outputs, no milder cut is believed to lose less: the stream of a language model may not stand the loss of 3 % of its
    width, which its readers' errors do not tell, as a norm divides by what is gone. A group that was not tried counts
    by the dearest of those that were: so it is left alone while others can give.

    >>> curve = Curve(np.array([0, 1]), np.array([0.0, 0.1, 0.4]), 3, 0.0)
    >>> worth({"a": curve}, [Trial("a", 1, 0.4, 0.8)])["a"][1].tolist()
    [0.8, 0.2, 0.0]
    """
    rates = [t.loss / t.error for t in tried if t.error > 0 and np.isfinite(t.loss)]
    dearest, least = max(rates, default=1.0), _LEAST * float(np.median(rates)) if rates else 0.0
    out = {}
    for name, curve in found.items():
        widths, errors = curve.by_width()
        points = sorted((t.error, t.loss) for t in tried if t.group == name)
        bent = _bent(np.asarray(errors, np.float64), points, dearest)
        out[name] = widths, np.maximum(bent, least * errors)
    return out


def _bent(errors: Vector, points: Sequence[tuple[float, float]], rate: float) -> Vector:
    if not points:
        return errors * rate
    x = np.array([0.0, *(e for e, _ in points)])
    y = np.maximum.accumulate([0.0, *(loss for _, loss in points)])
    bent = np.interp(errors, x, y)
    beyond = errors > x[-1]
    bent[beyond] = y[-1] * errors[beyond] / x[-1] if x[-1] > 0 else np.inf
    if y[1] >= _RUINED:
        bent[errors > 0] = np.maximum(bent[errors > 0], y[1])
    return np.asarray(bent)
