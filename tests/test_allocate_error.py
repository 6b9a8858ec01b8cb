"""Allocation by error: budgets are met, floors hold, and small problems are solved as well as by trying everything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from itertools import product as every

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.allocate import Budget, allocate, allowed_sizes, open_branches, planned
from graphprune.allocate.best import best
from graphprune.allocate.error import kept_counts
from graphprune.allocate.exchange import exchanged
from graphprune.allocate.knapsack import Levels, Prices, Task, filled, greedy, programmed
from graphprune.axes import Dim
from graphprune.costs import CostModel, Part
from graphprune.errors import NothingPrunable, TargetError, UsageError
from graphprune.groups import Coupling, couple
from graphprune.model import load
from graphprune.normalize import normalize
from graphprune.score import score
from graphprune.sizes import choose
from graphprune.trace import trace

Vector = np.ndarray
STEM, BLOCK, HEAD = "stem:0", "a:0", "head:0"


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    """A residual network: groups stem:0 (64), a:0 (96), head:0 (128)."""
    shapes = {"stem": (64, 3, 3, 3), "a": (96, 64, 3, 3), "b": (64, 96, 3, 3), "head": (128, 64, 1, 1), "fc": (10, 128)}
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "a"], ["t"], pads=[1] * 4),
        helper.make_node("Relu", ["t"], ["u"]),
        helper.make_node("Conv", ["u", "b"], ["v"], pads=[1] * 4),
        helper.make_node("Add", ["v", "r"], ["w"]),
        helper.make_node("Conv", ["w", "head"], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()],
    )
    model = normalize(load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])))
    return couple(trace(model, choose(model, {})))


def bends(coupling: Coupling, seed: int = 0) -> dict[str, tuple[Vector, Vector]]:
    """Convex error curves: the squares of random numbers, the smallest going first."""
    rng = np.random.default_rng(seed)
    out = {}
    for g in coupling.groups:
        rises = np.sort(rng.exponential(size=g.size) ** 2) * rng.uniform(0.1, 10)
        out[g.name] = (np.arange(g.size, -1, -1), np.concatenate([[0], np.cumsum(rises)]))
    return out


def error(curves: dict[str, tuple[Vector, Vector]], counts: dict[str, int]) -> float:
    return sum(float(v[list(w).index(counts[name])]) for name, (w, v) in curves.items())


def fraction(coupling: Coupling, counts: dict[str, int], kind: str) -> float:
    costs = CostModel(coupling)
    sizes = {g.dim: counts[g.name] for g in coupling.groups}
    return costs(sizes).of(kind) / costs({}).of(kind)


def run(coupling: Coupling, budget: Budget, seed: int = 0) -> dict[str, int]:
    return kept_counts(coupling, bends(coupling, seed), CostModel(coupling), budget)


# ---- costs by terms


def test_terms_change_as_the_whole_costs_do(coupling: Coupling) -> None:
    costs = CostModel(coupling)
    rng = np.random.default_rng(0)
    dense = [t.price({}) for t in costs.terms]
    for _ in range(20):
        sizes = {g.dim: int(rng.integers(1, g.size + 1)) for g in coupling.groups}
        sizes |= {gate: int(rng.integers(2)) for gate in coupling.branches.by_gate}
        for kind in ("macs", "params", "bytes"):
            change = sum(t.price(sizes).get(kind, 0) - d.get(kind, 0) for t, d in zip(costs.terms, dense, strict=True))
            assert change == pytest.approx(costs(sizes).of(kind) - costs({}).of(kind), abs=0.5)
    dims = {g.dim for g in coupling.groups} | coupling.branches.by_gate.keys()
    assert all(t.dims and set(t.dims) <= dims for t in costs.terms)


# ---- whole models


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 1.0), st.sampled_from(["macs", "params", "bytes"]), st.integers(0, 50))
def test_a_target_is_met_and_nearly_used_up(coupling: Coupling, target: float, kind: str, seed: int) -> None:
    counts = run(coupling, Budget(targets={kind: target}), seed)
    assert 0.98 * target <= fraction(coupling, counts, kind) <= target


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 1.0), st.sampled_from([4, 8, 16]), st.floats(0, 0.5), st.integers(0, 50))
def test_floors_and_alignment_hold(coupling: Coupling, target: float, align: int, floor: float, seed: int) -> None:
    budget = Budget(targets={"macs": target}, align=align, floor=floor)
    try:
        counts = run(coupling, budget, seed)
    except TargetError:
        lowest = {g.name: min(n for n in allowed_sizes(g, coupling, align) if n >= floor * g.size - 1e-6)
                  for g in coupling.groups}  # fmt: skip
        assert fraction(coupling, lowest, "macs") > target
        return
    assert fraction(coupling, counts, "macs") <= target
    for g in coupling.groups:
        assert counts[g.name] in allowed_sizes(g, coupling, align)
        assert counts[g.name] >= max(1, floor * g.size - 1e-6)


@pytest.mark.parametrize("align", [8, 16])
@pytest.mark.parametrize("seed", range(6))
def test_aligned_allocations_are_near_to_the_best_of_all(coupling: Coupling, align: int, seed: int) -> None:
    curves, costs = bends(coupling, seed), CostModel(coupling)
    sizes = [[n for n in allowed_sizes(g, coupling, align) if n >= 0.1 * g.size] for g in coupling.groups]
    names = [g.name for g in coupling.groups]
    states = [dict(zip(names, s, strict=True)) for s in every(*sizes)]
    used = [costs({g.dim: s[g.name] for g in coupling.groups}).macs / costs({}).macs for s in states]
    ratios = []
    for target in (0.2, 0.35, 0.5, 0.7):
        least = min(error(curves, s) for s, u in zip(states, used, strict=True) if u <= target)
        budget = Budget(targets={"macs": target}, align=align)
        ratios.append(error(curves, kept_counts(coupling, curves, costs, budget)) / least)
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) <= 1.1 and np.mean(ratios) <= 1.03


def test_lower_targets_never_lose_less(coupling: Coupling) -> None:
    for seed in range(4):
        curves = bends(coupling, seed)
        found = [error(curves, run(coupling, Budget(targets={"macs": t / 10}, align=8), seed)) for t in range(2, 11)]
        assert all(a >= b * 0.97 for a, b in pairwise(found)) and found[-1] == 0


def test_better_than_the_same_share_everywhere(coupling: Coupling) -> None:
    for seed in range(5):
        curves = bends(coupling, seed)
        for share in (0.3, 0.5, 0.7):
            same = {g.name: round(g.size * share) for g in coupling.groups}
            counts = run(coupling, Budget(targets={"macs": fraction(coupling, same, "macs")}), seed)
            assert error(curves, counts) <= error(curves, same)


def test_several_targets_all_hold(coupling: Coupling) -> None:
    targets = {"macs": 0.5, "params": 0.4, "bytes": 0.45}
    for seed in range(5):
        counts = run(coupling, Budget(targets=targets), seed)
        found = {kind: fraction(coupling, counts, kind) for kind in targets}
        assert all(found[kind] <= targets[kind] for kind in targets)
        assert max(found[kind] / targets[kind] for kind in targets) >= 0.98


def test_a_group_without_error_gives_way_first(coupling: Coupling) -> None:
    curves = bends(coupling) | {BLOCK: (np.array([1, 96]), np.array([0.0, 0.0]))}
    counts = kept_counts(coupling, curves, CostModel(coupling), Budget(targets={"macs": 0.5}))
    assert (counts[STEM], counts[HEAD]) == (64, 128) and counts[BLOCK] < 50


def test_include_exclude_own_sparsities_and_absent_curves(coupling: Coupling) -> None:
    counts = run(coupling, Budget(targets={"macs": 0.5}, exclude=(STEM,)))
    assert counts[STEM] == 64 and fraction(coupling, counts, "macs") <= 0.5
    counts = run(coupling, Budget(targets={"macs": 0.5}, include=(BLOCK,)))
    assert (counts[STEM], counts[HEAD]) == (64, 128)
    counts = run(coupling, Budget(targets={"macs": 0.5}, sparsities={HEAD: 0.75}))
    assert counts[HEAD] == 32
    assert run(coupling, Budget(sparsities={HEAD: 0.5})) == {STEM: 64, BLOCK: 96, HEAD: 64}
    some = {k: v for k, v in bends(coupling).items() if k != STEM}
    counts = kept_counts(coupling, some, CostModel(coupling), Budget(targets={"macs": 0.5}))
    assert counts[STEM] == 64 and fraction(coupling, counts, "macs") <= 0.5


def test_a_sparsity_is_of_the_indices_of_all_groups(coupling: Coupling) -> None:
    counts = run(coupling, Budget(sparsity=0.5, floor=0.0))
    assert sum(counts.values()) == 144
    curves = bends(coupling)
    assert error(curves, counts) <= error(curves, {STEM: 32, BLOCK: 48, HEAD: 64})
    assert run(coupling, Budget(sparsity=0.0)) == {STEM: 64, BLOCK: 96, HEAD: 128}
    assert run(coupling, Budget(sparsity=0.99, floor=0.25)) == {STEM: 16, BLOCK: 24, HEAD: 32}


def test_curves_that_rise_with_the_width_or_have_no_numbers(coupling: Coupling) -> None:
    curves = bends(coupling) | {STEM: (np.array([1, 20, 40, 64]), np.array([np.nan, 0.1, 0.9, 0.0]))}
    counts = kept_counts(coupling, curves, CostModel(coupling), Budget(targets={"macs": 0.4}, floor=0.0))
    assert fraction(coupling, counts, "macs") <= 0.4
    assert counts[STEM] >= 20


def test_runs_agree(coupling: Coupling) -> None:
    budget = Budget(targets={"macs": 0.37, "params": 0.5})
    assert run(coupling, budget) == run(coupling, budget)


def test_what_cannot_be_is_refused(coupling: Coupling) -> None:
    with pytest.raises(TargetError) as caught:
        run(coupling, Budget(targets={"params": 0.01}, align=16))
    found = re.search(r"smallest reachable fraction is ([0-9.]+)", str(caught.value))
    assert found is not None
    lowest = run(coupling, Budget(targets={"params": float(found[1])}, align=16))
    assert lowest == {STEM: 16, BLOCK: 16, HEAD: 16}
    with pytest.raises(UsageError, match="no group 'other'"):
        kept_counts(coupling, {"other": ([1], [0])}, CostModel(coupling), Budget(sparsity=0.5))
    with pytest.raises(UsageError, match="as many errors as widths"):
        kept_counts(coupling, {STEM: ([1, 2], [0])}, CostModel(coupling), Budget(sparsity=0.5))
    with pytest.raises(NothingPrunable):
        run(coupling, Budget(sparsity=0.5, exclude=("*",)))


# ---- the search alone


def task(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], limit: float) -> Task:
    """A problem whose costs are a sum over groups."""

    def price(g: int):  # type: ignore[no-untyped-def]
        return lambda levels: np.array([costs[g][levels[0]]], np.float64)

    prices = Prices(np.zeros(1), [((g,), price(g)) for g in range(len(costs))], len(costs))
    choices = tuple(tuple(range(len(e))) for e in errors)
    return Task(tuple(np.array(e, np.float64) for e in errors), choices, prices, np.array([limit], np.float64))


def brute(problem: Task) -> float | None:
    fit = [problem.error(s) for s in every(*problem.open) if problem.fits(s)]
    return min(fit, default=None)


@st.composite
def problems(draw: st.DrawFn) -> Task:
    """Small problems; the errors are of any shape that falls."""
    errors, costs = [], []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 5))
        falls = draw(st.lists(st.integers(0, 50), min_size=n, max_size=n))
        errors.append(np.cumsum(falls)[::-1] - falls[0])
        costs.append(np.cumsum(draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))))
    return task(errors, costs, draw(st.integers(1, 400)))


@settings(max_examples=300, deadline=None)
@given(problems())
def test_small_problems_are_solved_as_by_trying_everything(problem: Task) -> None:
    found, expected = best(problem), brute(problem)
    if expected is None:
        assert found is None
        return
    assert found is not None and problem.fits(found)
    assert problem.error(found) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_programming_is_never_worse_than_greedy_steps(problem: Task) -> None:
    first = greedy(problem)
    if first is None:
        return
    assert problem.fits(first) and problem.fits(filled(problem, first))
    assert problem.error(filled(problem, first)) <= problem.error(first)
    state = programmed(problem, first, np.ones(1))
    assert state is not None and problem.fits(state)
    assert problem.error(state) <= problem.error(filled(problem, first)) + 1e-9


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 400))
def test_more_room_never_loses_more(problem: Task, limit: int) -> None:
    other = Task(problem.errors, problem.open, problem.prices, np.array([limit], np.float64))
    small, large = sorted((problem, other), key=lambda t: t.limits[0])
    tight, loose = best(small), best(large)
    if tight is not None:
        assert loose is not None and large.error(loose) <= small.error(tight) + 1e-9
    steps = [greedy(t) for t in (small, large)]
    if steps[0] is not None and steps[1] is not None:
        assert all(a <= b for a, b in zip(*steps, strict=True))


def test_greedy_steps_over_flat_and_rising_parts() -> None:
    """A first step that is dear and then free ones: taken as one, on the hull."""
    flat = task([[5, 5, 5, 0], [9, 6, 3, 0]], [[0, 10, 20, 30], [0, 10, 20, 30]], 30)
    assert greedy(flat) == (0, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_costs_that_are_products_are_near_to_the_best(seed: int) -> None:
    """A chain of layers: the cost of each is the product of the widths on both sides."""
    rng = np.random.default_rng(seed)
    n = 4
    widths = np.arange(1, 7)
    errors = tuple(np.sort(rng.exponential(size=6) ** 2 * rng.uniform(0.2, 5))[::-1] for _ in range(n))
    errors = tuple(e - e[-1] for e in errors)
    scale = rng.integers(1, 9, n + 1)

    def price(k: int):  # type: ignore[no-untyped-def]
        def found(levels: Levels) -> Vector:
            return np.array([scale[k] * np.prod([float(widths[i]) for i in levels]) * 1000])

        return found

    terms = [((0,), price(0)), *(((k, k + 1), price(k + 1)) for k in range(n - 1)), ((n - 1,), price(n))]
    prices = Prices(np.zeros(1), terms, n)
    top = prices.total([5] * n)
    problem = Task(errors, tuple(tuple(range(6)) for _ in range(n)), prices, top * rng.uniform(0.15, 0.9))
    found, expected = best(problem), brute(problem)
    assert found is not None and expected is not None and problem.fits(found)
    better = exchanged(problem, found)
    assert problem.fits(better) and expected <= problem.error(better) + 1e-9 <= problem.error(found) + 2e-9
    assert problem.error(better) <= 1.3 * expected + 1e-9


# ---- further kinds of cost


@dataclass(frozen=True)
class Squares:
    """A made-up kind: the square of each group's size, and the largest of two halves of the groups as another."""

    columns: tuple[str, ...] = ("latency", "memory@left", "memory@right")

    def parts(self, costs: CostModel) -> list[Part]:
        def price(dim: Dim, side: str) -> Callable[[Mapping[Dim, int]], dict[str, float]]:
            return lambda sizes: {"latency": 0.5 * sizes.get(dim, dim.size) ** 2, side: float(sizes.get(dim, dim.size))}

        groups = costs.coupling.groups
        return [Part(g.name, (g.dim,), price(g.dim, self.columns[1 + k % 2])) for k, g in enumerate(groups)]


