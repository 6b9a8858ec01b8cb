"""What criteria share that go by data: columns of what layers read, added up onto indices; l2 where nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import reduce
from graphprune.groups import ChannelGroup
from graphprune.score.base import Parts, Request, Vector, check_finite
from graphprune.score.l2 import criterion as l2

if TYPE_CHECKING:
    from graphprune.calibrate.statistics import Gram
    from graphprune.consumers import Consumer

OfData: TypeAlias = "Callable[[Gram], Vector]"
"""Sums over the rows that a layer reads to one number for every column, shape [blocks, columns]."""

OfWeight: TypeAlias = Callable[[npt.NDArray[Any]], Vector]
"""A layer's matrix, shape [blocks, columns, outputs], to one number for every column, shape [blocks, columns]."""

Found: TypeAlias = dict[str, tuple[Vector, ...]]
_NAMED = 3


def by_consumers(request: Request, of_data: OfData, of_weight: OfWeight | None = None) -> Found:
    """Return for each group one vector for every layer y = x W + b that reads it and has statistics.

    A column j scores `of_data`, times `of_weight` if that is given: then an index has the sum of its columns (places
    of a kernel, say). Without weights it has their mean, and layers that read the same rows count once.
    """
    assert request.known is not None
    fit = request.known.stats.fit
    consumers = [c for c in request.known.consumers.found if c.key in fit]
    if of_weight is None:
        consumers = list({(c.key, c.axis): c for c in reversed(consumers)}.values())[::-1]
    found: dict[str, list[Vector]] = {g.name: [] for g in request.groups}
    for done, consumer in enumerate(consumers, start=1):
        columns = of_data(fit[consumer.key])
        if of_weight is not None:
            weight = request.coupling.graph.weights[consumer.weight]
            columns = columns * of_weight(consumer.design.matrix(weight.read()))
            check_finite(weight, [columns])
        for group, vector in _onto_groups(request, consumer, columns, mean=of_weight is None):
            found[group.name].append(vector)
        if request.progress is not None:
            request.progress(done, len(consumers))
    return {name: tuple(vectors) for name, vectors in found.items()}


def _onto_groups(
    request: Request, consumer: Consumer, columns: Vector, mean: bool
) -> list[tuple[ChannelGroup, Vector]]:
    slots = columns.sum(axis=0).reshape(consumer.axis.size, consumer.columns).sum(axis=1)
    sums = reduce(consumer.axis, slots)
    if mean:
        each = reduce(consumer.axis, np.full(consumer.axis.size, float(consumer.columns * len(columns))))
        sums = {dim: total / each[dim] for dim, total in sums.items()}
    return [(g, sums[g.dim]) for g in request.groups if g.dim in sums]


def completed(
    request: Request,
    found: Mapping[str, tuple[Vector, ...]],
    why: str = "are read by no layer with statistics",
    standardise: Callable[[Vector], Vector] | None = None,
) -> Parts:
    """Return the parts of all groups: those without any are scored by l2, and a note says which.

    Their scores are scaled to the average of all other groups' sums, so that under one threshold, and whatever the
    normalisation, such a group is like the average one; standard scores need none of that.
    """
    rest = tuple(g for g in request.groups if not found[g.name])
    if not rest:
        return Parts(found, standard=standardise is not None)
    plain = l2(replace(request, groups=rest))
    if standardise is not None:
        other = {name: tuple(standardise(v) for v in vectors) for name, vectors in plain.by_group.items()}
    else:
        means = [_average(vectors) for vectors in found.values() if vectors]
        wanted = float(np.mean(means)) if means else None
        other = {name: _scaled(vectors, wanted) for name, vectors in plain.by_group.items()}
    names = ", ".join(g.name for g in rest[:_NAMED]) + (", ..." if len(rest) > _NAMED else "")
    note = f"{len(rest)} of {len(request.groups)} groups {why} and are scored by l2: {names}"
    return Parts({**found, **other}, (*plain.notes, note), standardise is not None)


def _average(vectors: tuple[Vector, ...]) -> float:
    return float(np.sum([v.mean() for v in vectors]))


def _scaled(vectors: tuple[Vector, ...], wanted: float | None) -> tuple[Vector, ...]:
    own = _average(vectors)
    return tuple(v * (wanted / own) for v in vectors) if wanted is not None and own > 0 else vectors
