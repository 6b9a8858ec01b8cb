"""Error against width for every channel group, from statistics of what its consumers read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from graphprune.allocate.align import allowed_sizes
from graphprune.calibrate.statistics import Gram, Stats
from graphprune.consumers import Consumer, Consumers
from graphprune.groups import ChannelGroup, Coupling
from graphprune.reconstruct.linear import Indices
from graphprune.reconstruct.obs import DAMPING, Curve, Quadratic, curve
from graphprune.reconstruct.swaps import swaps
from graphprune.reconstruct.unrefitted import unrefitted

Progress = Callable[[str], None]


def curves(
    coupling: Coupling,
    groups: Sequence[ChannelGroup],
    consumers: Consumers,
    stats: Stats,
    fallback: Mapping[str, np.ndarray],
    *,
    align: int = 1,
    damping: float = DAMPING,
    progress: Progress = lambda text: None,
) -> dict[str, Curve]:
    """Return the greedy curve of every group (`obs.curve`).

    Groups that no consumer with statistics contracts (widths of queries and keys, say) are ordered by `fallback`, one
    score for each index, and their error is the share of the squared scores that goes: as if what is contracted were
    white, and nothing made up for it.
    """
    out: dict[str, Curve] = {}
    for k, group in enumerate(groups):
        progress(f"error curves: group {k + 1} of {len(groups)}")
        members = [c for c in consumers.by_dim.get(group.dim, ()) if c.key in stats.fit]
        if not members:
            out[group.name] = by_scores(fallback[group.name], group.least)
            continue
        quadratics, blocks = of_group(coupling, group, members, stats)
        if all(c.frozen for c in members):
            out[group.name] = unrefitted(quadratics, blocks, max(group.least, 1))
            continue
        step = _step(coupling, group, align)
        out[group.name] = curve(quadratics, blocks, step, max(group.least, 1), damping)
    return out


def of_group(
    coupling: Coupling, group: ChannelGroup, members: Sequence[Consumer], stats: Stats
) -> tuple[list[Quadratic], list[list[Indices]]]:
    """Return the layer problems of a group's consumers, and which columns of each of them its indices own.

    >>> quadratics, blocks = of_group(coupling, group, consumers.by_dim[group.dim], stats)  # doctest: +SKIP
    """
    quadratics: list[Quadratic] = []
    blocks: list[list[Indices]] = []
    known: dict[tuple[object, ...], list[Indices]] = {}
    moments = {c.key: _moments(stats.fit[c.key]) for c in members}  # of one group at a time: they are large
    for c in members:
        own = known.setdefault((c.key, c.axis), c.columns_of(group.dim))
        matrix = np.asarray(c.design.matrix(coupling.graph.weights[c.weight].read()), np.float64)
        found = problems(c, moments[c.key], matrix)
        quadratics += found
        blocks += [own] * len(found)
    return quadratics, blocks


def exchanged(
    coupling: Coupling, keep: Mapping[str, Sequence[int]], consumers: Consumers, stats: Stats, progress: Progress
) -> dict[str, list[int]]:
    """Return as many kept indices of each group, after swaps that lower the exact error (`swaps.swaps`).

    Groups that no refitted layer contracts stay as they are.

    >>> exchanged(coupling, {"a:0": [0, 1, 5]}, consumers, stats, print)  # doctest: +SKIP
    {'a:0': [0, 2, 5]}
    """
    out = {name: list(kept) for name, kept in keep.items()}
    for group in coupling.groups:
        members = [c for c in consumers.by_dim.get(group.dim, ()) if c.key in stats.fit and not c.frozen]
        if group.name in out and members:
            progress(f"swaps: {group.name}")
            found = swaps(*of_group(coupling, group, members, stats), np.array(out[group.name], np.int64))
            out[group.name] = found.kept.tolist()
    return out


Moments = list[tuple[np.ndarray, np.ndarray, int]]


def _moments(gram: Gram) -> Moments:
    rows = max(gram.rows, 1)
    return [(gram.second[g] / rows, gram.first[g] / rows, gram.rows) for g in range(len(gram.second))]


def problems(consumer: Consumer, moments: Moments, matrix: np.ndarray) -> list[Quadratic]:
    """Return the layer problem of each block of a consumer; errors are fractions of the energy of all of them."""
    biased = consumer.biased
    energies = []
    for (second, mean, _), weight in zip(moments, matrix, strict=True):
        centred = second - np.outer(mean, mean) if biased else second
        energies.append(float(np.einsum("co,co->", weight, centred @ weight)))
    energy = max(sum(energies), 1e-30)
    return [
        Quadratic(second, mean, rows, weight, energy, biased)
        for (second, mean, rows), weight in zip(moments, matrix, strict=True)
    ]


def by_scores(scores: np.ndarray, least: int = 1) -> Curve:
    """Return the curve of a group by the squares of its scores.

    >>> by_scores(np.array([2.0, 1.0])).error(1)
    0.2
    """
    energy = np.square(np.asarray(scores, np.float64))
    order = np.argsort(energy, kind="stable")[: max(len(energy) - max(least, 1), 0)]
    share = energy / max(float(energy.sum()), 1e-30)
    errors = np.concatenate([[0.0], np.cumsum(share[order])])
    return Curve(order.astype(np.int64), errors, len(energy), 0.0)


def _step(coupling: Coupling, group: ChannelGroup, align: int) -> int:
    """Return by how many indices the allocation of a group may change: the smallest difference of allowed sizes."""
    sizes = sorted(allowed_sizes(group, coupling, align))
    steps = [b - a for a, b in pairwise(sizes)]
    return max(min(steps, default=1), 1)


def marginal(curve: Curve) -> np.ndarray:
    """Return what each index adds to the error when it goes, never less than those before it.

    >>> marginal(by_scores(np.array([3.0, 1.0, 2.0]))).round(3).tolist()
    [1.0, 0.071, 0.286]
    """
    rises = np.maximum.accumulate(np.diff(curve.errors[: len(curve.order) + 1]))
    out = np.full(curve.size, max(1.0, 2 * float(rises.max(initial=0.0))))
    out[curve.order] = rises
    return out


def ranked(curve: Curve) -> np.ndarray:
    """Return scores that order indices as a curve does: those that go first are the smallest.

    >>> ranked(by_scores(np.array([3.0, 1.0, 2.0]))).argsort().tolist()
    [1, 2, 0]
    """
    out = np.full(curve.size, float(curve.size))
    out[curve.order] = np.arange(len(curve.order))
    return out