def test_further_kinds_are_counted_and_targeted(coupling: Coupling) -> None:
    costs = CostModel(coupling, (Squares(),))
    dense, by = costs({}), {g.name: g.size for g in coupling.groups}
    assert dense.of("latency") == 0.5 * sum(n**2 for n in by.values())
    assert dense.of("memory") == max(sum(list(by.values())[k::2]) for k in (0, 1))
    assert isinstance(dense.to_json()["macs"], int) and dense.to_json()["latency"] == dense.of("latency")
    counts = kept_counts(coupling, bends(coupling), costs, Budget(targets={"latency": 0.5, "memory": 0.8}))
    after = costs({g.dim: counts[g.name] for g in coupling.groups})
    assert after.of("latency") <= 0.5 * dense.of("latency") * (1 + 1e-8)
    assert after.of("memory") <= 0.8 * dense.of("memory")
    plan = allocate(coupling, score(coupling), costs, Budget(targets={"latency": 0.4}))
    assert 0.35 < plan.meta["costs"]["latency"] / plan.model["latency"] <= 0.4
    with pytest.raises(UsageError, match="a target of 'latency' needs a cost model that counts it"):
        kept_counts(coupling, bends(coupling), CostModel(coupling), Budget(targets={"latency": 0.5}))


# ---- branches as one more choice


