"""Ways to repair beside plain least squares: weights alone, matched deviations, followers, what passes a rectifier."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layered import KINDS, keeping, known, pruned_of, samples_of
from oracles import Net

from graphprune.analysis import Analysis
from graphprune.calibrate.statistics import Watched
from graphprune.execute import evaluate
from graphprune.followers import followers
from graphprune.reconstruct.beside import beside
from graphprune.reconstruct.folded import folded, mend_by_folding
from graphprune.reconstruct.mend import mend
from graphprune.reconstruct.paired import SideBySide
from graphprune.reconstruct.unseen import mend_by_weights, produced_by


def error(analysis: Analysis, pruned: ir.Model) -> float:
    (feed,) = samples_of(analysis, 200, 9).open()
    (before,), (after,) = evaluate(analysis.model, feed).values(), evaluate(pruned, feed).values()
    return float(np.linalg.norm(before.astype(np.float64) - after) / np.linalg.norm(before.astype(np.float64)))


def depthwise() -> Net:
    """A convolution, a depthwise one and one of 1 x 1, as in inverted residuals, twice."""
    net = Net()
    x = net("Relu", net.conv(net.input("x", [None, 3, 8, 8]), 3, 12, 1, name="a"))
    for name in "bc":
        x = net("Relu", net.conv(x, 12, 12, 3, name=f"{name}d", pads=[1] * 4, group=12))
        x = net("Relu", net.conv(x, 12, 12, 1, name=f"{name}p"))
    return net.output(net("ReduceMean", net.conv(x, 12, 4, 1, name="e"), axes=[2, 3], keepdims=0))


def combined() -> Net:
    """Two matrix products without anything between, the second half of the channels made of the first half."""
    net = Net()
    net.output(net.gemm(net.gemm(net.input("x", [None, 6]), 6, 12, name="a"), 12, 5, name="b"))
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((6, 6)).astype(np.float32)
    for tensor in net.initializers:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if 12 in array.shape and array.shape != (12, 5) and array.shape != (5, 12):
            array = np.moveaxis(array, array.shape.index(12), 0)
            shape = array.shape
            array = array.reshape(12, -1)
            array[6:] = mix @ array[:6]
            array = np.moveaxis(array.reshape(shape), 0, list(onnx.numpy_helper.to_array(tensor).shape).index(12))
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return net


def test_weights_alone_make_up_for_combinations() -> None:
    analysis, _ = known(combined(), 10)
    (group,) = [g for g in analysis.coupling.groups if g.size == 12]
    chosen = {group.dim: np.arange(6)}
    pruned = pruned_of(analysis, chosen)
    plain = error(analysis, pruned)
    (done,) = mend_by_weights(pruned, analysis.coupling, chosen)
    assert plain > 0.3 and error(analysis, pruned) < 0.1
    assert done.before > 0.1 and done.after < 0.02 * done.before


@pytest.mark.parametrize("kind", ["conv", "gemm", "joined", "flat", "grouped"])
def test_channels_that_are_alike_stand_in_for_each_other(kind: str) -> None:
    net = KINDS[kind]()
    for tensor in net.initializers:
        if tensor.name.split(".")[0] in ("a", "c"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[1::2] = array[::2]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    analysis, _ = known(net, 10)
    chosen = {
        g.dim: np.arange(g.size // 2) * 2
        for g in analysis.coupling.groups if any(o.initializer in ("a", "c") for o in g.occurrences) and g.size > 2
    }
    pruned = pruned_of(analysis, chosen)
    plain = error(analysis, pruned)
    assert mend_by_weights(pruned, analysis.coupling, chosen)
    assert error(analysis, pruned) < 0.1 * plain
    pruned = pruned_of(analysis, chosen)
    assert len(mend_by_folding(pruned, analysis.coupling, chosen)) == len(chosen)
    assert error(analysis, pruned) < 1e-4  # twins become one exactly


def test_folding_gives_back_the_variance_that_averaging_takes() -> None:
    net = Net()
    net.output(net.gemm(net.gemm(net.input("x", [None, 64]), 64, 32, name="a"), 32, 5, name="b"))
    analysis, _ = known(net, 10)
    (group,) = [g for g in analysis.coupling.groups if g.size == 32]
    kept = np.arange(8)
    pruned = pruned_of(analysis, {group.dim: kept})
    (done,) = mend_by_folding(pruned, analysis.coupling, {group.dim: kept})
    rows = produced_by(analysis.coupling, group)
    assert rows is not None
    clusters = folded(rows, kept)
    made = clusters.mean(rows) * clusters.gains(rows)[:, None]
    members = clusters.mean(np.sum(rows**2, axis=1))
    assert (np.bincount(clusters.labels) > 1).any()
    found, most = clusters.gains(rows), np.sqrt(np.bincount(clusters.labels))
    inside = found < most - 1e-9  # members that were more different than unrelated ones keep the least they can
    assert inside.sum() >= 4 and (found >= 1).all() and (found <= most + 1e-9).all()
    np.testing.assert_allclose(np.sum(made**2, axis=1)[inside], members[inside], rtol=1e-6)
    assert done.after < done.before


def test_groups_that_are_normalised_on_the_way_are_left_alone() -> None:
    net = Net()
    y = net.gemm(net.input("x", [None, 6]), 6, 12, name="a")
    y = net("LayerNormalization", y, net.const(np.ones(12), name="s"), net.const(np.zeros(12), name="t"))
    net.output(net.gemm(y, 12, 5, name="b"))
    analysis, _ = known(net, 10)
    assert analysis.coupling.groups and all(produced_by(analysis.coupling, g) is None for g in analysis.coupling.groups)


def test_layers_that_lost_nothing_make_up_for_what_changed_before_them() -> None:
    analysis, learnt = known(depthwise(), 400)
    found = {c.node for c in followers(analysis.coupling, learnt.consumers)}
    chosen = keeping(analysis, 0.6)
    errors = {}
    for stages in (99, 3):
        pruned = pruned_of(analysis, chosen)
        done = mend(analysis.model, pruned, analysis.coupling, chosen, learnt, corrections=stages)
        errors[stages] = error(analysis, pruned), len({x.node for x in done} & found)
    assert errors[99][1] == 1 and errors[3][1] == 0  # nothing has changed before the first one
    assert errors[99][0] < errors[3][0]


def test_matched_outputs_have_more_of_the_deviation() -> None:
    analysis, learnt = known(depthwise(), 400)
    chosen = keeping(analysis, 0.5)
    last = next(c for c in learnt.consumers.found if c.node.startswith("n") and c.output)
    (feed,) = samples_of(analysis, 200, 9).open()
    wanted = Watched(analysis.model, [last.output])(feed)[last.output].std()
    deviations = {}
    for mode in ("sequential", "matched"):
        pruned = pruned_of(analysis, chosen)
        mend(analysis.model, pruned, analysis.coupling, chosen, learnt, mode=mode, corrections=99)  # type: ignore[arg-type]
        deviations[mode] = Watched(pruned, [last.output])(feed)[last.output].std()
    assert deviations["sequential"] < deviations["matched"] < 1.05 * wanted


def test_fitting_to_what_passes_the_rectifier_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    x = net("Relu", net.gemm(net.input("x", [None, 20]), 20, 32, name="a"))
    net.output(net("Relu", net.gemm(x, 32, 8, name="b")))
    analysis, learnt = known(net, 2000)
    chosen = keeping(analysis, 0.7)
    errors, runs = {}, {}
    pairs, seen = SideBySide.pairs, list[int]()
    monkeypatch.setattr(SideBySide, "pairs", lambda *a: (seen.append(0), pairs(*a))[1])
    for rounds in (0, 3):
        pruned = pruned_of(analysis, chosen)
        seen.clear()
        mend(analysis.model, pruned, analysis.coupling, chosen, learnt, corrections=99, rounds=rounds)
        errors[rounds], runs[rounds] = error(analysis, pruned), len(seen)
    assert errors[3] < errors[0] and runs[3] == 4 * runs[0], errors


def summed() -> Net:
    """Two layers of the same input, added up; before the first of them a narrow one, which can be pruned."""
    net = Net()
    x = net.input("x", [None, 12])
    past = net.gemm(net("Tanh", net.gemm(x, 12, 16, name="a")), 16, 6, name="b")
    layer = net("Add", net.matmul(net.gemm(x, 12, 8, name="c"), 8, 6, name="d"), net.const(np.ones(6, np.float32)))
    return net.output(net("Relu", net("Add", layer, past)))


def test_a_layer_makes_up_for_what_goes_past_it() -> None:
    analysis, told = known(summed(), 400)
    made = {op.type: op.y().name for op in analysis.coupling.graph.ops}
    found = beside(analysis.coupling, made["MatMul"])
    assert found is not None and analysis.coupling.graph.ops[-2].name == found.join
    assert beside(analysis.coupling, made["Relu"]) is None and beside(analysis.coupling, made["Tanh"]) is None
    (group,) = [g for g in analysis.coupling.groups if g.size == 16]
    chosen, lost = {group.dim: np.arange(4)}, {}
    for mode in ("symmetric", "sequential"):
        pruned = pruned_of(analysis, chosen)
        mend(analysis.model, pruned, analysis.coupling, chosen, told, mode=mode)
        lost[mode] = error(analysis, pruned)
    assert lost["sequential"] < 0.8 * lost["symmetric"]  # what tanh lost is partly linear in x
