"""Calibration data that is images: size and layout come from the model's input, the scale from a preset or a guess."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.one_by_one import Making, one_by_one
from graphprune.calibrate.samples import Feed, Samples, Source
from graphprune.calibrate.wanted import Wanted, written
from graphprune.errors import UsageError

Array = npt.NDArray[Any]
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_MOST_OF_ONE = 2.5  # means and deviations above this are meant for values of 0 to 255
# The means and deviations that torchvision and timm use for ImageNet.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SCALES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": _IMAGENET,
    "0..1": ((0.0,), (1.0,)),
    "-1..1": ((0.5,), (0.5,)),
    "0..255": ((0.0,), (1 / 255,)),
}
_THINNEST = 4  # a height or width below this is no image's
_ORIENTATION = 0x0112  # the tag of EXIF
_FITS = ("crop", "pad", "stretch")
PRESETS = "imagenet, 0..1, -1..1, 0..255, mean=..,std=.., and further crop, pad, stretch, bgr, separated by commas"


@dataclass(frozen=True)
class Preset:
    """How pixels become numbers: (pixel / 255 - mean) / std, per channel; how an image fits; the channels' order."""

    scale: str | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: str = "crop"
    bgr: bool = False


def parse_preset(text: str | None) -> Preset:
    """Read how images are prepared; `scale` is None where that is left to a guess.

    >>> parse_preset("mean=0.5,std=0.25,bgr")
    Preset(scale='mean=0.5, std=0.25', mean=(0.5,), std=(0.25,), fit='crop', bgr=True)

    Values of several channels are separated by commas, slashes or spaces: "mean=0.5/0.4/0.3,std=0.2".
    Raises UsageError.
    """
    found = Preset()
    numbers: dict[str, list[float]] = {}
    last = ""
    for word in re.split(r"[,/;\s]+", (text or "").strip().lower()):
        key, equals, number = word.rpartition("=")
        if word in _SCALES:
            found = replace(found, scale=word, mean=_SCALES[word][0], std=_SCALES[word][1])
        elif word in _FITS:
            found = replace(found, fit=word)
        elif word in ("bgr", "rgb"):
            found = replace(found, bgr=word == "bgr")
        elif word:
            last = key if equals else last
            try:
                numbers.setdefault({"mean": "mean", "std": "std"}[last], []).append(float(number))
            except (KeyError, ValueError):
                raise UsageError(f"preset {text!r}: {word!r} is not known; choose from {PRESETS}") from None
    return _with_numbers(found, numbers, text) if numbers else found


def _with_numbers(found: Preset, numbers: dict[str, list[float]], text: str | None) -> Preset:
    """Take means and deviations as given: for values of 0 to 1, or of 0 to 255 where they are large."""
    mean, std = numbers.get("mean", [0.0]), numbers.get("std", [1.0])
    if found.scale is not None:
        raise UsageError(f"preset {text!r} names a scale and gives mean or std: leave one out")
    if not all(s > 0 and np.isfinite(s) for s in std) or not np.isfinite(mean).all():
        raise UsageError(f"preset {text!r}: a std must be above 0, and all numbers finite")
    told = "mean=" + "/".join(f"{m:g}" for m in mean) + ", std=" + "/".join(f"{s:g}" for s in std)
    if max(*mean, *std) > _MOST_OF_ONE:
        whole = "std" not in numbers
        mean, std = [m / 255 for m in mean], [(1.0 if whole else s) / 255 for s in std]
        told += " of values of 0 to 255"
    return replace(found, scale=told, mean=tuple(mean), std=tuple(std))


class Place(NamedTuple):
    """Where an image goes: the input, its axes of channels (None: has none), height and width; sizes, None if free."""

    name: str
    rank: int
    channel: int | None
    height: int
    width: int
    channels: int
    size: tuple[int | None, int | None]
    batched: bool


