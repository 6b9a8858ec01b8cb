"""Allocation: alignment, budgets, both rules, targets."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.allocate import Budget, alignment_of, allocate, allowed_sizes, detect_alignment
from graphprune.allocate.align import Place, allowed, slots_of_one
from graphprune.axes import Axis, Dim, concat, kept_size, leaves, product
from graphprune.costs import CostModel, Costs
from graphprune.errors import NothingPrunable, TargetError, UsageError
from graphprune.groups import Coupling, couple
from graphprune.model import load
from graphprune.normalize import normalize
from graphprune.plan import PruningPlan
from graphprune.score import Scores, score
from graphprune.sizes import choose
from graphprune.trace import trace

Shape = tuple[int, ...]


def coupled(nodes: list, weights: Mapping[str, Shape], sizes: Shape, classes: int) -> Coupling:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = normalize(load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])))
    return couple(trace(model, choose(model, {})))


def tail(value: str) -> list:
    return [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["y"], name="classify", transB=1),
    ]


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    """A residual network: groups stem.weight:0 (64), block.a.weight:0 (96), head.weight:0 (128)."""
    weights = {
        "stem.weight": (64, 3, 3, 3),
        "block.a.weight": (96, 64, 3, 3),
        "block.b.weight": (64, 96, 3, 3),
        "head.weight": (128, 64, 1, 1),
        "fc.weight": (10, 128),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["s"], name="/stem/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r"], name="/stem/Relu"),
        helper.make_node("Conv", ["r", "block.a.weight"], ["a"], name="/block/a/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["ar"], name="/block/Relu"),
        helper.make_node("Conv", ["ar", "block.b.weight"], ["b"], name="/block/b/Conv", pads=[1] * 4),
        helper.make_node("Add", ["b", "r"], ["sum"], name="/block/Add"),
        helper.make_node("Conv", ["sum", "head.weight"], ["h"], name="/head/Conv"),
        *tail("h"),
    ]
    return coupled(nodes, weights, (1, 3, 8, 8), 10)


@pytest.fixture(scope="module")
def grouped() -> Coupling:
    """Groups of convolutions: p (3 -> (8 16)), q (8 groups of 16 -> 16), r ((8 16) -> 12)."""
    weights = {"p": (128, 3, 1, 1), "q": (128, 16, 3, 3), "r": (12, 128, 1, 1), "fc.weight": (10, 12)}
    nodes = [
        helper.make_node("Conv", ["x", "p"], ["a"], name="p_conv"),
        helper.make_node("Conv", ["a", "q"], ["b"], name="q_conv", group=8),
        helper.make_node("Conv", ["b", "r"], ["c"], name="r_conv"),
        *tail("c"),
    ]
    return coupled(nodes, weights, (1, 3, 8, 8), 10)


def by_rank(coupling: Coupling, scale: Mapping[str, float] | None = None) -> Scores:
    """Scores in which index i of a group scores (i + 1) / size, times the group's scale."""
    scale = scale or {}
    found = {g.name: np.arange(1, g.size + 1) / g.size * scale.get(g.name, 1.0) for g in coupling.groups}
    return Scores(found, "rank", "sum", "none")


def kept(coupling: Coupling, plan: PruningPlan) -> dict[str, int]:
    return {g.name: len(plan.keep.get(g.name, range(g.size))) for g in coupling.groups}


def fraction(coupling: Coupling, plan: PruningPlan, kind: str) -> float:
    costs = CostModel(coupling)
    return costs(plan.sizes_of(coupling)).of(kind) / costs({}).of(kind)


def run(coupling: Coupling, budget: Budget, scores: Scores | None = None) -> PruningPlan:
    return allocate(coupling, scores or by_rank(coupling), CostModel(coupling), budget)


STEM, BLOCK, HEAD = "stem.weight:0", "block.a.weight:0", "head.weight:0"

# ---- alignment


@pytest.mark.parametrize(
    ("flags", "machine", "align"),
    [
        (["sse2", "avx2", "avx512f"], "x86_64", 16),
        (["SSE4.2", "AVX2"], "x86_64", 8),
        (["sse2", "avx"], "x86_64", 4),
        (["fp", "asimd"], "aarch64", 8),
        ([], "arm64", 8),
        ([], "AMD64", 8),
        ([], "riscv64", 4),
    ],
)
def test_alignment_follows_the_features_of_the_cpu(flags: list[str], machine: str, align: int) -> None:
    assert alignment_of(flags, machine) == align


def test_alignment_of_this_machine_is_one_that_is_known() -> None:
    assert detect_alignment() in (4, 8, 16)


sizes = st.integers(1, 300)
aligns = st.sampled_from([1, 2, 4, 8, 16, 32, 64])


