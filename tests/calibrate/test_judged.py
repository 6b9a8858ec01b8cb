"""Images evolved by a classifier's answers, and the brightness that they are given."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net

from graphprune.calibrate.answers import Judge, as_shares, balanced, information
from graphprune.calibrate.evolved import evolve, founders, recombined
from graphprune.calibrate.synthetic import synthetic
from graphprune.model import load

SIZE = (12, 12)
BLACK = -1.3


def four_parts(images: np.ndarray) -> np.ndarray:
    """Shares of four classes: in which quarter of [n, 1, h, w] images the light is."""
    h, w = images.shape[2] // 2, images.shape[3] // 2
    parts = [images[:, :, a : a + h, b : b + w] for a in (0, h) for b in (0, w)]
    return as_shares(20 * np.stack([p.mean((1, 2, 3)) for p in parts], 1))


def classifier(batch: int | None = None) -> ir.Model:
    """A classifier that tells in which quarter the light is, but only of images whose darkest pixel is `BLACK`."""
    net = Net()
    one = (1, 1, 1, 1)
    x = net.input("image", [batch, 1, *SIZE])
    darkest = net("GlobalMaxPool", net("Neg", x))
    off = net("Abs", net("Add", darkest, net.const(np.full(one, BLACK, np.float32))))
    open_ = net("Relu", net("Sub", net.const(np.ones(one, np.float32)), net("Mul", off, net.const(np.full(one, 3.0)))))
    parts = net("Mul", net("AveragePool", x, kernel_shape=[6, 6], strides=[6, 6]), open_)
    hidden = net("Relu", net("Gemm", net("Flatten", parts), net.const(8 * np.eye(4), name="w"), net.const(np.ones(4))))
    return load(net.output(net("Gemm", hidden, net.const(np.eye(4), name="v"))).model())


def test_balanced_takes_the_surest_of_every_class_and_each_input_once() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(5), 40)
    chosen = balanced(shares, 23)
    assert len(set(chosen.tolist())) == 23 and chosen[0] == shares[:, 0].argmax()
    assert sorted(balanced(shares, 99).tolist()) == list(range(40))


def test_information_is_that_of_sure_and_various_answers() -> None:
    sure = np.eye(4)[np.arange(8) % 4]
    assert information(sure) == pytest.approx(np.log(4)) and information(np.eye(4)[[1, 1]]) == pytest.approx(0)
    assert np.array_equal(as_shares(sure), sure) and as_shares(np.array([[np.inf, 0.0]]))[0, 0] == 1


def test_evolved_images_are_told_apart_better_and_differ() -> None:
    found = evolve(four_parts, 64, 1, SIZE, rounds=(2, 6), seed=3)
    assert found.images.shape == (64, 1, *SIZE) and found.images.min() >= 0 and found.images.max() <= 1
    assert found.after > found.before + 0.2 and found.after == pytest.approx(information(four_parts(found.images)))
    assert len({x.tobytes() for x in found.images}) == 64
    assert np.bincount(four_parts(found.images).argmax(1), minlength=4).min() > 8
    again = evolve(four_parts, 64, 1, SIZE, rounds=(2, 6), seed=3)
    assert np.array_equal(again.images, found.images)


def test_children_differ_from_their_parents_and_keep_the_range() -> None:
    rng = np.random.default_rng(0)
    parents = founders(rng, 40, 3, (10, 14))
    children = recombined(parents, rng)
    assert children.shape == parents.shape and children.min() >= 0 and children.max() <= 1
    assert np.mean([not np.array_equal(a, b) for a, b in zip(parents, children, strict=True)]) > 0.8


@pytest.mark.parametrize("batch", [None, 1])
def test_images_are_evolved_and_black_is_where_the_answers_tell_most(batch: int | None) -> None:
    model, sizes = classifier(batch), {"image": (1, 1, *SIZE)}
    samples = synthetic(model, sizes, count=96, answers=50_000, seed=1)
    images = np.concatenate([f["image"] for f in samples.open()])
    assert images.shape == (96, 1, *SIZE) and samples.count == 96
    assert abs(images.min() - BLACK) < 0.35 and "evolved" in samples.assumed[0]
    judge = Judge.of(model)
    assert judge is not None
    drawn = synthetic(model, sizes, count=96, seed=1)
    plain, evolved = (information(judge.shares(s.open())) for s in (drawn, samples))
    assert evolved > plain + 0.2
    again = synthetic(model, sizes, count=96, answers=50_000, seed=1)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(samples.open(), again.open(), strict=True))


def test_without_answers_or_classes_images_are_drawn() -> None:
    sizes = {"image": (1, 1, *SIZE)}
    assert "evolved" not in synthetic(classifier(), sizes, count=96, answers=100).assumed[0]
    assert "evolved" not in synthetic(classifier(), sizes, count=96, answers=50_000, kind="shapes").assumed[0]
    net = Net()
    x = net.input("image", [None, 1, *SIZE])
    maps = load(net.output(net("Relu", net.conv(x, 1, 4, 3))).model())
    assert Judge.of(maps) is None and "evolved" not in synthetic(maps, sizes, count=64, answers=50_000).assumed[0]
