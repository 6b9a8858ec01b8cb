"""CFSP: angles across residual blocks, the shares that they give groups, ranks within a group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import layered
import numpy as np
import pytest
from layered import fitted
from oracles import Net
from small import cnn, mlp, rand

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.calibrate import open_data
from graphprune.calibrate.knowledge import Knowledge, learn
from graphprune.calibrate.turns import angles, blocks, turns
from graphprune.errors import UsageError
from graphprune.score import score
from graphprune.score.cfsp import shares

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]
WIDTH, INNER = 6, 40


def stream(scales: tuple[float, ...] = (0.1, 1.0, 10.0)) -> Net:
    """Return residual blocks of two matrices each; the larger the scale, the more a block turns the stream."""
    net = Net()
    x = net.input("x", [None, 3, WIDTH])
    for k, scale in enumerate(scales):
        inner = net("Relu", net.matmul(x, WIDTH, INNER, name=f"up{k}"))
        x = net("Add", x, net("MatMul", inner, net.const((rand(INNER, WIDTH) * scale).astype("f"), name=f"down{k}")))
    return net.output(x)


def inputs(count: int = 60) -> Array:
    return RNG.standard_normal((count, 3, WIDTH)).astype(np.float32)


def known(net: Net, x: Array) -> tuple[Analysis, Knowledge]:
    analysis = analyse(net.model())
    found = learn(analysis, open_data({"x": x}, analysis.model))
    turned = turns(
        analysis.model, analysis.coupling, found.consumers.found, found.samples, batch=found.batch
    )
    return analysis, replace(found, turns=turned)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def test_angles_are_those_between_what_goes_in_and_what_comes_out() -> None:
    net, x = stream(), inputs(40)
    analysis, found = known(net, x)
    w = {t.name: np.asarray(t.const_value.numpy(), np.float64) for t in analysis.model.graph.initializers.values()}
    expected, before = [], x.reshape(-1, WIDTH).astype(np.float64)
    for k in range(3):
        after = before + relu(before @ w[f"up{k}"]) @ w[f"down{k}"]
        cosine = np.sum(before * after, 1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        expected.append(np.mean(np.arccos(cosine)) / np.pi)
        before = after
    assert len(found.turns) == 3  # what reads the stream itself is in no block
    np.testing.assert_allclose(list(found.turns.values()), expected, rtol=1e-4)
    assert expected[0] < expected[1] and expected[0] < 0.3


def test_angles_leave_out_rows_without_a_direction() -> None:
    before = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [np.inf, 0.0]])
    after = np.array([[-3.0, 0.0], [1.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
    assert angles(before, after).tolist() == [1.0, 0.0]


def test_nets_without_residual_blocks_have_none() -> None:
    for proto in (mlp(), cnn()):
        analysis = graphprune.analyse(proto)
        found = learn(analysis, layered.samples_of(analysis, 10))
        assert not blocks(analysis.coupling, found.consumers.found)
        assert "cfsp" in graphprune.prune(proto, 0.5, criterion="cfsp", prove=False, time=False).plan.meta["criterion"]


def test_gates_of_other_sizes_are_no_blocks() -> None:
    """What a squeeze-and-excite part multiplies with is smaller than what it multiplies."""
    net = Net()
    x = net.conv(net.input("x", [None, 3, 6, 6]), 3, 8, 3, name="a", pads=[1] * 4)
    gate = net("GlobalAveragePool", x)
    gate = net.conv(net("Relu", net.conv(gate, 8, 4, 1, name="b")), 4, 8, 1, name="c")
    net.output(net.conv(net("Mul", x, net("Sigmoid", gate)), 8, 2, 1, name="d"))
    analysis = graphprune.analyse(net.model())
    found = learn(analysis, layered.samples_of(analysis, 10))
    assert found.consumers.found and not blocks(analysis.coupling, found.consumers.found)


def test_convolutions_turn_along_channels() -> None:
    net = Net()
    x = net.conv(net.input("x", [None, 3, 6, 6]), 3, 5, 3, name="a", pads=[1] * 4)
    inner = net("Relu", net.conv(x, 5, 16, 3, name="b", pads=[1] * 4))
    net.output(net("Add", x, net.conv(inner, 16, 5, 3, name="c", pads=[1] * 4)))
    analysis = graphprune.analyse(net.model())
    found = learn(analysis, layered.samples_of(analysis, 10))
    (block,) = blocks(analysis.coupling, found.consumers.found).values()
    assert block.axis == 1


def test_a_global_threshold_gives_every_group_its_share() -> None:
    analysis, found = known(stream(), inputs())
    share = shares(found)
    middle = np.mean(list(found.turns.values()))
    wanted = [1 / (1 + np.exp(-13.1072 * (t - middle))) for t in found.turns.values()]
    assert sorted(share.values()) == pytest.approx(sorted(wanted))
    scores = score(analysis.coupling, "cfsp", known=found)
    assert scores.normalise == "none" and not scores.notes
    for threshold in (0.8, 1.5, 4.0):
        for group in analysis.coupling.groups:
            if group.dim in share:
                kept = int((scores.by_group[group.name] >= threshold).sum())
                assert kept == min(int(np.floor(share[group.dim] * INNER / threshold + 1e-9)), INNER)


def test_within_a_group_norms_of_what_is_read_decide() -> None:
    net, x = stream((1.0,)), inputs()
    analysis, found = known(net, x)
    w = {t.name: np.asarray(t.const_value.numpy()) for t in analysis.model.graph.initializers.values()}
    fit = fitted(x, found.batch)
    norms = np.linalg.norm(relu(fit.reshape(-1, WIDTH) @ w["up0"]), axis=0)
    (scores,) = (v for v in score(analysis.coupling, "cfsp", known=found).by_group.values() if len(v) == INNER)
    assert scores.argsort().tolist() == norms.argsort().tolist()


def test_plans_take_more_from_blocks_that_turn_less() -> None:
    plan = graphprune.prune(
        stream().model(), 0.5, criterion="cfsp", allocation="global", calibration={"x": inputs()}, align=1, prove=False,
        time=False,
    ).plan
    kept = {name: len(v) for name, v in plan.keep.items()}
    _, found = known(stream(), inputs())
    first, _, last = kept["up0:1"], kept["up1:1"], kept.get("up2:1", INNER)
    angle = list(found.turns.values())
    assert (first < last) == (angle[0] < angle[2]) and first < 0.5 * INNER


def test_equal_indices_get_equal_scores() -> None:
    proto = mlp()
    a, b = rand(8, 64), rand(64, 4)
    a[:, 7], b[7] = a[:, 3], b[3]
    for w, array in zip(proto.graph.initializer, (a, b), strict=True):
        w.raw_data = array.astype(np.float32).tobytes()
    analysis = analyse(proto)
    found = learn(analysis, open_data({"x": RNG.standard_normal((80, 8)).astype("f")}, analysis.model))
    made = score(analysis.coupling, "cfsp", known=found)
    (scores,) = made.by_group.values()
    assert scores[3] == scores[7] and len(set(scores)) == 63
    assert made.notes == ("no group lies in a residual block: all have the same share",)
    with pytest.raises(UsageError, match="comparable itself"):
        score(analysis.coupling, "cfsp", normalise="max", known=found)
