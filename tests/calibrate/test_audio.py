"""Calibration data as sound: `.wav` of all common forms, cut to the model's length."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from taking import I64, F, read, taking

from graphprune.calibrate import open_data
from graphprune.errors import UsageError

TONE = np.round(np.sin(np.arange(400) / 7) * 100) / 128  # exact in 8 bits and more


def save(path: Path, sound: np.ndarray = TONE, width: int = 2, rate: int = 16000) -> Path:
    """Write with the standard library: [frames] or [frames, channels] in [-1, 1)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(sound * 2 ** (8 * width - 1)).astype(np.int64)
        if width == 1:
            file.writeframes((whole + 128).astype(np.uint8).tobytes())
        else:
            file.writeframes(b"".join(int(n).to_bytes(width, "little", signed=True) for n in whole.ravel()))
    return path


def save_by_hand(path: Path, kind: int, content: bytes, bits: int, extra: bytes = b"", between: bytes = b"") -> Path:
    form = struct.pack("<HHIIHH", kind, 1, 8000, 8000 * bits // 8, bits // 8, bits) + extra
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + between + b"data" + struct.pack("<I", len(content))
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(content)) + b"WAVE" + chunks + content)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths(tmp_path: Path, width: int) -> None:
    (got,) = read(open_data(save(tmp_path / "a.wav", width=width), taking(x=(F, "n", 400))))
    assert np.allclose(got[0], TONE, atol=1e-7) and got.dtype == np.float32


def test_floats_and_extensible_files(tmp_path: Path) -> None:
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # a chunk of odd size is followed by one byte more
    model = taking(x=(F, "n", 400))
    for content, kind, bits, extra in (
        (TONE.astype("<f4").tobytes(), 3, 32, b""),
        (TONE.astype("<f8").tobytes(), 3, 64, b""),
        ((TONE * 2**15).astype("<i2").tobytes(), 0xFFFE, 16, struct.pack("<HHIH14x", 22, 16, 4, 1)),
    ):
        path = save_by_hand(tmp_path / "a.wav", kind, content, bits, extra, odd)
        assert np.allclose(read(open_data(path, model))[0][0], TONE, atol=1e-7)


def test_length_is_cut_or_filled(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav")
    assert np.allclose(read(open_data(path, taking(x=(F, 1, 200))))[0][0], TONE[100:300], atol=1e-6)
    filled = read(open_data(path, taking(x=(F, 500))))[0]
    assert filled.shape == (500,) and not filled[400:].any() and np.allclose(filled[:400], TONE, atol=1e-6)
    assert read(open_data(path, taking(x=(F, "n", "time")), length=300))[0].shape == (1, 300)
    assert read(open_data(path, taking(x=(F, "n", "time"))))[0].shape == (1, 16000)
    assert read(open_data(path, taking(x=(F, "n", "time")), shapes={"x": (1, 512)}))[0].shape == (1, 512)
    with pytest.raises(UsageError, match="length is 7, but the model takes 200"):
        open_data(path, taking(x=(F, 1, 200)), length=7)


def test_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", np.stack([TONE, -TONE / 2], 1))
    assert np.allclose(read(open_data(path, taking(x=(F, 1, 400))))[0][0], TONE / 4, atol=1e-4)
    (both,) = read(open_data(path, taking(x=(F, "n", 2, 400))))
    assert both.shape == (1, 2, 400) and np.allclose(both[0, 1], -TONE / 2, atol=1e-4)
    mono = save(tmp_path / "a.wav")
    assert np.allclose(read(open_data(mono, taking(x=(F, "n", 2, 400))))[0][0, 1], TONE, atol=1e-6)


def test_integers(tmp_path: Path) -> None:
    (got,) = read(open_data(save(tmp_path / "a.wav"), taking(x=(5, 1, 400))))  # int16
    assert got.dtype == np.int16 and np.abs(got[0] - TONE * 2**15).max() <= 1


def test_rates(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", rate=8000)
    save(tmp_path / "b.wav", rate=16000)
    model = taking(input=(F, "batch", "time"), state=(F, 2, "batch", 3), sr=(I64,))
    samples = open_data(tmp_path, model, length=256)
    feeds = list(samples.open())
    assert [int(f["sr"]) for f in feeds] == [8000, 16000] and feeds[0]["sr"].shape == ()
    assert feeds[0]["state"].shape == (2, 1, 3)
    assert [f["input"].shape for f in samples.batches(2)] == [(1, 256)] * 2  # never two rates in one run
    assert "sr: of the file" in samples.assumed and any(s.startswith("state: ") for s in samples.assumed)
    with pytest.raises(UsageError, match=r"b.wav: has 16000 Hz, .*a.wav has 8000: convert"):
        open_data(tmp_path, taking(x=(F, "batch", 400)))
    (tmp_path / "b.wav").unlink()
    assert any("8000 Hz, as the files" in said for said in open_data(tmp_path, taking(x=(F, "batch", 400))).assumed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a .wav file"),
        (b"RIFF\0\0\0\0WAVX", "does not begin with RIFF and WAVE"),
        (b"RIFF\0\0\0\0WAVE", "it has no format"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UsageError, match=f"a.wav: .*{said}"):
        open_data(tmp_path, taking(x=(F, 1, 400)))


def test_what_is_refused(tmp_path: Path) -> None:
    model = taking(x=(F, 1, 400))
    with pytest.raises(UsageError, match="format 17 with 4 bits"):
        open_data(save_by_hand(tmp_path / "a.wav", 17, b"1234", 4), model)
    with pytest.raises(UsageError, match="holds no sound"):
        open_data(save_by_hand(tmp_path / "a.wav", 1, b"", 16), model)
    bad = np.full(400, np.nan, "<f4").tobytes()
    with pytest.raises(UsageError, match=r"a.wav: holds NaN"):
        open_data(save_by_hand(tmp_path / "a.wav", 3, bad, 32), model)
    with pytest.raises(UsageError, match=r"no input of the model takes a waveform: x \[\?, 80, 3000\].*\.npz"):
        open_data(save(tmp_path / "a.wav"), taking(x=(F, "n", 80, 3000)))