@given(sizes, aligns)
def test_allowed_counts_of_a_plain_axis(size: int, align: int) -> None:
    counts = allowed(size, (), align)
    assert counts == sorted(set(counts)) and counts[0] >= 1 and counts[-1] == size
    if align == 1:
        assert counts == list(range(1, size + 1))
    if size >= 2 * align:
        assert all(n % align == 0 for n in counts[:-1])
        assert len(counts) >= 2 or size == 1
    if size % 4 == 0 and align >= 4:
        assert all(n % 4 == 0 for n in counts)
        assert len(counts) > 1 or size == 4


@pytest.mark.parametrize(
    ("size", "places", "counts"),
    [
        (64, [], [16, 32, 48, 64]),
        (24, [], [4, 8, 12, 16, 20, 24]),
        (40, [], [16, 32, 40]),
        (10, [], [4, 8, 10]),
        (6, [], [2, 4, 6]),
        (3, [], [1, 2, 3]),
        (4, [], [4]),
        (4, [(64, 256)], [1, 2, 3, 4]),
        (12, [(8, 96), (24, 288)], [2, 4, 6, 8, 10, 12]),
        (12, [(8, 96), (1, 12)], [4, 8, 12]),
        (58, [(1, 116)], [10, 26, 42, 58]),
        (26, [(1, 104), (1, 26)], [2, 6, 10, 14, 18, 22, 26]),
        (32, [(49, 1568)], [16, 32]),
    ],
)
def test_allowed_counts_at_steps_of_16(size: int, places: list[tuple[int, int]], counts: list[int]) -> None:
    assert allowed(size, [Place(*p) for p in places], 16) == counts


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> Axis:
    if depth == 0 or draw(st.booleans()):
        return Dim(draw(st.integers(2, 24)))
    parts = draw(st.lists(trees(depth=depth - 1), min_size=2, max_size=3))
    return draw(st.sampled_from([product, concat]))(*parts)


@given(trees(), st.sampled_from([4, 8, 16]), st.data())
def test_no_choice_makes_a_blocked_axis_unblocked(axis: Axis, align: int, data: st.DataObject) -> None:
    dims = list(leaves(axis))
    free = data.draw(st.lists(st.sampled_from(dims), unique=True))
    slots = slots_of_one(axis, free)
    chosen = {d: data.draw(st.sampled_from(allowed(d.size, [Place(slots[d], axis.size)], align))) for d in free}
    assert axis.size % 4 or kept_size(axis, chosen) % 4 == 0


def test_allowed_sizes_of_a_model(coupling: Coupling, grouped: Coupling) -> None:
    found = {g.name: allowed_sizes(g, coupling, 16) for g in coupling.groups}
    assert found == {
        STEM: [16, 32, 48, 64],
        BLOCK: [16, 32, 48, 64, 80, 96],
        HEAD: [16, 32, 48, 64, 80, 96, 112, 128],
    }
    found = {g.name: allowed_sizes(g, grouped, 16) for g in grouped.groups}
    assert found == {
        "p:0.0": [1, 2, 3, 4, 5, 6, 7, 8],
        "p:0.1": [4, 8, 12, 16],
        "q:0.1": [4, 8, 12, 16],
        "r:0": [4, 8, 12],
    }


# ---- sparsity


def test_uniform_keeps_the_nearest_allowed_count_and_the_larger_of_two(coupling: Coupling) -> None:
    assert kept(coupling, run(coupling, Budget(sparsity=0.5, align=16))) == {STEM: 32, BLOCK: 48, HEAD: 64}
    assert kept(coupling, run(coupling, Budget(sparsity=0.375, align=16))) == {STEM: 48, BLOCK: 64, HEAD: 80}
    assert kept(coupling, run(coupling, Budget(sparsity=0.3))) == {STEM: 45, BLOCK: 67, HEAD: 90}


def test_the_lowest_scores_go_and_of_equals_the_last(coupling: Coupling) -> None:
    plan = run(coupling, Budget(sparsity=0.5))
    assert plan.keep[STEM] == tuple(range(32, 64))
    flat = Scores({g.name: np.ones(g.size) for g in coupling.groups}, "flat", "sum", "none")
    assert run(coupling, Budget(sparsity=0.5), flat).keep[STEM] == tuple(range(32))
    scores = score(coupling, "l2")
    for name, indices in run(coupling, Budget(sparsity=0.4, allocation="global"), scores).keep.items():
        values = scores.by_group[name]
        assert values[list(indices)].min() >= np.delete(values, indices).max()


def test_nothing_is_removed_at_sparsity_0(coupling: Coupling) -> None:
    for allocation in ("uniform", "global"):
        assert run(coupling, Budget(sparsity=0.0, allocation=allocation, align=16)).keep == {}


