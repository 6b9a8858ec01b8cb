"""Mixtures of experts with weights of a few bits: QMoE, domain com.microsoft.

Layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md: matrices
`[expert, out, in]` whose last axis is packed into bytes, a scale for every row, or for every row and block of inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from graphprune.axes import Axis, Equation, Pin, Role, Same, Use, fresh, product
from graphprune.axes.equations import Least
from graphprune.ops import blockwise
from graphprune.ops.blockwise import shared, unpacked
from graphprune.ops.fused import MICROSOFT
from graphprune.ops.inference import ShapeRule, like_first
from graphprune.ops.moe import up_axis
from graphprune.ops.qlinear import ROUNDERS
from graphprune.ops.quantization import blocks
from graphprune.ops.registry import AxisRule, CostRule, Op, Row, ShapeOf, row
from graphprune.ops.stored import Around, Array, Stored, StoredRule, dequantised

_ROUTER, _CHOSEN = 1, 14
"""What chooses experts, and where they are weighed apart from that: a row for each token, not for each expert."""
_BYTE = 8
_SHARED = "numbers that share a byte"
_OPAQUE = "a layout of the weights of its own"


class _Places(NamedTuple):
    """Which inputs make up one matrix of every expert."""

    number: int
    weight: int
    scales: int
    bias: int
    zeros: int


_UP, _DOWN, _GATE = _Places(1, 2, 3, 4, 11), _Places(2, 5, 6, 7, 12), _Places(3, 8, 9, 10, 13)


def _bits(op: Op, places: _Places) -> int:
    return int(op.attr(f"fc{places.number}_expert_weight_bits", op.attr("expert_weight_bits", 4)))


def _each(op: Op, places: _Places) -> int:
    """Return how many numbers lie in a byte."""
    return _BYTE // _bits(op, places)


def _inner(op: Op) -> int:
    return op.x(_DOWN.weight).shape[2] * _each(op, _DOWN)


def _plain(op: Op) -> bool:
    """Return whether weights lie as they are described: integers, not packed again for one kind of device."""
    if op.attr("quant_type", "int") != "int" or op.attr("weights_prepacked", -1) == 1:
        return False
    if _BYTE % _bits(op, _UP) or _BYTE % _bits(op, _DOWN) or _BYTE % _bits(op, _GATE):
        return False
    down, up = op.x(_DOWN.weight), op.x(_UP.weight)
    width = op.x().shape[-1]
    sizes = (up.shape[2] * _each(op, _UP), down.shape[1])
    parameters = (op.input(i) for p in (_UP, _DOWN, _GATE) for i in (p.scales, p.zeros))
    return sizes == (width, width) and all(o is None or o.rank in (2, 3) for o in parameters)


def quantised_experts(op: Op) -> Iterator[Equation]:
    """As MoE; inputs in whole bytes `(b [8 / bits])` and whole blocks `(k [block])`, whose scales are `x out k`.

    Zero points share bytes along the axis that they are packed on: rows, or blocks of a row.
    """
    x, router = op.x(0), op.x(_ROUTER)
    yield from (Same(a, b) for a, b in zip(x.axes, op.y().axes, strict=True))
    width, expert = x.axes[-1], router.axes[-1]
    yield from (Use(_ROUTER, a, Role.CARRIED) for a in router.axes[:-1])
    yield Use(_ROUTER, expert, Role.NORMALISED)
    yield Same(router.axes[0], product(*x.axes[:-1]))
    yield from _of_experts(op, expert)
    yield Least(expert, op.attr("k", 1))
    if not _plain(op):
        yield Pin(width, _OPAQUE)
        operands = (o for i, o in enumerate(op.inputs[2:], 2) if o is not None and i != _CHOSEN)
        yield from (Pin(a, _OPAQUE) for o in operands for a in o.axes[1:])
        return
    inner = fresh(_inner(op))
    yield Use(0, width, Role.CONTRACTED)
    yield from _matrix(op, _UP, up_axis(op, inner), width)
    yield from _matrix(op, _DOWN, width, inner)
    yield from _matrix(op, _GATE, inner, width)
    yield from _contracted_inside(op, inner)


def _of_experts(op: Op, expert: Axis) -> Iterator[Equation]:
    """Everything but the tokens has an entry for each expert."""
    for i, operand in enumerate(op.inputs[2:], 2):
        if operand is None:
            continue
        if i == _CHOSEN:
            yield Same(operand.axes[0], op.x(_ROUTER).axes[0])
            yield Same(operand.axes[1], expert)
            yield Use(i, expert, Role.NORMALISED)
        elif operand.shape[0] == expert.size:
            yield Same(operand.axes[0], expert)
            yield Use(i, operand.axes[0], Role.NORMALISED)


def _matrix(op: Op, places: _Places, rows: Axis, columns: Axis) -> Iterator[Equation]:
    """One matrix of every expert `x rows (b [each])`, with what lies beside it."""
    weight, scales, bias, zeros = (op.input(i) for i in places[1:])
    if weight is None:
        return
    each = _each(op, places)
    yield Same(weight.axes[1], rows)
    yield Use(places.weight, weight.axes[1], Role.PRODUCED)
    yield Use(places.weight, weight.axes[2], Role.CONTRACTED)
    if each == 1:
        yield Same(columns, weight.axes[2])
    else:
        inside = fresh(each)
        yield Same(columns, product(weight.axes[2], inside))
        yield Pin(inside, _SHARED)
    if bias is not None:
        yield Same(bias.axes[1], rows)
        yield Use(places.bias, bias.axes[1], Role.PRODUCED)
    if scales is not None:
        yield Same(scales.axes[1], rows)
        yield from blocks(columns, scales.axes[2], op.attr("block_size", 0)) if scales.rank == 3 else ()
    if zeros is not None and zeros.rank == 3 and scales is not None and scales.rank == 3:
        yield Same(zeros.axes[1], rows)
        yield from _beside(scales.axes[2], zeros.axes[2], each)
    elif zeros is not None:
        yield from _beside(rows, zeros.axes[1], each)


def _beside(numbers: Axis, packed: Axis, each: int) -> Iterator[Equation]:
    yield from iter([Same(numbers, packed)]) if each == 1 else shared(numbers, packed, each)


def _contracted_inside(op: Op, inner: Axis) -> Iterator[Equation]:
    """The inner width: a block counts for nothing where its scale is zero; without blocks there is no such number."""
    scales = op.input(_DOWN.scales)
    if scales is not None and scales.rank == 3:
        yield Use(_DOWN.scales, scales.axes[2], Role.CONTRACTED, own=True)
    else:
        yield Use(_DOWN.weight, inner, Role.NORMALISED)


AXES: tuple[Row[AxisRule], ...] = (row(quantised_experts, "QMoE", domain=MICROSOFT),)


def experts_cost(op: Op, shape: ShapeOf) -> int:
    """Every token through the experts that it is sent to."""
    tokens = prod(shape(op.x())[:-1])
    chosen = min(int(op.attr("k", 1)), shape(op.x(_ROUTER))[-1])
    found = ((op.input(p.weight), _each(op, p)) for p in (_UP, _DOWN, _GATE))
    return tokens * chosen * sum(prod(shape(w)[1:]) * each for w, each in found if w is not None)


COSTS: tuple[Row[CostRule], ...] = (row(experts_cost, "QMoE", domain=MICROSOFT),)
SHAPES: tuple[Row[ShapeRule], ...] = (row(like_first, "QMoE", domain=MICROSOFT),)


def _real(bits: int, block: int, arrays: Sequence[Array | None]) -> Array:
    """Return the real numbers `[expert, out, bytes]`, with an axis more where several lie in a byte."""
    weight, scales, zeros = arrays
    assert weight is not None
    experts, rows, packed = weight.shape
    number = unpacked(weight, bits)
    columns = number.shape[-1]
    blocked = block > 0 and scales is not None and scales.ndim == 3
    counted = (experts, rows, columns // block) if blocked else (experts, rows)
    zero: Array = np.full(counted, 1 << (bits - 1), dtype=np.float32)
    if zeros is not None:
        zero = unpacked(zeros, bits)[..., : counted[-1]].astype(np.float32)
    shape = counted if blocked else (*counted, 1)
    scale = scales.reshape(shape) if scales is not None else None
    real = dequantised(number, scale, zero.reshape(shape), axis=-1, block=block if blocked else 0)
    return real if packed == columns else real.reshape(experts, rows, packed, -1)


def _unread(arrays: Sequence[Array | None]) -> Array:
    """Numbers in a layout of their own say nothing of one expert against another: they count, and score nothing."""
    assert arrays[0] is not None
    return np.broadcast_to(np.float32(0), arrays[0].shape)


def stored_experts(op: Op, around: Around) -> Iterator[Stored]:
    """The matrices of all experts, with scales and zero points for rows or blocks."""
    for places in (_UP, _DOWN, _GATE):
        if op.input(places.weight) is not None:
            operands = tuple(op.input(i) for i in (places.weight, places.scales, places.zeros))
            plain = partial(_real, _bits(op, places), op.attr("block_size", 0))
            yield Stored(places.weight, operands, plain if _plain(op) else _unread)


STORED: tuple[Row[StoredRule], ...] = (row(stored_experts, "QMoE", domain=MICROSOFT),)

QUANTISED = ROUNDERS | {"DequantizeLinear"} | {o for r in (*blockwise.AXES, *AXES) for o in r.operators}
"""Operators that have to do with quantised numbers at all."""
