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

from graphprune.alike import Family, families, in_turn
from graphprune.allocate import allowed_sizes
from graphprune.analysis import Analysis
from graphprune.calibrate.knowledge import Knowledge, macs_of_sample, threads_of
from graphprune.calibrate.samples import Feed, rows_of
from graphprune.execute import session
from graphprune.groups import ChannelGroup
from graphprune.quality import check_feeds
from graphprune.reconstruct.obs import Curve
from graphprune.rewrite import Chosen
from graphprune.runtime import Runtime, run
from graphprune.scale.candidates import cost_of, losses
from graphprune.transform.branches import Branch

Vector = npt.NDArray[np.float64]
Things = Sequence[ChannelGroup | Branch]
Progress = Callable[[str], None]
_WORK = {"low": 0.0, "medium": 1e12, "high": 2e13}  # multiply-accumulates that trials may cost,
_EACH = {"low": 2e12, "medium": 1e13, "high": 2e14}  # or up to so many where that tries each group once
_DEEP = 4  # groups of a family: with low effort only models that repeat their blocks so often are worth trials
_KEPT = (0.5, 0.75, 0.25)  # fractions of a group that are tried, in this order while the work permits
_FEWEST, _ENOUGH, _MOST = 2, 16, 128  # samples: at least, where each has many rows, where it has one
_ROWS = 2048
_NONE = np.zeros(0, np.int64)
_PART = 2  # one family of so many must be tried: a few that are known to be cheap would pay for all others
_TINY = 1e-12
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


def trial_work(analysis: Analysis, known: Knowledge, groups: Sequence[ChannelGroup]) -> float:
    """Return the multiply-accumulates that trials of groups may cost.

    0 where not half of their families can be tried, and with low effort where the model does not repeat its blocks:
    errors of layers decide then.

    >>> trial_work(analysis, known, analysis.coupling.groups)  # doctest: +SKIP
    1e12
    """
    one, kinds = cost_of(analysis, known, max(_FEWEST, known.batch)), len(families(analysis.coupling, groups))
    if not _WORK[known.effort] and len(groups) < _DEEP * kinds:
        return 0.0
    work = max(_WORK[known.effort], min(_EACH[known.effort], one * len(groups)))
    return work if work * _PART >= one * kinds else 0.0


def trials(
    analysis: Analysis, known: Knowledge, found: Mapping[str, Curve], things: Things, work: float,
    progress: Progress = lambda text: None,
) -> list[Trial]:
    """Prune groups one at a time, to a half, three and one quarter of their size, and compare outputs.

    `things` are groups and branches, in the order in which they matter; all groups are tried at a half first (of each
    family one, then another, as far apart as can be), then each branch is bypassed. It ends when the models have cost
    about `work` multiply-accumulates (`trial_work`). Samples are those that check fits, 2 to 128 of them, as many as
    the work permits; 16 do where the outputs have a row for each token.

    >>> trials(analysis, known, found, analysis.coupling.groups, 1e12)  # doctest: +SKIP
    [Trial(group='conv1.weight:0', width=32, error=0.04, loss=0.003), ...]
    """
    runs = _dense(analysis, known, work / (2 * max(len(things), 1)))
    samples = sum(rows_of(feed, known.samples.axes) for feed, _ in runs)
    affordable = max(int(work / cost_of(analysis, known, samples)), 1)
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
    macs = macs_of_sample(analysis, known.samples)
    most = int(np.clip(work / max(macs, 1.0), _FEWEST, _MOST))
    opened = session(analysis.model, Runtime(threads=threads_of(analysis)))
    runs: list[tuple[Feed, Mapping[str, Any]]] = []
    samples = 0
    for feed in check_feeds(known):
        outputs = run(opened, feed)
        runs.append((feed, outputs))
        here = rows_of(feed, known.samples.axes)
        samples += here
        rows = max((a.size // max(a.shape[-1], 1) for a in outputs.values() if np.ndim(a)), default=1)
        if samples >= min(most, max(_ENOUGH, _ROWS * here // max(rows, 1))):
            break
    return runs


def _wanted(analysis: Analysis, things: Things) -> Iterator[tuple[ChannelGroup | Branch, int]]:
    """Yield groups and widths to try, each once, and branches after the first round."""
    seen = set()
    groups = [g for g in things if not isinstance(g, Branch)]
    turn = in_turn(families(analysis.coupling, groups))
    groups.sort(key=lambda g: turn[g.name])
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


def likely(found: Mapping[str, Curve], tried: Sequence[Trial], alike: Sequence[Family]) -> list[Trial]:
    """Return what groups that were not tried would have lost: as much as those of their family, next to them.

    Between two that were tried, logarithms of losses lie on a line over the places in the family.

    >>> curve = Curve(np.array([0, 1]), np.array([0.0, 0.1, 0.4]), 3, 0.0)
    >>> likely({"a": curve, "b": curve}, [Trial("a", 1, 0.4, 0.8)], [("a", "b")])
    [Trial(group='b', width=1, error=0.4, loss=0.8)]
    """
    own: dict[str, dict[int, float]] = {}
    for t in tried:
        if np.isfinite(t.loss):
            own.setdefault(t.group, {})[t.width] = t.loss
    out = []
    for family in alike:
        for width in sorted({w for name in family for w in own.get(name, {})}):
            places = [k for k, name in enumerate(family) if width in own.get(name, {})]
            losses = [max(own[family[k]][width], _TINY) for k in places]
            for k, name in enumerate(family):
                if name in found and name not in own:
                    loss = float(np.exp(np.interp(k, places, np.log(losses))))
                    out.append(Trial(name, width, found[name].error(width), loss))
    return out


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
