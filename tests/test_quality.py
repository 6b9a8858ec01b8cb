"""Divergence of outputs: what is summed up is what all rows at once would give, on held-back samples only."""

from __future__ import annotations

import json
from typing import Any

import layered
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layered import given
from oracles import Net

import graphprune
from graphprune import quality
from graphprune.calibrate import Samples
from graphprune.calibrate.knowledge import Knowledge, learn
from graphprune.quality import Divergence, measure, told_feeds
from graphprune.runtime import run

RNG = np.random.default_rng(0)
Array = Any


def knowing(feeds: dict[str, Array], batch: int = 1) -> Knowledge:
    """Return what `measure` needs, with statistics of a layer that says something was held back."""
    analysis = graphprune.analyse(layered.gemm().model())
    learnt = learn(analysis, layered.samples_of(analysis, 20))
    return Knowledge(given(feeds), learnt.consumers, learnt.stats, batch, 0)


def compared(dense: Array, pruned: Array, one: str = "Identity", batch: int = 1) -> Divergence:
    """Compare models that give these arrays, the second by taking a difference away that the first ignores."""
    net, other = Net(), Net()
    for n, ignored in ((net, True), (other, False)):
        shape = [None, *dense.shape[1:]]
        x, z = n.input("x", shape), n.input("z", shape)
        y = n(one, n("Where", n.const(np.array(ignored)), x, z))
        n.nodes.append(onnx.helper.make_node("Identity", [y], ["y"], name="last"))
        n.output("y")
    models = [ir.from_proto(n.model()) for n in (net, other)]
    feeds = {"x": dense.astype(np.float32), "z": pruned.astype(np.float32)}
    (found,) = measure(models[0], models[1], told_feeds(knowing(feeds, batch)))
    return found


def softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def kl_of(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum(axis=-1).mean())


