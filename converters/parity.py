"""Whether a conversion, in or out, computes the same: both sides run on the same made-up inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphprune.analysis import analyse
from graphprune.converters.source import Converted, Run
from graphprune.errors import ValidationError
from graphprune.execute import Outputs, relative_error
from graphprune.options import Looking
from graphprune.runtime import Runtime, open_session, run

ALLOWED = 1e-4
_BATCH = 3  # no exporter's example has it


def parity(converted: Converted, path: Path) -> float | None:
    """Return how far the outputs are from the source's, in units of their largest; None where the source cannot be run.

    >>> parity(to_onnx("net.keras"), Path("net.onnx"))  # doctest: +SKIP
    3e-07

    Raises ValidationError where it is more than 1e-4, or outputs are of other sizes.
    """
    if converted.run is None:
        return None
    feed = analyse(path, Looking(batch=_BATCH)).reference.feeds[0]
    return differing(converted.run, path, feed, Sides("the converted model", "the source"))


@dataclass(frozen=True)
class Sides:
    """How the ONNX model and what it is compared with are called, and by how much they may differ."""

    ours: str
    theirs: str
    allowed: float = ALLOWED


def differing(other: Run, path: Path, feed: Outputs, sides: Sides) -> float:
    """Return how far outputs of an ONNX file are from what `other` computes, in units of their largest.

    >>> differing(run, Path("net.onnx"), {"x": x}, Sides("the ONNX model", "net.tflite"))  # doctest: +SKIP
    2e-07

    Raises ValidationError where that is more than is allowed, or outputs are of other sizes.
    """
    session = open_session(str(path), Runtime())
    ours = run(session, feed)
    theirs = [np.asarray(x) for x in other([feed[value.name] for value in session.get_inputs()])]
    if len(ours) != len(theirs):
        raise ValidationError(f"{sides.ours} has {len(ours)} outputs, {sides.theirs} {len(theirs)}")
    for (name, a), b in zip(ours.items(), theirs, strict=True):
        if a.shape != b.shape:
            raise ValidationError(f"output {name!r} of {sides.ours} is {a.shape}, {sides.theirs}'s is {b.shape}")
    error, name = relative_error(dict(zip(ours, theirs, strict=True)), ours)
    if not error <= sides.allowed:
        raise ValidationError(
            f"output {name!r} of {sides.ours} is off by {error:.1e} from {sides.theirs}'s "
            f"(allowed: {sides.allowed:.0e})"
        )
    return error
