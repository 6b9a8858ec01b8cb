"""Made-up inputs: what an input holds is read from the graph, the range from what the model knows, all by the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net

from graphprune.calibrate import audio_made, images_made
from graphprune.calibrate.contents import read
from graphprune.calibrate.known import distance, moment_distance, moments
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.synthetic import KINDS, synthetic
from graphprune.calibrate.tokens_made import packed, vocabulary, written
from graphprune.errors import UsageError
from graphprune.execute import evaluate
from graphprune.model import load


def joined(samples: Samples, name: str) -> np.ndarray:
    return np.concatenate([f[name] for f in samples.open()])


def image_net(*before: Any, dtype: Any = np.float32, shape: Any = (None, 3, 16, 16), bn: bool = False) -> ir.Model:
    """An image model: cast where whole numbers come in, `before` (operator, constant) pairs, a convolution."""
    net = Net()
    x = net.input("image", list(shape), dtype)
    if dtype is not np.float32:
        x = net("Cast", x, to=1)
    if shape[-1] == 3:
        x = net("Transpose", x, perm=[0, 3, 1, 2])
    for operator, constant in before:
        x = net(operator, x, net.const(np.asarray(constant, np.float32)))
    y = net.conv(x, 3, 8, 3, name="a", bias=not bn)
    return load(net.output(net("Relu", y)).model())


SIZES = {"image": (1, 3, 16, 16)}


@pytest.mark.parametrize("kind", images_made.DRAWN)
def test_images_have_mean_0_and_deviation_1_and_differ(kind: str) -> None:
    drawn = images_made.images(kind, np.random.default_rng(3), 256, 3, (24, 40))
    assert drawn.shape == (256, 3, 24, 40) and drawn.dtype == np.float32
    assert abs(drawn.mean()) < 0.15 and abs(drawn.std() - 1) < 0.2
    assert len({image.tobytes() for image in drawn}) == 256


def test_neighbours_are_alike_in_structured_images_only() -> None:
    def likeness(kind: str) -> float:
        x = images_made.images(kind, np.random.default_rng(0), 64, 1, (32, 32))
        return float(np.corrcoef(x[..., 1:].ravel(), x[..., :-1].ravel())[0, 1])

    assert abs(likeness("noise")) < 0.02
    assert min(likeness(kind) for kind in images_made.DRAWN if kind != "noise") > 0.6


def test_everything_depends_on_the_seed_only() -> None:
    model = image_net()
    one, again, other = (synthetic(model, SIZES, count=70, seed=s) for s in (4, 4, 5))
    assert [f["image"].shape[0] for f in one.open()] == [32, 32, 6] and one.count == 70
    assert np.array_equal(joined(one, "image"), joined(again, "image"))
    assert np.array_equal(joined(one, "image"), joined(one, "image")), "a second reading differs"
    assert not np.array_equal(joined(one, "image"), joined(other, "image"))
    batches = [f["image"] for f in one.open()]
    assert not np.array_equal(batches[0][:6], batches[2]), "every batch has the same images"


def test_a_fixed_batch_is_one_sample() -> None:
    samples = synthetic(image_net(shape=(2, 3, 16, 16)), {"image": (2, 3, 16, 16)}, count=5)
    assert [f["image"].shape for f in samples.open()] == [(2, 3, 16, 16)] * 5 and samples.axes == {}
    assert len(list(samples.split(0.4)[1].open())) == 2


def test_without_any_hint_the_range_is_said_to_be_a_guess() -> None:
    samples = synthetic(image_net(), SIZES, count=256)
    assert samples.source == "synthetic" and "nothing in the model says which" in samples.assumed[0]
    assert "shapes" in samples.assumed[0]


def test_grey_images_show_things_on_black() -> None:
    net = Net()
    model = load(net.output(net.conv(net.input("image", [None, 1, 16, 16]), 1, 4, 3)).model())
    samples = synthetic(model, {"image": (1, 1, 16, 16)}, count=128)
    images = joined(samples, "image")
    assert "things" in samples.assumed[0] and abs(images.mean()) < 0.2
    assert np.mean(images == images.min()) > 0.2, "black is rare"
    assert 0.3 < np.mean([np.array_equal(i, i[..., ::-1]) for i in images]) < 0.7


@pytest.mark.parametrize("shape", [(None, 3, 16, 16), (None, 16, 16, 3)])
def test_a_normalisation_inside_of_the_graph_is_undone(shape: Any) -> None:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    steps = [("Mul", 1 / 255), ("Sub", mean[:, None, None]), ("Div", deviation[:, None, None])]
    model = image_net(*steps, dtype=np.uint8, shape=shape)
    sizes = {"image": tuple(n or 1 for n in shape)}
    content = read(model, sizes).contents[0]
    assert content.what == "image" and content.channel == shape.index(3)
    np.testing.assert_allclose(content.scale, 1 / 255 / deviation, rtol=1e-5)
    pixels = joined(synthetic(model, sizes, count=512), "image")
    assert pixels.dtype == np.uint8
    axes = tuple(k for k in range(4) if k != shape.index(3))
    # Clipped to what a byte holds, so a little less than 1.
    assert (np.abs((pixels / 255).mean(axes) - mean) < 0.1).all()
    assert (np.abs((pixels / 255).std(axes) / deviation - 1) < 0.25).all()


def test_minus_one_to_one() -> None:
    model = image_net(("Mul", 2 / 255), ("Sub", 1.0))
    pixels = joined(synthetic(model, SIZES, count=256), "image")
    assert abs(pixels.mean() - 127.5) < 20 and abs(pixels.std() - 64) < 16


def test_whole_numbers_without_a_normalisation_are_pixels() -> None:
    samples = synthetic(image_net(dtype=np.uint8), SIZES, count=64)
    pixels = joined(samples, "image")
    assert "0..255" in samples.assumed[0] and 90 < pixels.mean() < 140 and 45 < pixels.std() < 85


def trained(contrast: float, level: float, kind: str = "shapes") -> ir.Model:
    """A network whose BatchNorms have the moments of images of a kind, with this mean and deviation."""
    net = Net()
    x = net.input("image", [None, 3, 24, 24])
    y = net.conv(x, 3, 8, 3, name="a", pads=[1, 1, 1, 1])
    z = net.conv(net("Relu", y), 8, 8, 3, name="b")
    bare = load(Net.output(net, y, z).model())
    images = level + contrast * images_made.images(kind, np.random.default_rng(99), 256, 3, (24, 24))
    got = evaluate(bare, {"image": images})
    net.outputs.clear()
    for name in (y, z):
        mean, variance = got[name].mean((0, 2, 3)), got[name].var((0, 2, 3))
        last = net("BatchNormalization", name, *(net.const(a) for a in (np.ones(8), np.zeros(8), mean, variance)))
        net.output(last)
    return load(net.model())


@pytest.mark.parametrize(("contrast", "level"), [(1.0, 0.0), (0.25, 0.5), (3.0, -1.0)])
def test_stored_moments_give_the_range(contrast: float, level: float) -> None:
    model = trained(contrast, level)
    samples = synthetic(model, {"image": (1, 3, 24, 24)}, count=256)
    images = joined(samples, "image")
    assert "fitted to" in samples.assumed[0]
    assert abs(images.std() / contrast - 1) < 0.25, samples.assumed
    assert (np.abs(images.mean((0, 2, 3)) - level) < 0.35 * contrast).all(), samples.assumed


@pytest.mark.parametrize("kind", ["shapes", "pink"])
def test_stored_moments_choose_among_structured_kinds(kind: str) -> None:
    sizes = {"image": (1, 3, 24, 24)}
    model = trained(1.0, 0.0, kind)
    assert f"made up, {kind} (distance" in synthetic(model, sizes).assumed[0]
    own, noise = (moment_distance(model, synthetic(model, sizes, kind=k, count=128)) for k in (kind, "noise"))
    assert own < 0.03 and own < 0.5 * noise
    assert "made up, noise" in synthetic(model, sizes, kind="noise").assumed[0]


def test_moments_of_a_model() -> None:
    known = moments(trained(1.0, 0.0))
    assert [m.shape for m, _ in known.values()] == [(8,), (8,)]
    assert moments(image_net()) == {} and np.isnan(moment_distance(image_net(), synthetic(image_net(), SIZES)))
    assert distance(known, known) == 0
    worse = {k: (m, 4 * v) for k, (m, v) in known.items()}
    assert distance(known, worse) == pytest.approx(0.5 * (4 - 1 - np.log(4)))


def test_moments_that_were_never_trained_are_none() -> None:
    net = Net()
    y = net.conv(net.input("x", [None, 3, 6, 6]), 3, 4)
    ones, zeros = np.ones(4), np.zeros(4)
    z = net("BatchNormalization", y, *(net.const(a) for a in (ones, zeros, zeros, ones)))
    assert moments(load(net.output(z).model())) == {}


def language_model(causal: bool = True) -> ir.Model:
    """Logits that say: after token t comes t + 1, of 40 tokens; or hidden states alone."""
    net = Net()
    ids = net.input("input_ids", ["batch", "sequence"], np.int64)
    mask = net.input("attention_mask", ["batch", "sequence"], np.int64)
    table = np.random.default_rng(0).standard_normal((40, 16)) * np.linspace(1, 2, 40)[:, None]
    hidden = net("Gather", net.const(table, name="table"), ids)
    hidden = net("Mul", hidden, net("Unsqueeze", net("Cast", mask, to=1), net.ints(2)))
    directions = np.linalg.pinv(table @ table.T + 1e-3 * np.eye(40)) @ table  # each token's row, apart from the others
    logits = net("MatMul", hidden, net.const(9 * np.roll(directions, 1, 0).T))
    return load((net.output(logits) if causal else net.output(hidden)).model())


TEXT = {"input_ids": (1, 12), "attention_mask": (1, 12)}


def test_tokens_follow_the_table_and_masks_are_ones() -> None:
    samples = synthetic(language_model(False), TEXT, count=50)
    ids = joined(samples, "input_ids")
    assert ids.shape == (50, 12) and ids.dtype == np.int64 and ids.min() >= 1 and ids.max() < 40
    counts = np.bincount(ids.ravel(), minlength=40)
    assert counts[1:11].sum() > 2 * counts[30:].sum(), "shorter rows are more frequent"
    assert (joined(samples, "attention_mask") == 1).all() and joined(samples, "attention_mask").shape == (50, 12)
    assert "attention_mask: ones" in samples.assumed and "Zipf" in samples.assumed[0]
    even = np.bincount(joined(synthetic(language_model(False), TEXT, kind="uniform", count=200), "input_ids").ravel())
    assert even[0] == 0 and even[1:].max() < 3 * even[1:].min()


def test_a_language_model_writes_its_own_text() -> None:
    samples = synthetic(language_model(), TEXT, count=64)
    ids = joined(samples, "input_ids")
    follows = np.mean(ids[:, 1:] == ids[:, :-1] + 1)
    drawn = joined(synthetic(language_model(), TEXT, kind="uniform", count=64), "input_ids")
    assert "wrote itself" in samples.assumed[0]
    assert follows > 4 * np.mean(drawn[:, 1:] == drawn[:, :-1] + 1), follows
    assert np.array_equal(ids, joined(synthetic(language_model(), TEXT, count=64), "input_ids"))


def test_writing_settles_to_exact_samples() -> None:
    """A chain whose next token depends on the one before: with as many passes as tokens, sampling is sequential."""
    table = np.random.default_rng(0).standard_normal((7, 7)).astype(np.float32) * 2
    first = np.random.default_rng(1).integers(0, 7, (3, 9))

    def text(passes: int) -> np.ndarray:
        return written(lambda ids: table[ids], first, np.random.default_rng(2), passes)

    done = text(8)
    assert np.array_equal(done, text(30)) and np.array_equal(done[:, 0], first[:, 0])
    for k in range(8):
        assert np.array_equal(text(k)[:, : k + 1], done[:, : k + 1]), k
    many = written(lambda ids: table[ids], np.zeros((4000, 2), np.int64), np.random.default_rng(5), 1)[:, 1]
    expected = np.exp(table[0]) / np.exp(table[0]).sum()
    np.testing.assert_allclose(np.bincount(many, minlength=7) / 4000, expected, atol=0.03)


def test_vocabulary_leaves_out_rows_of_no_ordinary_token() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((500, 32)).astype(np.float32)
    table[7] = 0
    table[8] *= 40
    table[100:120] = table[100]
    ids = set(vocabulary(table, 500).ids.tolist())
    assert not ids & {0, 7, 8, *range(100, 120)} and len(ids) > 450
    assert packed(np.arange(1, 13).reshape(3, 4), rng, (5, 10)).shape == (5, 10)


SOUND = [
    ("input_values", [None, 4000], "wave"),
    ("audio", [None, 1, 4000], "wave"),
    ("input_features", [None, 80, 100], "spectrum"),
    ("mel_spectrogram", [None, 1, 64, 100], "spectrum"),
    ("x", [None, 5, 50], "series"),
    ("x", [None, 30], "vectors"),
    ("inputs_embeds", [None, 7, 30], "vectors"),
    ("x", [None, 3, 4, 16, 16], "image"),
    ("x", [None, 16, 16, 1], "image"),
]


@pytest.mark.parametrize(("name", "shape", "what"), SOUND)
@pytest.mark.parametrize("plain", [False, True])
def test_what_an_input_holds(name: str, shape: list[Any], what: str, plain: bool) -> None:
    net = Net()
    model = load(net.output(net("Relu", net.input(name, shape))).model())
    sizes = {name: tuple(n or 1 for n in shape)}
    assert [c.what for c in read(model, sizes).contents] == [what]
    samples = synthetic(model, sizes, kind="noise" if plain else "auto", count=40)
    x = joined(samples, name)
    assert x.shape == (40, *shape[1:]) and x.dtype == np.float32 and np.isfinite(x).all()
    assert samples.source == ("noise" if plain else "synthetic")
    assert (0.05 if name == "audio" else 0.6) < x.std() < 1.5 and abs(x.mean()) < 0.5
    assert all(np.abs(x[k] - x[0]).max() > 1e-3 for k in range(1, 40)), "samples are the same"


def test_sound_has_silences_and_smooth_spectra() -> None:
    waves = audio_made.waves(np.random.default_rng(0), 16, 16000)
    frames = np.sqrt(np.square(waves.reshape(16, 100, 160)).mean(2))
    assert np.quantile(frames, 0.1) < 0.25 * np.quantile(frames, 0.9)
    bands = audio_made.spectra(np.random.default_rng(0), 16, 64, 90)
    assert np.corrcoef(bands[:, :, 1:].ravel(), bands[:, :, :-1].ravel())[0, 1] > 0.7


def test_kinds_that_fit_nothing() -> None:
    with pytest.raises(UsageError, match=r"no made-up inputs are called 'snow'.*shapes"):
        synthetic(image_net(), SIZES, kind="snow")
    with pytest.raises(UsageError, match=r"cannot|can be .*shapes"):
        synthetic(image_net(), SIZES, kind="tokens")
    assert {k for kinds in KINDS.values() for k in kinds} >= {"shapes", "spectra", "tokens", "vectors"}


def test_a_model_of_masks_alone_still_gets_inputs() -> None:
    net = Net()
    model = load(net.output(net("Relu", net.input("mask", [None, 4]))).model())
    samples = synthetic(model, {"mask": (1, 4)}, count=3)
    assert (next(samples.open())["mask"] == 1).all() and samples.assumed == ("mask: ones",)
