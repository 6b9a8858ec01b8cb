"""Open whatever holds calibration data: a reader, arrays, an iterable, a file or a folder of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.arrays import open_arrays, open_npz
from graphprune.calibrate.audio import open_audio
from graphprune.calibrate.images import open_images
from graphprune.calibrate.samples import Feed, Samples, Source, rows_of
from graphprune.calibrate.spool import spooled
from graphprune.calibrate.table import open_table
from graphprune.calibrate.text import open_text
from graphprune.calibrate.wanted import Wanted, by_rows
from graphprune.errors import GraphPruneError, UsageError

_KINDS = {
    "images": (".png", ".jpg", ".jpeg", ".bmp", ".webp"),
    "sounds": (".wav",),
    "arrays": (".npz",),
    "text": (".txt", ".md"),
    "tables": (".csv", ".tsv"),
}
_WANTS = "give a folder of images, .wav or .npz files, a .npz, a .csv, a text file, arrays, or a CalibrationDataReader"


def open_data(
    given: Any,
    model: ir.Model,
    *,
    preset: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    length: int | None = None,
    batch: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    source: Source = "in-distribution",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    bounds: Mapping[str, int] | None = None,
    labels: str | None = None,
) -> Samples:
    """Open calibration data for a model and say what was assumed.

    >>> open_data("photos/", model, preset="imagenet", limit=256).assumed  # doctest: +SKIP
    ('input: images resized ...',)

    `given` is a path, a dict of arrays (samples along the first axis), an array, a CalibrationDataReader, or an
    iterable of dicts or arrays. `preset` is for images, `tokenizer` and `length` for text, `length` for sound too;
    `batch` is the number of samples a feed of `open()` holds, 1 where None. At most `limit` samples are taken, evenly
    spaced where their number is known. `shapes` are sizes for axes that neither the model nor the data fixes, `bounds`
    the number of rows of the tables that inputs index. `labels` is an array in `.npz` files that goes beside the
    inputs, see `labelled.py`. Raises UsageError: one line on what is wrong, and where.
    """
    for name, number in (("limit", limit), ("batch", batch), ("length", length)):
        if number is not None and number < 1:
            raise UsageError(f"{name} of calibration data is {number}: give 1 or more")
    wanted = Wanted.of(model, shapes, bounds, seed)
    if isinstance(given, (str, os.PathLike)):
        samples = _open_path(Path(given), wanted, source, _Options(preset, tokenizer, length, limit, labels))
    elif isinstance(given, Mapping):
        samples = open_arrays(given, wanted, source)
    elif isinstance(given, np.ndarray):
        samples = open_arrays({wanted.specs[0].name: given}, wanted, source)
    elif callable(getattr(given, "get_next", None)):
        samples = _once(iter(given.get_next, None), wanted, source, limit, None)
    elif isinstance(given, Sequence):
        samples = _listed(given, wanted, source)
    elif isinstance(given, Iterable):
        samples = _once(given, wanted, source, limit, _length(given))
    else:
        raise UsageError(f"calibration data cannot be read from {type(given).__name__}: {_WANTS}")
    samples = samples if limit is None else samples.limited(limit, seed)
    return samples if batch in (None, 1) else _batched(samples, batch or 1)


class _Options:
    """What is said about files."""

    def __init__(
        self, preset: str | None, tokenizer: str | os.PathLike[str] | None, length: int | None, limit: int | None,
        labels: str | None,
    ) -> None:  # fmt: skip
        self.preset, self.length, self.limit, self.labels = preset, length, limit, labels
        self.tokenizer = None if tokenizer is None else Path(tokenizer)


def _open_path(path: Path, wanted: Wanted, source: Source, options: _Options) -> Samples:
    """Open a file, or the files in a folder that are of the kind most of them are."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder of calibration data")
    kind, files, ignored = _files(path) if path.is_dir() else (_kind(path), [path], "")
    if options.tokenizer is not None and kind not in ("text", ""):
        raise UsageError(f"{path}: a tokenizer is given, but this is no text: it holds {kind}")
    if options.labels is not None and kind != "arrays":
        raise UsageError(f"labels {options.labels!r} are an array in .npz files, which {path} is not")
    openers: dict[str, Callable[[], Samples]] = {
        "images": lambda: open_images(files, wanted, source, options.preset),
        "sounds": lambda: open_audio(files, wanted, source, options.length),
        "arrays": lambda: open_npz(files, wanted, source, options.labels),
        "text": lambda: open_text(files, wanted, source, options.tokenizer, options.length),
        "tables": lambda: open_table(files, wanted, source),
    }
    if not kind and options.tokenizer is None:
        raise UsageError(f"{path}: is of no kind that can be read ({path.suffix or 'no ending'}): {_WANTS}")
    samples = openers[kind or "text"]()
    return replace(samples, assumed=(*samples.assumed, ignored)) if ignored else samples


