"""Variants of a model: each group at other widths, so that its nodes are seen and timed at many of them.

Widths are drawn so that the variants cover what allocations choose from, and so that no two groups have the same
widths in all of them: then a size that is seen in a profile tells which group it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import eq

import numpy as np

from graphprune.allocate.align import allowed, places
from graphprune.axes import Axis, Dim, kept_size, leaves
from graphprune.groups import Coupling

_BLOCK = 4
_LEAST = 0.2
_DRAWS = 64
_MOST_OF = 0.6
_FEWEST = 3
_PADS = (1, 4, 8, 16, 32)
"""Blocks that runtimes round channels up to."""


def widths(coupling: Coupling, count: int, align: int, seed: int = 0) -> list[dict[Dim, int]]:
    """Return the sizes of all groups in each of `count` variants; the first is the dense model.

    >>> [v[dim] for v in widths(coupling, 4, 16)]  # doctest: +SKIP
    [64, 48, 16, 32]
    """
    rng = np.random.default_rng(seed)
    where = places(coupling.groups, coupling)
    taken: set[tuple[int, ...]] = set()
    columns: dict[Dim, list[int]] = {}
    for group in coupling.groups:
        found = where.get(group.dim, ())
        coarse = [n for n in allowed(group.size, found, align) if n >= max(group.least, _LEAST * group.size)]
        fine = [n for n in allowed(group.size, found, _BLOCK) if n >= max(group.least, _LEAST * group.size)]
        column: list[int] = []
        for draw in range(_DRAWS):
            column = _drawn(coarse if draw < _DRAWS // 2 else fine, count - 1, group.size, rng)
            code = _code([group.size, *column])
            if code not in taken:
                break
        taken.add(_code([group.size, *column]))
        columns[group.dim] = column
    return [{}, *({dim: column[v] for dim, column in columns.items()} for v in range(count - 1))]


def _drawn(options: Sequence[int], count: int, size: int, rng: np.random.Generator) -> list[int]:
    """Return widths spread evenly over the options, in random order."""
    wanted = size * (_LEAST + (1 - _LEAST) * (rng.permutation(count) + rng.random(count)) / max(count, 1))
    values = np.array(options)
    return [int(values[np.argmin(np.abs(values - w))]) for w in wanted]


def _code(sizes: Sequence[int]) -> tuple[int, ...]:
    return (sizes[0], *(-(-n // 16) for n in sizes))


class Matching:
    """Tells which expression an axis of an optimised graph has, by its sizes in all variants."""

    def __init__(self, coupling: Coupling, variants: Sequence[Mapping[Dim, int]]) -> None:
        self._count = len(variants)
        self._exact: dict[tuple[int, ...], tuple[Axis, int]] = {}
        self._ratio: dict[tuple[float, ...], Axis] = {}
        sizes = {axis: [kept_size(axis, v) for v in variants] for axis in _expressions(coupling)}
        for pad in _PADS:
            for axis, found in sizes.items():
                self._exact.setdefault(tuple(-(-n // pad) * pad for n in found), (axis, pad))
        for axis, found in sizes.items():
            self._ratio.setdefault(_ratios(found), axis)

    def sized(self, observed: Sequence[int | None]) -> Sized | None:
        """Return the size as an expression, None where it is none of the model's; variants may not have it."""
        known = [n for n in observed if n is not None]
        if len(set(known)) == 1:
            return Sized(None, known[0], 1)
        return self._nearly(observed) if len(known) < len(observed) else self._entirely(known)

    def _entirely(self, observed: Sequence[int]) -> Sized | None:
        exact = self._exact.get(tuple(observed))
        if exact is not None:
            return Sized(exact[0], 1, exact[1])
        axis = self._ratio.get(_ratios(observed))
        if axis is not None:
            return Sized(axis, observed[0] / axis.size, 1)
        return self._nearly(observed)

    def _nearly(self, observed: Sequence[int | None]) -> Sized | None:
        """Return the expression that most variants have, for sizes that only some round up or have."""
        seen = sum(n is not None for n in observed)
        best = max(self._exact, key=lambda sizes: sum(map(eq, sizes, observed)), default=None)
        if best is None or sum(map(eq, best, observed)) < max(_MOST_OF * seen, _FEWEST):
            return None
        axis, pad = self._exact[best]
        return Sized(axis, 1, pad)


class Sized:
    """A size of the optimised graph as a function of groups' sizes: `factor` times an axis, rounded up to `pad`."""

    __slots__ = ("axis", "dims", "factor", "pad")

    def __init__(self, axis: Axis | None, factor: float, pad: int) -> None:
        self.axis = axis
        self.factor = factor
        self.pad = pad
        self.dims: tuple[Dim, ...] = () if axis is None else tuple(dict.fromkeys(leaves(axis)))

    def __call__(self, sizes: Mapping[Dim, int]) -> int:
        if self.axis is None:
            return int(self.factor)
        n = kept_size(self.axis, sizes) * self.factor
        return int(-(-n // self.pad) * self.pad)


def _ratios(sizes: Sequence[int]) -> tuple[float, ...]:
    return tuple(round(n / max(sizes[0], 1), 9) for n in sizes)


def _expressions(coupling: Coupling) -> Iterable[Axis]:
    """Yield every expression of an axis with a prunable dim, simple ones first."""
    found = dict.fromkeys(
        axis
        for operand in coupling.graph.values.values()
        for raw in operand.axes
        for axis in [coupling.expand(raw)]
        if any(d in coupling.dims for d in leaves(axis))
    )
    return sorted(found, key=lambda a: sum(1 for _ in leaves(a)))
