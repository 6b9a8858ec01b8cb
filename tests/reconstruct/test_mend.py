"""Repair of whole models: exact where channels are redundant, never worse where nothing confirms it."""

from __future__ import annotations

from typing import Any

import layered
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layered import given, keeping, known, pruned_of, samples_of
from oracles import Net

import graphprune
from graphprune.analysis import Analysis
from graphprune.calibrate import Samples
from graphprune.calibrate.knowledge import Knowledge, learn
from graphprune.execute import evaluate, relative_error
from graphprune.quality import measure, told_feeds
from graphprune.reconstruct.mend import Mended, Mode, mend
from graphprune.rewrite import Chosen, arranged


def mended(
    analysis: Analysis, learnt: Knowledge, chosen: Chosen, sequential: bool = False, **options: Any
) -> tuple[ir.Model, list[Mended]]:
    pruned = pruned_of(analysis, chosen)
    mode: Mode = "sequential" if sequential else "symmetric"
    done = mend(analysis.model, pruned, analysis.coupling, chosen, learnt, mode=mode, **options)
    return pruned, done


def error(analysis: Analysis, pruned: ir.Model, seed: int = 9) -> float:
    """Return how far outputs are on other samples, as a share of their size."""
    (feed,) = samples_of(analysis, 100, seed).open()
    (before,), (after,) = evaluate(analysis.model, feed).values(), evaluate(pruned, feed).values()
    return float(np.linalg.norm(before.astype(np.float64) - after) / np.linalg.norm(before.astype(np.float64)))