def open_images(files: Sequence[Path], wanted: Wanted, source: Source, preset: str | None = None) -> Samples:
    """Return a sample per image file; raises UsageError for a file that cannot be read, naming it."""
    pillow = _pillow()
    asked = parse_preset(preset)
    place, said = find_place(wanted)
    dtype = next(s.dtype for s in wanted.specs if s.name == place.name)
    asked, guessed = _guessed(asked, place, dtype, wanted)
    for values in (asked.mean, asked.std):
        if len(values) not in (1, place.channels):
            raise UsageError(f"preset {preset!r} has {len(values)} values, the model's input {place.channels} channels")
    for path in files:
        _opened(pillow, path).close()

    def make(path: Path) -> Feed:
        return {place.name: _array(_read(pillow, path, place, asked), place, asked, dtype)}

    want = wanted.symbols[place.name]
    per_run = want[0] if place.batched and isinstance(want[0], int) else 1
    assumed = (*said, f"{place.name}: {_told(place, asked, guessed)}")
    return one_by_one(files, make, Making(wanted, str, per_run), source, assumed)


def find_place(wanted: Wanted) -> tuple[Place, tuple[str, ...]]:
    """Return which input takes an image, and how; raises UsageError where none does."""
    found: list[Place] = []
    for spec in wanted.specs:
        # Integers above 8 bits are ids.
        if spec.dtype.kind in "OSU" or (spec.dtype.kind in "iub" and spec.dtype.itemsize > 1):
            continue
        place = _place(spec.name, wanted)
        if place is not None:
            found.append(place)
    if not found:
        inputs = "; ".join(f"{s.name} [{written(s.shape)}]" for s in wanted.specs)
        raise UsageError(f"images are given, but no input of the model takes one of 1, 3 or 4 channels: {inputs}")
    first = max(found, key=lambda p: p.channel is not None)
    told = (f"images go to {first.name}, one of {len(found)} inputs that could take them",)
    return first, told if len(found) > 1 else ()


def _place(name: str, wanted: Wanted) -> Place | None:
    want = wanted.symbols[name]
    rank = len(want)
    batched = rank == 4 or (rank == 3 and isinstance(want[0], str) and name in wanted.axes)
    rest = range(1, rank) if batched else range(rank)
    if len(rest) == 2 and batched:
        flat = any(isinstance(want[k], int) and int(want[k]) < _THINNEST for k in rest)
        return None if flat else _placed(name, wanted, None, rest[0], rest[1], batched)
    if len(rest) != 3:
        return None
    first, middle, last = rest
    if want[first] in _CHANNELS:
        return _placed(name, wanted, first, middle, last, batched)
    if want[last] in _CHANNELS:
        return _placed(name, wanted, last, first, middle, batched)
    if isinstance(want[first], str):  # open channels: where frameworks put them by default
        return _placed(name, wanted, first, middle, last, batched)
    return None


def _placed(name: str, wanted: Wanted, channel: int | None, height: int, width: int, batched: bool) -> Place:
    want = wanted.symbols[name]
    count = 1 if channel is None else want[channel]
    sides = [want[height], want[width]]
    known = (wanted.natural or {}).get(name)
    if isinstance(count, str):
        count = known[channel] if known and channel is not None and known[channel] in _CHANNELS else 3
    if isinstance(sides[0], int) and isinstance(sides[1], str) and not known:
        return Place(name, len(want), channel, height, width, count, (sides[0], None), batched)
    open_sides = [n for n in sides if isinstance(n, str)]
    if open_sides:
        usual = known or wanted.sizes[name]
        sides = [usual[k] if isinstance(n, str) else n for k, n in zip((height, width), sides, strict=True)]
    size = (int(sides[0]), int(sides[1]))
    return Place(name, len(want), channel, height, width, count, size, batched)


def _guessed(asked: Preset, place: Place, dtype: np.dtype[Any], wanted: Wanted) -> tuple[Preset, str]:
    """Return a scale where none is given, and why it is likely."""
    if asked.scale is not None:
        return asked, ""
    # Ultralytics write these two into every model they export; their networks take 0 to 1.
    if dtype.kind in "iu":
        scale, why = "0..255", "the input takes bytes"
    elif {"stride", "task"} <= wanted.model.metadata_props.keys():
        scale, why = "0..1", "as for detectors of this origin"
    elif place.channels != 3:
        scale, why = "0..1", f"usual for {place.channels} channel{'s' * (place.channels > 1)}"
    elif place.channel == place.rank - 1:
        scale, why = "-1..1", "usual where channels come last"
    else:
        scale, why = "imagenet", "usual for colour images"
    mean, std = _SCALES[scale]
    return replace(asked, scale=scale, mean=mean, std=std), why


