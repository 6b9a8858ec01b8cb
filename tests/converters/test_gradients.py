"""Criteria from gradients: against autograd on the same network written by hand, and what must hold for all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from small import (  # noqa: E402
    FAST,
    FLOAT,
    array_of,
    cli,
    cnn,
    mlp,
    mlp_nodes,
    model,
    put,
    rand,
    record,
    refused,
    tensor,
)

from graphprune.analysis import analyse  # noqa: E402
from graphprune.calibrate.labelled import LABELS, inputs_of  # noqa: E402
from graphprune.calibrate.samples import Samples  # noqa: E402
from graphprune.converters.gradients import Asked, gradients  # noqa: E402
from graphprune.errors import UsageError  # noqa: E402
from graphprune.score import GRADIENT_CRITERIA, score  # noqa: E402

RNG = np.random.default_rng(3)
X = RNG.standard_normal((32, 3, 8, 8)).astype(np.float32)
Y = RNG.integers(0, 5, 32)
W = ("w1", "b1", "w2", "b2", "w3", "b3")
WITH_DATA = sorted(name for name, c in GRADIENT_CRITERIA.items() if c.data)


def scored(proto: onnx.ModelProto, criterion: str, labels: bool = True, batch: int = 8) -> dict[str, np.ndarray]:
    """Return the scores of all groups, summed up over weights and not normalised."""
    analysis = analyse(proto)
    feed = {"x": X, LABELS: Y} if labels else {"x": X}
    samples = Samples(lambda: iter([feed]), len(X), "in-distribution")
    ones = {"x": np.ones((1, 3, 8, 8), np.float32)}
    found = gradients(analysis.model, samples, Asked(GRADIENT_CRITERIA[criterion].needs, batch, labels), ones)
    return dict(score(analysis.coupling, criterion, "sum", "none", gradients=found).by_group)


def net(w: tuple[Any, ...], x: Any) -> Any:
    """Compute what small.cnn computes."""
    w1, b1, w2, b2, w3, b3 = w
    h = F.relu(F.conv2d(x, w1, b1, padding=1))
    h = F.relu(F.conv2d(h, w2, b2, padding=1)).mean((2, 3))
    return h @ w3.T + b3


def held(proto: onnx.ModelProto) -> tuple[Any, ...]:
    return tuple(torch.tensor(array_of(proto, n), dtype=torch.float64) for n in W)


def loss(w: tuple[Any, ...], rows: Any = slice(None), cool: float = 1.0) -> Any:
    return F.cross_entropy(net(w, torch.tensor(X[rows], dtype=torch.float64)) / cool, torch.tensor(Y[rows]))


def grad(w: tuple[Any, ...], rows: Any = slice(None), cool: float = 1.0) -> tuple[Any, ...]:
    return tuple(torch.autograd.functional.jacobian(lambda *v: loss(v, rows, cool), w))


def times(w: tuple[Any, ...], v: tuple[Any, ...], cool: float = 1.0) -> tuple[Any, ...]:
    return tuple(torch.autograd.functional.hvp(lambda *u: loss(u, slice(None), cool), w, v)[1])


def expected(
    saliency: tuple[Any, ...], finish: Callable[[Any], Any] = lambda v: v
) -> dict[str, np.ndarray]:
    """Add element scores up by hand: the first group owns rows of w1 and columns of w2, the second w2's and w3's."""
    _, _, s2, _, s3, _ = saliency
    first = finish(saliency[0].sum((1, 2, 3))) + finish(s2.sum((0, 2, 3)))
    return {"w1:0": first.numpy(), "w2:0": (finish(s2.sum((1, 2, 3))) + finish(s3.sum(0))).numpy()}


def by_hand(criterion: str, w: tuple[Any, ...]) -> dict[str, np.ndarray]:
    g = grad(w)
    product = [a * b for a, b in zip(w, g, strict=True)]
    if criterion == "snip":
        return expected(tuple(p.abs() for p in product))
    if criterion == "group_taylor_vector":
        return expected(tuple(product), torch.abs)
    if criterion in ("fisher", "group_taylor"):
        each = [grad(w, slice(k, k + 1)) for k in range(len(X))]
        squares = [torch.stack([e[i] ** 2 for e in each]).mean(0) for i in range(6)]
        half = [a * a * s / 2 for a, s in zip(w, squares, strict=True)]
        mixed = [(p - h).abs() for p, h in zip(product, half, strict=True)]
        return expected(tuple(half if criterion == "fisher" else mixed))
    if criterion == "taylor":
        parts = [grad(w, slice(k, k + 2)) for k in range(0, len(X), 2)]
        found = [expected(tuple(a * b for a, b in zip(w, p, strict=True)), torch.square) for p in parts]
        return {name: np.mean([f[name] for f in found], axis=0) for name in found[0]}
    if criterion == "taylor2":
        curved = times(w, w)
        return expected(tuple(p - a * h / 2 for p, a, h in zip(product, w, curved, strict=True)), torch.square)
    if criterion == "crop":
        return expected(tuple((a * h).abs() for a, h in zip(w, times(w, g), strict=True)))
    if criterion == "nirvana":
        f = torch.autograd.functional.jacobian(lambda *v: net(v, torch.tensor(X, dtype=torch.float64)).mean(), w)
        return expected(tuple((a * b).abs() for a, b in zip(w, f, strict=True)))
    cooled = times(w, grad(w, cool=200.0), 200.0)
    raw = expected(tuple(a * h for a, h in zip(w, cooled, strict=True)))
    return raw


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_scores_are_those_of_a_computation_by_hand(criterion: str) -> None:
    proto = cnn()
    got, want = scored(proto, criterion), by_hand(criterion, held(proto))
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-3, atol=2e-4 * np.abs(want[name]).max())


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_the_batch_does_not_matter(batch: int) -> None:
    for criterion in ("snip", "crop", "fisher"):
        one, other = scored(cnn(), criterion), scored(cnn(), criterion, batch=batch)
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5 * np.abs(one[name]).max())


def test_nirvana_takes_every_logit_where_it_is_largest_along_positions() -> None:
    rows, w1, w2 = RNG.standard_normal((6, 5, 8)), rand(8, 64).astype(np.float64), rand(64, 4).astype(np.float64)
    arrays = [tensor("w1", w1.astype(np.float32)), tensor("w2", w2.astype(np.float32))]
    proto = model(mlp_nodes(), arrays, [("x", FLOAT, ["n", 5, 8])], [("y", FLOAT, ["n", 5, 4])])
    hidden = np.maximum(rows @ w1, 0)
    best = (hidden @ w2).argmax(1)  # [samples, logits]
    by1, by2 = np.zeros_like(w1), np.zeros_like(w2)
    for n in range(6):
        for k in range(4):
            x, h = rows[n, best[n, k]], hidden[n, best[n, k]]
            by2[:, k] += h / 24
            by1 += np.outer(x, (h > 0) * w2[:, k]) / 24
    want = np.abs(w1 * by1).sum(0) + np.abs(w2 * by2).sum(1)
    analysis = analyse(proto)
    samples = Samples(lambda: iter([{"x": rows.astype(np.float32)}]), 6, "in-distribution")
    found = gradients(analysis.model, samples, Asked(GRADIENT_CRITERIA["nirvana"].needs, 4))
    (got,) = score(analysis.coupling, "nirvana", "sum", "none", gradients=found).by_group.values()
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7)


def test_grasp_keeps_what_the_flow_of_gradients_needs() -> None:
    """Its score is the first-order fall of |g|^2 / 2, in place of the sum by differences along the weights."""
    proto = cnn()
    w = held(proto)
    got = scored(proto, "grasp")["w1:0"]

    def flow(by: float, channel: int) -> float:
        scale = torch.ones(32, dtype=torch.float64)
        scale[channel] = 1 - by
        moved = (w[0] * scale[:, None, None, None], *w[1:])
        return float(sum((g**2).sum() for g in grad(moved, cool=200.0))) / 2

    def flow2(by: float, channel: int) -> float:
        scale = torch.ones(32, dtype=torch.float64)
        scale[channel] = 1 - by
        moved = (w[0], w[1], w[2] * scale[None, :, None, None], *w[3:])
        return float(sum((g**2).sum() for g in grad(moved, cool=200.0))) / 2

    for c in (0, 7):
        slope = sum((f(-1e-7, c) - f(1e-7, c)) / 2e-7 for f in (flow, flow2))
        np.testing.assert_allclose(got[c], slope, rtol=2e-2, atol=1e-3 * np.abs(got).max())
    assert (got < 0).any() and (got > 0).any()


def test_synflow_removes_what_flows_least_first() -> None:
    proto = cnn()
    w = tuple(v.abs().requires_grad_() for v in held(proto))
    net(w, torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    flow = expected(tuple((v * v.grad).detach() for v in w))
    got = scored(proto, "synflow", labels=False)
    everything = np.concatenate(list(got.values()))
    np.testing.assert_allclose(np.sort(everything), np.arange(1, 81) / 80)  # a strict order of all channels
    first = min(((v, name, i) for name, vector in flow.items() for i, v in enumerate(vector)))
    assert got[first[1]][first[2]] == 1 / 80


def test_synflow_looks_again_after_each_round() -> None:
    """Channels that only feed what has gone must go before those that feed what stays."""
    small, large = 0.1, 1.0
    up = np.full((4, 6), large, np.float32)
    middle = np.zeros((6, 2), np.float32)
    middle[:3, 0], middle[3:, 1] = 1.0, 0.9
    down = np.array([[small * 0.1] * 3, [large] * 3], np.float32)
    proto = model(
        [
            onnx.helper.make_node("MatMul", ["x", "up"], ["a"]),
            onnx.helper.make_node("MatMul", ["a", "middle"], ["b"]),
            onnx.helper.make_node("MatMul", ["b", "down"], ["y"]),
        ],
        [tensor("up", up), tensor("middle", middle), tensor("down", down)],
        [("x", onnx.TensorProto.FLOAT, ["batch", 4])], [("y", onnx.TensorProto.FLOAT, ["batch", 3])],
    )  # fmt: skip
    analysis = analyse(proto)
    needs = GRADIENT_CRITERIA["synflow"].needs
    found = gradients(analysis.model, None, Asked(needs), {"x": np.ones((1, 4), np.float32)})
    got = score(analysis.coupling, "synflow", gradients=found).by_group["up:1"]
    assert got[:3].max() < got[3:].min()


def shuffled(proto: onnx.ModelProto, order: np.ndarray) -> onnx.ModelProto:
    """Return the model with the channels of its first group in another order."""
    arrays = {n: array_of(proto, n) for n in W}
    arrays |= {"w1": arrays["w1"][order], "b1": arrays["b1"][order], "w2": arrays["w2"][:, order]}
    return cnn(weights=[tensor(n, a) for n, a in arrays.items()])


@pytest.mark.parametrize("criterion", [*WITH_DATA, "synflow"])
def test_scores_follow_their_channels(criterion: str) -> None:
    order = RNG.permutation(32)
    one, other = scored(cnn(), criterion), scored(shuffled(cnn(), order), criterion)
    np.testing.assert_allclose(other["w1:0"], one["w1:0"][order], rtol=5e-3, atol=1e-3 * np.abs(one["w1:0"]).max())


@pytest.mark.parametrize("criterion", [*WITH_DATA, "synflow"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_channel_that_does_nothing_matters_least(criterion: str, labels: bool) -> None:
    arrays = {n: array_of(cnn(), n).copy() for n in W}
    arrays["w1"][5], arrays["b1"][5] = 0, 0
    got = scored(cnn(weights=[tensor(n, a) for n, a in arrays.items()]), criterion, labels)["w1:0"]
    assert np.abs(got).argmin() == 5 and np.abs(np.delete(got, 5)).min() > 0


def test_without_labels_gradients_are_not_zero_for_embeddings() -> None:
    """The distance to the model's own answers would have none."""
    proto = cnn(nodes=cnn().graph.node[:5], weights=cnn().graph.initializer[:4])
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("p", 1, ["batch", 48, 1, 1]))
    for criterion in ("snip", "fisher", "crop"):
        assert (scored(proto, criterion, labels=False)["w1:0"] > 0).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    put(folder / "net.onnx", cnn())
    np.savez(folder / "data.npz", x=X, labels=Y)
    np.savez(folder / "wrong.npz", x=X, labels=Y + 100)
    return folder