def doubled(kind: str) -> Net:
    """Return a net whose producers "a" (and "c") have every channel twice."""
    net = layered.KINDS[kind]()
    for tensor in net.initializers:
        if tensor.name.split(".")[0] in ("a", "c", "wv"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            axis = array.ndim - 1 if kind in ("matmul", "lstm", "gru", "rnn", "heads") else 0
            moved = np.moveaxis(array, axis, 0)
            moved[1::2] = moved[::2]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return net


def one_of_each_pair(analysis: Analysis) -> Chosen:
    """Return the odd or even index of each pair, for the groups that are made by doubled weights."""
    out = {}
    for group in analysis.coupling.groups:
        made = [o for o in group.occurrences if o.initializer in ("a", "c", "wv")]
        if made and group.size > 2 and not group.name.startswith("wq"):
            out[group.dim] = np.arange(group.size // 2) * 2 + np.arange(group.size // 2) % 2
    return out


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", ["conv", "gemm", "matmul", "turned", "lstm", "gru", "rnn", "joined", "heads", "flat"])
def test_channels_that_are_there_twice_cost_nothing(kind: str, sequential: bool) -> None:
    analysis, learnt = known(doubled(kind), 400)
    chosen = one_of_each_pair(analysis)
    assert chosen
    plain = error(analysis, pruned_of(analysis, chosen))
    pruned, done = mended(analysis, learnt, chosen, sequential)
    assert plain > 0.3 and error(analysis, pruned) < 5e-4
    assert done and all(0 <= x.after < 1e-6 and x.before > 0.1 for x in done), done


@pytest.mark.parametrize("kind", list(layered.KINDS))
@pytest.mark.parametrize("sequential", [False, True])
def test_repair_of_any_layer_lowers_the_error(kind: str, sequential: bool) -> None:
    analysis, learnt = known(layered.KINDS[kind](), 80)
    chosen = keeping(analysis, 0.7)
    plain = error(analysis, pruned_of(analysis, chosen))
    pruned, done = mended(analysis, learnt, chosen, sequential)
    onnx.checker.check_model(ir.to_proto(pruned), full_check=True)
    assert error(analysis, pruned) < plain
    assert done and all(x.after <= x.before for x in done)


def test_in_deep_nets_corrections_help() -> None:
    analysis, learnt = known(layered.deep(), 1000)
    chosen = keeping(analysis, 0.6)

    def relative(corrections: int | None) -> float:
        pruned = pruned_of(analysis, chosen)
        if corrections is not None:
            mend(analysis.model, pruned, analysis.coupling, chosen, learnt, corrections=corrections)
        return measure(analysis.model, pruned, told_feeds(learnt))[0].relative

    plain, by_itself, last, all_of_them = (relative(n) for n in (None, 0, 1, 99))
    assert max(all_of_them, last) < 0.95 * by_itself < 0.6 * plain


def test_corrections_are_runs_over_the_samples() -> None:
    analysis, learnt = known(layered.deep(), 20)
    chosen = keeping(analysis)
    for corrections in (1, 3, 99):
        said: list[str] = []
        done = mend(
            analysis.model, pruned_of(analysis, chosen), analysis.coupling, chosen, learnt, corrections=corrections,
            progress=said.append,
        )
        assert len(set(said)) == min(corrections, len(learnt.consumers.found))
        assert len(done) <= len(learnt.consumers.found)


@pytest.mark.parametrize("kind", ["conv", "gemm", "matmul", "heads", "deep"])
def test_corrections_that_make_outputs_worse_are_taken_back(kind: str) -> None:
    analysis, learnt = known(layered.deep() if kind == "deep" else layered.KINDS[kind](), 200)
    chosen = keeping(analysis, 0.7)
    results = []
    worse, better = {"watch": lambda done, of: False}, {"watch": lambda done, of: True}
    for options in ({"corrections": 0}, worse, better):
        pruned = pruned_of(analysis, chosen)
        done = mend(analysis.model, pruned, analysis.coupling, chosen, learnt, **options)
        (feed,) = samples_of(analysis, 50, 3).open()
        (output,) = evaluate(pruned, feed).values()
        results.append((output, {x.node: x.after for x in done}))
    (without, first), (back, second), (corrected, _) = results
    assert np.allclose(without, back, rtol=1e-4, atol=1e-5) and first == second
    assert kind != "deep" or not np.allclose(without, corrected, rtol=1e-4, atol=1e-5)


def weights(model: ir.Model) -> dict[str, bytes]:
    return {n: v.const_value.numpy().tobytes() for n, v in model.graph.initializers.items() if v.const_value}


@pytest.mark.parametrize("sequential", [False, True])
def test_what_check_rows_do_not_confirm_is_not_used(sequential: bool) -> None:
    """The check rows are made by other inputs: what is fitted to the rest is wrong for them."""
    net = Net()
    x = net("Relu", net.gemm(net.input("x", [None, 12]), 12, 12, name="a"))
    net.output(net("Gemm", x, net.weight(12, 5, name="b")))
    for tensor in net.initializers[:2]:
        array = np.eye(12) if tensor.name == "a" else np.zeros(12)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    analysis = graphprune.analyse(net.model())
    (group,) = analysis.coupling.groups
    chosen = {group.dim: np.arange(6)}
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 1, (50, 12)).astype(np.float32)
    rows[:, 6:] = 30 * rows[:, :6] ** 2  # what goes is made up for by what stays
    for k in range(4, 50, 5):
        rows[k, 6:] = 0
    samples = Samples(lambda: iter([{"x": r[None]} for r in rows]), 45, "in-distribution", (), {"x": 0})
    learnt = Knowledge(samples, *_parts(analysis, samples))
    before = weights(pruned_of(analysis, chosen))
    pruned, (only,) = mended(analysis, learnt, chosen, sequential)
    assert only.strength is None and only.after == only.before == pytest.approx(0, abs=1e-6)
    assert weights(pruned) == before


def _parts(analysis: Analysis, samples: Samples) -> tuple[Any, Any, int, int]:
    learnt = learn(analysis, Samples(samples.open, 10, samples.source, (), samples.axes))
    return learnt.consumers, learnt.stats, learnt.batch, learnt.seed


@pytest.mark.parametrize("sequential", [False, True])
def test_with_one_sample_nothing_is_changed(sequential: bool) -> None:
    analysis, learnt = known(layered.conv(), 1)
    chosen = keeping(analysis)
    pruned, done = mended(analysis, learnt, chosen, sequential)
    assert done and all(x.strength is None and x.after == x.before > 0 for x in done)
    assert weights(pruned) == weights(pruned_of(analysis, chosen))


def test_few_samples_and_constant_ones_do_no_harm() -> None:
    analysis = graphprune.analyse(layered.gemm().model())
    chosen = keeping(analysis)
    for x in (np.ones((20, 6), np.float32), np.zeros((20, 6), np.float32), np.eye(6, dtype=np.float32)[:3]):
        for sequential in (False, True):
            pruned, done = mended(analysis, learn(analysis, given({"x": x})), chosen, sequential)
            assert all(np.isfinite([m.before, m.after]).all() for m in done)
            assert all(np.isfinite(a).all() for a in evaluate(pruned, {"x": x}).values())


@pytest.mark.parametrize("sequential", [False, True])
def test_what_is_added_to_rows_is_not_fitted(sequential: bool) -> None:
    """A Gemm that adds a computed matrix: the repaired product is near the dense one, and so is the sum."""
    net = Net()
    x, z = net.input("x", [None, 6]), net.input("z", [None, 4])
    hidden = net("Relu", net.gemm(x, 6, 12, name="a"))
    net.output(net("Gemm", hidden, net.weight(12, 5, name="b"), net.matmul(z, 4, 5, name="c")))
    analysis = graphprune.analyse(net.model())
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((200, 6)).astype(np.float32),
            "z": 20 + rng.standard_normal((200, 4)).astype(np.float32)}
    learnt = learn(analysis, given(feed))
    chosen = keeping(analysis)
    plain = relative_error(evaluate(analysis.model, feed), evaluate(pruned_of(analysis, chosen), feed))[0]
    pruned, _ = mended(analysis, learnt, chosen, sequential)
    assert relative_error(evaluate(analysis.model, feed), evaluate(pruned, feed))[0] < 0.7 * plain


