"""Repair by folding: every removed channel joins the kept one that is most like it, and both become their mean.

What produces a cluster is the mean of its members, times what gives back the variance that averaging takes; what reads
them gets the sum of their weights (`folding.py` has the source). Nothing is run.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Axis, Role, slots
from graphprune.groups import ChannelGroup, Coupling
from graphprune.model import all_values, constant_of, set_constant
from graphprune.reconstruct.folding import Folding
from graphprune.reconstruct.linear import Indices, Matrix, Vector
from graphprune.reconstruct.mend import Mended
from graphprune.reconstruct.unseen import produced_by
from graphprune.rewrite import Chosen
from graphprune.score.fpgm import owned

Array: TypeAlias = npt.NDArray[np.float64]
_TINY = 1e-12
Fold: TypeAlias = tuple[ChannelGroup, Folding, Vector]
"""A pruned group, its clusters, and by what to multiply each merged channel."""


def mend_by_folding(pruned: ir.Model, coupling: Coupling, chosen: Chosen) -> list[Mended]:
    """Fold what goes into what stays, in place, without running anything; one entry for each group.

    >>> mend_by_folding(pruned, coupling, chosen)[0].after  # doctest: +SKIP
    0.52

    `before` is the energy of the removed channels' weights, `after` that of what differs from their clusters' means,
    as fractions of the energy of all channels. Groups whose channels are normalised on the way, that no matrix
    produces, or that no weight reads, are left alone; so are groups with quantised weights.
    """
    done = []
    places: dict[str, list[tuple[int, Role, Fold]]] = {}
    for group in coupling.groups:
        rows = _rows(coupling, group) if group.dim in chosen else None
        if rows is None:
            continue
        kept = np.sort(np.asarray(chosen[group.dim], np.int64))
        found = folded(rows, kept)
        fold = group, found, found.gains(rows)
        for o in group.occurrences:
            places.setdefault(o.initializer, []).append((o.axis, o.role, fold))
        energy = max(float(np.sum(rows**2)), _TINY)
        gone = np.setdiff1d(np.arange(group.size), kept)
        left = float(np.sum((rows - found.mean(rows)[found.labels]) ** 2))
        done.append(Mended(group.name, float(np.sum(rows[gone] ** 2)) / energy, left / energy, None))
    values = all_values(pruned)
    for name, found_there in places.items():
        value, weight = values.get(name), coupling.graph.weights[name]
        tensor = constant_of(value)
        if value is None or tensor is None or weight.filled:
            continue
        axes = [coupling.expand(a) for a in weight.axes]
        array = np.array(weight.read(), np.float64)
        for k, role, fold in found_there:
            array = np.moveaxis(_merged(np.moveaxis(array, k, 0), axes[k], role, fold), 0, k)
        small = np.ascontiguousarray(array[np.ix_(*(slots(a, chosen) for a in axes))])
        set_constant(value, ir.tensor(small.astype(tensor.dtype.numpy()), dtype=tensor.dtype))
    return done


def folded(rows: Matrix, kept: Indices) -> Folding:
    """Return the clusters around kept channels: each other one joins the nearest.

    >>> folded(np.array([[0.0], [5.0], [0.1], [5.1]]), np.array([0, 1])).labels.tolist()
    [0, 1, 0, 1]
    """
    far = np.sum(rows**2, 1)[:, None] - 2 * rows @ rows[kept].T + np.sum(rows[kept] ** 2, 1)[None]
    labels = np.argmin(far, axis=1)
    labels[kept] = np.arange(len(kept))
    return Folding(labels.astype(np.int64), kept)


def _rows(coupling: Coupling, group: ChannelGroup) -> Matrix | None:
    """Return what produces each channel; None where it cannot be told, is not read by weights, or is quantised."""
    quantised = any(coupling.graph.weights[o.initializer].quantised for o in group.occurrences)
    if quantised or not any(o.role is Role.CONTRACTED for o in group.occurrences):
        return None
    return produced_by(coupling, group)


def _merged(array: Array, axis: Axis, role: Role, fold: Fold) -> Array:
    """Return a dense weight, the axis in question first, whose slots of kept channels stand for their clusters."""
    group, found, gains = fold
    places: Indices = owned(axis, group.dim)
    out: Array = array.copy()
    members = out[places]
    if role is Role.CONTRACTED:
        out[places[found.kept]] = found.total(members)
    else:
        out[places[found.kept]] = found.mean(members) * gains.reshape((-1,) + (1,) * (members.ndim - 1))
    return out