def _kind(path: Path) -> str:
    return next((kind for kind, endings in _KINDS.items() if path.suffix.lower() in endings), "")


def _files(folder: Path) -> tuple[str, list[Path], str]:
    """Return the kind that most files of a folder are of, these files by name, and a sentence on the others."""
    inside = sorted(
        (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)),
        key=lambda p: p.relative_to(folder).as_posix(),
    )
    everything = [p for p in inside if p.is_file()]
    by_kind = {kind: [p for p in everything if _kind(p) == kind] for kind in _KINDS}
    kind = max(by_kind, key=lambda k: len(by_kind[k]))
    if not by_kind[kind]:
        raise UsageError(f"{folder}: holds no calibration data that can be read: {_WANTS}")
    others = len(everything) - len(by_kind[kind])
    return kind, by_kind[kind], f"{others} other files in {folder} not read" if others else ""


def _listed(given: Sequence[Any], wanted: Wanted, source: Source) -> Samples:
    """Return samples of a list of feeds, which stays where it is."""
    rows: list[int] = []
    assumed: tuple[str, ...] = ()

    def fit(i: int) -> Feed:
        return wanted.fit(_named(given[i], wanted), f"calibration data, feed {i}")

    for i in range(len(given)):
        feed = fit(i)
        assumed = assumed or _assumed(given[i], feed, wanted)
        rows.append(rows_of(feed, wanted.axes))
    if not any(rows):
        raise UsageError("calibration data: is empty")
    return by_rows(rows, fit, wanted, source, assumed)


def _once(given: Iterable[Any], wanted: Wanted, source: Source, limit: int | None, promised: int | None) -> Samples:
    """Return samples of what may be readable only once, or in another order the next time."""
    assumed: tuple[str, ...] = ()

    def feeds() -> Iterator[Feed]:
        nonlocal assumed
        rows = count = 0
        for value in _guarded(given):
            feed = wanted.fit(_named(value, wanted), f"calibration data, feed {count}")
            assumed = assumed or _assumed(value, feed, wanted)
            rows, count = rows + rows_of(feed, wanted.axes), count + 1
            yield feed
            if limit is not None and rows >= limit:
                return
        if not count:
            raise UsageError("calibration data: is empty: the reader or iterator yields nothing (was it read before?)")
        if promised is not None and count < promised:
            raise UsageError(f"calibration data: ended after {count} feeds, though its length says {promised}")

    return spooled(feeds(), wanted, source, lambda: assumed)


def _guarded(given: Iterable[Any]) -> Iterator[Any]:
    """Yield what the user's code yields; what it raises becomes a UsageError."""
    at = 0
    try:
        for value in given:
            if isinstance(value, Mapping) and not value:  # how some readers say that they end
                return
            yield value
            at += 1
    except GraphPruneError:
        raise
    except Exception as error:
        raise UsageError(f"calibration data: reading feed {at} failed: {type(error).__name__}: {error}") from error


def _length(given: Iterable[Any]) -> int | None:
    try:
        return len(given)  # type: ignore[arg-type]
    except TypeError:
        return None


def _named(value: Any, wanted: Wanted) -> Mapping[str, Any]:
    """Return a feed by name: arrays in a tuple are the inputs in order, more of them are labels and left out."""
    if isinstance(value, Mapping):
        return value
    arrays = value if isinstance(value, (tuple, list)) else (value,)
    return {spec.name: array for spec, array in islice(zip(wanted.specs, arrays, strict=False), len(wanted.specs))}


def _assumed(value: Any, feed: Feed, wanted: Wanted) -> tuple[str, ...]:
    """Say what was assumed of the first feed."""
    said = wanted.said(_named(value, wanted), feed)
    more = len(value) - len(wanted.specs) if isinstance(value, (tuple, list)) else 0
    if more > 0:
        said = (*said, f"of every tuple the last {more} left out, as the model has {len(wanted.specs)} inputs")
    return said


def _batched(samples: Samples, batch: int) -> Samples:
    """Yield feeds of several samples; their number and what can be picked stay."""
    return replace(samples, open=lambda: samples.batches(batch))
