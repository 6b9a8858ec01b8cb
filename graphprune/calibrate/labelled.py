"""Samples with labels: one whole number for each, from an array beside the inputs in an .npz or a folder of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune.calibrate.arrays import LABELS
from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.samples import Feed, Samples
from graphprune.errors import UsageError

__all__ = ["LABELS", "inputs_of", "open_labelled", "unlabelled"]


def open_labelled(
    model: ir.Model, chosen: Calibration, labels: str, seed: int, *, option: str = "--data", **options: Any
) -> Samples:
    """Return samples whose feeds have labels beside the inputs, under the name LABELS.

    >>> open_labelled(model, parse_calibration("train.npz"), "labels", 0).count  # doctest: +SKIP
    60000

    The data is an .npz, or a folder of them, which is read as it is needed. `options` are those of `open_data`;
    `option` is what the user calls the data by. Raises UsageError where there is no such array, or not one label per
    sample.
    """
    path = Path(str(chosen.data))
    if chosen.kind != "data" or not (path.is_dir() or (path.suffix == ".npz" and path.is_file())):
        given = path if chosen.kind == "data" else chosen.kind
        raise UsageError(f"--labels {labels!r} is an array in the .npz of {option}, which {given} is not")
    return chosen.open(model, seed=seed, labels=labels, **options)


def inputs_of(feed: Feed) -> dict[str, Any]:
    """Return a feed without labels: what the model takes."""
    return {k: v for k, v in feed.items() if k != LABELS}


def unlabelled(samples: Samples) -> Samples:
    """Return the same samples without labels."""
    axes: Mapping[str, int] | None = None if samples.axes is None else inputs_of(samples.axes)  # type: ignore[arg-type]
    return replace(samples, open=lambda: (inputs_of(f) for f in samples.open()), axes=axes, pick=None)
