"""Samples with labels: one whole number for each, from an array beside the inputs in an .npz."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.given import open_data
from graphprune.calibrate.samples import Feed, Samples, rows_of
from graphprune.errors import UsageError

LABELS = "graphprune.labels"
"""The name that labels have beside the inputs of a feed."""


def open_labelled(
    model: ir.Model, chosen: Calibration, labels: str, seed: int, *, option: str = "--data", **options: Any
) -> Samples:
    """Return samples whose feeds have labels beside the inputs, under the name LABELS.

    >>> open_labelled(model, parse_calibration("train.npz"), "labels", 0).count  # doctest: +SKIP
    60000

    `options` are those of `open_data`; `option` is what the user calls the file by. Raises UsageError where there is
    no such array, or not one label per sample.
    """
    path = Path(str(chosen.data))
    if chosen.kind != "data" or path.suffix != ".npz" or not path.is_file():
        given = path if chosen.kind == "data" else chosen.kind
        raise UsageError(f"--labels {labels!r} is an array in the .npz of {option}, which {given} is not")
    with np.load(path, allow_pickle=False) as file:
        if labels not in file.files:
            raise UsageError(f"{path}: has no array {labels!r}; there are {', '.join(file.files)}")
        arrays = {k: file[k] for k in file.files if k != labels}
        told = np.asarray(file[labels])
    limit = options.pop("limit", None)
    samples = open_data(arrays, model, seed=seed, source=chosen.source, **options)
    if told.ndim != 1 or told.dtype.kind not in "iu" or (samples.count or 0) != len(told):
        raise UsageError(f"{path}: {labels!r} is {told.dtype}{list(told.shape)}: give one whole number per sample")

    def opened() -> Iterator[Feed]:
        first = 0
        for feed in samples.open():
            rows = rows_of(feed, samples.axes)
            yield {**feed, LABELS: told[first : first + rows].astype(np.int64)}
            first += rows

    axes = None if samples.axes is None else {**samples.axes, LABELS: 0}
    out = replace(samples, open=opened, axes=axes, pick=None)
    return out if limit is None else out.limited(limit, seed)


def inputs_of(feed: Feed) -> dict[str, Any]:
    """Return a feed without labels: what the model takes."""
    return {k: v for k, v in feed.items() if k != LABELS}


def unlabelled(samples: Samples) -> Samples:
    """Return the same samples without labels."""
    axes: Mapping[str, int] | None = None if samples.axes is None else inputs_of(samples.axes)  # type: ignore[arg-type]
    return replace(samples, open=lambda: (inputs_of(f) for f in samples.open()), axes=axes, pick=None)
