"""Criteria that go by what layers read: against direct computations, through the command line, and what must hold."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from layered import fitted
from onnx import helper
from small import FLOAT, cli, cnn, mlp, model, put, rand, record, refused, tensor

from graphprune.analysis import Analysis, analyse
from graphprune.calibrate import open_data
from graphprune.calibrate.knowledge import Knowledge, learn
from graphprune.calibrate.statistics import Gram
from graphprune.errors import ModelError, UsageError
from graphprune.options import Looking
from graphprune.pipeline import prune
from graphprune.score import CRITERIA, DATA_CRITERIA, Scores, score

RNG = np.random.default_rng(5)
QUICK = ("--no-prove", "--no-time", "--align", 1)
BY_COLUMN = sorted(set(DATA_CRITERIA) - {"cfsp"})  # which ranks what these measure: test_cfsp.py


def known(proto: onnx.ModelProto, **inputs: np.ndarray) -> tuple[Analysis, Knowledge]:
    """Analyse a model and run it on samples."""
    analysis = analyse(proto, Looking())
    return analysis, learn(analysis, open_data(inputs, analysis.model))


def scored(proto: onnx.ModelProto, criterion: str, normalise: str = "none", **inputs: np.ndarray) -> Scores:
    analysis, found = known(proto, **inputs)
    return score(analysis.coupling, criterion, "sum", normalise, known=found)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def column_scores(criterion: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the score of every column of x [rows, C] that is multiplied with w [C, O], loop by loop."""
    out = []
    for j in range(x.shape[1]):
        out.append({
            "wanda": np.mean([abs(w[j, i]) * np.sqrt(np.mean(x[:, j] ** 2)) for i in range(w.shape[1])]),
            "flap": np.mean((x[:, j] - x[:, j].mean()) ** 2) * np.sum(w[j] ** 2),
            "activation": np.mean(np.abs(x[:, j])),
            "apoz": 1 - np.mean(x[:, j] == 0),
        }[criterion])
    return np.array(out)


def standard(v: np.ndarray) -> np.ndarray:
    return (v - v.mean()) / v.std()


# ---- against direct computations


@pytest.mark.parametrize("criterion", BY_COLUMN)
def test_a_matrix_scores_what_it_reads(criterion: str) -> None:
    x = RNG.standard_normal((200, 8)).astype(np.float32)
    analysis, found = known(mlp(), x=x)
    read = relu(fitted(x, found.batch) @ rand(8, 64))
    expected = column_scores(criterion, read.astype(np.float64), rand(64, 4).astype(np.float64))
    if criterion == "flap":
        expected = standard(expected)
    (scores,) = score(analysis.coupling, criterion, "sum", "none", known=found).by_group.values()
    np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=1e-6)
    assert np.ptp(scores) > 0


@pytest.mark.parametrize("criterion", BY_COLUMN)
def test_places_of_a_kernel_belong_to_their_channel(criterion: str) -> None:
    x = RNG.standard_normal((60, 3, 8, 8)).astype(np.float32)
    analysis, found = known(cnn(), x=x)
    one = np.pad(fitted(x, found.batch), ((0, 0), (0, 0), (1, 1), (1, 1)))
    w1, b1, w2 = rand(32, 3, 3, 3), rand(32), rand(48, 32, 3, 3)
    windows = np.lib.stride_tricks.sliding_window_view(one, (3, 3), (2, 3))
    read = np.pad(relu(np.einsum("nchwij,ocij->nohw", windows, w1) + b1[:, None, None]), ((0, 0),) * 2 + ((1, 1),) * 2)
    patches = np.lib.stride_tricks.sliding_window_view(read, (3, 3), (2, 3))
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 32 * 9).astype(np.float64)
    columns = column_scores(criterion, rows, w2.reshape(48, -1).T.astype(np.float64)).reshape(32, 9)
    expected = columns.sum(axis=1) if criterion in ("wanda", "flap") else columns.mean(axis=1)
    if criterion == "flap":
        expected = standard(expected)
    scores = score(analysis.coupling, criterion, "sum", "none", known=found).by_group["w1:0"]
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)