def test_global_removes_what_lies_below_one_threshold(coupling: Coupling) -> None:
    scores = by_rank(coupling, {STEM: 10.0, BLOCK: 1.0, HEAD: 3.0})
    plan = run(coupling, Budget(sparsity=0.5, allocation="global", floor=0.1), scores)
    removed, left = [], []
    for g in coupling.groups:
        keep = list(plan.keep.get(g.name, range(g.size)))
        values = scores.by_group[g.name]
        removed.extend(np.delete(values, keep))
        if len(keep) > np.ceil(0.1 * g.size):
            left.extend(values[keep])
    assert len(removed) == (64 + 96 + 128) / 2
    assert max(removed) <= min(left)
    assert kept(coupling, plan)[BLOCK] == np.ceil(0.1 * 96)


@given(
    st.floats(0, 0.999),
    st.sampled_from(["uniform", "global"]),
    st.sampled_from([1, 4, 16]),
    st.floats(0, 1),
)
def test_floors_and_alignment_hold_at_every_sparsity(
    coupling: Coupling, sparsity: float, allocation: str, align: int, floor: float
) -> None:
    budget = Budget(sparsity=sparsity, allocation=allocation, align=align, floor=floor)
    plan = run(coupling, budget, score(coupling, "l1"))
    for g in coupling.groups:
        n = len(plan.keep.get(g.name, range(g.size)))
        assert n in allowed_sizes(g, coupling, align)
        assert n >= max(1, floor * g.size - 1e-6)
    assert all(len(v) < plan.sizes[name] for name, v in plan.keep.items())


def test_higher_sparsity_never_keeps_more(coupling: Coupling) -> None:
    for allocation in ("uniform", "global"):
        states = [
            kept(coupling, run(coupling, Budget(sparsity=s / 20, allocation=allocation, align=8))) for s in range(20)
        ]
        for name in states[0]:
            counts = [s[name] for s in states]
            assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


# ---- patterns


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("stem.weight:0",), {STEM}),
        (("fc.weight",), {HEAD}),
        (("block.*",), {STEM, BLOCK}),
        (("/block/Relu",), {BLOCK}),
        (("/head",), {STEM, HEAD}),
        (("/block/?/Conv",), {STEM, BLOCK}),
        (("fc.weight", "block.a.weight:0"), {HEAD, BLOCK}),
    ],
)
def test_patterns_choose_groups(coupling: Coupling, patterns: tuple[str, ...], names: set[str]) -> None:
    assert set(run(coupling, Budget(sparsity=0.5, include=patterns)).keep) == names
    if names != {g.name for g in coupling.groups}:
        assert set(run(coupling, Budget(sparsity=0.5, exclude=patterns)).keep) == {STEM, BLOCK, HEAD} - names


def test_exclude_wins_over_include_and_over_sparsities(coupling: Coupling) -> None:
    budget = Budget(sparsity=0.5, include=("block.*",), exclude=(STEM,), sparsities={STEM: 0.8})
    assert set(run(coupling, budget).keep) == {BLOCK}


@pytest.mark.parametrize("field", ["include", "exclude", "sparsities"])
def test_a_pattern_that_matches_nothing_is_refused_with_close_names(coupling: Coupling, field: str) -> None:
    value = {"stem.wieght:0": 0.5} if field == "sparsities" else ("stem.wieght:0",)
    with pytest.raises(UsageError, match=r"matches 'stem.wieght:0': close names are 'stem.weight:0'"):
        run(coupling, Budget(sparsity=0.5, **{field: value}))


def test_groups_may_have_a_sparsity_of_their_own(coupling: Coupling) -> None:
    for allocation in ("uniform", "global"):
        budget = Budget(sparsity=0.5, allocation=allocation, sparsities={"*": 0.25, STEM: 0.75})
        assert kept(coupling, run(coupling, budget)) == {STEM: 16, BLOCK: 72, HEAD: 96}
    assert kept(coupling, run(coupling, Budget(sparsities={HEAD: 0.5}))) == {STEM: 64, BLOCK: 96, HEAD: 64}
    plan = run(coupling, Budget(targets={"macs": 0.5}, sparsities={STEM: 0.0}))
    assert STEM not in plan.keep
    assert 0.495 <= fraction(coupling, plan, "macs") <= 0.5


# ---- targets


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.1, 1.0),
    st.sampled_from(["macs", "params", "bytes"]),
    st.sampled_from(["uniform", "global"]),
)
def test_targets_are_met_within_one_percent(coupling: Coupling, target: float, kind: str, allocation: str) -> None:
    plan = run(coupling, Budget(targets={kind: target}, allocation=allocation), score(coupling))
    assert 0.99 * target <= fraction(coupling, plan, kind) <= target


