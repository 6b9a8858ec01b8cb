"""Which channel groups are the same thing at different depths: the MLPs of all blocks, the heads of all blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from graphprune.groups import ChannelGroup, Coupling

Family: TypeAlias = "tuple[str, ...]"
"""Names of groups, in the order of the model."""


def families(coupling: Coupling, groups: Iterable[ChannelGroup]) -> tuple[Family, ...]:
    """Return groups by family: those of one size whose weights have the same shapes and parts; many are alone.

    >>> families(coupling, coupling.groups)  # doctest: +SKIP
    (('embedding:1',), ('mlp.0.weight:0', 'mlp.1.weight:0', 'mlp.2.weight:0'))
    """
    wanted = {g.name for g in groups}
    found: dict[object, list[str]] = {}
    for group in coupling.groups:
        if group.name in wanted:
            known = coupling.graph.weights
            places = sorted((o.role.value, o.axis, known[o.initializer].shape) for o in group.occurrences)
            found.setdefault((group.size, group.least, *places), []).append(group.name)
    return tuple(map(tuple, found.values()))


def in_turn(found: Iterable[Family]) -> dict[str, int]:
    """Return when each group's turn comes: the first of every family, then the last ones, then those halfway, ...

    >>> in_turn([("a", "b", "c", "d", "e"), ("x",)])
    {'a': 0, 'e': 1, 'c': 2, 'b': 3, 'd': 4, 'x': 0}
    """
    return {family[k]: turn for family in found for turn, k in enumerate(_halved(len(family)))}


def _halved(count: int) -> Iterator[int]:
    """Yield the ends of a range, then its middle, then the middles of what is between, each once."""
    yield from range(count)[:1]
    yield from range(1, count)[-1:]
    open_: Sequence[tuple[int, int]] = [(0, count - 1)]
    while open_ := [(a, b) for a, b in open_ if b - a > 1]:
        middles = [(a + b) // 2 for a, b in open_]
        yield from middles
        open_ = [part for (a, b), m in zip(open_, middles, strict=True) for part in ((a, m), (m, b))]
