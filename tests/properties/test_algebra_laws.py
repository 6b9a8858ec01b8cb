"""The laws of axis expressions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import axes_and_pool, random_indices, random_orders

from graphprune.axes import (
    UNIT,
    ZERO,
    Axis,
    Dim,
    Product,
    Sum,
    concat,
    fresh,
    keep,
    kept_size,
    leaves,
    product,
    reduce,
    show,
    slots,
)
from graphprune.axes.notation import Operand, Pattern, Term, parse

seeds = st.integers(0, 2**32 - 1)


@given(axes_and_pool(3))
def test_sum_and_product_are_associative_with_units(drawn: tuple[list[Dim], list[Axis]]) -> None:
    _, (a, b, c) = drawn
    assert concat(a, concat(b, c)) == concat(concat(a, b), c) == concat(a, b, c)
    assert product(a, product(b, c)) == product(product(a, b), c) == product(a, b, c)
    assert product(a, UNIT) == product(UNIT, a) == a == concat(a, ZERO) == concat(ZERO, a)
    assert product(a, ZERO) == product(ZERO, a) == ZERO
    assert product() == UNIT and concat() == ZERO
    assert concat(a, b).size == a.size + b.size and product(a, b).size == a.size * b.size


@given(axes_and_pool(3), seeds)
def test_product_distributes_over_an_outer_sum(drawn: tuple[list[Dim], list[Axis]], seed: int) -> None:
    pool, (a, b, c) = drawn
    chosen = random_indices(pool, np.random.default_rng(seed))
    left, right = product(concat(a, b), c), concat(product(a, c), product(b, c))
    assert slots(left, chosen).tolist() == slots(right, chosen).tolist()


def test_product_does_not_distribute_over_an_inner_sum() -> None:
    a, b, c = Dim(2), Dim(3), Dim(2)
    chosen = {a: np.array([0])}
    left, right = product(c, concat(a, b)), concat(product(c, a), product(c, b))
    assert left.size == right.size
    assert slots(left, chosen).tolist() == [0, 2, 3, 4, 5, 7, 8, 9]
    assert slots(right, chosen).tolist() == [0, 2, 4, 5, 6, 7, 8, 9]


@given(axes_and_pool(), seeds)
def test_slots_keep_and_kept_size_agree(drawn: tuple[list[Dim], list[Axis]], seed: int) -> None:
    pool, (axis,) = drawn
    chosen = random_indices(pool, np.random.default_rng(seed))
    got = slots(axis, chosen)
    flags = keep(axis, {d: np.isin(np.arange(d.size), chosen[d]) for d in pool})
    assert flags.shape == (axis.size,)
    assert got.tolist() == np.flatnonzero(flags).tolist()
    assert kept_size(axis, {d: len(c) for d, c in chosen.items()}) == len(got)
    assert slots(axis, {}).tolist() == list(range(axis.size))


@given(axes_and_pool(), seeds)
def test_choosing_an_order_permutes_the_slots(drawn: tuple[list[Dim], list[Axis]], seed: int) -> None:
    pool, (axis,) = drawn
    rng = np.random.default_rng(seed)
    assert sorted(slots(axis, random_orders(pool, rng)).tolist()) == list(range(axis.size))


@given(axes_and_pool(), seeds)
def test_choosing_twice_is_choosing_the_composition(drawn: tuple[list[Dim], list[Axis]], seed: int) -> None:
    """Permuting and then selecting gives the slots that the composed choice gives."""
    pool, (axis,) = drawn
    rng = np.random.default_rng(seed)
    order, chosen = random_orders(pool, rng), random_indices(pool, rng)
    twice = slots(axis, order)[slots(axis, chosen)]
    assert twice.tolist() == slots(axis, {d: order[d][chosen[d]] for d in pool}).tolist()


def _touches(axis: Axis, dim: Dim, x: np.ndarray) -> np.ndarray:
    """Return for every slot the sum of x at the indices of `dim` in its expression, spelled out slot by slot."""
    if isinstance(axis, Dim):
        return x if axis is dim else np.zeros(axis.size)
    if isinstance(axis, Sum):
        return np.concatenate([_touches(p, dim, x) for p in axis.parts]) if axis.parts else np.zeros(0)
    out = np.zeros(1)
    for p in axis.parts:
        out = (out[:, None] + _touches(p, dim, x)[None, :]).ravel()
    return out


@given(axes_and_pool(), seeds)
def test_reduce_is_the_adjoint_of_touching(drawn: tuple[list[Dim], list[Axis]], seed: int) -> None:
    """`<touch(x), s> == <x, reduce(s)>` for every dim; `reduce` keeps the total of a sum of plain dims."""
    pool, (axis,) = drawn
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(axis.size)
    reduced = reduce(axis, scores)
    assert set(reduced) == set(leaves(axis))
    for d in pool:
        x = rng.standard_normal(d.size)
        expected = float(_touches(axis, d, x) @ scores)
        assert np.isclose(float(x @ reduced[d]) if d in reduced else 0.0, expected)


@given(axes_and_pool(), seeds)
def test_reduce_counts_what_removing_an_index_removes(drawn: tuple[list[Dim], list[Axis]], seed: int) -> None:
    """Where no product repeats a dim, the reduced score of an index is that of the slots that go with it."""
    pool, (axis,) = drawn
    if any(list(leaves(p)).count(d) > 1 for p in _products(axis) for d in pool):
        return
    scores = np.random.default_rng(seed).standard_normal(axis.size)
    for d, got in reduce(axis, scores).items():
        for i in range(d.size):
            gone = ~keep(axis, {d: np.arange(d.size) != i})
            assert np.isclose(got[i], scores[gone].sum())


def _products(axis: Axis) -> list[Axis]:
    if isinstance(axis, Dim):
        return []
    return ([axis] if isinstance(axis, Product) else []) + [q for p in axis.parts for q in _products(p)]


@given(axes_and_pool(2))
def test_text_of_an_expression_tells_it_apart(drawn: tuple[list[Dim], list[Axis]]) -> None:
    _, (a, b) = drawn

    def name(d: Dim) -> str:
        return f"x{d.serial}"

    assert (show(a, name) == show(b, name)) == (a == b)
    text = show(a)
    assert text.count("(") == text.count(")")
    assert hash(a) == hash(a) and (a == b) <= (hash(a) == hash(b))


def test_fresh_knows_sizes_without_a_choice() -> None:
    assert fresh(1) is UNIT and fresh(0) is ZERO
    assert isinstance(fresh(5), Dim)
    assert show(UNIT) == "1" and show(ZERO) == "0"
    assert show(concat(UNIT, UNIT, Dim(3), UNIT)) == "(2 + 3 + 1)"


_letters = st.sampled_from("abcdghikno")
_terms = st.one_of(
    st.builds(lambda x: Term((x,)), _letters),
    st.builds(lambda x: Term((x,), True), _letters),
    st.lists(_letters, min_size=2, max_size=3).map(lambda xs: Term(tuple(xs))),
)
_operands = st.lists(
    st.builds(lambda ts, o: Operand(tuple(ts), o), st.lists(_terms, min_size=1, max_size=4), st.booleans()),
    min_size=1,
    max_size=3,
)


def _write(operand: Operand) -> str:
    texts = [
        f"({' '.join(t.letters)})" if len(t.letters) > 1 else "*" * t.variadic + t.letters[0] for t in operand.terms
    ]
    return " ".join(texts) + "?" * operand.optional


@given(_operands, _operands)
def test_a_written_pattern_is_read_back(inputs: list[Operand], outputs: list[Operand]) -> None:
    text = ", ".join(map(_write, inputs)) + " -> " + ", ".join(map(_write, outputs))
    assert parse(text) == Pattern(tuple(inputs), tuple(outputs), text)


def test_a_pattern_needs_an_arrow() -> None:
    with pytest.raises(ValueError, match="->"):
        parse("n c, c")
