"""Inner widths of attention, turned so that few directions carry most of what they do: then the others can go.

Queries and keys meet only in products q k^T, values only in what a matrix makes of them. Any invertible matrix may
stand between the two: (q A)(k B)^T = q k^T where A B^T = I. So a head has no basis of its own, and removing single
numbers of the one it was trained in wastes what a better one would keep. Here A and B are the balanced pair of the two
second moments P and R: with the singular values of P^1/2 R^1/2 = U S V^T,

    A = P^-1/2 U S^1/2,    B = R^-1/2 V S^1/2 = P^1/2 U S^-1/2

The first r directions then are the best r of the product, in the mean over the data, and index j means the j-th
best in every head. Weights are written anew, nothing else; what the model computes changes by rounding.

Sources: Lin et al., MoDeGPT: modular decomposition for large language model compression (ICLR 2025), which decomposes
queries with keys and values with outputs in the metric of the data; balancing: Moore, Principal component analysis in
linear systems (1981).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Dim, Role, leaves, owners
from graphprune.groups import ChannelGroup, Coupling, Occurrence
from graphprune.model import all_values, set_constant
from graphprune.ops import ADD, Op

Matrix: TypeAlias = npt.NDArray[np.float64]
Index: TypeAlias = npt.NDArray[np.int64]
Key: TypeAlias = tuple[int, ...]
"""Indices of the outer dims: which head."""
Heads: TypeAlias = tuple[tuple[tuple[Key, ...], tuple[Key, ...]], ...]

_EXACT = 4  # bytes: shorter numbers would be rounded once more
_HEADS = 2  # at least: a factor of 1 tells nothing about what is between
_FLOOR = 1e-6  # of the largest eigenvalue: what counts as nothing


@dataclass(frozen=True)
class Side:
    """One of two weights between which a dim lies; `biases` are added to what it makes.

    `blocks` has for every head the slots of the axis that are the dim's indices, in order.
    """

    weight: str
    axis: int
    blocks: Mapping[Key, Index]
    produced: bool
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A dim that only two weights have in common, in blocks that share one basis each: `heads` by side."""

    group: str
    dim: Dim
    first: Side
    second: Side
    heads: Heads


Moment: TypeAlias = "Callable[[Side], Matrix | None]"
"""The second moment of what lies on all slots of a side's axis [slots, slots]; None where nothing is known."""


def pairs(coupling: Coupling) -> tuple[Pair, ...]:
    """Return the groups whose basis is free, as far as weights tell; only running the turned model proves it.

    >>> [p.group for p in pairs(coupling)]  # doctest: +SKIP
    ['query.weight:0.1', 'value.weight:0.1']
    """
    return tuple(found for g in coupling.groups if (found := _pair(coupling, g)) is not None)


def _pair(coupling: Coupling, group: ChannelGroup) -> Pair | None:
    if any(o.gain for o in group.occurrences) or group.size < 2:
        return None
    weights = [o for o in group.occurrences if o.role in (Role.PRODUCED, Role.CONTRACTED)]
    rest = [o.initializer for o in group.occurrences if o not in weights]
    sides = [side for o in weights for side in _sides(coupling, group, o)]
    if len(sides) != 2 or not sides[0].produced:
        return None
    first, second = (replace(s, biases=tuple(b for b in rest if _added(coupling, s.weight, b))) for s in sides)
    placed = {*first.biases, *(second.biases if second.produced else ())}
    if placed != set(rest) or (not second.produced and second.biases):
        return None
    heads = _heads(coupling, group.dim, first, second)
    return Pair(group.name, group.dim, first, second, heads) if heads else None