def two_readers(shared: bool = True) -> onnx.ModelProto:
    """Return a net whose 16 hidden values are read by two matrices, through one more Relu if they are not shared."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        *([] if shared else [helper.make_node("Neg", ["h"], ["n"], name="turned")]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="left"),
        helper.make_node("MatMul", ["r" if shared else "n", "c"], ["z"], name="right"),
    ]
    arrays = [tensor("a", rand(6, 16)), tensor("b", rand(16, 3)), tensor("c", rand(16, 5))]
    return model(
        nodes, arrays, [("x", FLOAT, ["batch", 6])], [("y", FLOAT, ["batch", 3]), ("z", FLOAT, ["batch", 5])]
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("criterion", BY_COLUMN)
def test_every_reader_counts_and_equal_rows_count_once_without_weights(criterion: str, shared: bool) -> None:
    x = RNG.standard_normal((100, 6)).astype(np.float32)
    analysis, found = known(two_readers(shared), x=x)
    h = (fitted(x, found.batch) @ rand(6, 16)).astype(np.float64)
    pairs = [(relu(h), rand(16, 3)), (relu(h) if shared else -h, rand(16, 5))]
    each = [column_scores(criterion, data, w.astype(np.float64)) for data, w in pairs]
    if criterion == "flap":
        each = [standard(v) for v in each]
    if shared and criterion in ("activation", "apoz"):
        each = each[:1]
    for aggregate, together in (("sum", np.sum), ("max", np.max)):
        (scores,) = score(analysis.coupling, criterion, aggregate, "none", known=found).by_group.values()
        np.testing.assert_allclose(scores, together(each, axis=0), rtol=1e-3, atol=1e-5)


def test_sums_of_sizes_and_zeros_are_those_of_all_rows() -> None:
    rows = RNG.standard_normal((2, 9000, 3)).astype(np.float32)
    rows[0, ::3, 1] = 0
    rows[1, :5, 2] = -0.0
    gram = Gram.empty(2, 3)
    for part in np.array_split(rows, 7, axis=1):
        gram.add(part)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(gram.absolute, np.abs(wide).sum(axis=1))
    np.testing.assert_array_equal(gram.zeros, [[0, 3000, 0], [0, 0, 5]])
    np.testing.assert_allclose(gram.first, wide.sum(axis=1), rtol=1e-6, atol=1e-6)
    assert gram.rows == 9000


def test_sums_take_the_memory_of_one_block() -> None:
    rows = np.ones((1, 200_000, 8), np.float32)
    gram = Gram.empty(1, 8)
    tracemalloc.start()
    try:
        gram.add(rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < rows.nbytes / 8


# ---- groups that nothing is known of


def partly_read() -> onnx.ModelProto:
    """Return a net with two groups: 16 that a matrix reads, and 12 that two activations multiply and sum up."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="down"),
        helper.make_node("MatMul", ["x", "q"], ["qx"], name="query"),
        helper.make_node("MatMul", ["x", "k"], ["kx"], name="key"),
        helper.make_node("Mul", ["qx", "kx"], ["m"], name="product"),
        helper.make_node("ReduceSum", ["m", "last"], ["z"], name="sum", keepdims=1),
    ]
    arrays = [
        tensor("a", rand(6, 16)), tensor("b", rand(16, 3)), tensor("q", rand(6, 12)), tensor("k", rand(6, 12, seed=1)),
        onnx.numpy_helper.from_array(np.array([1]), "last"),
    ]
    return model(
        nodes, arrays, [("x", FLOAT, ["batch", 6])], [("y", FLOAT, ["batch", 3]), ("z", FLOAT, ["batch", 1])]
    )


