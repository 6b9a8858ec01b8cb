"""Calibration data that is sound: `.wav` files, cut or filled to the length that the model takes."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.one_by_one import Making, one_by_one
from graphprune.calibrate.samples import Feed, Samples, Source
from graphprune.calibrate.wanted import Wanted, written
from graphprune.errors import UsageError
from graphprune.inputs import InputSpec, plain
from graphprune.sizes import AUDIO

Array = npt.NDArray[Any]
_RATE = re.compile(r"_sr_|_sampl(e|ing)_rate_")
_SHORTEST = 160  # numbers; fewer are no sound
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


class Wave(NamedTuple):
    """What a `.wav` file holds and where; `start` and `size` are bytes of sound."""

    kind: int
    channels: int
    rate: int
    width: int
    start: int
    size: int

    @property
    def frames(self) -> int:
        """Numbers per channel."""
        return self.size // (self.width * self.channels)


def open_audio(files: Sequence[Path], wanted: Wanted, source: Source, length: int | None = None) -> Samples:
    """Return a sample per `.wav` file; `length` is used where the model leaves it open.

    Raises UsageError, naming the file, where one cannot be read or has another rate than the rest.
    """
    spec = find_sound(wanted)
    want = spec.shape
    waves = {path: _header(path) for path in files}
    rates = {s.name for s in wanted.specs if _RATE.search(plain(s.name))}
    first = waves[files[0]]
    others = [path for path in files if waves[path].rate != first.rate]
    if others and not rates:
        raise UsageError(
            f"{others[0]}: has {waves[others[0]].rate} Hz, {files[0]} has {first.rate}: convert them to one rate"
        )
    count = _length(spec, wanted, length, first.rate)
    axes = [n if isinstance(n, int) else 1 for n in want[:-1]]
    per_run = axes[0] if len(want) > 1 else 1

    def make(path: Path) -> Feed:
        sound = _sound(path, waves[path], count, axes[-1] if len(want) == 3 else 1)
        if spec.dtype.kind == "i":
            sound = np.rint(sound * np.iinfo(spec.dtype).max)
        shaped = sound.reshape([1, *axes[1:], count]) if len(want) > 1 else sound[0]
        feed = {spec.name: shaped.astype(spec.dtype)}
        return feed | {s.name: _rate(s, waves[path].rate) for s in wanted.specs if s.name in rates}

    form = "mono" if len(want) < 3 or axes[-1] == 1 else f"{axes[-1]} channels"
    form += f", as {spec.dtype}" if spec.dtype.kind == "i" else ", in [-1, 1]"
    assumed = [f"{spec.name}: the middle {count} numbers of each sound, {form}, short ones filled with zeros"]
    rate = "of the file" if others else f"{first.rate} Hz, of the files"
    assumed += [f"{name}: {rate}" for name in sorted(rates)]
    if not rates:
        assumed.append(f"{spec.name}: the model takes {first.rate} Hz, as the files have it")
    return one_by_one(files, make, Making(wanted, str, per_run), source, tuple(assumed))


def _length(spec: InputSpec, wanted: Wanted, length: int | None, second: int) -> int:
    """Return how many numbers of sound a sample has: a second where nobody says."""
    size = spec.shape[-1]
    if not isinstance(size, int):
        usual = wanted.sizes[spec.name][-1]
        return length or (usual if usual >= _SHORTEST else second)
    if length not in (None, size):
        raise UsageError(f"length is {length}, but the model takes {size} numbers of sound")
    return size


def find_sound(wanted: Wanted) -> InputSpec:
    """Return the input that takes a waveform; raises UsageError where none does."""

    def fits(spec: InputSpec) -> bool:
        shape = spec.shape
        if not 1 <= len(shape) <= 3 or not (spec.dtype.name.startswith("float") or spec.dtype.name == "int16"):
            return False
        long = isinstance(shape[-1], str) or (isinstance(shape[-1], int) and shape[-1] >= _SHORTEST)
        return long and (len(shape) < 3 or shape[1] in (1, 2))

    found = sorted((s for s in wanted.specs if fits(s)), key=lambda s: not AUDIO.search(s.name))
    if not found:
        inputs = "; ".join(f"{s.name} [{written(wanted.symbols[s.name])}]" for s in wanted.specs)
        raise UsageError(
            f"sound is given, but no input of the model takes a waveform: {inputs}; compute what it takes, give .npz"
        )
    return found[0]


def _rate(spec: InputSpec, rate: int) -> Array:
    return np.full([1 if isinstance(n, str) or n is None else n for n in spec.shape], rate).astype(spec.dtype)


def _sound(path: Path, wave: Wave, length: int, channels: int) -> Array:
    """Return the middle of a sound as [channels, length], in [-1, 1]; only that part is read."""
    count = min(wave.frames, length)
    first = (wave.frames - count) // 2
    frame = wave.width * wave.channels
    try:
        with path.open("rb") as file:
            file.seek(wave.start + first * frame)
            content = file.read(count * frame)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    found = _numbers(content, wave).reshape(-1, wave.channels).T
    if not np.isfinite(found).all():
        raise UsageError(f"{path}: holds NaN or an infinite number: remove it")
    mixed = found if wave.channels == channels else found.mean(0, keepdims=True).repeat(channels, 0)
    filled = np.zeros((channels, length), np.float32)
    filled[:, : mixed.shape[1]] = mixed
    return filled


def _numbers(content: bytes, wave: Wave) -> Array:
    """Return sound as numbers in [-1, 1], channels interleaved."""
    found: Array
    if wave.kind == _FLOAT:
        found = np.frombuffer(content, "<f8" if wave.width == 8 else "<f4")
    elif wave.width == 1:  # alone without a sign
        found = (np.frombuffer(content, np.uint8) - 128.0) / 128
    elif wave.width == 3:
        low, middle, high = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.int32).T
        whole = low | middle << 8 | high << 16
        found = (whole - ((whole & 0x800000) << 1)) / 2**23
    else:
        found = np.frombuffer(content, f"<i{wave.width}") / 2 ** (8 * wave.width - 1)
    return found.astype(np.float32)


def _header(path: Path) -> Wave:
    """Read what a file holds (RIFF WAVE, Microsoft's Multimedia Programming Interface 1.0 and WAVEFORMATEXTENSIBLE).

    The standard library's reader refuses float samples, and the extensible form before Python 3.12.
    """
    try:
        with path.open("rb") as file:
            wave = _chunks(file)
    except (OSError, struct.error, ValueError) as error:
        raise UsageError(f"{path}: is not a .wav file that can be read ({error}): remove or convert it") from error
    if not wave.frames:
        raise UsageError(f"{path}: holds no sound: remove it")
    return wave


def _chunks(file: BinaryIO) -> Wave:
    riff, _, kind = struct.unpack("<4sI4s", file.read(12))
    if (riff, kind) != (b"RIFF", b"WAVE"):
        raise ValueError("it does not begin with RIFF and WAVE")
    found: tuple[int, int, int, int] | None = None
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it has no data" if found else "it has no format")
        name, size = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"fmt ":
            found = _format(file.read(size))
        elif name == b"data" and found:
            end = file.seek(0, 2)
            return Wave(*found, start, min(size, end - start))  # what records endlessly writes no size, or a huge one
        file.seek(start + size + size % 2)


def _format(content: bytes) -> tuple[int, int, int, int]:
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
    if kind == _EXTENSIBLE and len(content) >= 26:
        (kind,) = struct.unpack("<H", content[24:26])
    if kind not in (_PCM, _FLOAT) or bits not in ((32, 64) if kind == _FLOAT else (8, 16, 24, 32)) or not channels:
        raise ValueError(f"format {kind} with {bits} bits and {channels} channels is not known")
    return kind, channels, rate, bits // 8
