"""What criteria share that go by gradients: which statistics there are, and how saliencies of weights become scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.axes import reduce
from graphprune.groups import ChannelGroup, Occurrence
from graphprune.score.base import Criterion, Parts, Request, Vector, check_finite, informative
from graphprune.score.data import completed
from graphprune.score.elements import slot_sums

Array: TypeAlias = npt.NDArray[Any]

MEAN = "gradient"
"""The gradient of the mean loss over all samples."""
SQUARES = "squares"
"""The mean over samples of the squared gradient of one sample's loss."""
PARTS = "parts"
"""Sums of gradient times weight onto the slots of every axis, for each of some equal parts of the samples."""
TIMES_WEIGHTS = "H w"
"""The Hessian of the mean loss times all weights."""
TIMES_GRADIENT = "H g"
"""The Hessian of the mean loss times its gradient."""
COOLED = "H g at temperature 200"
"""The same for logits divided by 200, or other outputs as they are."""
OUTPUT = "output"
"""The gradient of the mean of the outputs' largest entries along positions."""
FLOW = "flow"
"""Not counted in advance: `Gradients.flow` is asked."""

Flow: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Masks by weight, each of the weight's shape (1 stays, 0 goes), to |w| dR / d|w| of the masked, positive network."""


@dataclass(frozen=True)
class Gradients:
    """Statistics by name of the statistic, then of the weight; every array has its weight's shape.

    `parts` has for each weight and axis an array of shape [parts, slots of the axis]. `said` tells what the loss was.
    """

    of: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    parts: Mapping[tuple[str, int], Vector] = field(default_factory=dict)
    flow: Flow | None = None
    said: str = ""


@dataclass(frozen=True)
class ByGradient:
    """A criterion and the statistics that it reads."""

    criterion: Criterion
    needs: tuple[str, ...]

    @property
    def data(self) -> bool:
        """Whether samples are needed."""
        return FLOW not in self.needs


Saliency: TypeAlias = Callable[[Vector, Mapping[str, Array]], Vector]
"""A weight and its statistics to a number for each of its elements."""

Sums: TypeAlias = dict[str, tuple[Vector, ...]]


def by_gradient(
    request: Request, needs: tuple[str, ...], saliency: Saliency, finish: Callable[[Vector], Vector] = lambda v: v
) -> Sums:
    """Return for each group one vector for every weight with these statistics: summed saliencies, then `finish`.

    Weights are those that say how much an index matters (`informative`): kernels and matrices before vectors.
    """
    assert request.gradients is not None
    stats = {k: request.gradients.of[k] for k in needs}
    found: dict[str, list[Vector]] = {g.name: [] for g in request.groups}
    wanted = _wanted(request, set.intersection(*(set(s) for s in stats.values())))
    for done, (name, asked) in enumerate(wanted.items(), start=1):
        weight = request.coupling.graph.weights[name]
        of_weight = {k: np.asarray(s[name], np.float64) for k, s in stats.items()}
        values = saliency(np.asarray(weight.read(), np.float64), of_weight)
        sums = slot_sums(values, {o.axis for _, o in asked}, as_it_is)
        check_finite(weight, sums.values())
        for group, o in asked:
            axis = request.coupling.expand(weight.axes[o.axis])
            found[group.name].append(finish(reduce(axis, sums[o.axis])[group.dim]))
        if request.progress is not None:
            request.progress(done, len(wanted))
    return {name: tuple(vectors) for name, vectors in found.items()}


def as_it_is(block: Vector, out: Vector) -> None:
    """Leave a block of saliencies alone: `out` is the block."""


def _wanted(request: Request, names: set[str]) -> dict[str, list[tuple[ChannelGroup, Occurrence]]]:
    out: dict[str, list[tuple[ChannelGroup, Occurrence]]] = {}
    for group in request.groups:
        for o in informative(request.coupling, group):
            if o.initializer in names:
                out.setdefault(o.initializer, []).append((group, o))
    return out


def told(request: Request, found: Sums, standardise: Callable[[Vector], Vector] | None = None) -> Parts:
    """Return the parts of all groups, those without a weight that has a gradient by l2, and say what the loss was."""
    assert request.gradients is not None
    parts = completed(request, found, "have no weight that is trained", standardise)
    said = (request.gradients.said,) if request.gradients.said else ()
    return Parts(parts.by_group, (*said, *parts.notes), parts.standard)
