"""Branches as choices beside widths: which may be bypassed, as ladders of two rungs, and what goes along with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from graphprune.allocate.budget import Budget
from graphprune.allocate.ladder import Ladder
from graphprune.groups import ChannelGroup, Coupling
from graphprune.transform.branches import Branch


def open_branches(coupling: Coupling, budget: Budget) -> tuple[Branch, ...]:
    """Return the branches that a budget may bypass: none but for targets.

    `exclude` and `include` match a branch by its name, and by the nodes and weights in it: what is excluded is not
    taken away with a branch either. Branches that are called as a group is are left out.
    """
    if not budget.targets:
        return ()
    graph = coupling.graph
    known = {*graph.weights, *(op.name for op in graph.ops), *(g.name for g in coupling.groups)}
    out = []
    for b in coupling.branches.free:
        weights = coupling.branches.unread(b.nodes)
        inside = {g.name for g in coupling.groups if all(o.initializer in weights for o in g.occurrences)}
        names = {b.name, b.join.name, *b.nodes, *weights, *inside}
        if any(_matched(p, names, known) for p in budget.exclude) or coupling.group(b.name) is not None:
            continue
        if not budget.include or any(_matched(p, names, known) for p in budget.include):
            out.append(b)
    return tuple(out)


def _matched(pattern: str, names: Collection[str], known: Collection[str]) -> bool:
    """Return whether a pattern, a full name or a part of one, stands for one of the names."""
    if pattern in known:
        return pattern in names
    return any(fnmatchcase(n, pattern) or pattern in n for n in names)


def gate_ladders(coupling: Coupling, losses: Mapping[str, float]) -> list[Ladder]:
    """Return each branch with a loss as a ladder: bypassed, and kept."""
    return [
        Ladder(ChannelGroup(b.name, b.gate, 1, (), 0, False, least=0), (0, 1), np.zeros(1))
        for b in coupling.branches.free if b.name in losses
    ]


def settled(
    coupling: Coupling, keep: Mapping[str, Sequence[int]], bypass: Collection[str]
) -> tuple[dict[str, Sequence[int]], tuple[str, ...]]:
    """Return what groups keep and which branches are bypassed, without what lies inside of bypassed branches."""
    branches = coupling.branches
    asked = [b for b in branches.free if b.name in bypass]
    gone = branches.gone(asked)
    unread = branches.unread(gone)
    inside = {g.name for g in coupling.groups if all(o.initializer in unread for o in g.occurrences)}
    left = {name: kept for name, kept in keep.items() if name not in inside}
    return left, tuple(b.name for b in asked if b.join.name not in gone)
