"""The laws of the solver: what it calls the same is the same slot by slot, and it pins no more than it must."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import WHERE, dims, expressions, random_indices, random_orders, regroup, same, unpinned

from graphprune.axes import (
    UNIT,
    Axis,
    Dim,
    Origin,
    Pin,
    Same,
    Solution,
    concat,
    fresh,
    keep,
    kept_size,
    leaves,
    product,
    slots,
    solve,
)

Equations = Sequence[tuple[Same | Pin, Origin]]
seeds = st.integers(0, 2**32 - 1)


def sides(equations: Equations) -> list[Axis]:
    return [a for eq, _ in equations for a in ((eq.left, eq.right) if isinstance(eq, Same) else (eq.axis,))]


def check_sound(equations: Equations, seed: int = 0, rounds: int = 2) -> Solution:
    """Assert THE law: both sides of every equation keep the same slots, and permute alike, whatever is chosen."""
    solution = solve(equations)
    rng = np.random.default_rng(seed)
    everything = sides(equations)
    for axis in everything:
        assert solution.expand(axis).size == axis.size
    free = unpinned(solution, everything)
    for _ in range(rounds):
        chosen, orders = random_indices(free, rng), random_orders(free, rng)
        for eq, _origin in equations:
            if isinstance(eq, Pin):
                assert slots(solution.expand(eq.axis), chosen).tolist() == list(range(eq.axis.size))
                continue
            left, right = solution.expand(eq.left), solution.expand(eq.right)
            if left.size != right.size:
                assert not solution.free(left) and not solution.free(right)
                continue
            assert slots(left, chosen).tolist() == slots(right, chosen).tolist()
            assert slots(left, orders).tolist() == slots(right, orders).tolist()
            sizes = {d: len(c) for d, c in chosen.items()}
            assert kept_size(left, sizes) == kept_size(right, sizes) == len(slots(left, chosen))
    for d in solution.pins:
        assert d not in solution.bindings
    return solution


@st.composite
def any_systems(draw: st.DrawFn) -> list[tuple[Same | Pin, Origin]]:
    """Equations between unrelated expressions, of one size or of two."""
    pool = draw(dims(6))
    out: list[tuple[Same | Pin, Origin]] = []
    for _ in range(draw(st.integers(1, 6))):
        left = draw(expressions(pool))
        kind = draw(st.sampled_from(["name", "fit", "fit", "any", "pin"]))
        if kind == "pin":
            out.append((Pin(draw(expressions(pool, 1)), "asked for"), WHERE))
        elif kind == "name":
            pool.append(named := Dim(left.size, "n")) if left.size > 1 else None
            out.append((Same(left, named if left.size > 1 else UNIT), WHERE))
        else:
            right = draw(expressions(pool, most=left.size)) if kind == "fit" else draw(expressions(pool))
            if kind == "fit":
                right = concat(right, fresh(left.size - right.size, "rest"))
            out.append((Same(left, right), WHERE))
    return out


@given(any_systems(), seeds)
def test_any_solution_is_sound(equations: Equations, seed: int) -> None:
    check_sound(equations, seed)


@st.composite
def true_systems(draw: st.DrawFn) -> tuple[list[tuple[Same, Origin]], dict[Dim, Axis]]:
    """Views of hidden expressions: only the equations between them are told; also what each unknown truly is."""
    hidden = draw(dims(5))
    truth: dict[Dim, Axis] = {d: d for d in hidden}
    names: list[list[Dim]] = []
    told: list[tuple[Axis, Axis]] = []

    def view(true: Axis, label: str) -> Axis:
        name = fresh(true.size, label)
        if isinstance(name, Dim):
            truth[name] = true
        return name

    for d in hidden:
        names.append([v for k in range(draw(st.integers(1, 3))) if isinstance(v := view(d, f"d{k}"), Dim)])
        told += [(names[-1][0], v) for v in names[-1][1:]]
    pick = st.sampled_from(range(len(hidden)))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["product", "sum"]))
        chosen = draw(st.lists(pick, min_size=1, max_size=4))
        build = product if kind == "product" else concat
        true = build(*[hidden[i] for i in chosen])
        if true.size > 3000:
            continue
        whole = view(true, "w")
        parts = [draw(st.sampled_from(names[i])) for i in chosen]
        told.append((whole, build(*parts)))
        for _ in range(draw(st.integers(0, 2))):
            cut = draw(st.integers(1, len(chosen)))
            first = view(build(*[hidden[i] for i in chosen[:cut]]), "first")
            rest = view(build(*[hidden[i] for i in chosen[cut:]]), "rest")
            told.append((whole, build(first, rest)))
    told = [pair if draw(st.booleans()) else pair[::-1] for pair in draw(st.permutations(told))]
    return same(*told), truth


def reachable(
    solution: Solution, truth: dict[Dim, Axis], removed: dict[Dim, npt.NDArray[np.bool_]]
) -> dict[Dim, npt.NDArray[np.bool_]]:
    """Return the keep vectors of solved dims that remove as much as possible within the true removal."""
    keeps: dict[Dim, npt.NDArray[np.bool_]] = {}
    for name, true in truth.items():
        kept = keep(true, removed)
        axis = solution.expand(name)
        for d in dict.fromkeys(leaves(axis)):
            for i in range(d.size):
                lies = ~keep(axis, {d: np.arange(d.size) != i})
                if d in solution.pins or kept[lies].any():
                    keeps.setdefault(d, np.zeros(d.size, dtype=bool))[i] = True
                else:
                    keeps.setdefault(d, np.zeros(d.size, dtype=bool))
    return keeps


@given(true_systems(), seeds)
def test_a_true_structure_is_found(drawn: tuple[Equations, dict[Dim, Axis]], seed: int) -> None:
    """Nothing is pinned, and every removal that the hidden truth allows can be chosen."""
    equations, truth = drawn
    solution = check_sound(equations, seed)
    assert not solution.pins
    rng = np.random.default_rng(seed)
    hidden = [d for d, t in truth.items() if d is t]
    told = {d for a in sides(equations) for d in leaves(a)}
    seen = {n: t for n, t in truth.items() if n in told}
    for d in hidden:
        removed = {d: np.arange(d.size) != rng.integers(d.size)}
        keeps = reachable(solution, seen, removed)
        for name, true in seen.items():
            assert keep(solution.expand(name), keeps).tolist() == keep(true, removed).tolist()


@given(st.data())
def test_reshapes_of_one_product_pin_nothing(data: st.DataObject) -> None:
    """Any two groupings of the same factors nest, in any number of steps."""
    sizes = data.draw(st.lists(st.integers(2, 6), min_size=2, max_size=5))
    factors: list[Axis] = [Dim(n, f"f{i}") for i, n in enumerate(sizes)]
    views = [factors, *[regroup(data.draw, factors) for _ in range(data.draw(st.integers(1, 4)))]]
    pairs = [(product(*a), product(*b)) for a, b in pairwise(views)]
    solution = check_sound(data.draw(st.permutations(same(*pairs))))
    assert not solution.pins
    for f in factors[1:-1]:
        assert solution.expand(f).size == f.size
    assert len(list(leaves(solution.expand(product(*factors))))) >= len(factors)
    assert not any(isinstance(p, type(concat(UNIT, UNIT))) for f in factors for p in [solution.expand(f)])


@given(any_systems(), seeds, st.integers(0, 5))
def test_a_pin_reaches_all_that_is_the_same(equations: Equations, seed: int, which: int) -> None:
    sames = [eq for eq, _ in equations if isinstance(eq, Same)]
    if not sames:
        return
    axis = sames[which % len(sames)].left
    solution = check_sound([*equations, (Pin(axis, "asked for"), WHERE)], seed)
    other = sames[which % len(sames)].right
    assert not solution.free(axis)
    assert other.size != axis.size or not solution.free(other)


# Structures of real networks: nothing may be lost.


def dims_of(solution: Solution, axis: Axis) -> list[int]:
    return [d.size for d in leaves(solution.expand(axis))]


def test_heads_are_split_and_merged() -> None:
    h, d = fresh(12, "h"), fresh(64, "d")
    x, y = fresh(768, "x"), fresh(768, "y")
    solution = check_sound(same((x, product(h, d)), (product(h, d), y)))
    assert not solution.pins and solution.expand(x) == solution.expand(y) == product(h, d)


def test_fused_projections_are_cut_into_heads() -> None:
    """`(3 h d)` by a reshape to five axes and one gather for each of three."""
    w, three, h, d = fresh(3 * 4 * 8), fresh(3), fresh(4), fresh(8)
    q, k, v = (fresh(1) for _ in range(3))
    solution = check_sound(same((w, product(three, h, d)), (three, concat(q, k, v))))
    assert not solution.pins
    assert dims_of(solution, w).count(4) == 1 and solution.expand(h) is h and solution.expand(d) is d


def test_split_projections_are_cut_into_heads() -> None:
    """The same axis cut by Split first, each part reshaped to heads afterwards."""
    w = fresh(96)
    parts = [fresh(32) for _ in range(3)]
    heads = [(fresh(4), fresh(8)) for _ in range(3)]
    told = [(w, concat(*parts))] + [(p, product(*hd)) for p, hd in zip(parts, heads, strict=True)]
    told += [(heads[0][0], heads[1][0]), (heads[1][0], heads[2][0]), (heads[0][1], heads[1][1])]
    solution = check_sound(same(*told))
    assert not solution.pins
    assert len(unpinned(solution, [w])) == 3 and dims_of(solution, w) == [4, 8] * 3


def test_half_swap_makes_two_equal_halves() -> None:
    """`x * cos + concat(-x[r:], x[:r]) * sin`."""
    h, width, r1, r2 = fresh(4), fresh(16), fresh(8), fresh(8)
    x, swapped = fresh(64), fresh(16)
    told = [(x, product(h, width)), (width, concat(r1, r2)), (swapped, concat(r2, r1)), (swapped, width)]
    solution = check_sound(same(*told))
    assert not solution.pins
    assert sorted(d.size for d in unpinned(solution, [x])) == [4, 8]
    r = solution.expand(r1)
    assert solution.expand(x) == product(h, concat(r, r))


def test_interleaved_pairs_make_a_product() -> None:
    """`x.reshape(..., r, 2)`, both halves rotated, stacked again."""
    width, r, two, out = fresh(16), fresh(8), fresh(2), fresh(16)
    told = [(width, product(r, two)), (two, concat(UNIT, UNIT)), (out, product(r, concat(UNIT, UNIT))), (out, width)]
    solution = check_sound(same(*told))
    assert not solution.pins and dims_of(solution, width) == [8]


def test_shared_key_heads_are_repeated() -> None:
    """GQA: keys `(k d)` expanded to `(k rep d)` meet queries `(h d)`."""
    q, k, kh, rep, d, h, dq = fresh(64), fresh(16), fresh(2), fresh(4), fresh(8), fresh(8), fresh(8)
    told = [(k, product(kh, d)), (q, product(h, dq)), (product(kh, rep), h), (dq, d)]
    solution = check_sound(same(*told))
    assert not solution.pins
    assert solution.expand(q) == product(kh, rep, d) and solution.expand(k) == product(kh, d)


def test_channel_shuffle_needs_nothing_of_its_own() -> None:
    x, g, c, y = fresh(24), fresh(2), fresh(12), fresh(24)
    solution = check_sound(same((x, product(g, c)), (y, product(c, g))))
    assert not solution.pins and solution.expand(y) == product(c, g)


def test_shuffled_concats_couple_across_blocks() -> None:
    """ShuffleNet: half of a shuffled axis is carried, half convolved, and joined again, twice."""
    told = []
    x = first = fresh(24)
    for _ in range(3):
        left, right, joined, g, c, out = fresh(12), fresh(12), fresh(24), fresh(2), fresh(12), fresh(24)
        told += [(x, concat(left, right)), (joined, concat(left, fresh(12))), (joined, product(g, c))]
        told += [(out, product(c, g))]
        x = out
    solution = check_sound(same(*told))
    assert not solution.pins and unpinned(solution, [first])


def test_chains_of_concats_and_splits_keep_their_parts() -> None:
    """DenseNet and CSP blocks: parts of different sizes, joined, cut at the same places, joined in another order."""
    a, b, c = fresh(5), fresh(7), fresh(4)
    ab, abc = fresh(12), fresh(16)
    x, y, z, again = fresh(5), fresh(7), fresh(4), fresh(16)
    told = [(ab, concat(a, b)), (abc, concat(ab, c)), (abc, concat(x, y, z)), (again, concat(z, x, y))]
    solution = check_sound(same(*told))
    assert not solution.pins and dims_of(solution, again) == [4, 5, 7]
    assert solution.expand(again) == concat(*[solution.expand(v) for v in (c, a, b)])


def test_grouped_convolutions_refine_to_the_common_factor() -> None:
    """A residual axis that passes convolutions of 4 and of 8 groups, and a GroupNorm of 2."""
    x = fresh(32)
    told = [(x, product(fresh(g), fresh(32 // g))) for g in (4, 8, 2)]
    solution = check_sound(same(*told))
    assert not solution.pins and dims_of(solution, x) == [2, 2, 2, 4]


# What cannot be solved, or only into single slots: never an error, and quickly.


def test_sizes_that_disagree_pin_both_sides() -> None:
    a, b = fresh(6), fresh(8)
    solution = check_sound(same((a, b)))
    assert {d.size for d in solution.pins} == {6, 8}
    reason, origin = next(iter(solution.pins.values()))
    assert "sizes disagree" in reason and origin == WHERE


@pytest.mark.parametrize("size", [10, 500, 4096, 50_000])
def test_a_sliding_window_ends(size: int) -> None:
    """`x[1:] + x[:-1]` makes every slot the same as its neighbour."""
    x, later, earlier = fresh(size), fresh(size - 1), fresh(size - 1)
    solution = check_sound(same((x, concat(UNIT, later)), (x, concat(earlier, UNIT)), (later, earlier)))
    assert not solution.free(x)


@pytest.mark.parametrize("step", [1, 3, 5, 64])
def test_a_roll_ends(step: int) -> None:
    n = 960
    x, a, b = fresh(n), fresh(step), fresh(n - step)
    check_sound(same((x, concat(a, b)), (x, concat(b, a))))


@pytest.mark.parametrize("sizes", [(3, 4, 2, 6), (96, 100, 100, 96), (1024, 999, 999, 1024), (7, 11, 11, 7)])
def test_factorisations_that_do_not_nest_are_merged_or_pinned(sizes: tuple[int, int, int, int]) -> None:
    a, b, c, d = (fresh(n) for n in sizes)
    if sizes[0] * sizes[1] != sizes[2] * sizes[3]:
        pytest.skip("no equation")
    check_sound(same((product(a, b), product(c, d))))


def test_long_concats_are_solved() -> None:
    """DenseNet's worst: 200 growing concats of 200 parts, and then cut elsewhere."""
    parts = [fresh(32) for _ in range(200)]
    told: list[tuple[Axis, Axis]] = []
    so_far: Axis = parts[0]
    for p in parts[1:]:
        joined = fresh(so_far.size + 32)
        told.append((joined, concat(so_far, p)))
        so_far = joined
    solution = check_sound(same(*told), rounds=1)
    assert not solution.pins and len(unpinned(solution, [so_far])) == 200
    halves = [fresh(so_far.size // 2 + 5), fresh(so_far.size - so_far.size // 2 - 5)]
    solution = check_sound(same(*told, (so_far, concat(*halves))), rounds=1)
    assert not solution.pins


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_chain_of_names_is_followed(order: int) -> None:
    names = [fresh(8) for _ in range(5000)]
    told = [(a, b) for a, b in pairwise(names)][::order]
    solution = check_sound(same(*told), rounds=1)
    assert len({solution.expand(n) for n in names}) == 1


def test_deep_nesting_is_followed() -> None:
    """Halves of halves, each time as heads: a tree as deep as sizes allow."""
    told: list[tuple[Axis, Axis]] = []
    axis = top = fresh(2**12)
    while axis.size > 2:
        inner = fresh(axis.size // 2)
        told.append((axis, product(inner, fresh(2)) if len(told) % 2 else concat(inner, fresh(axis.size // 2))))
        axis = inner
    assert not check_sound(same(*told)).pins
    assert check_sound(same(*told[::-1])).expand(top).size == 2**12


def test_many_parts_cut_one_slot_off_again_and_again() -> None:
    told: list[tuple[Axis, Axis]] = []
    axis = top = fresh(400)
    for _ in range(350):
        rest = fresh(axis.size - 1)
        told.append((axis, concat(UNIT, rest)))
        axis = rest
    for order in (told, told[::-1]):
        solution = check_sound(same(*order), rounds=1)
        assert solution.expand(top).size == 400


def test_one_dim_twice_in_a_product() -> None:
    """A square `(d d)` against rows, a transpose of itself, and a cut."""
    d, x = fresh(6), fresh(36)
    a, b = fresh(7), fresh(29)
    check_sound(same((x, product(d, d)), (x, concat(a, b))))
    e, f = fresh(6), fresh(6)
    solution = check_sound(same((product(e, f), product(f, e))))
    assert not solution.pins and solution.expand(e) == solution.expand(f)
