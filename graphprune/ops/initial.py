"""How the weights of a node start before any training: their role, and over how many numbers an output sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from graphprune.ops.registry import Row, row

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Start:
    """How one constant input starts.

    Normal numbers of deviation `gain` / sqrt(`fan_in`), or, where `fan_in` is 0, the same number everywhere: `value`.
    """

    fan_in: int = 0
    gain: float = 1.0
    value: float = 0.0


StartRule: TypeAlias = Callable[[Mapping[str, Any], "Sequence[tuple[int, ...] | None]"], Mapping[int, Start]]
"""Asked with attributes and the sizes of the inputs (None: not known): which constant inputs start how."""

RECTIFIED = 2**0.5
"""Keeps variance where a rectifier takes half of it: He et al., Delving Deep into Rectifiers (ICCV 2015), eq. 10."""

_ZERO, _ONE = Start(value=0.0), Start(value=1.0)


def conv(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """A kernel [outputs, inputs of a group, *k]: an output sums over inputs and positions."""
    return _kernel(shapes, lambda s: prod(s[1:]))


def turned(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """A kernel [inputs, outputs of a group, *k] of a transposed convolution: outputs share inputs by strides."""
    steps = prod(int(s) for s in attributes.get("strides", ())) or 1
    groups = int(attributes.get("group", 1))
    return _kernel(shapes, lambda s: max(s[0] // groups * prod(s[2:]) // steps, 1))


def _kernel(
    shapes: Sequence[tuple[int, ...] | None], fan_in: Callable[[tuple[int, ...]], int]
) -> Mapping[int, Start]:
    weight = shapes[1]
    return {} if weight is None else {1: Start(fan_in(weight), RECTIFIED), 2: _ZERO}


def gemm(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """A matrix of a product with a bias."""
    found = {}
    for k, turn, contracted in ((0, "transA", 1), (1, "transB", 0)):
        shape = shapes[k]
        if shape is not None and len(shape) == 2:
            found[k] = Start(shape[1 - contracted if attributes.get(turn, 0) else contracted])
    return {**found, 2: _ZERO}


def matmul(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """A matrix [inputs, outputs] on the right, or [outputs, inputs] on the left."""
    left, right = shapes[0], shapes[1]
    found = {} if right is None or len(right) < 2 else {1: Start(right[-2])}
    return found if left is None or len(left) < 2 else {**found, 0: Start(left[-1])}


def recurrent(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """W [d, gates, inputs] and R [d, gates, hidden] over the hidden size, biases 0."""
    hidden = shapes[2]
    if hidden is None:
        return {}
    inner = Start(hidden[-1], 3**-0.5)  # as wide as the uniform numbers that torch starts with
    return {1: inner, 2: inner, 3: _ZERO}


def looked_up(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """A table of vectors: deviation 1 / sqrt(width), so that a vector's length is 1."""
    table = shapes[0]
    return {} if table is None or len(table) != 2 else {0: Start(table[1])}


def norm(scale: int = 1, shift: int | None = 2, moments: tuple[int, ...] = ()) -> StartRule:
    """A normalisation: scales 1, shifts 0; running mean 0 and variance 1."""

    def rule(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
        found = {scale: _ONE} if shift is None else {scale: _ONE, shift: _ZERO}
        return {**found, **dict(zip(moments, (_ZERO, _ONE), strict=False))}

    return rule


def added(attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...] | None]) -> Mapping[int, Start]:
    """A vector that is added to what a layer gives: its bias."""
    return {k: _ZERO for k in (0, 1) if shapes[k] is not None and sum(n > 1 for n in shapes[k] or ()) == 1}


INITIAL: list[Row[StartRule]] = [
    row(conv, "Conv"),
    row(turned, "ConvTranspose"),
    row(gemm, "Gemm"),
    row(matmul, "MatMul"),
    row(recurrent, "LSTM", "GRU", "RNN"),
    row(looked_up, "Gather"),
    row(norm(1, 2, (3, 4)), "BatchNormalization"),
    row(norm(), "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    row(norm(1, None), "RMSNormalization", "SimplifiedLayerNormalization"),
    row(norm(), "LayerNormalization", domain=MICROSOFT),
    row(norm(1, None), "SimplifiedLayerNormalization", domain=MICROSOFT),
    row(norm(2, 3), "SkipLayerNormalization", domain=MICROSOFT),
    row(norm(2, None), "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
]

AFTER_LAYERS: list[Row[StartRule]] = [row(added, "Add")]
"""What holds only for a node that reads what a layer with a weight gives."""
