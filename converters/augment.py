"""Images that are changed a little each time they are shown: mirrored, shifted; the teacher sees the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphprune.calibrate.samples import Feed
from graphprune.errors import UsageError

Change = Callable[[Feed, np.random.Generator], Feed]
Array = Any
_COLOURS = 4


def changing(words: Sequence[str], inputs: Feed) -> Change | None:
    """Return what changes the images of a feed, None for no words.

    >>> changing(["mirror", "shift=2"], {"x": np.zeros((8, 3, 32, 32), np.float32)})  # doctest: +ELLIPSIS
    <function ...>

    `mirror`: half of the images, left to right; `shift=N`: each by up to N pixels both ways, its edge repeated. Images
    are inputs of 4 axes, channels before or after rows and columns. Raises UsageError.
    """
    if not words:
        return None
    mirror, shift = False, 0
    for word in words:
        kind, _, number = word.partition("=")
        if word == "mirror":
            mirror = True
        elif kind == "shift" and number.isdigit() and int(number) > 0:
            shift = int(number)
        else:
            raise UsageError(f"--augment {word!r}: give mirror, shift=N, or both by a comma")
    images = [k for k, a in inputs.items() if a.ndim == 4 and a.dtype.kind in "fu"]
    if not images:
        raise UsageError("--augment is for images, inputs of 4 axes; the model has none")

    def change(feed: Feed, random: np.random.Generator) -> Feed:
        return {k: _moved(a, mirror, shift, random) if k in images else a for k, a in feed.items()}

    return change


def _moved(images: Array, mirror: bool, shift: int, random: np.random.Generator) -> Array:
    last = images.shape[3] <= _COLOURS < images.shape[1]  # channels are the last axis
    x = np.moveaxis(images, 3, 1) if last else images
    count, _, height, width = x.shape
    rows = np.broadcast_to(np.arange(height), (count, height))
    columns = np.broadcast_to(np.arange(width), (count, width))
    if mirror:
        columns = np.where(random.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    if shift:
        rows = np.clip(rows + random.integers(-shift, shift + 1, (count, 1)), 0, height - 1)
        columns = np.clip(columns + random.integers(-shift, shift + 1, (count, 1)), 0, width - 1)
    out = x[np.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [count, rows, columns, c]
    return np.ascontiguousarray(out if last else np.moveaxis(out, 3, 1))
