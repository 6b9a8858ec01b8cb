"""Weights of a few bits with one scale for every block of them: MatMulNBits, GatherBlockQuantized, MatMulBnb4.

A block is the unit along the axis that is cut into blocks, and where several zero points share a byte, as many blocks
as do. Layouts: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import numpy as np

from graphprune.axes import Axis, Equation, Pin, Role, Same, Use, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops.quantization import blocks
from graphprune.ops.registry import AxisRule, CostRule, Op, Operand, Row, ShapeOf, normalise_axis, pin_all, row
from graphprune.ops.sizes import Change, RefitRule, SetAttribute, Shrunk
from graphprune.ops.stored import Around, Array, Stored, StoredRule, dequantised

DOMAIN = "com.microsoft"
_A, _B, _SCALES, _ZEROS, _GROUPS, _BIAS = range(6)
_BYTE = 8
_PACKED = "zero points of several blocks share a byte"


def matmul_bits(op: Op) -> Iterator[Equation]:
    """`*m (b [block]), n b [bytes], (n b), (n z)?, k?, n? -> *m n`: whole blocks; z bytes of zero points per row."""
    a, weight, y = op.x(_A), op.x(_B), op.y()
    n, number, content = weight.axes
    k = a.axes[-1]
    yield Letter("k", k)
    yield Letter("n", n)
    yield from (Same(s, t) for s, t in zip(a.axes[:-1], y.axes[:-1], strict=True))
    yield Same(n, y.axes[-1])
    yield from blocks(k, number, op.attr("block_size"))
    yield Pin(content, "numbers that share bytes")
    yield Use(_A, k, Role.CONTRACTED)
    yield Use(_B, number, Role.CONTRACTED)
    yield Use(_B, n, Role.PRODUCED)
    yield from _beside(op.x(_SCALES), n, number)
    yield from _zeros(op, n, number)
    groups, bias = op.input(_GROUPS), op.input(_BIAS)
    if groups is not None and groups.shape != (0,):
        yield Pin(k, "blocks in an order of their own")
        yield from (Pin(axis, "blocks in an order of their own") for axis in groups.axes)
    if bias is not None:
        yield Same(bias.axes[0], n)
        yield Use(_BIAS, bias.axes[0], Role.PRODUCED)


def _beside(given: Operand, n: Axis, number: Axis) -> Iterator[Equation]:
    """Tie a value for every row and block: with two axes, or flat."""
    if given.rank == 1:
        yield Same(given.axes[0], product(n, number))
    else:
        yield from (Same(s, t) for s, t in zip(given.axes, (n, number), strict=True))


def _zeros(op: Op, n: Axis, number: Axis) -> Iterator[Equation]:
    """Zero points: one for every row and block, or several in a byte, where each row begins a new one."""
    given = op.input(_ZEROS)
    if given is None:
        return
    size, each = prod(given.shape), _BYTE // op.attr("bits", 4)
    if size == n.size * number.size:
        yield from _beside(given, n, number)
        return
    packed = fresh(size // n.size)
    yield from _beside(given, n, packed)
    yield from shared(number, packed, each)


def shared(number: Axis, packed: Axis, each: int) -> Iterator[Equation]:
    """Say that `each` zero points of neighbouring blocks lie in a byte."""
    if number.size != packed.size * each:
        yield Pin(number, f"{_PACKED}, and the last is not full")
        yield Pin(packed, f"{_PACKED}, and the last is not full")
        return
    inner = fresh(each)
    yield Same(number, product(packed, inner))
    yield Pin(inner, _PACKED)


def refit_matmul_bits(op: Op, now: Shrunk) -> Iterator[Change]:
    """Both sizes are attributes."""
    for name, letter in (("K", "k"), ("N", "n")):
        yield SetAttribute(name, now.size(now.letters[letter]))


def matmul_bits_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the length of the contracted axis."""
    return prod(shape(op.y())) * shape(op.x())[-1]


