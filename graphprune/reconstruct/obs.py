"""Optimal brain surgeon for channel groups: what every index costs, and the whole curve of error against width.

A consumer j contracts the dim: y = x W, with x [C], W [C, O]. An index of the group owns some of the C columns of x
(its block). With H = E[x x^T], or its centred form where a bias can take up the mean, removing index c and refitting
what stays raises E||y - y'||^2 by tr(W_c^T ([H^-1]_cc)^-1 W_c). Removing many one after the other, with W and H^-1
brought up to date each time, gives exactly the least-squares error of what is left.

Sources: Hassibi and Stork, Second order derivatives for network pruning: optimal brain surgeon (NIPS 1992); in blocks
and with downdates: Frantar and Alistarh, Optimal brain compression (NeurIPS 2022), and Meng et al., OSSCAR: one-shot
structured pruning in vision and language models (ICML 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from graphprune.reconstruct.linear import Indices, Matrix, Vector, dampings, inverse, mean_diagonal
from graphprune.reconstruct.removal import Blocks, Removal

DAMPING = 1e-2
"""What is added to the diagonal, a fraction of its mean (the setting of OSSCAR's published code)."""

_POOL = 4
_DEAD = 1e-12
_WIDE = 2

Group: TypeAlias = Sequence["Quadratic"]
"""The consumers of one group. Their blocks come beside them, one `Blocks` each."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The layer problem of one consumer: E||x W - x W'||^2 as a function of W'.

    `second` [C, C] is E[x x^T], `mean` [C] is E[x], `rows` the number of positions behind them, `weight` [C, O].
    `biased`: a bias can take up the mean, so the centred moment counts. `energy` is E||y - E y||^2, or E||y||^2 where
    not biased; errors are told as fractions of it. None: it is computed.
    """

    second: Matrix
    mean: Vector
    rows: int
    weight: Matrix
    energy: float | None = None
    biased: bool = True

    def living(self) -> tuple[Matrix, Matrix]:
        """Return the moment [C, C] that errors are measured in, and the weights [C, O]; both are copies.

        An input that never varies, or whose moment is no number, is dead: it correlates with nothing, and its
        weights are zero.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            moment = np.array(self.second, np.float64)
            raw = np.diagonal(moment).copy()
            if self.biased:
                moment -= np.outer(self.mean, self.mean)
            dead = ~(np.diagonal(moment) > _DEAD * np.abs(raw)) | ~np.isfinite(raw)
            if not np.isfinite(moment.sum()):
                dead |= ~np.isfinite(moment[:, ~dead]).all(axis=1)
        moment[dead], moment[:, dead] = 0.0, 0.0
        live = np.diagonal(moment)[~dead]
        moment[dead, dead] = float(live.mean()) if len(live) else 1.0
        weight = np.where(np.isfinite(self.weight), self.weight, 0.0).astype(np.float64, copy=False)
        weight[dead] = 0.0
        return moment, weight

    def scale(self, moment: Matrix, weight: Matrix) -> float:
        """Return what errors are divided by: the energy of the output; 1 where there is none."""
        found = self.energy if self.energy is not None else float(np.sum(weight * (moment @ weight)))
        return found if np.isfinite(found) and found > 0 else 1.0


def as_one(parts: Group) -> list[Quadratic]:
    """Return the groups of one grouped convolution, with the energy of them all: they are one consumer.

    The parts share the kept indices, each has its own inputs; the errors then add up to a fraction of the whole.
    """
    pairs = [(q, *q.living()) for q in parts]
    whole = sum(q.energy if q.energy is not None else float(np.sum(w * (m @ w))) for q, m, w in pairs)
    return [replace(q, energy=whole) for q in parts]


@dataclass(frozen=True, eq=False)
class Curve:
    """Error against width: `order` are the indices as they go, `errors[t]` is the error once t of them are gone.

    Errors are those of the refitted consumers, summed over them, each as a fraction of its output's energy; with the
    damping as part of the moment. `damping` is the largest that was needed. What `order` does not name, stays.
    """

    order: Indices
    errors: Vector
    size: int
    damping: float

    def kept(self, width: int) -> Indices:
        """Return the indices that stay at a width, ascending."""
        gone = np.zeros(self.size, bool)
        gone[self.order[: self.size - width]] = True
        return np.flatnonzero(~gone).astype(np.int64)

    def error(self, width: int) -> float:
        """Return the error at a width; at widths below the least one, that of the least."""
        return float(self.errors[min(self.size - width, len(self.errors) - 1)])

    def by_width(self) -> tuple[Indices, Vector]:
        """Return the widths, ascending, and the error at each of them."""
        widths = self.size - np.arange(len(self.errors), dtype=np.int64)
        return widths[::-1], self.errors[::-1]


def scores(quadratics: Group, blocks: Sequence[Blocks], damping: float = DAMPING) -> Vector:
    """Return what removing each index alone costs, all consumers refitted: summed fractions of their energies.

    That is twice the loss increase that OBS counts, over E||y||^2. `blocks[j][c]` are the columns of consumer j that
    index c owns.

    >>> q = Quadratic(np.eye(2), np.zeros(2), 9, np.array([[1.0], [2.0]]))
    >>> scores([q], [[np.array([0]), np.array([1])]], damping=0.0).round(6).tolist()
    [0.2, 0.8]

    Raises ValueError if two indices own the same column, or if the numbers of indices differ.
    """
    size = _size(quadratics, blocks)
    for wanted in dampings(damping):
        states, _ = _states(quadratics, blocks, wanted)
        try:
            return np.asarray(sum((r.scores() for r in states), np.zeros(size)))
        except np.linalg.LinAlgError:
            continue
    return np.zeros(size)


def curve(
    quadratics: Group, blocks: Sequence[Blocks], step: int = 1, least: int = 1, damping: float = DAMPING
) -> Curve:
    """Return the order in which indices go, greedily, all consumers at once, and the error at every width.

    `step` indices are taken out at a time: of the four times as many that cost least, one by one within those. Of
    equals the lower index goes first. At least `least` indices stay. Memory: about 3 C^2 numbers of 8 bytes for each
    consumer. Where the numbers do not hold (a moment that is no moment), the damping grows until they do.

    Raises ValueError if two indices own the same column, or if the numbers of indices differ.
    """
    size = _size(quadratics, blocks)
    for wanted in dampings(damping):
        states, used = _states(quadratics, blocks, wanted)
        try:
            order, errors = _greedy(states, size, max(step, 1), min(max(least, 0), size))
        except np.linalg.LinAlgError:
            continue
        return Curve(order, errors, size, used)
    return Curve(np.zeros(0, np.int64), np.zeros(1), size, np.inf)


def _size(quadratics: Group, blocks: Sequence[Blocks]) -> int:
    sizes = {len(b) for b in blocks}
    if len(sizes) != 1 or len(blocks) != len(quadratics):
        raise ValueError("every consumer needs the blocks of all indices of the group")
    return sizes.pop()


def _states(quadratics: Group, blocks: Sequence[Blocks], damping: float) -> tuple[list[Removal], float]:
    found, used = prepared(quadratics, blocks, damping)
    return [Removal(*problem) for problem in found], used


def prepared(
    quadratics: Group, blocks: Sequence[Blocks], damping: float
) -> tuple[list[tuple[Matrix, Matrix, Blocks]], float]:
    """Return for each moment its damped inverse, the weights over the roots of their energies, and the blocks.

    Consumers that read the same value (the same arrays) share one. Also the largest damping that it took.
    """
    together: dict[tuple[int, int, bool, int], list[int]] = {}
    for j, q in enumerate(quadratics):
        together.setdefault((id(q.second), id(q.mean), q.biased, id(blocks[j])), []).append(j)
    found, worst = [], 0.0
    for members in together.values():
        parts = []
        for j in members:
            moment, weight = quadratics[j].living()
            parts.append(weight / np.sqrt(quadratics[j].scale(moment, weight)))
        inverted, used = inverse(moment, damping)
        del moment
        found.append((inverted, _narrow(np.concatenate(parts, axis=1)), blocks[members[0]]))
        worst = max(worst, used)
    return found, worst


def _narrow(weight: Matrix) -> Matrix:
    """Return weights [C, C] with the same W W^T where there are far more outputs than inputs: only that counts."""
    if weight.shape[1] < _WIDE * weight.shape[0]:
        return weight
    gram = weight @ weight.T
    for jitter in (1e-14, 1e-13, 1e-12):
        try:
            return np.linalg.cholesky(gram + jitter * mean_diagonal(gram) * np.eye(len(gram)))
        except np.linalg.LinAlgError:
            continue
    return weight


def _greedy(states: Sequence[Removal], size: int, step: int, least: int) -> tuple[Indices, Vector]:
    """Return the order of removal and the errors.

    Raises numpy.linalg.LinAlgError where a downdated inverse is positive no longer.
    """
    order: list[int] = []
    errors = np.zeros(size - least + 1)
    while len(order) < size - least:
        many = min(step, size - least - len(order))
        cost = sum((s.scores() for s in states), np.zeros(size))
        cost[order] = np.inf
        if many == 1:
            chosen = [int(np.argmin(cost))]
        else:
            alive = size - len(order)
            pool = np.sort(np.argsort(cost, kind="stable")[: min(_POOL * many, alive)])
            chosen = [int(pool[i]) for i in _one_by_one([s.part(pool) for s in states], len(pool), many)]
        rise = sum((s.remove(chosen) for s in states), np.zeros(many))
        at = len(order)
        errors[at + 1 : at + many + 1] = errors[at] + np.cumsum(rise)
        order += chosen
    return np.array(order, np.int64), errors


def _one_by_one(states: Sequence[Removal], size: int, many: int) -> list[int]:
    """Return the indices that go first, as many as asked for."""
    order: list[int] = []
    for _ in range(many):
        cost = sum((s.scores() for s in states), np.zeros(size))
        cost[order] = np.inf
        order.append(int(np.argmin(cost)))
        for s in states:
            s.remove(order[-1:])
    return order
