"""What inputs and outputs keep from being pruned: how much more could go if a caller lets them change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphprune.groups import Coupling, couple
from graphprune.trace import trace

WORTH = 0.01
"""What part of a model's weights something at the border must free to be worth a word, or an adapter."""


@dataclass(frozen=True)
class Opened:
    """A normalised model that is solved; `free` is the same with inputs and outputs that may change, solved once."""

    model: ir.Model
    coupling: Coupling

    @cached_property
    def free(self) -> Coupling:
        graph = self.coupling.graph
        return couple(trace(self.model, graph.worlds, lambda name: True, graph.adapters))


@dataclass(frozen=True)
class Border:
    """The coverage of a model all of whose inputs and outputs may change, and those on which weights depend.

    `names` are inputs and outputs whose own groups hold at least 1 % of the weights; none where that gains nothing.
    `inside` is the part that lies on a group of those weights which inputs and outputs leave free.
    """

    coverage: float
    names: tuple[str, ...]
    inside: float


def border(opened: Opened) -> Border:
    """Compare a model with the same whose inputs and outputs are free.

    >>> border(Opened(model, coupling))  # doctest: +SKIP
    Border(coverage=0.9999, names=('state', 'stateN'), inside=0.9999)
    """
    coupling, free = opened.coupling, opened.free
    total = sum(w.size for w in free.graph.own)
    most = max(free.coverage, coupling.coverage)
    inside = coupling.coverage / (1 - most + coupling.coverage) if coupling.coverage else 0.0
    if free.coverage < coupling.coverage + WORTH:
        return Border(most, (), inside)
    held = {p.name for p in coupling.graph.ports}
    names = []
    for port in free.graph.ports:
        dims = {d for a in free.graph.values[port.name].axes for d in free.free(a)}
        if port.name not in held and sum(free.dims[d].parameters for d in dims) >= WORTH * total:
            names.append(port.name)
    return Border(free.coverage, tuple(names), inside)