def with_branch(coupling: Coupling, budget: Budget, loss: float) -> dict[str, int]:
    (branch,) = coupling.branches.free
    return kept_counts(coupling, bends(coupling), CostModel(coupling), budget, {branch.name: loss})


def test_a_branch_that_is_worth_little_goes_and_what_is_in_it_costs_nothing(coupling: Coupling) -> None:
    (branch,) = coupling.branches.free
    budget = Budget(targets={"macs": 0.5})
    assert with_branch(coupling, budget, 1e-6) == {STEM: 64, BLOCK: 96, HEAD: 128, branch.name: 0}
    costs = CostModel(coupling)
    assert costs({branch.gate: 0}).macs == costs({}).macs - 2 * 64 * 96 * 9 * 64
    assert run(coupling, budget)[BLOCK] < 96


def test_a_branch_that_is_worth_much_stays(coupling: Coupling) -> None:
    (branch,) = coupling.branches.free
    budget = Budget(targets={"macs": 0.5})
    assert with_branch(coupling, budget, 1e6) == {**run(coupling, budget), branch.name: 1}
    assert with_branch(coupling, budget, np.inf)[branch.name] == 1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 1.0), st.sampled_from(["macs", "params"]), st.floats(0.0, 100.0), st.integers(0, 20))
def test_targets_hold_with_branches(coupling: Coupling, target: float, kind: str, loss: float, seed: int) -> None:
    (branch,) = coupling.branches.free
    costs = CostModel(coupling)
    curves = bends(coupling, seed)
    counts = kept_counts(coupling, curves, costs, Budget(targets={kind: target}), {branch.name: loss})
    sizes = {g.dim: counts[g.name] for g in coupling.groups} | {branch.gate: counts[branch.name]}
    assert costs(sizes).of(kind) <= target * costs({}).of(kind)
    without = run(coupling, Budget(targets={kind: target}), seed)
    total = error(curves, counts) + loss * (1 - counts[branch.name])
    assert total <= error(curves, without) * 1.05 + 1e-9


