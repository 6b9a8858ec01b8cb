"""Turning as a stage of the pipeline: which inner widths of attention have no basis of their own, and a better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.accuracy import calibrate, prepare, samples_for
from graphprune.analysis import Analysis, Progress
from graphprune.calibrate.knowledge import Knowledge, batch_of, threads_of
from graphprune.calibrate.remembered import remembered
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.statistics import Gram, gather
from graphprune.consumers import Consumer, consumers
from graphprune.errors import PlanError, SessionError
from graphprune.execute import relative_error
from graphprune.followers import followers
from graphprune.order import Order
from graphprune.repair import Repairing
from graphprune.runtime import run
from graphprune.transform.turned import Moment, Pair, Side, pairs, turned

Matrix: TypeAlias = npt.NDArray[np.float64]
_SAMPLES = 128  # that second moments are taken from: they need no more to tell directions apart
_EQUAL = 1e-4  # of the largest output: what turning may change


def turning(
    analysis: Analysis, samples: Samples | None, progress: Progress = lambda text: None, names: Sequence[str] = ()
) -> Analysis:
    """Return a model's analysis with the inner widths of its attention turned.

    Directions are ordered by what they do on `samples`, by weights alone where there are none. Without `names` all
    groups are turned that can be. What changes the model's outputs by more than rounding is left out: it is run.

    >>> turning(analyse("bert.onnx"), samples).turned  # doctest: +SKIP
    ('query.weight:1.1', 'value.weight:1.1')
    """
    found = [p for p in pairs(analysis.coupling) if not names or p.group in names]
    if not found:
        return analysis
    progress("turning heads")
    moment = _moments(analysis, found, samples) if samples is not None else _unknown
    sound = _sound(analysis, found, moment)
    if not sound:
        return analysis
    model, coupling = turned(analysis.model, analysis.coupling, sound, moment)
    return analysis.turning(model, coupling, tuple(p.group for p in sound))


def begun(
    analysis: Analysis, order: Order, progress: Progress = lambda text: None
) -> tuple[Analysis, Knowledge | None, Repairing | None]:
    """Return the analysis to plan and repair with, what calibration tells (None: nothing), and what repairs.

    Heads are turned where the caller's data decide what goes, and where a plan says so.

    >>> begun(analysis, Order(Choosing(), Checking(), Calibrating("texts.npz")))[0].turned  # doctest: +SKIP
    ('query.weight:1.1', 'value.weight:1.1')

    Raises UsageError for data that do not fit, PlanError where a plan is for heads that cannot be turned.
    """
    asked, plan, learned = order.calibrating, order.plan, order.learned
    names = plan.turned if plan is not None else ()
    given = asked.given and order.checking.run
    wanted = bool(names) if plan is not None else given and asked.turn and order.choosing.settled(True)[0] == "obs"
    if wanted and learned is None and pairs(analysis.coupling):
        samples = remembered(samples_for(analysis, asked)) if given else None
        analysis = turning(analysis, samples, progress, names)
        if samples is not None:
            learned = partial(calibrate, analysis, asked, progress, samples)
    if set(names) - set(analysis.turned):
        raise PlanError(f"the plan is for heads that are turned, and those of {names[0]!r} cannot be in this model")
    return analysis, *prepare(analysis, order.choosing, order.checking, asked, progress, learned)


def _unknown(side: Side) -> Matrix | None:
    return None


def _sound(analysis: Analysis, found: Sequence[Pair], moment: Moment) -> list[Pair]:
    """Return the pairs that may be turned: halves are tried where all together change the outputs."""
    reference = analysis.reference
    model, _ = turned(analysis.model, analysis.coupling, found, moment)
    try:
        opened = reference.open(model, False)
        runs = zip(reference.plain, (run(opened, f) for f in reference.feeds), strict=True)
        same = all(relative_error(a, b)[0] <= max(_EQUAL, reference.noise) for a, b in runs)
    except SessionError:
        same = False
    if same:
        return list(found)
    half = len(found) // 2
    return [p for part in (found[:half], found[half:]) for p in _sound(analysis, part, moment)] if half else []


def _moments(analysis: Analysis, found: Sequence[Pair], samples: Samples) -> Moment:
    """Return second moments on the slots of sides, from a run over samples.

    Of queries, the first of two sides that are made, the mean counts. Of keys it does not: it adds the same to all that
    a softmax compares. Nor does that of values, which a bias takes up.
    """
    coupling = analysis.coupling
    known = consumers(coupling)
    by_weight = {c.weight: c for c in (*known.found, *followers(coupling, known)) if not c.frozen and c.groups == 1}
    sides = [s for p in found for s in ((p.first, p.second) if p.second.produced else (p.second,))]
    wanted = list({s.weight: by_weight[s.weight] for s in sides if s.weight in by_weight}.values())
    batch = batch_of(analysis, replace(known, found=tuple(wanted)), samples)
    few = samples.limited(_SAMPLES, analysis.looking.seed)
    stats = gather(analysis.model, wanted, few, batch=batch, seed=analysis.looking.seed, threads=threads_of(analysis))
    firsts = {id(p.first) for p in found if p.second.produced}
    made: dict[int, Matrix | None] = {}

    def moment(side: Side) -> Matrix | None:
        if id(side) not in made:
            grams = [s[c.key] for c in wanted if c.weight == side.weight for s in (stats.fit, stats.held) if c.key in s]
            one = by_weight.get(side.weight)
            made[id(side)] = _moment(analysis, side, one, grams, id(side) in firsts) if one and grams else None
        return made[id(side)]

    return moment


def _moment(analysis: Analysis, side: Side, one: Consumer, grams: Sequence[Gram], first: bool) -> Matrix:
    rows = max(sum(g.rows for g in grams), 1)
    second, mean = (np.sum([getattr(g, k)[0] for g in grams], axis=0) / rows for k in ("second", "first"))
    centred = second - np.outer(mean, mean)
    if not side.produced:
        return np.asarray(centred)
    weights: Mapping[str, Any] = analysis.coupling.graph.weights
    matrix = np.asarray(one.design.matrix(weights[side.weight].read())[0], np.float64)
    found = matrix.T @ centred @ matrix
    if first:
        shift = mean @ matrix + sum(np.asarray(weights[b].read(), np.float64).ravel() for b in side.biases)
        found += np.outer(shift, shift)
    return np.asarray(found)
