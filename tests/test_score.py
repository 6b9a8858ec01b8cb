"""Scores: each criterion against a direct computation, and what must hold for all of them."""

import dataclasses
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphprune.axes import Axis, Dim, concat, leaves, product, reduce, slots
from graphprune.errors import ModelError, UsageError
from graphprune.groups import Coupling, couple
from graphprune.model import load
from graphprune.normalize import normalize
from graphprune.score import AGGREGATIONS, CRITERIA, NORMALISATIONS, elements, score
from graphprune.score.base import Place
from graphprune.score.elements import elementwise, slot_sums, uniform_sums
from graphprune.score.fpgm import distance_sums, owned
from graphprune.sizes import choose
from graphprune.trace import trace
from graphprune.weights import Weight

RNG = np.random.default_rng(0)


def net(dtype: Any = np.float32, **changes: np.ndarray) -> ModelProto:
    """Conv a (3 -> 8), BatchNormalization, Conv b (8 -> 6) with bias, pooled, Gemm c (6 -> 5)."""
    rng = np.random.default_rng(1)
    weights = {
        "a": rng.standard_normal((8, 3, 3, 3)),
        "gamma": rng.standard_normal(8),
        "beta": rng.standard_normal(8),
        "mean": rng.standard_normal(8),
        "var": rng.random(8) + 0.5,
        "b": rng.standard_normal((6, 8, 3, 3)),
        "b_bias": rng.standard_normal(6),
        "c": rng.standard_normal((5, 6)),
    }
    weights.update(changes)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="conv_a"),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Conv", ["n", "b", "b_bias"], ["i"], name="conv_b"),
        helper.make_node("GlobalAveragePool", ["i"], ["j"], name="pool"),
        helper.make_node("Flatten", ["j"], ["k"], name="flatten"),
        helper.make_node("Gemm", ["k", "c"], ["y"], name="gemm", transB=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", kind, [1, 5])],
        [numpy_helper.from_array(w.astype(dtype), n) for n, w in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 22)])


def coupled(model: ModelProto) -> Coupling:
    loaded = normalize(load(model))
    return couple(trace(loaded, choose(loaded, {})))


def heads() -> Coupling:
    """Two projections whose outputs are multiplied, read as 4 heads of 6, and projected back."""
    rng = np.random.default_rng(2)
    weights = {"q": (16, 24), "v": (16, 24), "o": (24, 16)}
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["qx"], name="q_proj"),
        helper.make_node("MatMul", ["x", "v"], ["vx"], name="v_proj"),
        helper.make_node("Reshape", ["qx", "split"], ["qh"], name="q_heads"),
        helper.make_node("Reshape", ["vx", "split"], ["vh"], name="v_heads"),
        helper.make_node("Mul", ["qh", "vh"], ["m"], name="mix"),
        helper.make_node("Reshape", ["m", "join"], ["z"], name="merge"),
        helper.make_node("MatMul", ["z", "o"], ["y"], name="o_proj"),
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 16])],
        [
            *[numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
            numpy_helper.from_array(np.array([2, 5, 4, 6]), "split"),
            numpy_helper.from_array(np.array([2, 5, 24]), "join"),
        ],
    )
    return coupled(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]))


def weight_of(coupling: Coupling, name: str) -> np.ndarray:
    return np.asarray(coupling.graph.weights[name].read(), np.float64)


# ---- criteria against direct computations


@pytest.mark.parametrize(
    ("criterion", "norm"),
    [("l1", lambda v: np.abs(v).sum()), ("l2", lambda v: np.sqrt(np.square(v).sum()))],
)
def test_norms_are_those_of_all_that_an_index_owns(criterion: str, norm: Any) -> None:
    coupling = coupled(net())
    a, b, c = (weight_of(coupling, n) for n in "abc")
    found = score(coupling, criterion, "sum", "none").by_group
    np.testing.assert_allclose(found["a:0"], [norm(a[i]) + norm(b[:, i]) for i in range(8)])
    np.testing.assert_allclose(found["b:0"], [norm(b[i]) + norm(c[:, i]) for i in range(6)])


