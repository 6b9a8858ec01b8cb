"""What is said of axes that are solved: how many indices must stay, and which axes are pinned with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.axes.equations import Follow, Least, Origin
from graphprune.axes.expr import Dim, leaves

if TYPE_CHECKING:
    from graphprune.axes.solve import Solution


def least(solution: Solution, floors: list[tuple[Least, Origin]]) -> None:
    """Note how many indices dims keep; pin those of compound axes, and where all must stay."""
    for eq, origin in floors:
        axis = solution.expand(eq.axis)
        if isinstance(axis, Dim) and eq.number < axis.size:
            number, by = solution.least.get(axis, (1, origin))
            solution.least[axis] = (eq.number, origin) if eq.number > number else (number, by)
            continue
        for d in leaves(axis):
            solution.pins.setdefault(d, (f"at least {eq.number} of its {axis.size} places must stay", origin))


def follow(solution: Solution, waiting: list[tuple[Follow, Origin]]) -> None:
    """Pin the axes whose leaders are pinned, until nothing changes."""
    while True:
        ready = [item for item in waiting if not solution.free(item[0].leader)]
        if not ready:
            return
        for eq, origin in ready:
            for d in leaves(solution.expand(eq.axis)):
                solution.pins.setdefault(d, (eq.reason, origin))
        waiting = [item for item in waiting if item not in ready]
