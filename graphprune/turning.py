"""Turning as a stage of the pipeline: which widths have no basis of their own, and a better one for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.accuracy import calibrate, calibrates, prepare, samples_for
from graphprune.allocate.budget import select
from graphprune.analysis import Analysis, Progress
from graphprune.calibrate.knowledge import Knowledge, batch_of, threads_of
from graphprune.calibrate.labelled import unlabelled
from graphprune.calibrate.remembered import remembered
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.statistics import Gram, gather
from graphprune.consumers import Consumer, consumers
from graphprune.errors import GraphPruneError, PlanError, SessionError
from graphprune.execute import relative_error
from graphprune.followers import followers
from graphprune.options import Calibrating
from graphprune.order import Learned, Order
from graphprune.pricing import budget_of
from graphprune.repair import Repairing
from graphprune.runtime import run
from graphprune.transform.between import Pair, Side, pairs
from graphprune.transform.turned import Moment, turned, unknown

Matrix: TypeAlias = npt.NDArray[np.float64]
_SAMPLES = 128  # that second moments are taken from: they need no more to tell directions apart
_EQUAL = 1e-4  # of the largest output: what turning may change


def turning(
    analysis: Analysis, samples: Samples | None, progress: Progress = lambda text: None,
    found: Sequence[Pair] | None = None,
) -> Analysis:
    """Return a model's analysis with those widths turned that no node needs in the basis that they have.

    Directions are ordered by what they do on `samples`, by weights alone where there are none. All are turned that
    can be, unless some are `found`. What changes the model's outputs by more than rounding is left out: it is run.

    >>> turning(analyse("bert.onnx"), samples).turned  # doctest: +SKIP
    ('query.weight:1.1', 'value.weight:1.1')
    """
    found = pairs(analysis.coupling) if found is None else found
    if not found:
        return analysis
    progress("turning")
    moment = _moments(analysis, found, samples) if samples is not None else unknown
    sound = _sound(analysis, found, moment)
    if not sound:
        return analysis
    model, coupling = turned(analysis.model, analysis.coupling, sound, moment)
    return analysis.turning(model, coupling, tuple(dict.fromkeys(p.group for p in sound)))


def begun(
    analysis: Analysis, order: Order, progress: Progress = lambda text: None
) -> tuple[Analysis, Knowledge | None, Repairing | None]:
    """Return the analysis to plan and repair with, what calibration tells (None: nothing), and what repairs.

    Widths are turned where error curves decide what goes, and where a plan says so.

    >>> begun(analysis, Order(Choosing(), Checking(), Calibrating("texts.npz")))[0].turned  # doctest: +SKIP
    ('query.weight:1.1', 'value.weight:1.1')

    Raises UsageError for data that do not fit, PlanError where a plan is for widths that cannot be turned.
    """
    asked, plan, learned = order.calibrating, order.plan, order.learned
    said: Sequence[str] = plan.turned if plan is not None else ()
    sampled = calibrates(analysis, order.choosing, order.checking, asked)
    chosen = plan is None and asked.turn and sampled and order.choosing.settled(True)[0] == "obs"
    found = pairs(analysis.coupling) if (said or chosen) and learned is None else ()
    names = [g.name for g in select(analysis.coupling, budget_of(order.choosing, True)).groups] if chosen else said
    found = tuple(p for p in found if p.group in names)  # what is to stay as it is, is not touched
    if found and sampled:
        analysis, learned = _by_samples(analysis, asked, found, progress)
    if said and not analysis.turned:  # without samples, or with made-up ones that do not work
        analysis = turning(analysis, None, progress, found)
    if set(said) - set(analysis.turned):
        raise PlanError(f"the plan is for widths that are turned, and {said[0]!r} cannot be in this model")
    return analysis, *prepare(analysis, order.choosing, order.checking, asked, progress, learned)


def _by_samples(
    analysis: Analysis, asked: Calibrating, found: Sequence[Pair], progress: Progress
) -> tuple[Analysis, Learned | None]:
    """Return the turned analysis, and what calibrates with the same samples; nothing where made-up ones do not work."""
    try:
        samples = remembered(samples_for(analysis, asked))
        plain = samples if asked.labels is None else unlabelled(samples)
        analysis = turning(analysis, plain, progress, found)
    except GraphPruneError:
        if asked.given:
            raise
        return analysis, None
    return analysis, partial(calibrate, analysis, asked, progress, samples)


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
    sides = [s for p in found for s in ((*p.first, *p.second) if p.met else p.second)]
    wanted = list({s.weight: by_weight[s.weight] for s in sides if s.weight in by_weight}.values())
    batch = batch_of(analysis, replace(known, found=tuple(wanted)), samples)
    few = samples.limited(_SAMPLES, analysis.looking.seed)
    stats = gather(analysis.model, wanted, few, batch=batch, seed=analysis.looking.seed, threads=threads_of(analysis))
    firsts = {s for p in found if p.met for s in p.first}
    made: dict[Side, Matrix | None] = {}

    def moment(side: Side) -> Matrix | None:
        if side not in made:
            keys = [c.key for c in wanted if c.weight == side.weight]
            grams = [sums[key] for key in keys for sums in (stats.fit, stats.check) if key in sums]
            one = by_weight.get(side.weight)
            made[side] = _moment(analysis, side, one, grams, side in firsts) if one and grams else None
        return made[side]

    return moment


def _moment(analysis: Analysis, side: Side, one: Consumer, grams: Sequence[Gram], first: bool) -> Matrix:
    rows = max(sum(g.rows for g in grams), 1)
    second, mean = (np.sum([getattr(g, k)[0] for g in grams], axis=0) / rows for k in ("second", "first"))
    centred = second - np.outer(mean, mean)
    if not side.produced:
        slots = one.axis.size  # a kernel has several columns for each
        return np.asarray(np.einsum("itjt->ij", centred.reshape(slots, one.columns, slots, one.columns)))
    weights: Mapping[str, Any] = analysis.coupling.graph.weights
    matrix = np.asarray(one.design.matrix(weights[side.weight].read())[0], np.float64)
    found = matrix.T @ centred @ matrix
    if first:
        shift = mean @ matrix + sum(np.asarray(weights[b].read(), np.float64).ravel() for b in side.biases)
        found += np.outer(shift, shift)
    return np.asarray(found)