def gather_blocks(op: Op) -> Iterator[Equation]:
    """As Gather; scales and zero points follow, and along one axis blocks stay whole: `(b [block])`."""
    data, scales, y = op.x(0), op.x(2), op.y()
    axis = normalise_axis(op.attr("gather_axis", 0), data.rank)
    split = normalise_axis(op.attr("quantize_axis", 1), data.rank)
    last = data.rank - 1
    spread = y.shape[-1] // data.shape[-1] if axis != last else 1
    if axis in (last, split) or (spread > 1 and split != last):
        yield from pin_all(op, "numbers that share bytes, or blocks, are indexed")
        return
    real = [y.axes[k if k < axis else k + op.x(1).rank - 1] for k in range(data.rank)]
    yield from (Use(0, a, Role.CARRIED) for a in data.axes)
    yield from (Pin(a, "indexed by data") for a in (data.axes[axis], scales.axes[axis]))
    yield from (Same(a, b) for a, b in zip(op.x(1).axes, y.axes[axis:], strict=False))
    yield from (Use(1, a, Role.CARRIED) for a in op.x(1).axes)
    yield from blocks(real[split], scales.axes[split], op.attr("block_size", 128))
    for k in range(data.rank):
        if k not in (axis, split):
            yield from (Same(real[k], scales.axes[k]), Same(real[k], data.axes[k]))
    if spread == 1:
        yield Same(real[split], data.axes[split])
    else:
        inner = fresh(spread)
        yield Same(real[split], product(data.axes[split], inner))
        yield Pin(inner, "numbers that share bytes")
    zeros = op.input(3)
    if zeros is not None:
        for k, (a, b) in enumerate(zip(zeros.axes, scales.axes, strict=True)):
            if k == split and a.size != b.size:
                yield from shared(b, a, spread)
            elif k == axis:
                yield Pin(a, "indexed by data")
            else:
                yield Same(a, b)


def flat_bits(op: Op) -> Iterator[Equation]:
    """Numbers and scales lie in one row, so nothing can be cut out of it by whole numbers."""
    yield from pin_all(op, "blocks of a flat weight run across its rows")


AXES: tuple[Row[AxisRule], ...] = (
    row(matmul_bits, "MatMulNBits", domain=DOMAIN),
    row(gather_blocks, "GatherBlockQuantized", domain=DOMAIN),
    row(flat_bits, "MatMulBnb4", domain=DOMAIN),
)
REFITS: tuple[Row[RefitRule], ...] = (row(refit_matmul_bits, "MatMulNBits", domain=DOMAIN),)
COSTS: tuple[Row[CostRule], ...] = (row(matmul_bits_cost, "MatMulNBits", "MatMulBnb4", domain=DOMAIN),)


def unpacked(content: Array, bits: int) -> Array:
    """Return the numbers in bytes, the lowest bits first, along the last axis.

    >>> unpacked(np.array([0x21, 0x43], np.uint8), 4).tolist()
    [1, 2, 3, 4]
    """
    if bits == _BYTE:
        return content
    shifts = np.arange(0, _BYTE, bits, dtype=np.uint8)
    parts = (content[..., None] >> shifts) & ((1 << bits) - 1)
    return parts.reshape(*content.shape[:-1], -1)


def _real_blocks(bits: int, arrays: Sequence[Array | None]) -> Array:
    weight, scales, zeros = arrays
    assert weight is not None
    n, number = weight.shape[:2]
    real = unpacked(weight, bits).astype(np.float32)
    zero = np.full((n, number), 1 << (bits - 1), dtype=np.float32)
    if zeros is not None and zeros.size == n * number:
        zero = zeros.reshape(n, number).astype(np.float32)
    elif zeros is not None:
        zero = unpacked(zeros.reshape(n, -1), bits)[:, :number].astype(np.float32)
    real -= zero[:, :, None]
    return real * scales.reshape(n, number, 1).astype(np.float32) if scales is not None else real


def stored_matmul_bits(op: Op, around: Around) -> Iterator[Stored]:
    """The second input, with scales and zero points for its blocks."""
    operands = (op.input(_B), op.input(_SCALES), op.input(_ZEROS))
    yield Stored(_B, operands, partial(_real_blocks, op.attr("bits", 4)))


def _real_rows(axis: int, block: int, bits: int, spread: int, arrays: Sequence[Array | None]) -> Array:
    weight, scales, zeros = arrays
    assert weight is not None
    if spread == 1:
        return dequantised(weight, scales, zeros, axis, block)
    zero = np.float32(1 << (bits - 1))
    if zeros is not None and scales is not None:
        zero = unpacked(zeros, bits)[..., : scales.shape[-1]]
    real = dequantised(unpacked(weight, bits), scales, np.asarray(zero), axis, block)
    return real.reshape(*weight.shape, spread)


def stored_rows(op: Op, around: Around) -> Iterator[Stored]:
    """The rows that are picked from, with scales and zero points for their blocks."""
    data = op.x()
    bits = op.attr("bits", 4)
    gathered = normalise_axis(op.attr("gather_axis", 0), data.rank) == data.rank - 1
    spread = 1 if gathered else op.y().shape[-1] // data.shape[-1]
    real = partial(_real_rows, op.attr("quantize_axis", 1), op.attr("block_size", 128), bits, spread)
    yield Stored(0, (op.input(0), op.input(2), op.input(3)), real)


STORED: tuple[Row[StoredRule], ...] = (
    row(stored_matmul_bits, "MatMulNBits", domain=DOMAIN),
    row(stored_rows, "GatherBlockQuantized", domain=DOMAIN),
)
