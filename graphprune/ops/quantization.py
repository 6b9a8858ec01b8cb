"""Quantised numbers: to and from real ones, and integer arithmetic of ai.onnx with scales and zero points.

Formulas are those of https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and its neighbours. Nothing is quantised
again: numbers, scales and zero points of a slot stay or go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx

from graphprune.axes import UNIT, Axis, Equation, Pin, Role, Same, Use, fresh, product
from graphprune.ops.conv import conv, conv_cost
from graphprune.ops.matmul import matmul, matmul_cost
from graphprune.ops.registry import (
    AxisRule,
    CostRule,
    Op,
    Operand,
    Row,
    ShapeOf,
    normalise_axis,
    pin_all,
    row,
    same_axes,
)
from graphprune.ops.sizes import RefitRule, attributes
from graphprune.ops.stored import Around, Array, Stored, StoredRule, dequantised

Along: TypeAlias = Mapping[int, tuple[int, int]]
"""Which parameter (by number of input) may have a number for every slot of which input's axis."""

_REAL = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_WHOLE = "the slots of a block have one scale"


def blocks(axis: Axis, scales: Axis, block: int) -> Iterator[Equation]:
    """Say that an axis has one scale for every `block` slots: `(b [block])`; the last block must be full."""
    if axis.size != scales.size * block:
        yield Pin(axis, "the last block is not full")
        yield Pin(scales, "the last block is not full")
        return
    inner = fresh(block)
    yield Same(axis, product(scales, inner))
    yield Pin(inner, _WHOLE)


def linear(op: Op) -> Iterator[Equation]:
    """Element by element; scales and zero points follow their axis, blocks stay whole: `(b [block])`."""
    x = op.x()
    yield from same_axes(x, op.y())
    yield from (Use(0, a, Role.CARRIED) for a in x.axes)
    for i in (1, 2):
        given = op.input(i)
        if given is not None:
            yield from _parameter(op, i, x, given)


def _parameter(op: Op, i: int, x: Operand, given: Operand) -> Iterator[Equation]:
    block = op.attr("block_size", 0)
    if all(a is UNIT for a in given.axes) and not (block and given.rank == x.rank):
        return
    axis = normalise_axis(op.attr("axis", 1), x.rank)
    yield from (Use(i, a, Role.CARRIED) for a in given.axes)
    if given.rank == 1 and not block:
        yield Same(given.axes[0], x.axes[axis])
        return
    for k, (a, s) in enumerate(zip(x.axes, given.axes, strict=True)):
        yield from blocks(a, s, block) if k == axis else iter([Same(a, s)])


def dynamic(op: Op) -> Iterator[Equation]:
    """Element by element; the range is that of all elements and zero."""
    yield from same_axes(op.x(), op.y())
    yield from (Use(0, a, Role.CONTRACTED) for a in op.x().axes)


def borrowed(op: Op, places: Sequence[int]) -> Op:
    """Return a node with some of its inputs, in another order: what a rule for real numbers looks at.

    >>> op = Op("", "QLinearMatMul", "", 10, (None,) * 8, (), {})
    >>> len(borrowed(op, (0, 3)).inputs)
    2
    """
    return replace(op, inputs=tuple(op.input(i) for i in places))


def quantised(
    rule: AxisRule,
    places: Sequence[int],
    text: str,
    *,
    zeros: Mapping[int, int] | None = None,
    along: Along | None = None,
) -> AxisRule:
    """Return the rule of an operator that does to integers what another one, with `rule`, does to real numbers.

    `places` are the inputs that this one has; `zeros` gives their zero points. All other inputs are parameters: one
    number, or one for every slot of the axis that `along` says.
    """

    def says(op: Op) -> Iterator[Equation]:
        for eq in rule(borrowed(op, places)):
            if isinstance(eq, Use):
                place = places[eq.operand]
                yield replace(eq, operand=place, zero=(zeros or {}).get(place))
            else:
                yield eq
        yield from parameters(op, places, along or {})

    says.__doc__ = text
    return says


def parameters(op: Op, places: Sequence[int], along: Along) -> Iterator[Equation]:
    """Tie the parameters of a node to their axes; one of any other form pins everything."""
    for i, given in enumerate(op.inputs):
        if given is None or i in places or all(a is UNIT for a in given.axes):
            continue
        long = [a for a in given.axes if a is not UNIT]
        of, axis = along.get(i, (-1, 0))
        owner = op.input(of) if of >= 0 else None
        if owner is None or len(long) > 1 or owner.axes[axis].size != long[0].size:
            yield from pin_all(op, "scales or zero points of a form of their own")
            return
        yield Same(long[0], owner.axes[axis])
        yield Use(i, long[0], Role.CARRIED)


def borrowed_cost(rule: CostRule, places: Sequence[int]) -> CostRule:
    """Return the cost of an operator whose arithmetic is that of another one on some of its inputs."""

    def cost(op: Op, shape: ShapeOf) -> int:
        return rule(borrowed(op, places), shape)

    return cost


class RoundTrip(NamedTuple):
    """Operators that quantise, that read what was quantised, and that do nothing instead of the two."""

    quantise: str
    read: str
    nothing: str


ROUND_TRIP = RoundTrip("QuantizeLinear", "DequantizeLinear", "Identity")

