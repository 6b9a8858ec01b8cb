"""Calibration data as images: size and layout from the model, scale from a preset, and everything assumed is said."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from taking import F16, I64, U8, F, read, taking

from graphprune.calibrate import Samples, open_data
from graphprune.calibrate.images import parse_preset
from graphprune.errors import UsageError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
SQUARE = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = SQUARE, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def one(path: Path, preset: str | None = None, **inputs: tuple) -> np.ndarray:
    (array,) = read(open_data(path, taking(**inputs), preset=preset))
    return array


def test_a_folder_is_read_recursively_and_by_name(tmp_path: Path) -> None:
    for k, name in enumerate(["b.png", "a/z.BMP", "c.webp", ".hidden.png", "d.jpg", "e.jpeg"]):
        save(tmp_path / name, np.full((8, 8, 3), 10 * k, np.uint8))
    (tmp_path / "readme.txt").write_text("")
    samples = open_data(tmp_path, taking(x=(F, "batch", 3, 8, 8)), preset="0..255")
    shades = [float(a.mean()) for a in read(samples)]
    assert np.allclose(shades, [10, 0, 20, 40, 50], atol=1.5)  # a/z, b, c, d, e; two of them lossy
    assert samples.count == 5 and "1 other files" in samples.assumed[-1]
    assert [f["x"].shape for f in samples.batches(3)] == [(3, 3, 8, 8), (2, 3, 8, 8)]


@pytest.mark.parametrize(
    ("sizes", "pick"),
    [
        (("batch", 3, 8, 8), lambda a: a[0].transpose(1, 2, 0)),
        ((1, 8, 8, 3), lambda a: a[0]),
        ((3, 8, 8), lambda a: a.transpose(1, 2, 0)),
        ((8, 8, 3), lambda a: a),
        (("n", "c", 8, 8), lambda a: a[0].transpose(1, 2, 0)),
    ],
)
def test_layouts(tmp_path: Path, sizes: tuple, pick) -> None:
    got = pick(one(save(tmp_path / "a.png"), "0..1", x=(F, *sizes)))
    assert np.allclose(got * 255, SQUARE, atol=1e-4)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("0..1", SQUARE / 255),
        ("-1..1", SQUARE / 127.5 - 1),
        ("0..255", SQUARE),
        ("imagenet", (SQUARE / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("mean=0.5/0.4/0.3,std=0.2", (SQUARE / 255 - [0.5, 0.4, 0.3]) / 0.2),
        ("mean=0.5,0.4,0.3,std=0.2,0.1,0.3", (SQUARE / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.1, 0.3]),
        ("mean=127.5,std=127.5", SQUARE / 127.5 - 1),
        ("bgr mean=104/117/123", SQUARE[..., ::-1] - np.array([104.0, 117, 123])),
        ("bgr,imagenet", ((SQUARE / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])[..., ::-1]),
    ],
)
def test_presets(tmp_path: Path, preset: str, expected: np.ndarray) -> None:
    got = one(save(tmp_path / "a.png"), preset, x=(F, 1, 8, 8, 3))
    assert np.allclose(got[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((F, "n", 3, 8, 8), "scale imagenet (a guess"),
        ((F16, "n", 8, 8, 3), "scale -1..1 (a guess"),
        ((F, "n", 1, 8, 8), "grey, channels first, scale 0..1 (a guess"),
        ((F, "n", 8, 8), "grey, no channel axis, scale 0..1 (a guess"),
        ((F, "n", 4, 8, 8), "RGBA, channels first, scale 0..1 (a guess"),
        ((U8, "n", 8, 8, 3), "scale 0..255 (a guess, the input takes bytes"),
    ],
)
def test_a_guess_is_said(tmp_path: Path, inputs: tuple, said: str) -> None:
    samples = open_data(save(tmp_path / "a.png").parent, taking(x=inputs))
    assert said in samples.assumed[0] and "--preset" in samples.assumed[0]
    (array,) = read(samples)
    assert array.shape[1:] == inputs[2:] and array.dtype.name == {F: "float32", F16: "float16", U8: "uint8"}[inputs[0]]
    if inputs[0] == U8:
        assert np.array_equal(array[0], SQUARE)


def test_nothing_is_called_a_guess_when_a_preset_is_given(tmp_path: Path) -> None:
    samples = open_data(save(tmp_path / "a.png"), taking(x=(F, "n", 3, 8, 8)), preset="0..1")
    assert samples.assumed == ("x: images resized and cropped in the middle, 8 x 8, RGB, channels first, scale 0..1",)


def test_detectors_say_themselves_that_they_take_0_to_1(tmp_path: Path) -> None:
    model = taking(x=(F, "n", 3, 8, 8))
    model.metadata_props.update(stride="32", task="detect")
    assert "scale 0..1 (a guess" in open_data(save(tmp_path / "a.png"), model).assumed[0]


def test_fits(tmp_path: Path) -> None:
    halves = np.zeros((10, 40, 3), np.uint8)
    halves[:, 10:30] = 255
    path = save(tmp_path / "a.png", halves)
    cropped, padded, stretched = (
        one(path, f"0..1,{fit}", x=(F, 1, 3, 10, 10))[0, 0] for fit in ("crop", "pad", "stretch")
    )
    assert (cropped == 1).all()
    assert np.allclose(padded[[0, 1, -1]], 114 / 255) and padded[5].max() > 0.9
    assert stretched[:, 0].max() < 0.1 and stretched[:, 5].min() > 0.9


def test_an_open_width_follows_the_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png", RNG.integers(0, 256, (20, 60, 3), dtype=np.uint8))
    save(tmp_path / "b.png", RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    samples = open_data(tmp_path, taking(x=(F, "n", 3, 10, "width")))
    assert [a.shape[3] for a in read(samples)] == [30, 10] and "width in ratio" in samples.assumed[0]
    samples = open_data(tmp_path, taking(x=(F, "n", 3, 10, "width")), shapes={"x": (1, 3, 10, 48)})
    assert [a.shape[3] for a in read(samples)] == [48, 48]


def test_open_sizes_are_the_usual_ones_or_those_given(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert one(path, x=(F, "n", 3, "h", "w")).shape == (1, 3, 224, 224)
    samples = open_data(path, taking(x=(F, "n", 3, "h", "w")), shapes={"x": (1, 3, 32, 64)})
    assert read(samples)[0].shape == (1, 3, 32, 64)


def test_forms_of_files(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    save(tmp_path / "1.png", grey)
    save(tmp_path / "2.png", grey.astype(np.uint16) * 257)  # 16 bits
    Image.fromarray(grey).convert("P").save(tmp_path / "3.png")
    Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(tmp_path / "4.png")
    for channels in (1, 3, 4):
        found = read(open_data(tmp_path, taking(x=(F, "n", channels, 8, 8)), preset="0..255"))
        assert len(found) == 4
        for array in found:
            assert np.allclose(array[0, 0], grey, atol=1)


def test_pictures_of_cameras_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = SQUARE[::-1, ::-1]
    save(tmp_path / "a.png", turned.copy(), exif=exif)
    assert np.allclose(one(tmp_path / "a.png", "0..255", x=(F, 1, 8, 8, 3))[0], SQUARE, atol=1e-3)


def test_a_fixed_batch_takes_several_images(tmp_path: Path) -> None:
    for k in range(5):
        save(tmp_path / f"{k}.png", np.full((8, 8, 3), k, np.uint8))
    samples = open_data(tmp_path, taking(x=(F, 2, 3, 8, 8)), preset="0..255")
    assert np.allclose([a[:, 0, 0, 0] for a in read(samples)], [[0, 1], [2, 3]], atol=1e-3)
    assert any("2 samples a run" in said for said in samples.assumed)
    with pytest.raises(UsageError, match="5 samples, but the model takes 8 at a time"):
        open_data(tmp_path, taking(x=(F, 8, 3, 8, 8)))


def test_other_inputs_are_made_up(tmp_path: Path) -> None:
    model = taking(pixel_mask=(I64, "b", 8, 8), x=(F, "b", 3, 8, 8))
    feed = next(open_data(save(tmp_path / "a.png"), model).open())
    assert feed["pixel_mask"].shape == (1, 8, 8) and (feed["pixel_mask"] == 1).all()


def test_limited_images_are_spread_and_the_rest_is_not_decoded(tmp_path: Path, monkeypatch) -> None:
    from graphprune.calibrate import images

    for k in range(20):
        save(tmp_path / f"{k:02}.png", np.full((8, 8, 3), 10 * k, np.uint8))
    samples: Samples = open_data(tmp_path, taking(x=(F, "n", 3, 8, 8)), preset="0..255", limit=5, seed=3)
    decoded: list[str] = []
    real = images._read
    monkeypatch.setattr(images, "_read", lambda p, path, *a: decoded.append(path.name) or real(p, path, *a))
    shades = [float(a.mean()) for a in samples.open() for a in [a["x"]]]
    assert len(decoded) == 5 and np.allclose(np.diff(shades), 40)


@pytest.mark.parametrize("preset", ["0..2", "mean=x", "0.5", "mean=0.5,std=0", "imagenet,mean=0.5", "mean=nan"])
def test_presets_that_are_refused(preset: str) -> None:
    with pytest.raises(UsageError, match=f"preset {preset!r}"):
        parse_preset(preset)


def test_what_is_refused(tmp_path: Path) -> None:
    model = taking(x=(F, "n", 3, 8, 8))
    save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"2 values, the model's input 3 channels"):
        open_data(tmp_path, model, preset="mean=0.1/0.2")
    with pytest.raises(UsageError, match=r"no input of the model takes one.*x \[\?, 9, 8, 8\]"):
        open_data(tmp_path, taking(x=(F, "n", 9, 8, 8)))
    for sizes in ((1, 7500), (2, 4), (784,)):
        with pytest.raises(UsageError, match="no input of the model takes one"):
            open_data(tmp_path, taking(x=(F, "n", *sizes)))
    with pytest.raises(UsageError, match="a tokenizer is given"):
        open_data(tmp_path, model, tokenizer="tokenizer.json")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"b.png: is not an image that can be read"):
        open_data(tmp_path, model)
    content = save(tmp_path / "b.png", RNG.integers(0, 256, (99, 99, 3), dtype=np.uint8)).read_bytes()
    (tmp_path / "b.png").write_bytes(content[:4000])
    with pytest.raises(UsageError, match=r"b.png: cannot be decoded"):
        list(open_data(tmp_path, model).open())


def test_a_missing_pillow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"pip install 'graphprune\[images\]'"):
        open_data(tmp_path, taking(x=(F, "n", 3, 8, 8)))
