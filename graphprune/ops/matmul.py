"""Contractions: Gemm, MatMul and Einsum."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from graphprune.axes import UNIT, Axis, Equation, Role, Same, Use
from graphprune.ops.registry import AxisRule, CostRule, Op, Row, ShapeOf, broadcast, pin_all, row

MATMUL = "MatMul"


def _contract(op: Op, left: Axis, right: Axis) -> Iterator[Equation]:
    yield Same(left, right)
    yield Use(0, left, Role.CONTRACTED)
    yield Use(1, right, Role.CONTRACTED)


def _produce(operand: int, axis: Axis, out: Axis) -> Iterator[Equation]:
    yield Same(axis, out)
    yield Use(operand, axis, Role.PRODUCED)


def gemm(op: Op) -> Iterator[Equation]:
    """`m k, k n, (m n)? -> m n`, either matrix transposed."""
    a, b, y = op.x(0), op.x(1), op.y()
    m, k = a.axes[::-1] if op.attr("transA", 0) else a.axes
    other, n = b.axes[::-1] if op.attr("transB", 0) else b.axes
    yield from _contract(op, k, other)
    yield from _produce(0, m, y.axes[0])
    yield from _produce(1, n, y.axes[1])
    yield from broadcast(op, [2], y, Role.PRODUCED)


def matmul(op: Op) -> Iterator[Equation]:
    """`*b m k, *b k n -> *b m n` with broadcast batches and vectors on either side."""
    a, b, y = op.x(0), op.x(1), op.y()
    yield from _contract(op, a.axes[-1], b.axes[0] if b.rank == 1 else b.axes[-2])
    tail = 0
    if b.rank > 1:
        yield from _produce(1, b.axes[-1], y.axes[-1])
        tail += 1
    if a.rank > 1:
        yield from _produce(0, a.axes[-2], y.axes[y.rank - 1 - tail])
        tail += 1
    batch = y.rank - tail
    for i, operand in ((0, a), (1, b)):
        own = operand.rank - 2
        for j in range(own):
            axis, out = operand.axes[j], y.axes[batch - own + j]
            if axis is not UNIT:
                yield Same(axis, out)
                yield Use(i, axis, Role.CARRIED)


def einsum_letters(op: Op) -> tuple[list[list[str]], list[str]] | None:
    """Return a letter for every axis of the inputs and the output; None where a term repeats a letter."""
    text = str(op.attr("equation")).replace(" ", "")
    left, _, right = text.partition("->")
    terms = []
    for term, operand in zip(left.split(","), op.inputs, strict=True):
        assert operand is not None
        terms.append(_letters(term, operand.rank))
    if "->" not in text:
        flat = [x for t in terms for x in t]
        dots = sorted({x for x in flat if x.startswith(".")}, key=lambda x: -int(x[1:]))
        out = dots + sorted({x for x in flat if flat.count(x) == 1 and not x.startswith(".")})
    else:
        out = _letters(right, op.y().rank)
    if any(len(set(t)) < len(t) for t in [*terms, out]):
        return None
    return terms, out


def _letters(term: str, rank: int) -> list[str]:
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    n = rank - len(before) - len(after)
    return [*before, *[f".{n - 1 - i}" for i in range(n)], *after]


def einsum(op: Op) -> Iterator[Equation]:
    """Equal letters are equal axes; letters that the output lacks are contracted."""
    found = einsum_letters(op)
    if found is None:
        yield from pin_all(op, "an einsum takes a diagonal")
        return
    terms, out = found
    home: dict[str, Axis] = dict(zip(out, op.y().axes, strict=True))
    for i, (term, operand) in enumerate(zip(terms, op.inputs, strict=True)):
        assert operand is not None
        others = {x for j, t in enumerate(terms) if j != i for x in t}
        for letter, axis in zip(term, operand.axes, strict=True):
            if axis is UNIT:
                continue
            other = home.setdefault(letter, axis)
            if other.size == 1:
                home[letter] = axis
            elif other is not axis:
                yield Same(other, axis)
            else:
                yield Same(axis, axis)
            role = Role.CARRIED if letter in others else Role.PRODUCED
            yield Use(i, axis, role if letter in out else Role.CONTRACTED)


AXES: tuple[Row[AxisRule], ...] = (row(gemm, "Gemm"), row(matmul, "MatMul"), row(einsum, "Einsum"))


def gemm_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the length of the contracted axis."""
    a = shape(op.x())
    return prod(shape(op.y())) * (a[0] if op.attr("transA", 0) else a[1])


def matmul_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the length of the contracted axis."""
    return prod(shape(op.y())) * shape(op.x())[-1]


def einsum_cost(op: Op, shape: ShapeOf) -> int:
    """Every letter once: the cost of the plain nested loops."""
    found = einsum_letters(op)
    if found is None:
        return 0
    sizes: dict[str, int] = {}
    for term, operand in zip(found[0], op.inputs, strict=True):
        assert operand is not None
        for letter, size in zip(term, shape(operand), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return prod(sizes.values())


COSTS: tuple[Row[CostRule], ...] = (
    row(gemm_cost, "Gemm"),
    row(matmul_cost, "MatMul"),
    row(einsum_cost, "Einsum"),
)