@pytest.mark.parametrize("shape", [(40, 6), (40, 3, 6)])
@pytest.mark.parametrize("at_once", [4_000_000, 1])
def test_logits_are_compared_as_all_rows_at_once(
    shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "_AT_ONCE", at_once)
    a = RNG.standard_normal(shape)
    b = a + 0.3 * RNG.standard_normal(shape)
    found = compared(a, b)
    p, q = a[7::10].reshape(-1, 6), b[7::10].reshape(-1, 6)
    assert found.relative == pytest.approx(np.linalg.norm(p - q) / np.linalg.norm(p), rel=1e-4)
    cosines = (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
    assert found.cosine == pytest.approx(cosines.mean(), rel=1e-4)
    assert found.kl == pytest.approx(kl_of(softmax(p), softmax(q)), rel=1e-3)
    assert found.agree == pytest.approx((p.argmax(1) == q.argmax(1)).mean())


@pytest.mark.parametrize("shape", [(60, 6), (60, 3, 6), (60, 2, 3, 5)])
@pytest.mark.parametrize("kind", ["Identity", "Softmax"])
def test_each_sample_has_its_loss(shape: tuple[int, ...], kind: str) -> None:
    a = RNG.standard_normal(shape)
    b = a + RNG.uniform(0.1, 1, (60, *[1] * (len(shape) - 1))) * RNG.standard_normal(shape)
    found = compared(a, b, kind, batch=2)
    told = [k for k in range(60) if k // 2 % 10 == 7]
    p, q = ((softmax(z) if kind == "Softmax" else z)[told].astype(np.float64) for z in (a, b))
    likely = kind == "Softmax" or len(shape) < 4
    pairs = list(zip(*((softmax(z) if kind == "Identity" else z for z in (p, q)) if likely else (p, q)), strict=True))
    energy = float(np.square(p).mean())
    wanted = [kl_of(x, y) if likely else float(np.square(x - y).mean()) / energy for x, y in pairs]
    assert found.each.tolist() == pytest.approx(wanted, rel=1e-3) and found.each.mean() == pytest.approx(found.loss)
    assert "each" not in found.record()


def test_probabilities_are_taken_as_they_are() -> None:
    a = RNG.standard_normal((60, 5))
    b = a + RNG.standard_normal((60, 5))
    found = compared(a, b, "Softmax")
    assert found.kl == pytest.approx(kl_of(softmax(a[7::10]), softmax(b[7::10])), rel=1e-3)


def test_positive_rows_that_are_no_probabilities_have_no_kl() -> None:
    a = RNG.uniform(1, 2, (40, 5))
    found = compared(a, a * 1.1)
    assert found.kl is None and found.agree is None and found.relative == pytest.approx(0.1, rel=1e-3)
    assert found.cosine == pytest.approx(1, abs=1e-5) and not found.damaged


def test_one_number_for_each_sample_has_no_kl() -> None:
    found = compared(RNG.standard_normal((40, 1)), RNG.standard_normal((40, 1)))
    assert found.kl is None and found.relative > 0.5 and found.damaged


def test_the_same_model_does_not_diverge() -> None:
    a = RNG.standard_normal((40, 5))
    found = compared(a, a)
    assert (found.relative, found.agree) == (0, 1) and found.kl == pytest.approx(0, abs=1e-9) and not found.damaged
    nothing = compared(np.zeros((10, 5)), np.zeros((10, 5)))
    assert nothing.relative == 0 and nothing.cosine == 1


def test_lost_outputs_are_damaged() -> None:
    a = 3 * RNG.standard_normal((40, 5))
    assert compared(a, -a).damaged and compared(a, np.zeros_like(a)).damaged
    assert compared(np.abs(a) + 1, np.zeros_like(a)).damaged


def test_entries_that_are_not_finite_are_left_out() -> None:
    """Masked logits are minus infinity in both; what only the pruned model loses counts as lost."""
    a = RNG.standard_normal((40, 5))
    a[:, 2] = -np.inf
    same = compared(a, a)
    assert same.relative == 0 and same.kl == pytest.approx(0, abs=1e-6) and same.agree == 1
    finite = np.where(np.isfinite(a), a, 0.0)
    b = finite.copy()
    b[:, 0] = np.nan
    lost = compared(finite, b)
    assert 0 < lost.relative < 1
    for found in (same, lost):
        json.dumps(found.record(), allow_nan=False)


def test_only_batches_that_nothing_is_fitted_to_are_compared() -> None:
    a = RNG.standard_normal((40, 5))
    b = a + 1
    b[7::10] = a[7::10]
    assert compared(a, b).relative == 0
    assert compared(a, b, batch=4).relative > 0.1


def test_at_most_sixteen_batches_are_run_and_few_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    def counted(session: Any, feed: Any) -> Any:
        seen.append(len(feed["x"]))
        return run(session, feed)

    monkeypatch.setattr("graphprune.quality.run", counted)
    a = RNG.standard_normal((400, 5))
    compared(a, a)
    assert len(seen) == 2 * 16


def test_what_cannot_be_compared_is_left_out() -> None:
    """Integers, and outputs of other sizes."""
    net, other = Net(), Net()
    for n, width in ((net, 5), (other, 4)):
        x = n.input("x", [None, 6])
        names = {"y": n("Identity", x), "sized": n("Slice", x, n.ints(0), n.ints(width), n.ints(1)),
                 "best": n("ArgMax", x, axis=1)}
        for name, value in names.items():
            n.nodes.append(onnx.helper.make_node("Identity", [value], [name], name=f"last_{name}"))
        n.output("y", "sized").output("best", dtype=np.int64)
    models = [ir.from_proto(n.model()) for n in (net, other)]
    found = measure(models[0], models[1], told_feeds(knowing({"x": RNG.standard_normal((20, 6)).astype(np.float32)})))
    assert [d.output for d in found] == ["y"]


def test_sequences_are_compared_entry_by_entry() -> None:
    net = Net()
    x = net.input("x", [None, 6])
    net.nodes.append(onnx.helper.make_node("SequenceConstruct", [x, x], ["parts"], name="parts"))
    y = net("Identity", x)
    proto = net.output(y).model()
    kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(1, None))
    proto.graph.output.append(onnx.helper.make_value_info("parts", kind))
    model = ir.from_proto(proto)
    found = measure(model, model, told_feeds(knowing({"x": RNG.standard_normal((20, 6)).astype(np.float32)})))
    assert [(d.output, d.relative) for d in found] == [(y, 0), ("parts[0]", 0), ("parts[1]", 0)]


def test_all_samples_are_compared_where_none_is_held_back() -> None:
    analysis = graphprune.analyse(layered.gemm().model())
    learnt = learn(analysis, layered.samples_of(analysis, 1))
    assert not learnt.stats.check
    (found,) = measure(analysis.model, layered.pruned_of(analysis, layered.keeping(analysis)), told_feeds(learnt))
    assert found.relative > 0


def test_nothing_grows_with_the_samples() -> None:
    """Feeds are run as they come: the last one is never asked for once enough are compared."""
    asked: list[int] = []

    def opened() -> Any:
        for k in range(2000):
            asked.append(k)
            yield {"x": np.ones((1, 6), np.float32)}

    analysis = graphprune.analyse(layered.gemm().model())
    learnt = learn(analysis, layered.samples_of(analysis, 20))
    samples = Samples(opened, 2000, "noise", (), {"x": 0})
    measure(analysis.model, analysis.model, told_feeds(Knowledge(samples, learnt.consumers, learnt.stats, 1, 0)))
    assert len(asked) <= 16 * 10 + 2


def test_padding_does_not_count() -> None:
    """The pruned model is off only where the attention mask says that there is no token."""
    net, other = Net(), Net()
    for n, ignored in ((net, True), (other, False)):
        x, z = n.input("x", [None, 4, 6]), n.input("z", [None, 4, 6])
        n.input("attention_mask", [None, 4], np.int64)
        n.nodes.append(onnx.helper.make_node("Where", [n.const(np.array(ignored)), x, z], ["y"], name="last"))
        n.output("y")
    dense = RNG.standard_normal((40, 4, 6)).astype(np.float32)
    mask = np.tile(np.array([1, 1, 1, 0], np.int64), (40, 1))
    pruned = np.where(mask[..., None] > 0, dense, 100).astype(np.float32)
    feeds = {"x": dense, "z": pruned, "attention_mask": mask}
    models = [ir.from_proto(n.model()) for n in (net, other)]
    (found,) = measure(models[0], models[1], told_feeds(knowing(feeds)))
    assert found.relative == 0 and found.cosine == pytest.approx(1)
    (all_real,) = measure(models[0], models[1], told_feeds(knowing({**feeds, "attention_mask": np.ones_like(mask)})))
    assert all_real.relative > 1


def test_embeddings_and_maps_are_no_logits() -> None:
    a = RNG.standard_normal((40, 384))
    b = a + 0.3 * RNG.standard_normal(a.shape)
    assert compared(a / 10, b / 10).kl is None  # nearly even: nobody would classify by it
    assert compared(10 * a, 10 * b).kl is not None
    maps = 10 * RNG.standard_normal((40, 3, 5, 5))
    found = compared(maps, maps + 1)
    assert found.kl is None and found.agree is None and found.loss == found.relative**2


def test_loss_is_the_divergence_that_there_is() -> None:
    a = 3 * RNG.standard_normal((40, 6))
    found = compared(a, a + RNG.standard_normal(a.shape))
    assert found.kl is not None and found.loss == found.kl
