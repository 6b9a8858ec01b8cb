"""Scores: how much each index of each channel group matters.

score = normalise(aggregate over occurrences(criterion of one weight, reduced onto the dim)): three choices that do
not know of each other, each a table of its own. A criterion is one file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphprune.errors import UsageError
from graphprune.groups import Coupling
from graphprune.score import activation, apoz, bn_scale, cfsp, flap, fpgm, l1, l2, lamp, random, taylor, wanda
from graphprune.score.aggregate import AGGREGATIONS
from graphprune.score.base import Criterion, Parts, Progress, Request, Vector
from graphprune.score.crop import CROP
from graphprune.score.fisher import FISHER
from graphprune.score.gradients import ByGradient, Gradients
from graphprune.score.grasp import GRASP
from graphprune.score.group_taylor import ELEMENTS, VECTORS
from graphprune.score.nirvana import NIRVANA
from graphprune.score.normalise import NORMALISATIONS
from graphprune.score.snip import SNIP
from graphprune.score.synflow import SYNFLOW

if TYPE_CHECKING:
    from graphprune.calibrate.knowledge import Knowledge

CRITERIA: Mapping[str, Criterion] = {
    "l1": l1.criterion,
    "l2": l2.criterion,
    "lamp": lamp.criterion,
    "fpgm": fpgm.criterion,
    "bn_scale": bn_scale.criterion,
    "random": random.criterion,
}
"""What computes scores from weights alone."""

DATA_CRITERIA: Mapping[str, Criterion] = {
    "wanda": wanda.criterion,
    "flap": flap.criterion,
    "activation": activation.criterion,
    "apoz": apoz.criterion,
    "cfsp": cfsp.criterion,
}
"""What computes scores from what layers read, too: these need calibration."""

GRADIENT_CRITERIA: Mapping[str, ByGradient] = {
    "taylor": taylor.FIRST,
    "taylor2": taylor.SECOND,
    "fisher": FISHER,
    "group_taylor": ELEMENTS,
    "group_taylor_vector": VECTORS,
    "nirvana": NIRVANA,
    "snip": SNIP,
    "grasp": GRASP,
    "crop": CROP,
    "synflow": SYNFLOW,
}
"""What computes scores from gradients: these need torch, and all but synflow samples."""

_SIGNED = ("mean", "none", "gaussian")


@dataclass(frozen=True)
class Scores:
    """Scores of all groups: `by_group` has for each group's name a vector of shape [size]; more matters more."""

    by_group: Mapping[str, Vector]
    criterion: str
    aggregate: str
    normalise: str
    notes: tuple[str, ...] = ()


def score(
    coupling: Coupling,
    criterion: str = "l2",
    aggregate: str = "sum",
    normalise: str = "mean",
    seed: int = 0,
    progress: Progress | None = None,
    *,
    known: Knowledge | None = None,
    gradients: Gradients | None = None,
) -> Scores:
    """Score every index of every channel group, from the weights alone, by what is `known` of data, or by gradients.

    >>> score(coupling, "l2").by_group["conv1.weight:0"].shape  # doctest: +SKIP
    (64,)

    Scores have no unit; those of one group average 1 under `normalise="mean"`. Each weight is read once; memory
    stays below about three times the largest weight. `seed` is for the criterion `random` only.

    Raises UsageError for a name that is in none of the tables, for one in DATA_CRITERIA where nothing is known, and for
    one in GRADIENT_CRITERIA without `gradients`,
    ModelError for a weight with NaN or infinite values.
    """
    criteria = {**CRITERIA, **DATA_CRITERIA, **{name: c.criterion for name, c in GRADIENT_CRITERIA.items()}}
    for what, name, table in (
        ("criterion", criterion, criteria),
        ("aggregation", aggregate, AGGREGATIONS),
        ("normalisation", normalise, NORMALISATIONS),
    ):
        if name not in table:
            raise UsageError(_unknown(what, name, table))
    if criterion in DATA_CRITERIA and known is None:
        raise UsageError(f"--criterion {criterion} goes by what layers read: it needs --calibration DATA, and --run")
    if criterion in GRADIENT_CRITERIA and gradients is None:
        raise UsageError(f"--criterion {criterion} goes by gradients, and none were computed")
    parts = criteria[criterion](Request(coupling, coupling.groups, seed, progress, known, gradients))
    if parts.standard:
        normalise = _for_signed(criterion, aggregate, normalise)
    if parts.comparable:
        if (aggregate, normalise) not in (("sum", "mean"), ("sum", "none")):
            raise UsageError(f"--criterion {criterion} makes groups comparable itself: no --aggregate, no --normalise")
        normalise = "none"
    together, scale = AGGREGATIONS[aggregate], NORMALISATIONS[normalise]
    by_group = {g.name: scale(together(np.stack(parts.by_group[g.name]))) for g in coupling.groups}
    return Scores(by_group, criterion, aggregate, normalise, parts.notes)


def _for_signed(criterion: str, aggregate: str, normalise: str) -> str:
    """Return how standard scores are normalised: they have no mean to divide by, so that means gaussian."""
    if aggregate == "prod" or normalise not in _SIGNED:
        raise UsageError(
            f"scores of --criterion {criterion} are negative for some: no --aggregate prod, "
            f"and for --normalise choose {', '.join(_SIGNED)}"
        )
    return "gaussian" if normalise == "mean" else normalise


def _unknown(what: str, name: str, table: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, table, 1)
    return f"no {what} named {name!r}" + (f": did you mean {near[0]!r}?" if near else f": choose {', '.join(table)}")


__all__ = [
    "AGGREGATIONS",
    "CRITERIA",
    "DATA_CRITERIA",
    "GRADIENT_CRITERIA",
    "NORMALISATIONS",
    "ByGradient",
    "Criterion",
    "Gradients",
    "Parts",
    "Progress",
    "Request",
    "Scores",
    "Vector",
    "score",
]