@pytest.mark.parametrize("normalise", ["none", "mean"])
@pytest.mark.parametrize("criterion", BY_COLUMN)
def test_groups_without_readers_have_scaled_l2_scores_and_a_note(criterion: str, normalise: str) -> None:
    x = 100 * RNG.standard_normal((100, 6)).astype(np.float32)
    analysis, found = known(partly_read(), x=x)
    sizes = {g.size: g.name for g in analysis.coupling.groups}
    assert sorted(sizes) == [12, 16]
    scores = score(analysis.coupling, criterion, "sum", normalise, known=found)
    read, other = scores.by_group[sizes[16]], scores.by_group[sizes[12]]
    plain = score(analysis.coupling, "l2", "sum", "none").by_group[sizes[12]]
    assert other.mean() == pytest.approx(read.mean(), rel=1e-9, abs=1e-9)
    if criterion == "flap":
        np.testing.assert_allclose(standard(other), standard(plain), atol=0.2)  # of two weights' standard scores
        assert other.mean() == pytest.approx(0, abs=1e-9)
    else:
        np.testing.assert_allclose(other / other.mean(), plain / plain.mean())
    (note,) = scores.notes
    why = "have no layer that reads zeros more often" if criterion == "apoz" else "are read by no layer with statistics"
    assert note.startswith(f"1 of 2 groups {why}") and note.endswith(f"are scored by l2: {sizes[12]}")


def test_groups_without_readers_are_ranked_by_l2_for_cfsp() -> None:
    x = 100 * RNG.standard_normal((100, 6)).astype(np.float32)
    analysis, found = known(partly_read(), x=x)
    scores = score(analysis.coupling, "cfsp", known=found)
    (name,) = [g.name for g in analysis.coupling.groups if g.size == 12]
    plain = score(analysis.coupling, "l2", "sum", "none").by_group[name]
    assert scores.by_group[name].argsort().tolist() == plain.argsort().tolist()
    assert "1 of 2 groups are read by no layer with statistics and are scored by l2" in scores.notes[0]


def test_where_nothing_is_ever_zero_apoz_says_so_and_goes_by_l2() -> None:
    proto = mlp()
    proto.graph.node[1].op_type = "Sigmoid"
    x = RNG.standard_normal((50, 8)).astype(np.float32)
    found = scored(proto, "apoz", "mean", x=x)
    (scores,) = found.by_group.values()
    (plain,) = score(analyse(mlp(), Looking()).coupling, "l2").by_group.values()
    np.testing.assert_allclose(scores, plain)
    assert len(found.notes) == 1 and found.notes[0].startswith("1 of 1 groups have no layer that reads zeros more")


# ---- what must hold for all


def unequal() -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """Return a net in which weights in front of the Relu tell nothing, with inputs; and which half is never on.

    Indices 0 to 7 have large weights and are off for all inputs, 8 to 15 have small ones and are on for some.
    """
    a, b = np.abs(rand(4, 16)) + 0.1, np.abs(rand(16, 3)) + 0.1
    a[:, :8] *= -5
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="down"),
    ]
    proto = model(
        nodes, [tensor("w1", a), tensor("w2", b)], [("x", FLOAT, ["batch", 4])], [("y", FLOAT, ["batch", 3])]
    )
    x = np.abs(RNG.standard_normal((64, 4))).astype(np.float32)
    return proto, x, np.arange(8)


@pytest.mark.parametrize("criterion", sorted(DATA_CRITERIA))
def test_data_decide_where_weights_mislead(criterion: str, tmp_path: Path) -> None:
    proto, x, dead = unequal()
    path = put(tmp_path / "net.onnx", proto)
    np.savez(tmp_path / "data.npz", x=x)
    kept = {}
    for name in (criterion, "l2"):
        data = str(tmp_path / "data.npz")
        done = prune(path, 0.5, criterion=name, calibration=data, align=1, prove=False, time=False)
        ((kept[name]),) = done.plan.keep.values()
    assert sorted(kept["l2"]) == dead.tolist()
    assert sorted(kept[criterion]) == list(range(8, 16))