def test_dims_of_a_product_are_scored_by_their_own_slots() -> None:
    coupling = heads()
    q, v, o = (weight_of(coupling, n) for n in "qvo")
    found = score(coupling, "l2", "sum", "none").by_group
    by_size = {s.shape[0]: s for s in found.values()}
    assert sorted(by_size) == [4, 6]
    for size, scores in by_size.items():
        for i in range(size):
            mine = owned_by(size, i)
            expected = sum(np.linalg.norm(w) for w in (q[:, mine], v[:, mine], o[mine]))
            assert scores[i] == pytest.approx(expected)


def owned_by(size: int, i: int) -> list[int]:
    """Slots of the fused axis (4 6) that index i of a dim of this size owns."""
    return [s for s in range(24) if {4: s // 6, 6: s % 6}[size] == i]


def test_fpgm_is_the_sum_of_distances_to_all_others() -> None:
    coupling = coupled(net())
    a, b = weight_of(coupling, "a"), weight_of(coupling, "b")
    expected = [
        sum(np.linalg.norm(a[i] - a[j]) + np.linalg.norm(b[:, i] - b[:, j]) for j in range(8)) for i in range(8)
    ]
    np.testing.assert_allclose(score(coupling, "fpgm", "sum", "none").by_group["a:0"], expected)


def test_lamp_criterion_is_a_share_of_the_energy_that_is_not_smaller() -> None:
    coupling = coupled(net())
    expected = np.zeros(6)
    for energy in (
        np.square(weight_of(coupling, "b")).sum(axis=(1, 2, 3)),
        np.square(weight_of(coupling, "c")).sum(axis=0),
    ):
        expected += [e / energy[energy >= e].sum() for e in energy]
    np.testing.assert_allclose(score(coupling, "lamp", "sum", "none").by_group["b:0"], expected)


def test_bn_scale_reads_gains_and_says_where_there_are_none() -> None:
    coupling = coupled(net())
    found = score(coupling, "bn_scale", "sum", "none")
    np.testing.assert_allclose(found.by_group["a:0"], np.abs(weight_of(coupling, "gamma")))
    np.testing.assert_array_equal(found.by_group["b:0"], score(coupling, "l2", "sum", "none").by_group["b:0"])
    assert len(found.notes) == 1
    assert "1 of 2 groups" in found.notes[0] and "b:0" in found.notes[0]
    assert score(coupling, "l2").notes == ()


def test_random_depends_on_the_seed_alone() -> None:
    coupling = coupled(net())
    first, again, other = (score(coupling, "random", seed=s).by_group for s in (3, 3, 4))
    assert all((first[g] == again[g]).all() and (first[g] != other[g]).any() for g in first)
    assert not np.array_equal(first["a:0"][:6], first["b:0"])


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "fpgm"])
def test_biases_and_running_statistics_do_not_count(criterion: str) -> None:
    loud = net(beta=np.arange(8.0) * 1e3, var=np.arange(8.0) * 1e3 + 1, b_bias=np.arange(6.0) * 1e3)
    plain, changed = score(coupled(net()), criterion), score(coupled(loud), criterion)
    for name, scores in plain.by_group.items():
        np.testing.assert_array_equal(changed.by_group[name], scores)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_equal_indices_get_equal_scores_and_runs_agree(criterion: str) -> None:
    model = net()
    b, c = (numpy_helper.to_array(t).copy() for t in model.graph.initializer if t.name in ("b", "c"))
    b[4], c[:, 4] = b[1], c[:, 1]
    coupling = coupled(net(b=b, c=c))
    first, again = score(coupling, criterion).by_group, score(coupling, criterion).by_group
    assert all((first[g] == again[g]).all() for g in first)
    if criterion not in ("random", "fpgm"):
        assert first["b:0"][1] == first["b:0"][4]
    if criterion == "fpgm":
        assert first["b:0"][1] == pytest.approx(first["b:0"][4])