AXES: tuple[Row[AxisRule], ...] = (
    row(linear, "QuantizeLinear", "DequantizeLinear"),
    row(linear, "QuantizeLinear", "DequantizeLinear", domain="com.microsoft"),
    row(dynamic, "DynamicQuantizeLinear"),
    row(
        quantised(conv, (0, 1), "As Conv; a zero point of the weight for each `(g o)` or for all",
                  zeros={0: 2, 1: 3}, along={3: (1, 0)}),
        "ConvInteger",
    ),
    row(
        quantised(matmul, (0, 1), "As MatMul; zero points for each `m` and `n` or for all",
                  zeros={0: 2, 1: 3}, along={2: (0, -2), 3: (1, -1)}),
        "MatMulInteger",
    ),
    row(
        quantised(conv, (0, 3, 8), "As Conv; scales and zero points of the weight for each `(g o)` or for all",
                  zeros={0: 2, 3: 5}, along={4: (3, 0), 5: (3, 0)}),
        "QLinearConv",
    ),
    row(
        quantised(matmul, (0, 3), "As MatMul; scales and zero points for each `m` and `n` or for all",
                  zeros={0: 2, 3: 5}, along={1: (0, -2), 2: (0, -2), 4: (3, -1), 5: (3, -1)}),
        "QLinearMatMul",
    ),
)
REFITS: tuple[Row[RefitRule], ...] = (row(attributes(group="g"), "ConvInteger", "QLinearConv"),)
COSTS: tuple[Row[CostRule], ...] = (
    row(conv_cost, "ConvInteger"),
    row(matmul_cost, "MatMulInteger"),
    row(borrowed_cost(conv_cost, (0, 3, 8)), "QLinearConv"),
    row(borrowed_cost(matmul_cost, (0, 3)), "QLinearMatMul"),
)


def _real(axis: int | None, block: int, arrays: Sequence[Array | None]) -> Array:
    weight, scale, zero = arrays
    assert weight is not None
    return dequantised(weight, scale, zero, axis, block)


def stored_dequantize(op: Op, around: Around) -> Iterator[Stored]:
    """The input, with its scale and zero point."""
    real = partial(_real, op.attr("axis", 1), op.attr("block_size", 0))
    yield Stored(0, (op.input(0), op.input(1), op.input(2)), real)


def along(axis: int, arrays: Sequence[Array | None]) -> Array:
    """Return real numbers where scale and zero point are one number, or one for each slot of an axis."""
    weight, scale, zero = arrays
    assert weight is not None
    fit = [a if a is None or a.size in (1, weight.shape[axis]) else None for a in (scale, zero)]
    flat = [a.ravel() if a is not None else None for a in fit]
    return dequantised(weight, flat[0], flat[1], axis)


def stored_with(weight: int, scale: int, zero: int, axis: int) -> StoredRule:
    """Return the rule that an input is a weight, and which inputs are its scale and zero point, along which axis."""

    def rule(op: Op, around: Around) -> Iterator[Stored]:
        yield Stored(weight, (op.input(weight), op.input(scale), op.input(zero)), partial(along, axis))

    return rule


def stored_before(weight: int, zero: int | None, axis: int) -> StoredRule:
    """Return the rule of integer arithmetic: the scale comes after it, as a factor of the output.

    Dynamic quantisation writes Cast and then Mul by the product of both scales, of which the constant is the weight's.
    """

    def rule(op: Op, around: Around) -> Iterator[Stored]:
        scale = next(_factors(op.y(), around), None)
        point = op.input(zero) if zero is not None else None
        yield Stored(weight, (op.input(weight), scale, point), partial(along, axis))

    return rule


def _factors(value: Operand, around: Around) -> Iterator[Operand]:
    """Yield the constants that a value is multiplied by after a Cast, alone or within a product of two."""
    for cast in around.readers.get(value.name, ()):
        if cast.type != "Cast":
            continue
        for mul in around.readers.get(cast.y().name, ()):
            if mul.type == "Mul":
                others = [o for o in mul.inputs if o is not None and o.name != cast.y().name]
                yield from (f for o in others for f in _constants(o, around))


def _constants(value: Operand, around: Around) -> Iterator[Operand]:
    maker = around.maker.get(value.name)
    if maker is None:
        yield value
    elif maker.type == "Mul":
        yield from (o for o in maker.inputs if o is not None and o.name not in around.maker)


def _spelled_out(arrays: Sequence[Array | None]) -> Array:
    weight, scale, zero = arrays
    assert weight is not None
    real = dequantised(weight, None, zero)
    fits = scale is not None and np.broadcast_shapes(real.shape, scale.shape) == real.shape
    return real * scale if fits else real


def stored_cast(op: Op, around: Around) -> Iterator[Stored]:
    """Numbers that are cast to real ones, minus a zero point and times a scale where such nodes follow."""
    if op.x().rank < 2 or op.attr("to") not in _REAL:
        return
    value, found = op.y(), dict[str, Operand]()
    for kind in ("Sub", "Mul"):
        readers = around.readers.get(value.name, ())
        if len(readers) == 1 and readers[0].type == kind:
            others = [o for o in readers[0].inputs if o is not None and o.name != value.name]
            if len(others) == 1 and others[0].name not in around.maker:
                found[kind] = others[0]
                value = readers[0].y()
    yield Stored(0, (op.input(0), found.get("Mul"), found.get("Sub")), _spelled_out)


STORED: tuple[Row[StoredRule], ...] = (
    row(stored_dequantize, "DequantizeLinear"),
    row(stored_dequantize, "DequantizeLinear", domain="com.microsoft"),
    row(stored_before(1, 3, 0), "ConvInteger"),
    row(stored_before(1, 3, -1), "MatMulInteger"),
    row(stored_with(3, 4, 5, 0), "QLinearConv"),
    row(stored_with(3, 4, 5, -1), "QLinearMatMul"),
    row(stored_cast, "Cast"),
)
