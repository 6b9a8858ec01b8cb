"""What a criterion is asked and answers, and the loop over weights that most criteria share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import Axis, Dim, Role
from graphprune.errors import ModelError
from graphprune.groups import ChannelGroup, Coupling, Occurrence
from graphprune.weights import Weight

if TYPE_CHECKING:
    from graphprune.calibrate.knowledge import Knowledge
    from graphprune.score.gradients import Gradients

Vector: TypeAlias = npt.NDArray[np.float64]
"""One score for each index of a dim, shape [dim.size]."""

Progress: TypeAlias = Callable[[int, int], None]
"""Told (weights done, weights in all)."""


@dataclass(frozen=True)
class Request:
    """What a criterion is asked: scores for these groups of a coupling, by weights, data or gradients."""

    coupling: Coupling
    groups: tuple[ChannelGroup, ...]
    seed: int = 0
    progress: Progress | None = None
    known: Knowledge | None = None
    gradients: Gradients | None = None


@dataclass(frozen=True)
class Parts:
    """What a criterion answers: for each group one vector per occurrence that it looked at, and remarks.

    `standard` says that the vectors are standard scores: half of them are negative, and their mean is 0; `comparable`
    that they are comparable between groups as they are, one vector for each.
    """

    by_group: Mapping[str, tuple[Vector, ...]]
    notes: tuple[str, ...] = ()
    standard: bool = False
    comparable: bool = False


Criterion: TypeAlias = Callable[[Request], Parts]


@dataclass(frozen=True)
class Place:
    """A dim on one axis of a weight; `expression` is that axis, solved."""

    axis: int
    expression: Axis
    dim: Dim


Measure: TypeAlias = Callable[[Weight, npt.NDArray[Any], "tuple[Place, ...]"], "list[Vector]"]
Select: TypeAlias = Callable[[Coupling, ChannelGroup], "tuple[Occurrence, ...]"]


def over_weights(request: Request, select: Select, measure: Measure) -> Parts:
    """Read every weight that is needed once, and measure all the places of dims on it.

    `select` says which occurrences of a group count; `measure(weight, array, places)` returns one vector of shape
    [dim.size] for each place. Arrays are let go of before the next weight is read.
    """
    wanted: dict[str, list[tuple[str, Place]]] = {}
    for group in request.groups:
        for o in select(request.coupling, group):
            axis = request.coupling.expand(request.coupling.graph.weights[o.initializer].axes[o.axis])
            wanted.setdefault(o.initializer, []).append((group.name, Place(o.axis, axis, group.dim)))
    found: dict[str, list[Vector]] = {g.name: [] for g in request.groups}
    for done, (name, asked) in enumerate(wanted.items(), start=1):
        weight = request.coupling.graph.weights[name]
        vectors = measure(weight, weight.read(), tuple(place for _, place in asked))
        for (group_name, _), vector in zip(asked, vectors, strict=True):
            found[group_name].append(vector)
        if request.progress is not None:
            request.progress(done, len(wanted))
    return Parts({name: tuple(vectors) for name, vectors in found.items()})


def informative(coupling: Coupling, group: ChannelGroup) -> tuple[Occurrence, ...]:
    """Return the occurrences of a group whose size says how much an index matters.

    Those are places in weights that mix indices: kernels and matrices. Vectors along the dim (biases, scales,
    running means and variances) count only where a group has nothing else, and weights that a node fills with one
    value only where there are no vectors either.
    """
    ranked = [(_rank(coupling.graph.weights[o.initializer], o), o) for o in group.occurrences]
    best = min((r for r, _ in ranked), default=0)
    return tuple(o for r, o in ranked if r == best)


def _rank(weight: Weight, occurrence: Occurrence) -> int:
    if weight.filled:
        return 2
    if weight.size > weight.shape[occurrence.axis] or occurrence.role is Role.CONTRACTED:
        return 0
    return 0 if occurrence.role is Role.PRODUCED and len(weight.shape) > 1 else 1


def check_finite(weight: Weight, vectors: Iterable[Vector]) -> None:
    """Raise ModelError unless the scores of a weight are finite."""
    if not all(np.isfinite(v).all() for v in vectors):
        raise ModelError(
            f"weight {weight.name!r} has NaN or infinite values: it cannot be scored; repair or export it again"
        )