# ---- what must hold for all


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types_score_as_float32_does(criterion: str, dtype: Any) -> None:
    rounded = {
        t.name: numpy_helper.to_array(t).astype(dtype).astype(np.float32) for t in net().graph.initializer
    }
    expected, found = score(coupled(net(**rounded)), criterion), score(coupled(net(dtype)), criterion)
    for name, scores in expected.by_group.items():
        np.testing.assert_allclose(found.by_group[name], scores, rtol=1e-6)


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "fpgm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(criterion: str, value: float) -> None:
    b = np.ones((6, 8, 3, 3))
    b[2, 3, 1, 1] = value
    with pytest.raises(ModelError, match="weight 'b' has NaN or infinite values: "):
        score(coupled(net(b=b)), criterion)


def test_every_weight_is_read_once_and_progress_is_told() -> None:
    coupling = coupled(net())
    reads: list[str] = []
    told: list[tuple[int, int]] = []

    def counted(weight: Weight) -> Weight:
        return dataclasses.replace(weight, read=lambda: (reads.append(weight.name), weight.read())[1])

    weights = {n: counted(w) for n, w in coupling.graph.weights.items()}
    watched = dataclasses.replace(coupling, graph=dataclasses.replace(coupling.graph, weights=weights))
    score(watched, "l2", progress=lambda done, total: told.append((done, total)))
    assert sorted(reads) == ["a", "b", "c"]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_unknown_names_are_refused_with_a_hint() -> None:
    coupling = coupled(net())
    with pytest.raises(UsageError, match="no criterion named 'fpgn': did you mean 'fpgm'"):
        score(coupling, "fpgn")
    with pytest.raises(UsageError, match="no aggregation named 'zzz': choose sum, mean, max, prod"):
        score(coupling, aggregate="zzz")
    with pytest.raises(UsageError, match="no normalisation named 'gauss'"):
        score(coupling, normalise="gauss")


