"""Nodes that do nothing: which input the first output of a node is, element by element, at all input sizes.

A rule looks at sizes and constants of one node and answers with the number of that input, or None. It is asked after
pruning, when a reduction may be over a size of one, a list to gather may be all there is, and a branch may be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.ops.registry import Row, normalise_axis, row

Sizes: TypeAlias = "tuple[int | None, ...] | None"
_ENDLESS = 2**31 - 1


@dataclass(frozen=True)
class Sight:
    """What a rule sees of a node: sizes (None: open, or not known), constants, attributes and element types.

    `read` says which outputs anybody reads; `constant(k)` is the content of input k where that is constant.
    """

    attributes: Mapping[str, Any]
    inputs: Sequence[Sizes]
    outputs: Sequence[Sizes]
    types: Sequence[int | None]
    constant: Callable[[int], npt.NDArray[Any] | None]

    @property
    def count(self) -> int:
        return len(self.inputs)

    def ints(self, k: int, attribute: str) -> list[int] | None:
        """Return a parameter that newer opsets take as input `k` and older ones as an attribute."""
        found = self.constant(k) if k < self.count else None
        if found is not None:
            return [int(n) for n in np.ravel(found)]
        value = self.attributes.get(attribute)
        if value is None:
            return None
        return [int(value)] if isinstance(value, int) else [int(n) for n in value]


NoopRule: TypeAlias = "Callable[[Sight], int | None]"


def always(sight: Sight) -> int | None:
    """Whatever is read is given."""
    return 0


def alone(sight: Sight) -> int | None:
    """One input, and nothing to put it together with."""
    return 0 if sight.count == 1 else None


def undivided(sight: Sight) -> int | None:
    """One output, so nothing is cut."""
    return 0 if len(sight.outputs) == 1 else None


def at_rest(sight: Sight) -> int | None:
    """Nothing is dropped outside of training."""
    training = sight.constant(2) if sight.count > 2 else None
    if sight.count > 2 and training is None:
        return None
    return 0 if training is None or not np.any(training) else None


def same_type(sight: Sight) -> int | None:
    """A type becomes itself."""
    return 0 if sight.types[0] is not None and sight.attributes.get("to") == sight.types[0] else None


def reshaped(sight: Sight) -> int | None:
    """Sizes become the same sizes: at most one of them is open, and it is what is left."""
    before, after = sight.inputs[0], sight.outputs[0]
    if before is None or after is None or len(before) != len(after):
        return None
    asked = sight.constant(1) if sight.count > 1 else None
    copies = not sight.attributes.get("allowzero", 0)
    unsure = 0
    for k, (a, b) in enumerate(zip(before, after, strict=True)):
        if a is None and b is None:
            copied = copies and asked is not None and len(asked) == len(before) and asked[k] == 0
            unsure += not copied
        elif a != b:
            return None
    return 0 if unsure <= 1 and 0 not in before else None


def transposed(sight: Sight) -> int | None:
    """Axes longer than one keep their order, and all axes their sizes."""
    shape = sight.inputs[0]
    if shape is None:
        return None
    perm = list(sight.attributes.get("perm", range(len(shape))[::-1]))
    long = [k for k in perm if shape[k] != 1]
    return 0 if long == sorted(long) and [shape[k] for k in perm] == list(shape) else None


def sliced(sight: Sight) -> int | None:
    """Every slice takes its whole axis."""
    shape, starts, ends = sight.inputs[0], sight.ints(1, "starts"), sight.ints(2, "ends")
    if shape is None or starts is None or ends is None:
        return None
    axes, steps = sight.ints(3, "axes"), sight.ints(4, "steps")
    if (sight.count > 3 and axes is None) or (sight.count > 4 and steps is None):
        return None
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[normalise_axis(axis, len(shape))]
        first = start == 0 or (size is not None and start <= -size)
        if step != 1 or not first or end < (_ENDLESS if size is None else size):
            return None
    return 0


def gathered(sight: Sight) -> int | None:
    """All that is there, in order."""
    shape, picked = sight.inputs[0], sight.constant(1)
    if not shape or picked is None or picked.ndim != 1:
        return None
    size = shape[normalise_axis(int(sight.attributes.get("axis", 0)), len(shape))]
    return 0 if size is not None and np.array_equal(picked, np.arange(size)) else None


def unpadded(sight: Sight) -> int | None:
    """Nothing is added."""
    pads = sight.ints(1, "pads")
    return 0 if pads is not None and not any(pads) else None


def expanded(sight: Sight) -> int | None:
    """The sizes asked for are one, or those that are there."""
    shape, asked = sight.inputs[0], sight.ints(1, "")
    if shape is None or asked is None or len(asked) > len(shape):
        return None
    pairs = zip(asked[::-1], shape[::-1], strict=False)
    return 0 if all(n in (1, size) for n, size in pairs) else None


def once(sight: Sight) -> int | None:
    """Everything is repeated once."""
    repeats = sight.constant(1) if sight.count > 1 else None
    return 0 if repeats is not None and bool((repeats == 1).all()) else None


def of_one(sight: Sight) -> int | None:
    """What is reduced has a size of one and stays as an axis."""
    shape = sight.inputs[0]
    axes = sight.ints(1, "axes")
    if shape is None or not sight.attributes.get("keepdims", 1) or (sight.count > 1 and axes is None):
        return None
    if not axes:
        if sight.attributes.get("noop_with_empty_axes", 0):
            return 0
        axes = list(range(len(shape)))
    return 0 if all(shape[normalise_axis(k, len(shape))] == 1 for k in axes) else None


def pooled_one(sight: Sight) -> int | None:
    """There is one place to pool over."""
    shape = sight.inputs[0]
    return 0 if shape is not None and len(shape) > 2 and all(n == 1 for n in shape[2:]) else None


def pooled_each(sight: Sight) -> int | None:
    """Every window has one place, and none is left out."""
    window = sight.attributes.get("kernel_shape", ())
    if not window or any(n != 1 for n in (*window, *sight.attributes.get("strides", ()))):
        return None
    padded = any(sight.attributes.get("pads", ())) or sight.attributes.get("auto_pad", "NOTSET") != "NOTSET"
    return None if padded or len(sight.outputs) > 1 else 0


def with_number(number: float, either: bool) -> NoopRule:
    """Return the rule that the other input is a number everywhere, which changes nothing, and makes nothing larger.

    `either`: the number may be the first input, too.
    """

    def rule(sight: Sight) -> int | None:
        for k in (0, 1) if either else (0,):
            shape, other = sight.inputs[k], sight.constant(1 - k)
            if shape is None or other is None or not other.size or sight.constant(k) is not None:
                continue
            sizes = zip(other.shape[::-1], shape[::-1], strict=False)
            fits = other.ndim <= len(shape) and all(n in (1, size) for n, size in sizes)
            if fits and other.dtype.kind in "fiu" and bool((other == number).all()):
                return k
        return None

    return rule


NOOPS: tuple[Row[NoopRule], ...] = (
    row(always, "Identity"),
    row(alone, "Concat", "Sum", "Max", "Min", "Mean"),
    row(undivided, "Split"),
    row(at_rest, "Dropout", since=12),
    row(same_type, "Cast"),
    row(reshaped, "Reshape", "Flatten"),
    row(transposed, "Transpose"),
    row(sliced, "Slice"),
    row(gathered, "Gather"),
    row(unpadded, "Pad"),
    row(expanded, "Expand"),
    row(once, "Tile", since=6),
    row(of_one, "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"),
    row(pooled_one, "GlobalAveragePool", "GlobalMaxPool"),
    row(pooled_each, "AveragePool", "MaxPool"),
    row(with_number(1, either=True), "Mul", since=7),
    row(with_number(1, either=False), "Div", since=7),
    row(with_number(0, either=True), "Add", since=7),
    row(with_number(0, either=False), "Sub", since=7),
)
