"""Sound frontends and grids: windows, Fourier transforms, filter banks; what depends on places stays in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphprune.axes import Equation, Pin, Same
from graphprune.ops.registry import AxisRule, Op, Row, line, normalise_axis, pin_all, row
from graphprune.ops.shapes import positions


def dft(op: Op) -> Iterator[Equation]:
    """Frequencies take the place of the transformed axis; the last axis holds real and imaginary parts."""
    x, y = op.x(), op.y()
    given = op.attr("axis", 1) if op.version < 20 else _axis(op)
    if given is None:
        yield from pin_all(op, "the axis is computed at run time")
        return
    changed = {normalise_axis(given, x.rank), x.rank - 1}
    for k, (a, b) in enumerate(zip(x.axes, y.axes, strict=True)):
        if k in changed:
            yield Pin(a, "times of a transform")
            yield Pin(b, "frequencies")
        else:
            yield Same(a, b)


def _axis(op: Op) -> int | None:
    if op.input(2) is None:
        return -2
    given = op.fixed(2)
    return int(np.ravel(given)[0]) if given is not None else None


def stft(op: Op) -> Iterator[Equation]:
    """Samples go along; times and frequencies stay as they are."""
    yield Same(op.x().axes[0], op.y().axes[0])


AXES: tuple[Row[AxisRule], ...] = (
    row(positions, "AffineGrid", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
    row(dft, "DFT"),
    row(stft, "STFT"),
    row(line("*n i j -> *n", pins={"i": "places of a matrix", "j": "places of a matrix"}), "Det"),
)