# ---- slot sums


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16]))
    seed = draw(st.integers(0, 99))
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(arrays(), st.integers(1, 40))
def test_slot_sums_are_sums_over_all_other_axes_whatever_the_blocks(array: np.ndarray, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_BLOCK", block)
        found = slot_sums(array, range(array.ndim), np.square)
    squares = np.square(array.astype(np.float64))
    for k, sums in found.items():
        np.testing.assert_allclose(sums, squares.sum(axis=tuple(j for j in range(array.ndim) if j != k)))


def test_slot_sums_make_no_copy_of_a_large_half_precision_weight() -> None:
    array = np.ones((2048, 4096), np.float16)
    tracemalloc.start()
    try:
        slot_sums(array, [0, 1], np.square)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes / 4


def test_filled_weights_are_not_spelled_out() -> None:
    huge = np.broadcast_to(np.float32(-3), (10**6, 10**7))
    dim = Dim(10**6)
    weight = Weight("fill", huge.shape, (dim, Dim(10**7)), lambda: huge, filled=True)
    (scores,) = elementwise(np.abs)(weight, huge, (Place(0, dim, dim),))
    assert scores.shape == (10**6,) and (scores == 3e7).all()
    small = np.broadcast_to(np.float32(-3), (4, 5))
    for k, sums in uniform_sums(small, [0, 1], np.square).items():
        np.testing.assert_array_equal(sums, slot_sums(small, [0, 1], np.square)[k])


@st.composite
def axes(draw: st.DrawFn, depth: int = 2) -> Axis:
    """An axis in which no dim is twice a factor of one product."""
    if depth == 0 or draw(st.booleans()):
        return Dim(draw(st.integers(2, 4)))
    parts = draw(st.lists(axes(depth=depth - 1), min_size=2, max_size=3))
    return draw(st.sampled_from([product, concat]))(*parts)


@given(axes(), st.integers(0, 99))
def test_scores_of_a_dim_are_the_adjoint_of_keeping_its_indices(axis: Axis, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((axis.size, 3))
    dims = list(dict.fromkeys(leaves(axis)))
    weight = Weight("w", array.shape, (axis, Dim(3)), lambda: array)
    found = elementwise(np.abs)(weight, array, tuple(Place(0, axis, d) for d in dims))
    for dim, scores in zip(dims, found, strict=True):
        weights = rng.random(dim.size)
        lifted = np.zeros(axis.size)
        for i, mine in enumerate(owned(axis, dim)):
            lifted[mine] = weights[i]
        assert weights @ scores == pytest.approx(lifted @ np.abs(array).sum(axis=1))
        np.testing.assert_allclose(scores, reduce(axis, np.abs(array).sum(axis=1))[dim])


@settings(deadline=None)
@given(axes())
def test_owned_slots_are_those_that_disappear(axis: Axis) -> None:
    for dim in dict.fromkeys(leaves(axis)):
        for i, mine in enumerate(owned(axis, dim)):
            left = slots(axis, {dim: np.delete(np.arange(dim.size), i)})
            assert sorted(mine) == sorted(set(range(axis.size)) - set(left.tolist()))


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_distances_do_not_depend_on_tiles(n: int, m: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((2, n * m, width)).astype(np.float32)
    mine = rng.permutation(n * m).reshape(n, m)
    rows = [array[:, s].astype(np.float64).ravel() for s in mine]
    expected = [sum(np.linalg.norm(x - y) for y in rows) for x in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphprune.score.fpgm._TILE", 2)
        patch.setattr("graphprune.score.fpgm._COLUMNS", 3)
        np.testing.assert_allclose(distance_sums(array, 1, mine), expected, atol=1e-6)


# ---- aggregation and normalisation

vectors = st.lists(st.floats(0, 1e6), min_size=1, max_size=12).map(np.array)


@given(vectors)
def test_normalisations_keep_the_order_and_stay_finite(scores: np.ndarray) -> None:
    for name, normalise in NORMALISATIONS.items():
        found = normalise(scores)
        assert found.shape == scores.shape and np.isfinite(found).all(), name
        order = np.argsort(scores, kind="stable")
        assert (np.diff(found[order]) >= -1e-12 * np.abs(found).max()).all(), name


def test_normalisations_do_what_their_names_say() -> None:
    scores = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    found = {name: f(scores) for name, f in NORMALISATIONS.items()}
    assert found["sum"].sum() == pytest.approx(1)
    assert found["mean"].mean() == pytest.approx(1)
    assert found["max"].max() == 1
    assert found["gaussian"].mean() == pytest.approx(0, abs=1e-12)
    assert found["gaussian"].std() == pytest.approx(1)
    np.testing.assert_allclose(found["lamp"], [9 / 50, 1 / 52, 16 / 41, 1 / 52, 1])
    np.testing.assert_array_equal(found["none"], scores)
    for name, f in NORMALISATIONS.items():
        assert f(np.zeros(3)).tolist() == [0, 0, 0], name


@given(st.integers(1, 4), vectors)
def test_aggregations_of_equal_parts(k: int, scores: np.ndarray) -> None:
    parts = np.stack([scores] * k)
    np.testing.assert_allclose(AGGREGATIONS["sum"](parts), k * scores)
    for name in ("mean", "max", "prod"):
        np.testing.assert_allclose(AGGREGATIONS[name](parts), scores, rtol=1e-9, atol=1e-300)


def test_products_of_many_parts_neither_overflow_nor_vanish() -> None:
    parts = np.tile(np.array([1e-200, 1e200, 0.0]), (300, 1))
    np.testing.assert_allclose(AGGREGATIONS["prod"](parts), [1e-200, 1e200, 0], rtol=1e-9)
    mixed = RNG.random((5, 7)) + 0.1
    found = AGGREGATIONS["prod"](mixed)
    assert np.argsort(found).tolist() == np.argsort(mixed.prod(axis=0)).tolist()
    np.testing.assert_allclose(found**5, mixed.prod(axis=0))


def test_default_scores_average_one_in_every_group() -> None:
    for coupling in (coupled(net()), heads()):
        for group in coupling.groups:
            scores = score(coupling).by_group[group.name]
            assert scores.shape == (group.size,)
            assert scores.mean() == pytest.approx(1)
