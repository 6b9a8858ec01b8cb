"""Whether a converted model computes what its source does: both run on the same made-up inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphprune.analysis import analyse
from graphprune.converters.source import Converted
from graphprune.errors import ValidationError
from graphprune.execute import relative_error
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
    session = open_session(str(path), Runtime())
    ours = run(session, feed)
    theirs = [np.asarray(x) for x in converted.run([feed[value.name] for value in session.get_inputs()])]
    if len(ours) != len(theirs):
        raise ValidationError(f"the converted model has {len(ours)} outputs, the source {len(theirs)}")
    for (name, a), b in zip(ours.items(), theirs, strict=True):
        if a.shape != b.shape:
            raise ValidationError(f"output {name!r} of the converted model is {a.shape}, the source's is {b.shape}")
    error, name = relative_error(dict(zip(ours, theirs, strict=True)), ours)
    if error > ALLOWED:
        raise ValidationError(f"output {name!r} of the converted model is off by {error:.1e} (allowed: {ALLOWED:.0e})")
    return error