def test_models_with_state_are_repaired() -> None:
    net = Net()
    x, h = net.input("x", [None, 5]), net.input("past_h", [None, 8])
    state = net("Tanh", net("Add", net.matmul(x, 5, 8, name="a"), net.matmul(h, 8, 8, name="b")))
    y = net.matmul(state, 8, 3, name="c")
    net.nodes.append(onnx.helper.make_node("Identity", [state], ["present_h"], name="carry"))
    net.output(y, "present_h")
    analysis = graphprune.analyse(net.model(), graphprune.Looking(allow_io=("past*", "present*")))
    (group,) = analysis.coupling.groups
    chosen = {group.dim: np.array([0, 2, 3, 5, 6])}
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((900, 5)).astype(np.float32), "past_h": rng.uniform(-1, 1, (900, 8)).astype("f")}
    learnt = learn(analysis, given(feed))

    def arrange(arrays: Any) -> Any:
        return arranged(arrays, analysis.coupling, chosen)

    plain = {d.output: d for d in measure(analysis.model, pruned_of(analysis, chosen), told_feeds(learnt), arrange)}
    for sequential in (False, True):
        pruned, done = mended(analysis, learnt, chosen, sequential)
        after = {d.output: d for d in measure(analysis.model, pruned, told_feeds(learnt), arrange)}
        assert {m.node for m in done} == {"n1_MatMul", "n4_MatMul"} and after.keys() == {y, "present_h"}
        assert after[y].relative < plain[y].relative
        assert after["present_h"].relative <= 1.02 * plain["present_h"].relative  # states are independent of each other


def test_batch_normalisation_stays() -> None:
    net = Net()
    x = net.conv(net.input("x", [None, 3, 6, 6]), 3, 12, 3, name="a", bias=False)
    parts = [net.weight(12, positive=k in (0, 3)) for k in range(4)]
    x = net("Relu", net("BatchNormalization", x, *parts))
    net.output(net("ReduceMean", net.conv(x, 12, 4, 3, name="b", bias=False), axes=[2, 3], keepdims=0))
    analysis, learnt = known(net, 60)
    chosen = keeping(analysis)
    pruned, _ = mended(analysis, learnt, chosen, True)
    assert "BatchNormalization" in [n.op_type for n in pruned.graph]
    assert error(analysis, pruned) < error(analysis, pruned_of(analysis, chosen))


def test_float16_and_float64_keep_their_types() -> None:
    for dtype in (np.float16, np.float64):
        analysis, learnt = known(layered.matmul(dtype), 60)
        chosen = keeping(analysis)
        pruned, done = mended(analysis, learnt, chosen, True)
        assert done and error(analysis, pruned) < error(analysis, pruned_of(analysis, chosen))
        kinds = {v.dtype.numpy() for v in pruned.graph.initializers.values() if v.dtype is not None}
        assert kinds == {np.dtype(dtype)}


def test_the_same_samples_give_the_same_bytes_and_threads_the_same_to_rounding() -> None:
    results = []
    for threads in (1, 1, 2):
        looking = graphprune.Looking(runtime=graphprune.Runtime(threads=threads))
        analysis = graphprune.analyse(layered.conv().model(), looking)
        learnt = learn(analysis, samples_of(analysis, 60))
        results.append(mended(analysis, learnt, keeping(analysis), True, threads=threads)[0])
    one, again, other = results
    assert weights(one) == weights(again)
    (feed,) = samples_of(analysis, 20, 5).open()
    assert relative_error(evaluate(one, feed), evaluate(other, feed))[0] < 1e-3


def test_the_dense_model_and_the_statistics_are_not_touched() -> None:
    analysis, learnt = known(layered.conv())
    before = weights(analysis.model)
    key = learnt.consumers.found[0].key
    sums = learnt.stats.fit[key].second.copy()
    for sequential in (False, True):
        mended(analysis, learnt, keeping(analysis), sequential)
    assert weights(analysis.model) == before and np.array_equal(learnt.stats.fit[key].second, sums)


def test_layers_that_lost_nothing_are_not_repaired_by_themselves() -> None:
    analysis, learnt = known(layered.deep(), 60)
    group = analysis.coupling.groups[-1]
    _, done = mended(analysis, learnt, {group.dim: np.arange(group.size // 2)}, False)
    assert len(done) == 1
