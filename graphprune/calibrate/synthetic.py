"""Made-up inputs to repair a model with when there are no data: structured ones, fitted to what the model knows.

What each input holds is read from the graph (`contents.py`), what real ones are like from its normalisations
(`known.py`); every choice is told in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate import own_text, ranges
from graphprune.calibrate.contents import Content, Shapes, read
from graphprune.calibrate.judged import judged
from graphprune.calibrate.known import Probe, moments
from graphprune.calibrate.maker import Maker
from graphprune.calibrate.ranges import Range
from graphprune.calibrate.samples import Samples
from graphprune.errors import GraphPruneError, UsageError
from graphprune.inputs import synthesise

Array: TypeAlias = npt.NDArray[Any]

KINDS = {
    "image": ("shapes", "things", "leaves", "pink", "noise"),
    "wave": ("spectra", "noise"),
    "spectrum": ("spectra", "noise"),
    "series": ("spectra", "noise"),
    "tokens": ("tokens", "uniform"),
    "vectors": ("vectors", "noise"),
}
"""Kinds of made-up inputs by what an input holds, the one taken by rule first (images of one channel: things)."""

_MOST = 4_000_000  # elements of one batch
_BATCH = 32
_TRIED = 32
_CONTRASTS = (0.7, 1.4)
_BETTER = 0.97  # a contrast is changed only if the distance falls below so much of what it was


def synthetic(
    model: ir.Model,
    sizes: Shapes,
    *,
    kind: str = "auto",
    count: int = 512,
    seed: int = 0,
    bounds: Mapping[str, int] | None = None,
    answers: int = 0,
) -> Samples:
    """Return made-up inputs for a model, each batch drawn when it is read.

    >>> samples = synthetic(model, {"image": (1, 3, 224, 224)})  # doctest: +SKIP
    >>> samples.assumed  # doctest: +SKIP
    ('image: made up, shapes; mean 0 and deviation 1, as nothing in the model says which',)

    `sizes` has the shape of each input in one run; where its first axis is open, samples are counted along it. `kind`
    is "auto" or one of `KINDS`; it holds for the inputs that can be of that kind. With "auto", where the model has
    stored moments, the kind and contrast with activations nearest to them are taken, otherwise that of a rule.
    A classifier of single images may be asked about so many as `answers`: then its images are evolved (`judged.py`).
    The same `seed` gives the same numbers. Raises UsageError for a kind that fits no input.
    """
    inputs = read(model, sizes, bounds)
    known = {k for c in inputs.contents for k in KINDS[c.what]}
    if kind not in {"auto", *(k for kinds in KINDS.values() for k in kinds)}:
        names = dict.fromkeys(k for kinds in KINDS.values() for k in kinds)
        raise UsageError(f"no made-up inputs are called {kind!r}: choose auto, {', '.join(names)}")
    if kind != "auto" and kind not in known:
        raise UsageError(f"no input of the model can be made of {kind!r}; its inputs can be {', '.join(sorted(known))}")
    kinds = {c.name: kind if kind in KINDS[c.what] else _by_rule(c, sizes[c.name]) for c in inputs.contents}
    biggest = max((prod(sizes[c.name]) for c in inputs.contents), default=1)
    batch = int(min(_BATCH, max(_MOST // max(biggest, 1), 1)))
    texts = own_text.prepare(model, inputs, sizes, count, seed)
    usual = {c.name: ranges.usual(c, sizes[c.name]) for c in inputs.contents}
    maker = Maker(inputs, sizes, kinds, usual, texts, seed, batch)
    maker, said = _fitted(model, maker, kind == "auto")
    better = judged(model, maker, count, answers, bool(moments(model))) if kind == "auto" and answers else None
    if better is not None:
        maker, said = better[0], (better[1],)
        count = count if maker.evolved is None else len(maker.evolved)
    made = set(kinds.values())
    others = _other_inputs(maker)
    return Samples(
        lambda: maker.feeds(count),
        count,
        "noise" if made <= {"noise"} else "synthetic",
        (*said, *(texts.said), *others),
        dict(inputs.axes),
    )


def _by_rule(c: Content, shape: tuple[int, ...]) -> str:
    """Return the kind to take where nothing is known: images of one channel mostly show things on plain ground."""
    grey = c.what == "image" and (c.channel is None or shape[c.channel] == 1)
    return "things" if grey else KINDS[c.what][0]


def _other_inputs(maker: Maker) -> tuple[str, ...]:
    """Say what was assumed of masks, positions, states and the like."""
    contents = {c.name for c in maker.inputs.contents}
    rest = [s for s in maker.inputs.specs if s.name not in contents]
    return synthesise(rest, {s.name: maker.sizes[s.name] for s in rest}, maker.seed)[1]


def _fitted(model: ir.Model, maker: Maker, free: bool) -> tuple[Maker, tuple[str, ...]]:
    """Fit ranges, and if they are `free` kinds, to the moments that the model knows; say what was chosen and why."""
    drawn = [c for c in maker.inputs.contents if c.what != "tokens"]
    known = moments(model)
    probe: Probe | None = None
    if len(drawn) == 1 and known:
        try:
            probe = Probe(model, known)
            return _chosen(probe, maker, drawn[0], free)
        except GraphPruneError:
            probe = None
    why = "the model has no stored moments to choose by" if free and not known else ""
    said = []
    for c in drawn:
        reason = f" ({why})" if why and len(KINDS[c.what]) > 1 else ""
        said.append(f"{c.name}: made up, {maker.kinds[c.name]}{reason}; {maker.ranges[c.name].why}")
    return maker, tuple(said)


def _chosen(probe: Probe, maker: Maker, c: Content, free: bool) -> tuple[Maker, tuple[str, ...]]:
    """Try kinds, then contrasts, and keep what brings the activations nearest to the stored moments."""
    number = _TRIED if prod(maker.sizes[c.name]) <= 20_000 else _TRIED // 2

    def tried(kind: str, contrast: float = 1.0, start: Range | None = None) -> tuple[float, Maker]:
        candidate = replace(maker, kinds={**maker.kinds, c.name: kind})
        fitted = start or ranges.fitted(probe, c, candidate.ranges[c.name], candidate.feed(0, _fixed(maker)))
        candidate = replace(candidate, ranges={**maker.ranges, c.name: fitted.times(contrast)})
        return probe.distance(candidate.feeds(number)), candidate

    # White noise can have the moments of real inputs and teach nothing about what neighbours have in common: on
    # networks with stored moments it came nearest to them, and repaired with three times the error of shapes.
    kinds = tuple(k for k in KINDS[c.what] if k != "noise") if free else (maker.kinds[c.name],)
    results = [(*tried(kind), kind) for kind in kinds]
    finite = [r for r in results if np.isfinite(r[0])]
    best, chosen, kind = min(finite or results, key=lambda r: r[0])
    contrast = 1.0
    for factor in _CONTRASTS:
        distance, candidate = tried(kind, factor, chosen.ranges[c.name])
        if distance < _BETTER * best:
            best, chosen, contrast = distance, candidate, factor
    compared = ", ".join(f"{k} {d:.3g}" for d, _, k in results)
    more = f", contrast times {contrast:g}" if contrast != 1 else ""
    reason = f"distance of its activations' moments from the {len(probe.known)} stored: {compared}{more}"
    return chosen, (f"{c.name}: made up, {kind} ({reason}); {chosen.ranges[c.name].why}",)


def _fixed(maker: Maker) -> int:
    """Return how many samples to fit a range on."""
    return maker.batch if maker.inputs.axes else 1
