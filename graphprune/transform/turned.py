"""Widths that no node needs in the basis they have, turned so that few directions carry most: then the others can go.

Queries and keys of attention meet only in products q k^T, values only in what a matrix makes of them; the narrow stream
of inverted residuals is made, added up and read by matrices only. Any invertible matrix may stand between the two ends:
(q A)(k B)^T = q k^T, and x A B^T = x, where A B^T = I. So such a width has no basis of its own, and removing single
numbers of the one it was trained in wastes what a better one would keep. Here A and B are the balanced pair of the two
ends' second moments P and R: with the singular values of P^1/2 R^1/2 = U S V^T,

    A = P^-1/2 U S^1/2,    B = R^-1/2 V S^1/2 = P^1/2 U S^-1/2

The first r directions then are the best r of the product, in the mean over the data, and index j means the j-th
best in every head. Where several weights make or read a width, P and R are means over them. Weights are written anew,
nothing else; what the model computes changes by rounding.

Sources: Lin et al., MoDeGPT: modular decomposition for large language model compression (ICLR 2025), which decomposes
queries with keys and values with outputs in the metric of the data; Ashkboos et al., SliceGPT (ICLR 2024), section 3,
which turns what flows between blocks of transformers; balancing: Moore, Principal component analysis in linear
systems (1981).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.groups import Coupling
from graphprune.model import all_values, set_constant
from graphprune.transform.between import Index, Pair, Place, Side

Matrix: TypeAlias = npt.NDArray[np.float64]
Moment: TypeAlias = "Callable[[Side], Matrix | None]"
"""The second moment of what lies on all slots of a side's axis [slots, slots]; None where nothing is known."""

_FLOOR = 1e-6  # of the largest eigenvalue: what counts as nothing


def unknown(side: Side) -> Matrix | None:
    """Tell nothing of any side: its inputs count as white."""
    return None


def turned(
    model: ir.Model, coupling: Coupling, found: Sequence[Pair], moment: Moment = unknown
) -> tuple[ir.Model, Coupling]:
    """Return a copy of a normalised model with pairs turned, and the coupling that reads its weights.

    Where `moment` knows nothing of a side, its inputs count as white.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}

    def array(name: str) -> npt.NDArray[Any]:
        if name not in arrays:
            arrays[name] = np.array(coupling.graph.weights[name].read(), np.float64)
        return arrays[name]

    changes = [(p, list(_bases(p, coupling, moment))) for p in found]
    for pair, bases in changes:
        for head, ends in zip(pair.heads, bases, strict=True):
            for places, basis in zip(head, ends, strict=True):
                for side, slots in places:
                    for name, axis in ((side.weight, side.axis), *((bias, -1) for bias in side.biases)):
                        _turn(array(name), axis, slots, basis)
    out, weights = model.clone(), dict(coupling.graph.weights)
    values = all_values(out)
    for name, new in arrays.items():
        value = values[name]
        dtype = value.dtype or ir.DataType.FLOAT
        tensor = ir.tensor(new.astype(dtype.numpy()), dtype=dtype, name=name)
        set_constant(value, tensor)
        weights[name] = replace(weights[name], read=tensor.numpy)
    return out, replace(coupling, graph=replace(coupling.graph, weights=weights))


def _turn(array: npt.NDArray[Any], axis: int, slots: Index, basis: Matrix) -> None:
    last = np.moveaxis(array, axis, -1)
    last[..., slots] = last[..., slots] @ basis


def _bases(pair: Pair, coupling: Coupling, moment: Moment) -> Iterator[tuple[Matrix, Matrix]]:
    """Yield A and B for all heads."""
    white = {s: _white(coupling, s) for s in (*pair.first, *pair.second)}
    told = {s: m for s in white if (m := moment(s)) is not None}
    read = not pair.met and all(s in told for s in pair.second)  # values are told of where they are read
    for head in pair.heads:
        p = _mean(head.second if read else head.first, {**white, **told})
        (half, back), (other, _) = _root(p), _root(_mean(head.second, {**white, **told} if pair.met else white))
        u, s, _ = np.linalg.svd(half @ other)
        even = np.sqrt(np.maximum(s, _FLOOR * s.max(initial=0.0)))
        yield back @ u * even, half @ u / even


def _mean(places: Sequence[Place], moments: Mapping[Side, Matrix]) -> Matrix:
    """Return the second moment on some places, in the mean."""
    return np.asarray(np.mean([moments[side][np.ix_(slots, slots)] for side, slots in places], axis=0))


def _white(coupling: Coupling, side: Side) -> Matrix:
    """Return the second moment on a side's slots if what its weight reads, or what reads of it, is white."""
    last = np.moveaxis(np.asarray(coupling.graph.weights[side.weight].read(), np.float64), side.axis, -1)
    rows = last.reshape(-1, last.shape[-1])
    return np.asarray(rows.T @ rows)


def _root(moment: Matrix) -> tuple[Matrix, Matrix]:
    """Return the square root of a positive matrix and its inverse; what is nearly nothing counts as a little."""
    values, vectors = np.linalg.eigh(moment)
    roots = np.sqrt(np.maximum(values, max(_FLOOR * float(values.max(initial=0.0)), 1e-30)))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
