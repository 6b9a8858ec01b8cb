"""Repair by weights alone, for models that nothing could be run on: removed channels as combinations of kept ones.

A channel is known by the weights that produce it (`folding.combinations`); where one goes, what reads it gives its
weights to the kept ones, in the shares in which they make it up. Sources: see `folding.py`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Dim, Role, leaves
from graphprune.consumers import Consumer, consumers
from graphprune.groups import ChannelGroup, Coupling
from graphprune.model import all_nodes
from graphprune.reconstruct.folding import combinations
from graphprune.reconstruct.layers import layer, plain_attributes, write
from graphprune.reconstruct.linear import Matrix
from graphprune.reconstruct.mend import Mended
from graphprune.rewrite import Chosen
from graphprune.score.fpgm import owned

Shares: TypeAlias = dict[Dim, npt.NDArray[np.float64]]
"""For each pruned dim [removed, kept], both ascending."""

_STRENGTH = 1e-2
_TINY = 1e-12


def mend_by_weights(pruned: ir.Model, coupling: Coupling, chosen: Chosen) -> list[Mended]:
    """Repair a pruned model in place without running anything; errors are those of the weights' rows.

    >>> mend_by_weights(pruned, coupling, chosen)[0].after  # doctest: +SKIP
    0.41

    `before` and `after` are the energy of the removed channels' weights, and of what kept ones do not make up of it,
    as fractions of that of all channels. Groups whose channels are normalised on the way, or that no matrix
    produces, are left alone.
    """
    shares: Shares = {}
    lost: dict[Dim, tuple[float, float]] = {}
    for group in coupling.groups:
        rows = produced_by(coupling, group) if group.dim in chosen else None
        if rows is None:
            continue
        kept = np.sort(np.asarray(chosen[group.dim], np.int64))
        gone = np.setdiff1d(np.arange(group.size), kept)
        if not len(gone):
            continue
        found = combinations(rows, np.zeros(len(rows)), kept, _STRENGTH)
        energy = max(float(np.sum(rows**2)), _TINY)
        left = float(np.sum((rows[gone] - found @ rows[kept]) ** 2))
        shares[group.dim], lost[group.dim] = found, (float(np.sum(rows[gone] ** 2)) / energy, left / energy)
    nodes, done = all_nodes(pruned), []
    for consumer in consumers(coupling).found:
        dims = [d for d in dict.fromkeys(leaves(consumer.axis)) if d in shares]
        node = nodes.get(consumer.node)
        made = layer(consumer, coupling, chosen, plain_attributes(node)) if node is not None and dims else None
        if node is None or made is None:
            continue
        matrix = given(coupling, consumer, chosen, shares)
        write(pruned, node, made, [matrix[p.block][np.ix_(p.columns, p.outputs)] for p in made.parts], None)
        before, after = (float(np.mean([lost[d][k] for d in dims])) for k in (0, 1))
        done.append(Mended(consumer.node, before, after, _STRENGTH))
    return done


def produced_by(coupling: Coupling, group: ChannelGroup) -> Matrix | None:
    """Return what produces each channel of a group, [channels, numbers]; None where weights alone do not tell.

    Every producer counts as much as the others.
    """
    if group.normalised or any(o.gain for o in group.occurrences):
        return None
    parts = []
    matrices = 0
    for o in group.occurrences:
        weight = coupling.graph.weights[o.initializer]
        if o.role is Role.CONTRACTED or weight.filled:
            continue
        array = np.asarray(weight.read(), np.float64)
        slots = owned(coupling.expand(weight.axes[o.axis]), group.dim)
        rows = np.moveaxis(np.take(array, slots.ravel(), axis=o.axis), o.axis, 0).reshape(group.size, -1)
        matrices += rows.shape[1] > slots.shape[1]
        parts.append(rows / max(float(np.sqrt(np.sum(rows**2))), _TINY))
    found = np.concatenate(parts, axis=1) if matrices else None
    return found if found is not None and np.isfinite(found).all() else None


def given(coupling: Coupling, consumer: Consumer, chosen: Chosen, shares: Shares) -> npt.NDArray[np.float64]:
    """Return a consumer's dense matrix [blocks, columns, outputs], the weights of what goes given to what stays."""
    weight = coupling.graph.weights[consumer.weight].read()
    matrix = np.array(consumer.design.matrix(np.asarray(weight)), np.float64)
    for dim in dict.fromkeys(leaves(consumer.axis)):
        if dim not in shares:
            continue
        columns = np.stack(consumer.columns_of(dim))
        kept = np.sort(np.asarray(chosen[dim], np.int64))
        gone = np.setdiff1d(np.arange(dim.size), kept)
        moved = np.einsum("pj,gpko->gjko", shares[dim], matrix[:, columns[gone]])
        matrix[:, columns[kept]] += moved
    return matrix
