"""Symmetric repair of many prunings of one model: a layer's refit is computed once for each set of inputs that stay.

Which weights a layer gets depends on which of its inputs stay, and on nothing else: every output is a problem of its
own. Only the strength is chosen for all outputs together, from errors that are kept output by output. So a pruned model
is put together from parts that are there, and is what `mend` makes with mode "symmetric".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphprune.axes import leaves
from graphprune.calibrate.folder import Folder
from graphprune.calibrate.knowledge import Knowledge
from graphprune.consumers import Consumer
from graphprune.groups import Coupling
from graphprune.model import all_nodes
from graphprune.reconstruct.confirm import Attempts, Choice, attempted, chosen_repair
from graphprune.reconstruct.correct import Refits, originals, written
from graphprune.reconstruct.layers import Layer, Matrix, Part, layer, plain_attributes
from graphprune.reconstruct.mend import moments_of, writable
from graphprune.reconstruct.ridge import Moments, Refit
from graphprune.rewrite import Chosen

_LEFT_FREE = 4_000_000_000  # bytes of disk


class Store:
    """Arrays by key, in memory up to a limit, in a temporary folder above it, made again where the disk is full."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._used = 0
        self._folder = Folder()
        self._kept: dict[Hashable, tuple[Matrix, ...]] = {}

    def __call__(self, key: Hashable, make: Callable[[], tuple[Matrix, ...]]) -> tuple[Matrix, ...]:
        """Return what `make` gave when it was first asked for under this key."""
        if key in self._kept:
            return self._kept[key]
        found = make()
        size = sum(a.nbytes for a in found)
        if self._used + size <= self._limit:
            self._used += size
            self._kept[key] = found
        elif shutil.disk_usage(self._folder.path).free > size + _LEFT_FREE:
            self._kept[key] = tuple(self._folder.park(f"{len(self._kept)}_{k}", a) for k, a in enumerate(found))
        return found


@dataclass(frozen=True)
class Reused:
    """Repairs of one model's layers, for any pruning of it; `store` holds their weights.

    Mutable only in what it remembers.
    """

    coupling: Coupling
    known: Knowledge
    store: Store
    _attempts: dict[Hashable, Attempts | None] = field(default_factory=dict, init=False, repr=False)
    _layers: dict[Hashable, Layer | None] = field(default_factory=dict, init=False, repr=False)

    def mend(self, pruned: ir.Model, chosen: Chosen) -> None:
        """Repair a pruned model in place, as `mend` does with mode "symmetric"."""
        nodes = all_nodes(pruned)
        place = {name: k for k, name in enumerate(nodes)}
        ready = [c for c in self.known.consumers.found if c.key in self.known.stats.fit and c.node in nodes]
        for c in sorted(ready, key=lambda c: place[c.node]):
            if not any(d in chosen for d in leaves(c.axis)):
                continue
            each = self._layer(c, chosen, nodes[c.node])
            if each is not None and each.touched and writable(each, nodes):
                written(pruned, each, self.refits(each))

    def refits(self, each: Layer) -> Refits:
        """Return the refits of a layer's blocks."""
        return [self._refit(each, part) for part in each.parts]

    def _layer(self, consumer: Consumer, chosen: Chosen, node: ir.Node) -> Layer | None:
        axes = [self.coupling.expand(a) for a in self.coupling.graph.weights[consumer.weight].axes]
        dims = dict.fromkeys(d for a in axes for d in leaves(a) if d in chosen)
        key = (consumer.node, tuple((d, np.asarray(chosen[d]).tobytes()) for d in dims))
        if key not in self._layers:
            self._layers[key] = layer(consumer, self.coupling, chosen, plain_attributes(node))
        return self._layers[key]

    def _refit(self, each: Layer, part: Part) -> Refit:
        key = (each.node, part.block, part.columns.tobytes())
        if key not in self._attempts:
            self._attempts[key] = self._attempted(each, part)
        attempts = self._attempts[key]
        if attempts is None:  # nothing to check it by
            weight = originals(each, self.coupling)[part.block][np.ix_(part.columns, part.outputs)]
            return Refit(weight, np.zeros(len(part.outputs)), None)
        choice = attempts.choice(part.outputs)
        wanted = (*key, choice.lam, choice.moved)
        weight, bias = self.store(wanted, lambda: self._made(each, part, choice))
        fitted = choice.lam is not None
        return Refit(weight[:, part.outputs], bias[part.outputs], choice.lam if fitted else None)

    def _attempted(self, each: Layer, part: Part) -> Attempts | None:
        check = self.known.stats.check.get(each.consumer.key)
        if check is None:
            return None
        fit, rows, weight = self._problem(each, part)
        assert rows is not None
        return attempted(fit, rows, weight, () if each.consumer.frozen else None, each.biased)

    def _made(self, each: Layer, part: Part, choice: Choice) -> tuple[Matrix, ...]:
        fit, check, weight = self._problem(each, part)
        rows = fit if check is None or self.known.apart else fit.merged(check)
        made = chosen_repair(rows, weight, choice, each.biased)
        return made.weight.astype(np.float32), made.bias

    def _problem(self, each: Layer, part: Part) -> tuple[Moments, Moments | None, Matrix]:
        """Return the sums to fit to, those to check by, and the old weights, for all outputs of the dense block."""
        matrix = originals(each, self.coupling)
        whole = replace(part, outputs=np.arange(matrix.shape[2]))
        fit, check = (sums.get(each.consumer.key) for sums in (self.known.stats.fit, self.known.stats.check))
        assert fit is not None
        rows = None if check is None else moments_of(check, whole, matrix, each.biased)
        return moments_of(fit, whole, matrix, each.biased), rows, matrix[part.block][part.columns]
