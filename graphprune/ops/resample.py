"""Operators that resample or crop positions, or exchange depth and space."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.axes import Equation, Pin, Role, Same, Use
from graphprune.ops.registry import AxisRule, Op, Row, line, normalise_axis, pin_all, row
from graphprune.ops.sizes import Change, RefitRule, SetElements, Shrunk, resized


def _kept(op: Op) -> set[int]:
    """Return the axes that are surely left as they are: of equal size, and resampled by a factor of one."""
    x, y = op.x(), op.y()
    equal = {k for k in range(x.rank) if x.shape[k] == y.shape[k] and x.dynamic[k] == y.dynamic[k]}
    listed = op.attr("axes") or list(range(x.rank))
    axes = [normalise_axis(int(a), x.rank) for a in listed]
    if op.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return equal - set(axes)
    sizes = op.input(3)
    if sizes is not None and sizes.shape != (0,):
        stretch = op.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
        return equal if stretch else equal - set(axes)
    return equal - {a for a, s in zip(axes, _scales(op, len(axes)), strict=True) if s != 1}


def _scales(op: Op, n: int) -> list[float | None]:
    """Return the factors of Resize or Upsample; None where they are not known."""
    if op.type == "CenterCropPad":
        return [1.0] * n
    given = op.attr("scales")
    if given is None:
        operand = op.input(2 if op.type == "Resize" and op.version >= 11 else 1)
        given = operand.value if operand is not None else None
    return [float(s) for s in given] if given is not None else [None] * n


def resize(op: Op) -> Iterator[Equation]:
    """Axes that keep their size go along, resampled ones are positions."""
    x, y = op.x(), op.y()
    kept = _kept(op)
    for k, (a, b) in enumerate(zip(x.axes, y.axes, strict=True)):
        yield Use(0, a, Role.CARRIED)
        if k in kept:
            yield Same(a, b)
        else:
            yield Pin(a, "resampled positions")
            yield Pin(b, "resampled positions")
    for o in op.inputs[1:]:
        if o is not None:
            yield from (Pin(a, "a list of sizes") for a in o.axes)


def refit_sizes(op: Op, now: Shrunk) -> Iterator[Change]:
    """An input of sizes names those of the listed axes; scales stay."""
    place = 3 if op.type == "Resize" else 1
    sizes = op.input(place)
    if sizes is None or sizes.shape == (0,):
        return
    elements = resized(op.y(), now)
    axes = op.attr("axes")
    if axes is not None:
        elements = tuple(elements[normalise_axis(int(a), len(elements))] for a in axes)
    if any(elements):
        yield SetElements(place, elements)


def depth_to_space(op: Op) -> Iterator[Equation]:
    """Channels of a block become positions, in the order that `mode` says."""
    yield from (_DCR if op.attr("mode", "DCR") == "DCR" else _CRD)(op)


_BLOCK = {"a": "blocksize", "b": "blocksize"}
_BLOCK_PINS = {"a": "positions in a block", "b": "positions in a block", "h": "positions", "w": "positions"}
_DCR = line("n (a b c) h w -> n c (h a) (w b)", sizes=_BLOCK, pins=_BLOCK_PINS)
_CRD = line("n (c a b) h w -> n c (h a) (w b)", sizes=_BLOCK, pins=_BLOCK_PINS)
space_to_depth = line("n c (h a) (w b) -> n (a b c) h w", sizes=_BLOCK, pins=_BLOCK_PINS)


def max_unpool(op: Op) -> Iterator[Equation]:
    """Indices count the places of the whole input of a pooling, all channels of all samples: nothing may go."""
    yield from pin_all(op, "indices count places of the whole value")


AXES: tuple[Row[AxisRule], ...] = (
    row(max_unpool, "MaxUnpool"),
    row(resize, "Resize", "Upsample", "CenterCropPad"),
    row(depth_to_space, "DepthToSpace"),
    row(space_to_depth, "SpaceToDepth"),
)
REFITS: tuple[Row[RefitRule], ...] = (row(refit_sizes, "Resize", "CenterCropPad"),)