@pytest.mark.parametrize("criterion", sorted(DATA_CRITERIA))
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_command_line_prunes_and_repairs(criterion: str, allocation: str, tmp_path: Path) -> None:
    path = put(tmp_path / "net.onnx", cnn())
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((40, 3, 8, 8)).astype(np.float32))
    out = tmp_path / "out.onnx"
    found = record(
        "prune", path, "-o", out, "--sparsity", 0.5, "--criterion", criterion, "--calibration", tmp_path / "data.npz",
        "--allocation", allocation, *QUICK,
    )
    assert out.is_file() and found["repair"]["layers"]
    assert found["plan"]["meta"]["criterion"] == criterion and found["plan"]["meta"]["allocation"] == allocation
    assert not found["divergence"]["damaged"]


@pytest.mark.parametrize("criterion", sorted(DATA_CRITERIA))
def test_without_data_there_is_one_line_and_code_2(criterion: str, tmp_path: Path) -> None:
    path = put(tmp_path / "net.onnx", mlp())
    for more in (("--calibration", "off"), ("--no-run",)):
        refused(
            tmp_path, "prune", path, "--sparsity", 0.5, "--criterion", criterion, *more,
            says=f"--criterion {criterion} goes by what layers read: it needs --calibration DATA",
        )
    with pytest.raises(UsageError, match="it needs --calibration"):
        score(analyse(mlp(), Looking()).coupling, criterion)
    plan = record("plan", path, "--sparsity", 0.5, "--criterion", criterion)
    assert plan["groups"]  # inputs are made up, as they are for obs


@pytest.mark.parametrize("criterion", BY_COLUMN)
def test_equal_indices_get_equal_scores_whatever_the_scale_of_others(criterion: str) -> None:
    a, b = rand(8, 64), rand(64, 4)
    a[:, 7], b[7] = a[:, 3], b[3]
    proto = mlp()
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([tensor("w1", a), tensor("w2", b)])
    (scores,) = scored(proto, criterion, "mean", x=RNG.standard_normal((80, 8)).astype(np.float32)).by_group.values()
    assert scores[3] == pytest.approx(scores[7], rel=1e-6)
    assert np.isfinite(scores).all()
    assert scores.mean() == pytest.approx(0 if criterion == "flap" else 1, abs=1e-9)


def test_standard_scores_cannot_be_scaled_by_what_may_be_zero() -> None:
    x = RNG.standard_normal((50, 8)).astype(np.float32)
    analysis, found = known(mlp(), x=x)
    assert score(analysis.coupling, "flap", known=found).normalise == "gaussian"
    for how in (("prod", "mean"), ("sum", "max"), ("sum", "lamp"), ("sum", "sum")):
        with pytest.raises(UsageError, match="negative for some"):
            score(analysis.coupling, "flap", *how, known=found)


@pytest.mark.parametrize("criterion", ["wanda", "flap"])
def test_weights_that_are_not_finite_are_named(criterion: str) -> None:
    proto, x, _ = unequal()
    b = onnx.numpy_helper.to_array(proto.graph.initializer[1]).copy()
    _, found = known(proto, x=x)
    b[3, 1] = np.nan
    proto.graph.initializer[1].CopyFrom(tensor("w2", b))
    broken = analyse(proto, Looking(observe=False))
    renamed: Any = Knowledge(found.samples, _consumers(broken), found.stats, found.batch, found.seed)
    with pytest.raises(ModelError, match="weight 'w2' has NaN or infinite values"):
        score(broken.coupling, criterion, known=renamed)


def _consumers(analysis: Analysis) -> Any:
    from graphprune.consumers import consumers

    return consumers(analysis.coupling)


def test_names_are_in_one_table_each_and_near_misses_are_hinted_at() -> None:
    assert not set(CRITERIA) & set(DATA_CRITERIA)
    with pytest.raises(UsageError, match="no criterion named 'wonda': did you mean 'wanda'"):
        score(analyse(mlp(), Looking()).coupling, "wonda")


def test_the_help_names_all_criteria() -> None:
    shown = " ".join(cli("prune", "--help").out.split())
    for name in DATA_CRITERIA:
        assert name in shown