def _told(place: Place, asked: Preset, guessed: str) -> str:
    height, width = place.size
    how = {"crop": "cropped in the middle", "pad": "padded with grey", "stretch": "stretched"}[asked.fit]
    size = f"resized and {how}, {height} x {width}" if width else f"resized to height {height}, width in ratio"
    order = {1: "grey", 3: "BGR" if asked.bgr else "RGB", 4: "RGBA"}[place.channels]
    layout = "channels last" if place.channel == place.rank - 1 else "channels first"
    layout = "no channel axis" if place.channel is None else layout
    scale = f"scale {asked.scale}"
    if guessed:
        scale += f" (a guess, {guessed}; --preset says otherwise)"
    return f"images {size}, {order}, {layout}, {scale}"


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UsageError("reading images needs Pillow: pip install 'graphprune[images]'") from error


def _opened(pillow: Any, path: Path) -> Any:
    try:
        return pillow.open(path)
    except Exception as error:  # Pillow raises what its decoders raise
        raise UsageError(f"{path}: is not an image that can be read ({type(error).__name__}): remove it") from error


def _read(pillow: Any, path: Path, place: Place, asked: Preset) -> Any:
    """Return an image in the mode and size that are wanted."""
    image = _opened(pillow, path)
    try:
        with image:
            height, width = place.size
            mode = _CHANNELS[place.channels]
            if asked.fit == "crop" and width is not None:
                image.draft(mode, (2 * width, 2 * (height or 1)))  # a JPEG is decoded at half size where that is enough
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            upright = importlib.import_module("PIL.ImageOps").exif_transpose(image) if turned else image
            if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
                upright = pillow.fromarray((np.asarray(upright) // 257).astype(np.uint8))
            return _fitted(pillow, upright.convert(mode), height, width, asked.fit)
    except Exception as error:
        raise UsageError(f"{path}: cannot be decoded ({type(error).__name__}: {error}): remove it") from error


def _fitted(pillow: Any, image: Any, height: int | None, width: int | None, fit: str) -> Any:
    """Scale so that the wanted size is covered and crop the middle; or fit inside and pad; or stretch."""
    if height is None:
        return image
    if width is None:
        width = max(round(image.width * height / image.height), 1)
    if image.size == (width, height):
        return image
    how = {"resample": pillow.Resampling.BICUBIC, "reducing_gap": 2.0}
    ratios = (width / image.width, height / image.height)
    if fit == "stretch":
        return image.resize((width, height), **how)
    if fit == "crop":
        scale = max(ratios)
        left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
        left, top = max(left, 0.0), max(top, 0.0)  # rounding
        box = (left, top, image.width - left, image.height - top)
        return image.resize((width, height), box=box, **how)
    image = image.resize(tuple(max(round(n * min(ratios)), 1) for n in image.size), **how)
    grey = tuple([114] * len(image.getbands()))
    padded = pillow.new(image.mode, (width, height), grey if len(grey) > 1 else 114)
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def _array(image: Any, place: Place, asked: Preset, dtype: np.dtype[Any]) -> Array:
    """Return an image as the array that the model takes, with an axis for the sample if the model has one."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, place.channels)
    if asked.bgr and place.channels == 3:
        pixels = pixels[..., ::-1]
    # Named scales are in the order of RGB, numbers that are given in the model's.
    turn = -1 if asked.bgr and asked.scale in _SCALES else 1
    mean, std = (np.array(values[::turn], np.float32) for values in (asked.mean, asked.std))
    scaled = (pixels / 255 - mean) / std
    if place.channel is None:
        scaled = scaled[..., 0]
    elif place.channel < place.height:
        scaled = scaled.transpose(2, 0, 1)
    if dtype.kind in "iu":
        scaled = np.clip(np.rint(scaled), np.iinfo(dtype).min, np.iinfo(dtype).max)
    array: Array = np.ascontiguousarray(scaled.astype(dtype))
    return array[None] if place.batched else array
