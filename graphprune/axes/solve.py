"""The one piece of propagation code: solve equations between axes for their dims.

First-order unification over `Dim | Sum | Product` with two more moves: cut a sum at a slot, and refine a
product by a common factor. What cannot be solved is pinned on both sides with the reason; pinning too much
costs choices, never correctness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from graphprune.axes.equations import Follow, Least, Origin, Pin, Same
from graphprune.axes.expr import UNIT, ZERO, Axis, Dim, Product, Sum, concat, fresh, leaves, product
from graphprune.axes.notation import show
from graphprune.axes.settle import follow, least

_FUEL = 20_000
_MOST_UNITS = 64


class _Unsolved(Exception):
    """Two axes cannot be made the same expression."""


@dataclass(frozen=True)
class Solution:
    """What `solve` found: expressions of axes, pinned dims with reason and origin, and how many indices must stay."""

    bindings: dict[Dim, Axis]
    pins: dict[Dim, tuple[str, Origin]]
    least: dict[Dim, tuple[int, Origin]] = field(default_factory=dict)
    _memo: dict[Dim, Axis] = field(default_factory=dict, repr=False)

    def expand(self, axis: Axis) -> Axis:
        """Return an axis as an expression over solved dims.

        >>> n, h, d = Dim(6), Dim(2), Dim(3)
        >>> solve([(Same(n, product(h, d)), Origin("", ""))]).expand(n) == product(h, d)
        True
        """
        if not isinstance(axis, Dim):
            return _resolve(axis, self.bindings)
        got = self._memo.get(axis)
        if got is None:
            got = self._memo[axis] = _resolve(axis, self.bindings)
        return got

    def free(self, axis: Axis) -> bool:
        """Return whether any dim of an axis is not pinned."""
        return any(d not in self.pins for d in leaves(self.expand(axis)))


def _chase(axis: Axis, bindings: dict[Dim, Axis]) -> Axis:
    """Follow bindings to an unbound dim or a compound, and remember the end for all dims on the way."""
    passed = []
    while isinstance(axis, Dim):
        bound = bindings.get(axis)
        if bound is None:
            break
        passed.append(axis)
        axis = bound
    for dim in passed[:-1]:
        bindings[dim] = axis
    return axis


def _head(axis: Axis, bindings: dict[Dim, Axis]) -> Axis:
    """Follow bindings until an unbound dim, or a compound whose parts are neither bound nor of its own kind.

    Without recursion along chains of bindings: an axis cut off slot by slot is thousands of them long.
    """
    got = _chase(axis, bindings)
    if isinstance(got, Dim) or not any(isinstance(p, Dim) and p in bindings for p in got.parts):
        return got
    flat: list[Axis] = []
    stack = list(got.parts[::-1])
    while stack:
        part = _chase(stack.pop(), bindings)
        if type(part) is type(got):
            stack.extend(part.parts[::-1])  # type: ignore[union-attr]
        else:
            flat.append(part)
    made = _head(product(*flat) if isinstance(got, Product) else concat(*flat), bindings)
    if isinstance(axis, Dim):
        bindings[axis] = made
    return made


def _resolve(axis: Axis, bindings: dict[Dim, Axis]) -> Axis:
    """Follow all bindings inside an axis."""
    axis = _head(axis, bindings)
    if isinstance(axis, Dim) or not axis.parts:
        return axis
    parts = [_resolve(p, bindings) for p in axis.parts]
    return product(*parts) if isinstance(axis, Product) else concat(*parts)


def solve(equations: Iterable[tuple[Same | Pin | Follow | Least, Origin]]) -> Solution:
    """Solve equations; never fails: what has no solution is pinned.

    >>> a, b = Dim(6), Dim(6)
    >>> s = solve([(Same(a, b), Origin("relu", "Relu")), (Pin(b, "graph output"), Origin("y", ""))])
    >>> [reason for reason, _ in s.pins.values()]
    ['graph output']
    """
    solver = _Solver()
    items = list(equations)
    for eq, origin in items:
        if isinstance(eq, Pin):
            solver.pin(eq.axis, eq.reason, origin)
    for eq, origin in items:
        if isinstance(eq, Same):
            solver.same(eq.left, eq.right, origin)
    solution = Solution(solver.bindings, {})
    for dim, why in solver.pins.items():
        for d in leaves(solution.expand(dim)):
            solution.pins.setdefault(d, why)
    least(solution, [(eq, origin) for eq, origin in items if isinstance(eq, Least)])
    follow(solution, [(eq, origin) for eq, origin in items if isinstance(eq, Follow)])
    return solution


class _Solver:
    """Mutable bindings and pins while solving; local to `solve`."""

    def __init__(self) -> None:
        self.bindings: dict[Dim, Axis] = {}
        self.pins: dict[Dim, tuple[str, Origin]] = {}
        self.fuel = _FUEL

    def same(self, left: Axis, right: Axis, origin: Origin) -> None:
        self.fuel = _FUEL
        try:
            self.unify(left, right)
        except _Unsolved as why:
            self.pin(left, str(why), origin)
            self.pin(right, str(why), origin)

    def pin(self, axis: Axis, reason: str, origin: Origin) -> None:
        for d in leaves(_resolve(axis, self.bindings)):
            self.pins.setdefault(d, (reason, origin))

    def head(self, axis: Axis) -> Axis:
        return _head(axis, self.bindings)

    def why_pinned(self, axis: Axis) -> tuple[str, Origin] | None:
        """Return the first pin if every dim of an axis is pinned."""
        if isinstance(axis, Dim):
            return self.pins.get(axis)
        why = None
        for d in leaves(_resolve(axis, self.bindings)):
            got = self.pins.get(d)
            if got is None:
                return None
            why = why or got
        return why

    def unify(self, a: Axis, b: Axis) -> None:
        self.fuel -= 1
        if self.fuel < 0:
            raise _Unsolved("the equation splits into too many pieces")
        a, b = self.head(a), self.head(b)
        if a is b:
            return
        if a.size != b.size:
            raise _Unsolved(f"sizes disagree: {show(a)} of {a.size} against {show(b)} of {b.size}")
        if a.size <= 1:
            return
        for x, y in ((a, b), (b, a)):
            why = self.why_pinned(x)
            if why is not None:
                self.pin(y, *why)
                return
        if isinstance(a, Dim):
            self.bind(a, b)
        elif isinstance(b, Dim):
            self.bind(b, a)
        elif isinstance(a, Sum) or isinstance(b, Sum):
            self.unify_sums(_terms(a), _terms(b))
        else:
            self.unify_products(list(a.parts), list(b.parts))

    def bind(self, dim: Dim, axis: Axis) -> None:
        why = self.pins.get(dim)
        self.bindings[dim] = axis
        if why is not None:
            self.pin(axis, *why)

    def unify_sums(self, left: list[Axis], right: list[Axis]) -> None:
        a, b = deque(left), deque(right)
        while a and b:
            x, y = self.head(a.popleft()), self.head(b.popleft())
            if isinstance(x, Sum) and x.size:
                a.extendleft(reversed(x.parts))
                b.appendleft(y)
            elif isinstance(y, Sum) and y.size:
                a.appendleft(x)
                b.extendleft(reversed(y.parts))
            elif x.size == y.size:
                self.unify(x, y)
            elif x.size < y.size:
                first, rest = self.cut(y, x.size)
                self.unify(x, first)
                b.appendleft(rest)
            else:
                first, rest = self.cut(x, y.size)
                self.unify(first, y)
                a.appendleft(rest)

    def cut(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        """Split an axis into its first `at` slots and the rest; always possible, refining dims as needed."""
        self.fuel -= 1
        if self.fuel < 0:
            raise _Unsolved("the axis splits into too many pieces")
        axis = self.head(axis)
        if at == 0:
            return ZERO, axis
        if at == axis.size:
            return axis, ZERO
        if isinstance(axis, Dim):
            first, rest = fresh(at, axis.label), fresh(axis.size - at, axis.label)
            self.bind(axis, concat(first, rest))
            return first, rest
        if isinstance(axis, Sum):
            return self.cut_sum(axis, at)
        outer, inner = axis.parts[0], product(*axis.parts[1:])
        whole, partial = divmod(at, inner.size)
        before, after = self.cut(outer, whole)
        if not partial:
            return product(before, inner), product(after, inner)
        _, after = self.cut(after, 1)
        first, rest = self.cut(inner, partial)
        inner = self.head(inner)
        return concat(product(before, inner), first), concat(rest, product(after, inner))

    def cut_sum(self, axis: Sum, at: int) -> tuple[Axis, Axis]:
        before: list[Axis] = []
        for i, part in enumerate(axis.parts):
            if at < part.size:
                first, rest = self.cut(part, at)
                return concat(*before, first), concat(rest, *axis.parts[i + 1 :])
            before.append(part)
            at -= part.size
            if not at:
                return concat(*before), concat(*axis.parts[i + 1 :])
        raise AssertionError("a cut lies within its axis")

    def unify_products(self, a: list[Axis], b: list[Axis]) -> None:
        """Match factors from the innermost outwards, refining the larger by the smaller."""
        while a and b:
            x, y = self.head(a.pop()), self.head(b.pop())
            if isinstance(x, Product):
                a.extend(x.parts)
                b.append(y)
            elif isinstance(y, Product):
                a.append(x)
                b.extend(y.parts)
            elif x.size == y.size:
                self.unify(x, y)
            elif y.size % x.size == 0:
                b.append(self.refine(y, x))
            elif x.size % y.size == 0:
                a.append(self.refine(x, y))
            else:
                self.unify_by_rows(product(*a), x, product(*b), y)
                return

    def refine(self, axis: Axis, inner: Axis) -> Axis:
        """Make an axis a product with `inner` innermost; return the outer factor."""
        outer = fresh(axis.size // inner.size, axis.label if isinstance(axis, Dim) else "")
        self.unify(axis, product(outer, inner))
        return outer

    def unify_by_rows(self, outer_a: Axis, a: Axis, outer_b: Axis, b: Axis) -> None:
        """Solve factors that do not nest by spelling out the rows of the side that has fewer."""
        if outer_a.size > outer_b.size:
            outer_a, a, outer_b, b = outer_b, b, outer_a, a
        if outer_a.size > _MOST_UNITS:
            whole = f"({show(outer_a)} {show(a)}) against ({show(outer_b)} {show(b)})"
            raise _Unsolved(f"factorisations do not nest: {whole}")
        self.unify(outer_a, concat(*[UNIT] * outer_a.size))
        self.unify_sums([a] * outer_a.size, [product(outer_b, b)])


def _terms(axis: Axis) -> list[Axis]:
    return list(axis.parts) if isinstance(axis, Sum) else [axis]
