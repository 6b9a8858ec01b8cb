"""Heads that are turned: the same function, directions in order, plans that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blocks
import numpy as np
import onnx
import pytest
from building import Builder
from layered import samples_of
from onnx import numpy_helper

import graphprune
from graphprune.errors import PlanError
from graphprune.execute import evaluate
from graphprune.plan import PruningPlan
from graphprune.rewrite import rearranged
from graphprune.transform.between import pairs
from graphprune.turning import turning

HEADS, WIDTH = 3, 8


def attention(kind: str) -> onnx.ModelProto:
    b = Builder(seed=1)
    x = b.input(7, 24)
    made = {
        "plain": lambda: blocks.attention(b, x, HEADS, WIDTH),
        "rotary": lambda: blocks.attention(b, x, HEADS, WIDTH, "half"),
        "split": lambda: blocks.split_attention(b, x, HEADS, WIDTH),
        "shared": lambda: blocks.grouped_attention(b, x, 2 * HEADS, HEADS, WIDTH, ""),
        "fused": lambda: blocks.fused_attention(b, x, HEADS, WIDTH),
        "mlp": lambda: blocks.mlp(b, x, 32),
    }[kind]()
    b.output(made)
    return b.model()


def bottlenecks(kind: str) -> onnx.ModelProto:
    """Return two inverted residuals around 8 channels: linear, read by kernels of 3 x 3, or behind what is not."""
    b = Builder(seed=3)
    x = b.op("Relu", b.conv(b.input(3, 10, 10), 12))
    x = b.conv(x, 8, 1)
    if kind == "rectified":
        x = b.op("Relu", x)
    x = blocks.inverted(b, blocks.inverted(b, x, 24), 24)
    if kind == "pooled":
        x = b.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    if kind == "largest":
        x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Relu", b.conv(x, 20))
    b.output(b.linear(b.op("Flatten", b.op("GlobalAveragePool", x)), 5))
    return b.model()


def thin(proto: onnx.ModelProto, rank: int = 3) -> onnx.ModelProto:
    """Return bottlenecks whose 8 channels are mixed of so few, by one random matrix."""
    mixed = np.random.default_rng(5).standard_normal((8, rank))
    made = {i for n in proto.graph.node if n.op_type == "Conv" for i in n.input[1:]}
    for tensor in proto.graph.initializer:
        if tensor.name in made and tensor.dims[0] == len(mixed):
            array = np.tensordot(mixed, numpy_helper.to_array(tensor)[:rank], 1).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def flat(proto: onnx.ModelProto, rank: int = 3) -> onnx.ModelProto:
    """Return a model whose queries and keys meet in so few directions of each head, mixed by random matrices."""
    rng = np.random.default_rng(5)
    first = sorted((t for t in proto.graph.initializer if list(t.dims) == [24, 24]), key=lambda t: t.name)[:2]
    for tensor in first:
        array = numpy_helper.to_array(tensor).astype(np.float64).reshape(24, HEADS, WIDTH)
        array = array[..., :rank] @ rng.standard_normal((rank, WIDTH))
        tensor.CopyFrom(numpy_helper.from_array(array.reshape(24, 24).astype(np.float32), tensor.name))
    return proto


def width_of(analysis: graphprune.Analysis) -> Any:
    """Return the group that is the width of queries and keys."""
    (found,) = [p for p in pairs(analysis.coupling) if p.met]
    return analysis.coupling.group(found.group)


@pytest.mark.parametrize(
    ("kind", "count"), [("plain", 2), ("rotary", 1), ("split", 2), ("shared", 2), ("fused", 1), ("mlp", 0)]
)
def test_turned_heads_compute_the_same(kind: str, count: int) -> None:
    analysis = graphprune.analyse(attention(kind))
    for samples in (samples_of(analysis), None):
        done = turning(analysis, samples)
        assert len(done.turned) == count and (done is analysis) == (count == 0)
        (feed,) = samples_of(analysis, 5, 3).open()
        (before,), (after,) = (evaluate(m, feed).values() for m in (analysis.model, done.model))
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4 * np.abs(before).max())
        for name in {p.first[0].weight for p in pairs(analysis.coupling) if p.group in done.turned}:
            was, now = (a.coupling.graph.weights[name].read() for a in (analysis, done))
            assert np.abs(was - now).max() > 0.1 * np.abs(was).max()


@pytest.mark.parametrize(("kind", "count"), [("", 1), ("pooled", 1), ("largest", 0), ("rectified", 0)])
def test_linear_bottlenecks_are_turned(kind: str, count: int) -> None:
    analysis = graphprune.analyse(bottlenecks(kind))
    found = pairs(analysis.coupling)
    assert [(len(p.first), len(p.second), len(p.heads)) for p in found] == [(3, 3, 1)] * count
    (feed,) = samples_of(analysis, 5, 3).open()
    for samples in (samples_of(analysis), None):
        done = turning(analysis, samples)
        assert done.turned == tuple(p.group for p in found)
        (before,), (after,) = (evaluate(m, feed).values() for m in (analysis.model, done.model))
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_bottlenecks_keep_the_directions_that_are_used() -> None:
    model = thin(bottlenecks(""))
    analysis = graphprune.analyse(model)
    (feed,) = samples_of(analysis, 60).open()
    (pair,) = pairs(analysis.coupling)
    options: dict[str, Any] = {"calibration": dict(feed), "time": False, "align": 1, "threads": 1}
    results = [graphprune.prune(model, 0.625, include=pair.group, turn=turn, **options) for turn in (True, False)]
    assert [len(r.plan.keep[pair.group]) for r in results] == [3, 3]
    lost = [r.report["divergence"]["before"][0]["relative"] for r in results]
    assert lost[0] < 1e-4 < 1e-1 < lost[1]  # before any repair: the others carry nothing


@pytest.mark.parametrize("given", [True, False])
def test_directions_that_do_nothing_come_last(given: bool) -> None:
    analysis = graphprune.analyse(flat(attention("plain")))
    done = turning(analysis, samples_of(analysis) if given else None)
    (feed,) = samples_of(analysis, 5, 3).open()
    (before,) = evaluate(analysis.model, feed).values()
    lost = []
    for one in (analysis, done):
        chosen = {width_of(one).dim: np.arange(3)}
        (after,) = evaluate(rearranged(one.model, one.coupling, chosen), feed).values()
        lost.append(float(np.abs(before - after).max() / np.abs(before).max()))
    assert lost[0] > 1e-2 and lost[1] < 1e-4


def test_prune_turns_heads_where_data_are_given_and_a_plan_says_so(tmp_path: Path) -> None:
    model = flat(attention("plain"))
    analysis = graphprune.analyse(model)
    (feed,) = samples_of(analysis, 60).open()
    options: dict[str, Any] = {"calibration": dict(feed), "time": False, "align": 1, "threads": 1}
    width = width_of(analysis).name
    result = graphprune.prune(model, 0.625, include=width, **options)
    assert result.plan.turned == (width,) and len(pairs(analysis.coupling)) > 1  # others are left alone
    assert len(result.plan.keep[width]) == 3
    result.plan.save(tmp_path / "plan.json")
    again = graphprune.prune(model, plan=tmp_path / "plan.json", **options)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    plain = graphprune.prune(model, 0.625, include=width, turn=False, **options)
    assert plain.plan.turned == () and "turned" not in plain.plan.meta
    lost = [r.report["divergence"]["after"][0]["relative"] for r in (result, plain)]
    assert lost[0] < 1e-3 < 1e-2 < lost[1]
    without = graphprune.prune(model, plan=result.plan, time=False, repair="none")  # no data: by weights alone
    (before,), (after,) = (evaluate(m, feed).values() for m in (analysis.model, without.ir_model))
    np.testing.assert_allclose(before, after, atol=1e-3 * np.abs(before).max())


def test_a_turned_plan_is_for_no_weights_of_the_file() -> None:
    plan = PruningPlan({}, {"a": (0, 1)}, {"a": 4}).turning(("a",))
    assert PruningPlan.from_json(plan.to_json()).turned == ("a",)
    with pytest.raises(PlanError, match="turn=False"):
        plan.straight()
    with pytest.raises(PlanError, match="turn=False"):
        PruningPlan({}, {}, {}).then(plan)
    with pytest.raises(PlanError, match="list of groups"):
        PruningPlan({}, {}, {}, {"turned": 3}).turned  # noqa: B018
    model = attention("mlp")
    with pytest.raises(PlanError, match="'a'"):
        graphprune.prune(model, plan=plan, time=False)