def _sides(coupling: Coupling, group: ChannelGroup, place: Occurrence) -> list[Side]:
    """Return the one or two times that a weight has a dim on an axis; nothing where it is there in another way."""
    weight = coupling.graph.weights.get(place.initializer)
    if weight is None or weight.quantised or weight.filled or len(weight.shape) < 2 or weight.itemsize < _EXACT:
        return []
    axis = coupling.expand(weight.axes[place.axis])
    outer = [d for d in dict.fromkeys(leaves(axis)) if d is not group.dim]
    if not outer:
        return []
    own, around = owners(axis, group.dim), [owners(axis, d) for d in outer]
    found: dict[Key, list[list[int]]] = {}
    for s in np.flatnonzero(own >= 0).tolist():
        key = tuple(int(a[s]) for a in around)
        if key not in found:
            found[key] = [[] for _ in range(group.size)]
        found[key][own[s]].append(s)
    counts = {len(at) for lists in found.values() for at in lists}
    if len(found) < _HEADS or len(counts) != 1:
        return []
    times, produced = counts.pop(), place.role is Role.PRODUCED
    return [
        Side(weight.name, place.axis, {k: np.array([at[t] for at in lists]) for k, lists in found.items()}, produced)
        for t in range(times)
    ]


def _added(coupling: Coupling, weight: str, bias: str) -> bool:
    """Return whether a constant is added to what a weight makes, and to nothing else."""
    def reads(op: Op, name: str) -> bool:
        return any(o is not None and o.name == name for o in op.inputs)

    made = {o.name for op in coupling.graph.ops if reads(op, weight) for o in op.outputs if o is not None}
    reading = [op for op in coupling.graph.ops if reads(op, bias)]
    return bool(reading) and all(
        reads(op, weight) or (op.type == ADD and any(reads(op, name) for name in made)) for op in reading
    )


def _heads(coupling: Coupling, dim: Dim, first: Side, second: Side) -> Heads:
    """Return which blocks of both sides share a basis: those with the same indices of the outer dims of both."""
    dims = [_outer(coupling, dim, s) for s in (first, second)]
    common = [d for d in dims[0] if d in dims[1]]
    if not common:
        return ()
    joined: dict[Key, tuple[list[Key], list[Key]]] = {}
    for k, side in enumerate((first, second)):
        for block in side.blocks:
            key = tuple(block[dims[k].index(d)] for d in common)
            joined.setdefault(key, ([], []))[k].append(block)
    return tuple((tuple(a), tuple(b)) for a, b in joined.values()) if all(a and b for a, b in joined.values()) else ()


def _outer(coupling: Coupling, dim: Dim, side: Side) -> list[Dim]:
    axis = coupling.expand(coupling.graph.weights[side.weight].axes[side.axis])
    return [d for d in dict.fromkeys(leaves(axis)) if d is not dim]


def turned(
    model: ir.Model, coupling: Coupling, found: Sequence[Pair], moment: Moment = lambda side: None
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
        for (blocks_a, blocks_b), (a, b) in zip(pair.heads, bases, strict=True):
            for side, blocks, basis in ((pair.first, blocks_a, a), (pair.second, blocks_b, b)):
                places = [(side.weight, side.axis), *((bias, -1) for bias in side.biases)]
                for slots in (side.blocks[k] for k in blocks):
                    for name, axis in places:
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
    first, second = pair.first, pair.second
    told = moment(first if second.produced else second)
    before = first if second.produced or told is None else second  # what is read there: values, weighted by attention
    made = told if told is not None else _white(coupling, first)
    after = moment(second) if second.produced else None
    met = after if after is not None else _white(coupling, second)
    for mine, theirs in pair.heads:
        p = _mean(before, mine if before is first else theirs, made)
        (half, back), (other, _) = _root(p), _root(_mean(second, theirs, met))
        u, s, _ = np.linalg.svd(half @ other)
        even = np.sqrt(np.maximum(s, _FLOOR * s.max(initial=0.0)))
        yield back @ u * even, half @ u / even


def _mean(side: Side, keys: Sequence[Key], moment: Matrix) -> Matrix:
    """Return the second moment on the blocks of a side, in the mean."""
    return np.asarray(np.mean([moment[np.ix_(side.blocks[k], side.blocks[k])] for k in keys], axis=0))


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
