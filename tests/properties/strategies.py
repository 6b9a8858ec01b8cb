"""Random axis expressions and systems of equations for the property tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from graphprune.axes import UNIT, Axis, Dim, Origin, Same, Solution, concat, leaves, product

MOST_SLOTS = 240
WHERE = Origin("test", "Test")


@st.composite
def dims(draw: st.DrawFn, most: int = 4) -> list[Dim]:
    """Draw a few dims of small sizes."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=most))
    return [Dim(n, f"d{i}") for i, n in enumerate(sizes)]


@st.composite
def expressions(draw: st.DrawFn, pool: list[Dim], depth: int = 3, most: int = MOST_SLOTS) -> Axis:
    """Draw a tree of sums and products over the dims of a pool, with units now and then."""
    kinds = ["leaf", "leaf", "sum", "product", "unit"] if depth else ["leaf", "leaf", "leaf", "unit"]
    kind = draw(st.sampled_from(kinds))
    if kind == "unit":
        return UNIT
    if kind == "leaf":
        fitting = [d for d in pool if d.size <= most]
        return draw(st.sampled_from(fitting)) if fitting else UNIT
    out: Axis = UNIT if kind == "product" else draw(expressions(pool, depth - 1, most))
    for _ in range(draw(st.integers(1, 3))):
        left = most // max(out.size, 1) if kind == "product" else most - out.size
        if left < 1:
            break
        part = draw(expressions(pool, depth - 1, left))
        out = product(out, part) if kind == "product" else concat(out, part)
    return out


@st.composite
def axes_and_pool(draw: st.DrawFn, number: int = 1) -> tuple[list[Dim], list[Axis]]:
    """Draw dims and some expressions over them."""
    pool = draw(dims())
    return pool, [draw(expressions(pool)) for _ in range(number)]


def random_indices(pool: Iterable[Dim], rng: np.random.Generator) -> dict[Dim, npt.NDArray[np.int64]]:
    """Choose at least one index of each dim, ascending."""
    return {d: np.sort(rng.choice(d.size, rng.integers(1, d.size + 1), replace=False)) for d in pool}


def random_orders(pool: Iterable[Dim], rng: np.random.Generator) -> dict[Dim, npt.NDArray[np.int64]]:
    """Choose an order for each dim."""
    return {d: rng.permutation(d.size) for d in pool}


def unpinned(solution: Solution, axes: Iterable[Axis]) -> list[Dim]:
    """Return the solved dims of axes that may be changed."""
    found = dict.fromkeys(d for a in axes for d in leaves(solution.expand(a)))
    return [d for d in found if d not in solution.pins]


def same(*pairs: tuple[Axis, Axis]) -> list[tuple[Same, Origin]]:
    """Spell equations."""
    return [(Same(a, b), WHERE) for a, b in pairs]


def regroup(draw: st.DrawFn, factors: list[Axis]) -> list[Axis]:
    """Fold runs of consecutive factors into unknown axes, as a reshape's output shows them."""
    out: list[Axis] = []
    at = 0
    while at < len(factors):
        n = draw(st.integers(1, len(factors) - at))
        out.append(Dim(product(*factors[at : at + n]).size, f"v{at}"))
        at += n
    return out
