"""A layered layout of a graph: rows from top to bottom, few crossings, straight lines where there is room.

Sources: layers and barycentres: Sugiyama, Tagawa and Toda, Methods for visual understanding of hierarchical system
structures (1981); places in a row as isotonic regression: de Leeuw, Hornik and Mair, Isotone optimization in R (2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_SWEEPS = 6
_LONGEST = 60  # rows that a line is led through; longer ones go straight
_MOST_BENDS = 30_000


@dataclass(frozen=True)
class Layout:
    """Where everything lies: for each node its place in its row, and the row; for each edge its places in between.

    The unit is the distance of two neighbours, in a row or of rows.
    """

    x: list[float]
    y: list[int]
    bends: list[list[float]]


@dataclass
class _Rows:
    """Nodes and bends of edges, row by row, with what lies above and below each."""

    rows: list[list[int]]
    above: list[list[int]]
    below: list[list[int]]
    bends: list[list[int]] = field(default_factory=list)


def layered(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Lay out nodes 0 to `count` - 1, whose edges lead to later ones; edges that do not are drawn straight.

    >>> layered(3, [(0, 1), (1, 2)])
    Layout(x=[0.0, 0.0, 0.0], y=[0, 1, 2], bends=[[], []])
    """
    y = _heights(count, edges)
    rows = _rows(y, edges)
    _ordered(rows)
    x = _places(rows)
    left = min((x[k] for k in range(count)), default=0.0)
    place = [round(float(v - left), 2) for v in x]
    return Layout(place[:count], y, [[place[b] for b in own] for own in rows.bends])


def _heights(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return each node's row: below all that lead to it, and near what it leads to where that makes lines shorter."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        if a < b:
            above[b].append(a)
            below[a].append(b)
    y = [0] * count
    for k in range(count):
        y[k] = max((y[a] + 1 for a in above[k]), default=0)
    for k in reversed(range(count)):
        if below[k] and len(below[k]) > len(above[k]):
            y[k] = min(y[b] for b in below[k]) - 1
    return y


def _rows(y: Sequence[int], edges: Sequence[tuple[int, int]]) -> _Rows:
    rows: list[list[int]] = [[] for _ in range(max(y, default=-1) + 1)]
    for k, row in enumerate(y):
        rows[row].append(k)
    out = _Rows(rows, [[] for _ in y], [[] for _ in y])
    spent = 0
    for a, b in edges:
        span = y[b] - y[a]
        own: list[int] = []
        if 0 < span <= _LONGEST and spent + span <= _MOST_BENDS:
            last = a
            for row in range(y[a] + 1, y[b]):
                own.append(len(out.above))
                out.above.append([last])
                out.below.append([])
                out.below[last].append(own[-1])
                out.rows[row].append(own[-1])
                last = own[-1]
            out.above[b].append(last)
            out.below[last].append(b)
            spent += span
        out.bends.append(own)
    return out


def _ordered(rows: _Rows) -> None:
    """Order every row by the mean place of its neighbours, from the top and from the bottom in turn."""
    place = np.zeros(len(rows.above))
    for row in rows.rows:
        place[row] = np.arange(len(row))
    for sweep in range(_SWEEPS):
        near = rows.below if sweep % 2 else rows.above
        for row in rows.rows[:: -1 if sweep % 2 else 1]:
            if len(row) > 1:
                wanted = {k: float(np.mean(place[near[k]])) if near[k] else place[k] for k in row}
                row.sort(key=wanted.__getitem__)
                place[row] = np.arange(len(row))


def _places(rows: _Rows) -> npt.NDArray[np.float64]:
    """Return a place for each node: as near to its neighbours as the order and a distance of 1 permit."""
    x = np.zeros(len(rows.above))
    for row in rows.rows:
        x[row] = np.arange(len(row)) - (len(row) - 1) / 2
    for sweep in range(2 * _SWEEPS):
        for row in rows.rows[:: -1 if sweep % 2 else 1]:
            near = [[*rows.above[k], *rows.below[k]] for k in row]
            wanted = [float(np.mean(x[n])) if n else float(x[k]) for k, n in zip(row, near, strict=True)]
            x[row] = apart(wanted)
    return x


def apart(wanted: Sequence[float]) -> list[float]:
    """Return the places nearest to the wanted ones, in least squares, that keep the order and a distance of 1.

    >>> apart([0.0, 0.0, 5.0])
    [-0.5, 0.5, 5.0]
    """
    blocks: list[tuple[float, int]] = []  # the mean of a run of touching places, and its length
    for k, place in enumerate(wanted):
        mean, size = place - k, 1
        while blocks and blocks[-1][0] > mean:
            other, length = blocks.pop()
            mean, size = (mean * size + other * length) / (size + length), size + length
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [mean + k for k, mean in enumerate(flat)]