def test_a_sparsity_bypasses_nothing(coupling: Coupling) -> None:
    budget = Budget(sparsity=0.5)
    assert with_branch(coupling, budget, 0.0) == run(coupling, budget)


def test_patterns_choose_among_branches(coupling: Coupling) -> None:
    (branch,) = coupling.branches.free

    def names(**patterns: tuple[str, ...]) -> list[str]:
        return [b.name for b in open_branches(coupling, Budget(targets={"macs": 0.5}, **patterns))]

    assert names() == names(include=("a",)) == names(include=(branch.name,)) == [branch.name]
    assert names(exclude=("head",)) == [branch.name] and not names(include=("head:0",))
    assert not names(exclude=("b",)) and not names(exclude=("Add*",))
    assert not open_branches(coupling, Budget(sparsity=0.5))


def test_plans_do_not_speak_of_what_is_inside_of_a_bypassed_branch(coupling: Coupling) -> None:
    (branch,) = coupling.branches.free
    keep = {BLOCK: range(8), HEAD: range(64)}
    plan = planned(coupling, keep, CostModel(coupling), {}, [branch.name])
    assert plan.bypass == (branch.name,) and set(plan.keep) == {HEAD}
    assert plan.sizes_of(coupling)[branch.gate] == 0
    assert plan.meta["costs"]["macs"] == CostModel(coupling)(plan.sizes_of(coupling)).macs
    assert set(planned(coupling, keep, CostModel(coupling), {}).keep) == {BLOCK, HEAD}
