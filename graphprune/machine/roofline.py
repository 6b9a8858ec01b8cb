"""Times as linear functions of loads, fitted near to what is asked: a roofline whose roof is measured locally.

A node takes a fixed time, a time for each multiply-accumulate, and one for each byte of data and of constants; none of
them is negative. The four rates are fitted to the records of nodes that take time in the same way, those near in size
(in logarithms) first. So times between measured points are interpolated, they rise with what is to be done, and far
from any point they go on as the rates of the nearest.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model (CACM 2009); the sum in
place of the larger of the two times is that of a core that waits for memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import exp, log
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]
Loads: TypeAlias = "tuple[float, float, float]"
_REACH = 0.5  # in logarithms of loads: so far away a record counts a third
_OWN = 8.0  # a record of the same node counts so many times
_PRIOR = 0.02
_NEAR = 200
_SMALL = 64.0  # loads below this are no different


@dataclass(frozen=True)
class Record:
    """One measurement: nanoseconds of a node of this family with these loads."""

    family: str
    loads: Loads
    ns: float


@dataclass(frozen=True)
class Roof:
    """Nanoseconds: fixed, and for each multiply-accumulate, byte of data, and byte of constants.

    >>> Roof((100.0, 0.5, 1.0, 0.0))((1000.0, 50.0, 0.0))
    650.0
    """

    rates: tuple[float, float, float, float]

    def __call__(self, loads: Loads) -> float:
        fixed, macs, data, stored = self.rates
        return fixed + macs * loads[0] + data * loads[1] + stored * loads[2]

    def scaled(self, factor: float) -> Roof:
        """Return the same times, all longer by a factor."""
        return Roof(tuple(factor * r for r in self.rates))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Records:
    """Measurements of one family, with the logarithms of their loads, shape [records, 3]."""

    found: tuple[Record, ...]

    @cached_property
    def logs(self) -> Vector:
        return logs([r.loads for r in self.found])

    def near(self, at: Loads) -> tuple[Record, ...]:
        """Return the 200 records nearest to some loads."""
        if len(self.found) <= _NEAR:
            return self.found
        away = np.linalg.norm(self.logs - logs([at]), axis=1)
        return tuple(self.found[i] for i in np.argsort(away, kind="stable")[:_NEAR])

    def away(self, at: Loads) -> float:
        """Return how far the nearest record is, in logarithms of loads."""
        return float(np.linalg.norm(self.logs - logs([at]), axis=1).min()) if self.found else np.inf


def logs(loads: Sequence[Loads]) -> Vector:
    """Return the logarithms of loads, shape [number, 3]; small loads are all the same.

    >>> logs([(1.0, 64.0, 0.0)]).round(2).tolist()
    [[4.16, 4.16, 4.16]]
    """
    return np.asarray(np.log(np.maximum(np.array(loads, np.float64).reshape(-1, 3), _SMALL)))


def fitted(records: Sequence[Record], at: Loads, prior: Roof, own: Sequence[Record] = ()) -> Roof:
    """Return the rates that fit records of one family best around some loads; `own` are those of the very node.

    Relative errors count. `prior`, scaled to meet the records, counts a little: it decides where they do not tell.
    """
    everything = [*records, *own]
    if not everything:
        return prior
    away = np.linalg.norm(logs([r.loads for r in everything]) - logs([at]), axis=1)
    weights = np.exp(-(((away - away.min()) / (2 * _REACH)) ** 2))
    weights[len(records) :] *= _OWN
    rows = np.array([[1.0, *r.loads] for r in everything])
    times = np.array([max(r.ns, 1.0) for r in everything])
    scaled = prior.scaled(_level(everything, weights, prior))
    return Roof(_nonnegative(rows / times[:, None], weights, np.array(scaled.rates), np.array([1.0, *at])))


def _level(records: Sequence[Record], weights: Vector, prior: Roof) -> float:
    """Return by how much a prior has to be scaled to meet records on the whole."""
    found = [log(max(r.ns, 1.0) / max(prior(r.loads), 1e-9)) for r in records]
    return exp(float(weights @ np.array(found) / weights.sum()))


def _nonnegative(
    rows: Vector, weights: Vector, prior: Vector, at: Vector
) -> tuple[float, float, float, float]:
    """Return rates of 0 or more that bring all rows near to 1, by trying which of them are 0."""
    unit = 1 / np.maximum(at, 1.0)  # rates in shares of the time here
    total = max(float(prior @ at), 1e-9)
    a = rows * unit * total
    target = prior * at / total
    gram = a.T @ (weights[:, None] * a) + _PRIOR * np.eye(4)
    right = a.T @ weights + _PRIOR * target
    best, found = np.inf, target
    for active in product((False, True), repeat=4):
        mask = np.array(active)
        if not mask.any():
            continue
        x = np.zeros(4)
        x[mask] = np.linalg.solve(gram[np.ix_(mask, mask)], right[mask])
        if (x < 0).any():
            continue
        loss = float(x @ gram @ x - 2 * right @ x)
        if loss < best:
            best, found = loss, x
    fixed, macs, data, stored = (float(v) for v in found * unit * total)
    return fixed, macs, data, stored
