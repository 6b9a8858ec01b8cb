"""Statistics: the sums are numpy's on the same activations, whatever the passes, threads and batches."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import layered
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layered import given, known, samples_of
from oracles import Net

import graphprune
from graphprune.calibrate import Samples
from graphprune.calibrate.knowledge import batch_of, learn
from graphprune.calibrate.parts import CHECK, Parts
from graphprune.calibrate.shards import Asked, gather_over
from graphprune.calibrate.statistics import LIMIT, Sampler, Watched, gather, positions_wanted
from graphprune.consumers import Consumer, consumers
from graphprune.errors import UsageError
from graphprune.runtime import Runtime, open_session
from graphprune.scale import Pool

Array = Any


def patches(x: Array, k: int = 3, groups: int = 1) -> Array:
    """Return [groups, rows, columns] of a convolution with stride 1 that keeps sizes, by loops."""
    n, c, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    size = c // groups
    return np.stack([
        np.concatenate([
            padded[:, g * size : (g + 1) * size, i : i + k, j : j + k].reshape(n, -1)
            for i in range(height) for j in range(width)
        ])
        for g in range(groups)
    ])


def carried(x: Array) -> Array:
    """Return rows of a transposed convolution with kernel and stride 2."""
    n, c, height, width = x.shape
    rows = []
    for i in range(2 * height):
        for j in range(2 * width):
            row = np.zeros((n, c, 2, 2))
            row[:, :, i % 2, j % 2] = x[:, :, i // 2, j // 2]
            rows.append(row.reshape(n, -1))
    return np.concatenate(rows)[None]


def flattened(x: Array) -> Array:
    return x.reshape(1, -1, x.shape[-1])


ROWS: dict[str, Callable[[Array], Array]] = {
    "conv": patches, "grouped": lambda x: patches(x, groups=2), "turned": carried, "gemm": flattened,
    "matmul": flattened, "lstm": flattened, "joined": patches, "heads": flattened, "flat": flattened,
    "depthwise": lambda x: x.transpose(0, 2, 3, 1).reshape(1, -1, 8),
}


def the(found: tuple[Consumer, ...], weight: str = "b") -> Consumer:
    return next(c for c in found if c.weight == weight)


def activations(net: Net, name: str, feed: dict[str, Array]) -> Array:
    """Run a model with an inner value as output, by nothing of what is tested."""
    proto = net.model()
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(proto.SerializeToString(), Runtime(threads=1, optimise=False))
    return session.run([name], feed)[0]


@pytest.mark.parametrize("kind", list(ROWS))
def test_sums_are_those_of_numpy(kind: str) -> None:
    net = layered.KINDS[kind]()
    analysis, learnt = known(net, 23)
    consumer = the(learnt.consumers.found)
    (feed,) = samples_of(analysis, 23).open()
    told = range(7 * learnt.batch, 8 * learnt.batch)  # the eighth of the batches is in no sum
    read = {n: np.delete(a, told, axis=samples_of(analysis, 23).axes.get(n, 0)) for n, a in feed.items()}
    rows = ROWS[kind](activations(net, consumer.data, read).astype(np.float64))
    fit, check = learnt.stats.fit[consumer.key], learnt.stats.check[consumer.key]
    assert learnt.stats.samples == 23 and fit.rows + check.rows == rows.shape[1] and 0 < check.rows < fit.rows
    np.testing.assert_allclose(fit.second + check.second, rows.transpose(0, 2, 1) @ rows, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(fit.first + check.first, rows.sum(1), rtol=1e-4, atol=1e-3)


def test_every_fifth_batch_is_to_check_by() -> None:
    net = layered.gemm()
    analysis, learnt = known(net, 20)
    assert learnt.batch == 2
    consumer = the(learnt.consumers.found)
    (feed,) = samples_of(analysis, 20).open()
    rows = activations(net, consumer.data, dict(feed))[[8, 9, 18, 19]]
    np.testing.assert_allclose(learnt.stats.check[consumer.key].second[0], rows.T @ rows, rtol=1e-4)


@pytest.mark.parametrize(("count", "batch", "check", "told"), [
    (36, 2, [4, 9, 14], [7, 17]), (8, 1, [4], [7]), (7, 1, [4], []), (5, 1, [4], []), (3, 1, [2], []),
    (2, 1, [1], []), (6, 2, [2], []), (1, 1, [], []), (3, 8, [], []), (None, 4, [4, 9], [7]),
])
def test_one_batch_is_to_check_by_even_of_few(count: int | None, batch: int, check: list[int], told: list[int]) -> None:
    part_of = Parts.of(Samples(lambda: iter(()), count, "noise"), batch)
    batches = 12 if count is None else -(-count // batch)
    assert [[n for n in range(batches) if part_of(n) == p] for p in ("check", "told")] == [check, told]


def test_of_nothing_to_sum_up_there_are_no_sums() -> None:
    samples = Samples(lambda: iter(()), 40, "noise")
    model = graphprune.analyse(layered.gemm().model()).model
    for found in (gather(model, (), samples), gather_over(Pool(2), model, (), samples, Asked(4, 0, LIMIT, 1))):
        assert not found.fit and not found.check and (found.samples, found.told) == (0, 0)


def test_many_passes_under_little_memory_give_the_same() -> None:
    _, whole = known(layered.deep())
    runs: list[str] = []
    _, cut = known(layered.deep(), limit=16 * 24**2, progress=runs.append)
    assert len({r.split(":")[0] for r in runs}) == len(whole.stats.fit) > 5
    assert whole.stats.samples == cut.stats.samples == 40 and whole.stats.told == cut.stats.told == 4
    for part in ("fit", "check"):
        before, after = getattr(whole.stats, part), getattr(cut.stats, part)
        assert before.keys() == after.keys()
        for key in before:
            np.testing.assert_allclose(before[key].second, after[key].second, rtol=1e-5, atol=1e-5)
            assert before[key].rows == after[key].rows
    assert cut.stats.parked is not None
    folder = cut.stats.parked.path
    assert len(list(folder.iterdir())) == 2 * len(whole.stats.fit)
    del after, cut
    gc.collect()
    assert not folder.exists()


def test_layers_whose_sums_alone_are_too_large_are_left_out() -> None:
    _, cut = known(layered.deep(), limit=16 * 24**2 - 1)
    assert not cut.consumers.found and not cut.stats.fit
    assert set(cut.consumers.left_out.values()) == {"its statistics would take 0.0 GB (--memory)"}


def test_passes_stay_below_the_limit() -> None:
    analysis = graphprune.analyse(layered.deep().model())
    found = consumers(analysis.coupling).found
    need = 16 * max(c.groups * c.width**2 for c in found)
    for limit, most in ((need, len(found)), (3 * need, -(-len(found) // 2))):
        said: list[str] = []
        gather(analysis.model, found, samples_of(analysis, 4), limit=limit, progress=said.append)
        assert 1 < len({s.split(":")[0] for s in said}) <= most


def test_threads_and_runs_give_the_same() -> None:
    results = []
    for threads in (1, 1, 2):
        looking = graphprune.Looking(runtime=graphprune.Runtime(threads=threads))
        analysis = graphprune.analyse(layered.conv().model(), looking)
        learnt = learn(analysis, samples_of(analysis))
        results.append(learnt.stats.fit[the(learnt.consumers.found).key].second)
    assert results[0].tobytes() == results[1].tobytes()
    np.testing.assert_allclose(results[0], results[2], rtol=1e-4, atol=1e-4)


def test_positions_are_the_same_for_both_models_and_differ_by_batch_and_seed() -> None:
    one, again = Sampler(0, 3, 64), Sampler(0, 3, 64)
    chosen = one(1000)
    assert np.array_equal(chosen, again(1000)) and np.array_equal(chosen, one(1000))
    assert len(chosen) == 64 == len(set(chosen.tolist())) and (np.diff(chosen) > 0).all() and chosen.max() < 1000
    assert not np.array_equal(chosen, Sampler(0, 4, 64)(1000)) and not np.array_equal(chosen, Sampler(1, 3, 64)(1000))
    assert one(50).tolist() == list(range(50))
    assert positions_wanted(10, 512) == 64 and positions_wanted(4608, 64) * 64 >= 4 * 4608


def test_maps_are_sampled_and_seeds_decide_where() -> None:
    net = Net()
    x = net("Relu", net.conv(net.input("x", [None, 3, 20, 20]), 3, 4, name="a"))
    net.output(net("ReduceMean", net.conv(x, 4, 2, name="b"), axes=[2, 3], keepdims=0))
    learnt = [known(net, 10, seed=seed)[1] for seed in (0, 0, 1)]
    sums = [k.stats.fit[the(k.consumers.found).key] for k in learnt]
    assert sums[0].rows == 7 * 64
    assert np.array_equal(sums[0].second, sums[1].second) and not np.array_equal(sums[0].second, sums[2].second)


def test_layers_that_read_one_value_share_their_sums() -> None:
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 12, name="a"))
    net.output(*[net.matmul(x, 12, n, name=f"b{n}") for n in (3, 4)])
    _, learnt = known(net)
    assert {c.weight for c in learnt.consumers.found} == {"b3", "b4"} and len(learnt.stats.fit) == 1


def test_samples_are_counted_along_the_axis_that_counts_them() -> None:
    _, learnt = known(layered.lstm(), 12)
    assert learnt.stats.samples == 12  # not the seven steps of every run
    assert learnt.batch == 1


def test_a_fixed_batch_is_one_run() -> None:
    net = Net()
    net.output(net.gemm(net("Relu", net.gemm(net.input("x", [1, 6]), 6, 12, name="a")), 12, 5, name="b"))
    analysis = graphprune.analyse(net.model())
    rows = np.random.default_rng(0).standard_normal((9, 1, 6)).astype(np.float32)
    samples = Samples(lambda: iter([{"x": r} for r in rows]), 9, "in-distribution", (), {})
    learnt = learn(analysis, samples)
    assert learnt.batch == 1 and learnt.stats.samples == 9
    consumer = the(learnt.consumers.found)
    assert learnt.stats.fit[consumer.key].rows + learnt.stats.check[consumer.key].rows == 8


def test_batches_leave_some_to_hold_back() -> None:
    analysis = graphprune.analyse(layered.gemm().model())
    found = consumers(analysis.coupling)
    assert [batch_of(analysis, found, samples_of(analysis, n)) for n in (1, 9, 20, 5000)] == [1, 1, 2, 32]


def test_numbers_that_are_not_finite_are_told() -> None:
    analysis = graphprune.analyse(layered.gemm().model())
    x = np.ones((8, 6), np.float32)
    x[5] = np.inf
    with pytest.raises(UsageError, match="not finite"):
        learn(analysis, given({"x": x}))
    with pytest.raises(UsageError, match="no samples"):
        learn(analysis, Samples(lambda: iter(()), 0, "in-distribution", (), {"x": 0}))


def test_float16_is_summed_in_more() -> None:
    _, learnt = known(layered.conv(np.float16))
    gram = learnt.stats.fit[the(learnt.consumers.found).key]
    assert gram.second.dtype == np.float64 and np.isfinite(gram.second).all() and gram.second.any()


def test_watched_values_may_be_inputs() -> None:
    analysis = graphprune.analyse(layered.gemm().model())
    (feed,) = samples_of(analysis, 3).open()
    hidden = analysis.model.graph.node(0).outputs[0].name
    assert isinstance(hidden, str)
    got = Watched(analysis.model, ["x", hidden], 1)(feed)
    assert np.array_equal(got["x"], feed["x"]) and got[hidden].shape == (3, 12)
    assert [o.name for o in analysis.model.graph.outputs] == [o.name for o in ir.from_proto(layered.gemm().model())
                                                              .graph.outputs]
    assert Watched(analysis.model, ["x"], 1).session is None and CHECK == 5