def asked(files: Path, criterion: str, *more: Any) -> tuple[Any, ...]:
    return ("prune", files / "net.onnx", "--sparsity", 0.5, "--criterion", criterion, "--align", 1,
            "--no-time", "--repair", "none", "-o", files / "out.onnx", *more)  # fmt: skip


@pytest.mark.parametrize("criterion", ["taylor", "grasp", "crop"])
def test_the_command_prunes_by_labels(files: Path, criterion: str) -> None:
    got = record(*asked(files, criterion, "--calibration", files / "data.npz", "--labels", "labels", "--force"))
    assert got["after"]["parameters"] < got["before"]["parameters"]
    assert got["plan"]["meta"]["notes"] == ["gradients of the cross-entropy with labels"]


def test_the_command_needs_no_labels_and_no_data(files: Path) -> None:
    got = record(*asked(files, "snip", "--samples", 8, "--force"))
    assert "without labels" in got["plan"]["meta"]["notes"][0]
    got = record(*asked(files, "synflow", "--calibration", "off", "--force"))
    assert got["plan"]["meta"]["criterion"] == "synflow"


def test_what_is_missing_is_said(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--calibration", files / "data.npz")
    off = ("-o", tmp_path / "out.onnx")
    refused(tmp_path, *asked(files, "snip", "--calibration", "off", *off), says="goes by gradients of a loss")
    refused(tmp_path, *asked(files, "snip", "--labels", "labels", *off), says="of --calibration, and none is given")
    refused(tmp_path, *asked(files, "snip", *data, "--labels", "truth", *off), says="has no array 'truth'")
    wrong = ("--calibration", files / "wrong.npz", "--labels", "labels")
    refused(tmp_path, *asked(files, "snip", *wrong, *off), says="labels go from 100")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    refused(tmp_path, *asked(files, "snip", *data, *off, "--labels", "labels"), says="pip install 'graphprune[torch]'")


def test_scores_need_gradients() -> None:
    with pytest.raises(UsageError, match="none were computed"):
        score(analyse(mlp()).coupling, "snip")


def test_labels_do_not_reach_the_model(files: Path) -> None:
    assert list(inputs_of({"x": X, LABELS: Y})) == ["x"]
    got = cli(*asked(files, "l2", "--calibration", files / "data.npz", "--labels", "labels", "--force"), *FAST[:1])
    assert got.code == 0, got.err