@settings(max_examples=40, deadline=None)
@given(st.floats(0.15, 1.0), st.sampled_from(["uniform", "global"]))
def test_aligned_targets_are_never_exceeded_nor_missed_by_a_step(
    coupling: Coupling, target: float, allocation: str
) -> None:
    budget = Budget(targets={"macs": target}, allocation=allocation, align=16)
    plan = run(coupling, budget, score(coupling))
    found = fraction(coupling, plan, "macs")
    assert found <= target
    if found < 0.99 * target:
        costs, now = CostModel(coupling), plan.sizes_of(coupling)
        for g in coupling.groups:
            more = next((n for n in allowed_sizes(g, coupling, 16) if n > now.get(g.dim, g.size)), None)
            if more is not None:
                assert costs({**now, g.dim: more}).macs > target * costs({}).macs


def test_several_targets_all_hold(coupling: Coupling) -> None:
    for allocation in ("uniform", "global"):
        targets = {"macs": 0.5, "params": 0.4, "bytes": 0.45}
        plan = run(coupling, Budget(targets=targets, allocation=allocation), score(coupling))
        found = {kind: fraction(coupling, plan, kind) for kind in targets}
        assert all(found[kind] <= targets[kind] for kind in targets)
        assert max(found[kind] / targets[kind] for kind in targets) >= 0.99


def test_an_impossible_target_says_what_is_possible(coupling: Coupling) -> None:
    budget = Budget(targets={"params": 0.01}, align=16)
    with pytest.raises(TargetError) as caught:
        run(coupling, budget)
    found = re.search(r"smallest reachable fraction is ([0-9.]+)", str(caught.value))
    assert found is not None
    assert kept(coupling, run(coupling, Budget(targets={"params": float(found[1])}, align=16))) == {
        STEM: 16, BLOCK: 16, HEAD: 16
    }
    with pytest.raises(TargetError):
        run(coupling, Budget(targets={"params": 0.98 * float(found[1])}, align=16))


def test_few_costs_are_computed_and_runs_agree(coupling: Coupling) -> None:
    class Counted(CostModel):
        calls = 0

        def __call__(self, sizes: Mapping[Dim, int]) -> Costs:
            Counted.calls += 1
            return super().__call__(sizes)

    for target in (0.2, 0.31, 0.77):
        Counted.calls = 0
        budget = Budget(targets={"macs": target, "bytes": target}, align=16)
        plan = allocate(coupling, score(coupling), Counted(coupling), budget)
        assert 0 < Counted.calls < 200
        assert plan == allocate(coupling, score(coupling), CostModel(coupling), budget)


def test_a_plan_says_how_it_was_made(coupling: Coupling) -> None:
    budget = Budget(targets={"macs": 0.5}, align=4, exclude=("fc.weight",))
    plan = run(coupling, budget, score(coupling, "l1", "max", "lamp"))
    costs = CostModel(coupling)
    assert [plan.model[k] for k in ("parameters", "macs", "bytes")] == [
        costs({}).parameters, costs({}).macs, costs({}).bytes
    ]
    assert plan.meta["costs"]["macs"] == costs(plan.sizes_of(coupling)).macs
    assert (plan.meta["criterion"], plan.meta["aggregate"], plan.meta["normalise"]) == ("l1", "max", "lamp")
    assert plan.meta["budget"]["exclude"] == ["fc.weight"]
    assert PruningPlan.from_json(plan.to_json()) == plan


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "nothing is asked for"),
        ({"sparsity": 0.5, "targets": {"macs": 0.5}}, "not both"),
        ({"sparsity": 1.0}, r"\[0, 1\)"),
        ({"sparsity": -0.1}, r"\[0, 1\)"),
        ({"sparsity": float("nan")}, r"\[0, 1\)"),
        ({"targets": {"flops": 0.5}}, "'flops': choose macs, params, bytes"),
        ({"targets": {"macs": 0.0}}, r"\(0, 1\]"),
        ({"targets": {"macs": 50}}, r"\(0, 1\]"),
        ({"sparsity": 0.5, "sparsities": {"a": 1.0}}, "sparsity of 'a'"),
        ({"sparsity": 0.5, "align": 0}, "alignment 0"),
        ({"sparsity": 0.5, "floor": 1.5}, "floor 1.5"),
    ],
)
def test_wrong_budgets_are_refused(arguments: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Budget(**arguments)


def test_what_does_not_fit_the_model_is_refused(coupling: Coupling, grouped: Coupling) -> None:
    with pytest.raises(UsageError, match="no allocation named 'layerwise': choose uniform, global"):
        run(coupling, Budget(sparsity=0.5, allocation="layerwise"))
    with pytest.raises(UsageError, match="the scores are of another model"):
        run(coupling, Budget(sparsity=0.5), by_rank(grouped))
    with pytest.raises(NothingPrunable):
        run(coupling, Budget(sparsity=0.5, exclude=("*",)))
