"""Integer arithmetic of com.microsoft: what a float operator does, with scales and zero points beside each operand.

Inputs and their order: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from graphprune.axes import UNIT, Equation, Pin, Role, Same, Use, concat, fresh, product
from graphprune.axes.equations import Letter
from graphprune.ops import quantization
from graphprune.ops.conv import conv, global_pool, pool
from graphprune.ops.cuts import concat_rule
from graphprune.ops.elementwise import nary, unary
from graphprune.ops.gather import BoundRule
from graphprune.ops.matmul import gemm, gemm_cost, matmul, matmul_cost
from graphprune.ops.normalization import softmax_1, softmax_13
from graphprune.ops.quantization import borrowed, borrowed_cost, parameters, quantised, stored_before, stored_with
from graphprune.ops.recurrent import GATES, lengths_bound, recurrent, recurrent_cost
from graphprune.ops.reduction import reducer
from graphprune.ops.registry import AxisRule, CostRule, Op, Row, ShapeOf, line, row
from graphprune.ops.sizes import Change, RefitRule, SetAttribute, Shrunk, attributes
from graphprune.ops.stored import Around, Array, Stored, StoredRule, dequantised

DOMAIN = "com.microsoft"
_SPLIT = 3  # queries, keys and values in one matrix
_POSITIONS = {"s": "positions of a pooling window", "t": "positions of a pooling window"}
_CONV_PINS = {"n": "samples of a batch", "s": "positions of a convolution", "t": "positions of a convolution",
              "k": "kernel positions"}
_conv_last = line("n *s (g i), (g o) i *k, (g o)? -> n *t (g o)", sizes={"g": "group"}, pins=_CONV_PINS)
_pool_last = line("n *s c -> n *t c", pins=_POSITIONS)
_global_last = line("n *s c -> n *u c", pins={"s": "positions that are pooled"}, normalised="s")
_CONV_PLACES, _CONV_ZEROS, _CONV_ALONG = (0, 3, 8), {0: 2, 3: 5}, {4: (3, 0), 5: (3, 0)}


def _either(first: AxisRule, last: AxisRule) -> AxisRule:
    """Return the rule of an operator whose channels are the second axis, or the last where an attribute says so."""

    def rule(op: Op) -> Iterator[Equation]:
        yield from (last if op.attr("channels_last", 0) else first)(op)

    return rule


def _softmax(op: Op) -> Iterator[Equation]:
    yield from (softmax_1 if op.attr("opset", 13) < 13 else softmax_13)(op)


def qlinear_concat(op: Op) -> Iterator[Equation]:
    """As Concat, of every third input from the third on."""
    places = range(2, len(op.inputs), 3)
    for eq in concat_rule(borrowed(op, places)):
        yield replace(eq, operand=places[eq.operand]) if isinstance(eq, Use) else eq
    yield from parameters(op, places, {})


_GEMM = {
    turned: quantised(gemm, (0, 3, 6), "", zeros={0: 2, 3: 5}, along={4: (3, 1 - turned), 5: (3, 1 - turned)})
    for turned in (0, 1)
}


def qgemm(op: Op) -> Iterator[Equation]:
    """As Gemm; scales and zero points of the second matrix for each `n` or for all."""
    yield from _GEMM[op.attr("transB", 0)](op)


def attention_weights(op: Op) -> Iterator[Equation]:
    """`b s i, i (3 h d), (3 h d), (3 h d)? -> b s (h d), 2 b h t d`: heads of queries, keys and values side by side."""
    x, w, y = op.x(0), op.x(1), op.y()
    number = op.attr("num_heads")
    head, width = fresh(number), fresh(w.shape[1] // number // _SPLIT)
    stacked = product(concat(*[UNIT] * _SPLIT), head, width)
    pairs = [(x.axes[0], y.axes[0]), (x.axes[1], y.axes[1]), (x.axes[2], w.axes[0]), (w.axes[1], stacked)]
    pairs += [(op.x(2).axes[0], stacked), (y.axes[2], product(head, width))]
    for past in (op.input(8), op.output(1)):
        if past is not None:
            pairs += [(past.axes[1], x.axes[0]), (past.axes[2], head), (past.axes[4], width)]
            yield from (Pin(past.axes[k], "positions of a cache") for k in (0, 3))
    yield from (Same(a, b) for a, b in pairs)
    yield from (Use(i, x.axes[2], Role.CONTRACTED, zero=zero) for i, zero in ((0, 6), (1, 7)))
    yield from (Use(i, op.x(i).axes[-1], Role.PRODUCED) for i in (1, 2))
    yield Use(1, width, Role.NORMALISED)  # queries and keys are contracted inside
    mask = op.input(5)
    yield from (Pin(a, "positions of a mask") for a in (mask.axes if mask is not None else ()))
    yield from parameters(op, (0, 1, 2, 5, 8), {4: (1, 1), 7: (1, 1)})
    yield from (Letter(letter, axis) for letter, axis in (("heads", head), ("width", width)))


def refit_attention_weights(op: Op, now: Shrunk) -> Iterator[Change]:
    """The number of heads follows; the scale stays what it was before the width shrank."""
    yield SetAttribute("num_heads", now.size(now.letters["heads"]))
    width = now.letters["width"]
    if now.changed(width) and not op.attr("scale"):
        yield SetAttribute("scale", width.size**-0.5)


def attention_weights_cost(op: Op, shape: ShapeOf) -> int:
    """The projection, scores, and their sum over values."""
    x, w, y = shape(op.x(0)), shape(op.x(1)), shape(op.y())
    past = op.input(8)
    keys = x[1] + (shape(past)[3] if past is not None else 0)
    return prod(x) * w[1] + 2 * prod(y) * keys


def embeddings(op: Op) -> Iterator[Equation]:
    """`b s, b s?, v h, p h, t h?, h, h, b m? -> b s h, b`: sums of rows, normalised over `h`."""
    ids, y = op.x(0), op.y()
    width = op.x(2).axes[1]
    for a, b in zip(ids.axes, y.axes, strict=False):
        yield Same(a, b)
    yield Same(width, y.axes[2])
    for i in (2, 3, 4, 5, 6):
        table = op.input(i)
        if table is not None:
            yield Same(table.axes[-1], width)
            yield Use(i, table.axes[-1], Role.NORMALISED, gain=i == 5)
            yield from (Pin(a, "indexed by data") for a in table.axes[:-1])
    for i in (1, 7):
        given = op.input(i)
        if given is not None:
            yield from (Same(a, b) for a, b in zip(given.axes, ids.axes, strict=True))
    lengths = op.output(1)
    if lengths is not None:
        yield Same(lengths.axes[0], ids.axes[0])
    yield Pin(ids.axes[1], "positions of an embedding")
    yield from parameters(op, range(8), {})


def dynamic_lstm(op: Op) -> Iterator[Equation]:
    """As LSTM with `d i (4 h)` and `d h (4 h)`; scales and zero points `d` or `d (4 h)`; `h` shares one range."""
    yield from recurrent(op, GATES["LSTM"], turned=True)
    yield Use(2, op.x(2).axes[1], Role.NORMALISED)  # states are quantised by the range of all units
    for i in range(8, 12):
        owner = op.x(1 if i < 10 else 2)
        yield from (Same(a, owner.axes[k]) for a, k in zip(op.x(i).axes, (0, 2), strict=False))


AXES: tuple[Row[AxisRule], ...] = (
    row(
        quantised(_either(conv, _conv_last), _CONV_PLACES, "As QLinearConv, or `n *s (g i), ... -> n *t (g o)`",
                  zeros=_CONV_ZEROS, along=_CONV_ALONG),
        "QLinearConv", domain=DOMAIN,
    ),
    row(qgemm, "QGemm", domain=DOMAIN),
    row(
        quantised(matmul, (0, 1), "As MatMul, then a bias", zeros={0: 4, 1: 5},
                  along={2: (0, -2), 4: (0, -2), 3: (1, -1), 5: (1, -1), 6: (1, -1)}),
        "MatMulIntegerToFloat", domain=DOMAIN,
    ),
    row(
        quantised(matmul, (0, 1), "As MatMul, then a bias", zeros={1: 3}, along={2: (1, -1), 3: (1, -1), 4: (1, -1)}),
        "DynamicQuantizeMatMul", domain=DOMAIN,
    ),
    row(
        quantised(nary, (0, 3), "Both operands broadcast to the output"), "QLinearAdd", "QLinearMul", domain=DOMAIN
    ),
    row(quantised(nary, (0, 1, 4), "As Where"), "QLinearWhere", domain=DOMAIN),
    row(quantised(unary, (0,), "Element by element"), "QLinearSigmoid", "QLinearLeakyRelu", domain=DOMAIN),
    row(quantised(_softmax, (0,), "As Softmax of the opset that an attribute says"), "QLinearSoftmax", domain=DOMAIN),
    row(
        quantised(_either(pool, _pool_last), (0,), "`n c *s -> n c *t`, or channels last"), "QLinearAveragePool",
        domain=DOMAIN,
    ),
    row(
        quantised(_either(global_pool, _global_last), (0,), "`n c *s -> n c *u`, or channels last"),
        "QLinearGlobalAveragePool", domain=DOMAIN,
    ),
    row(qlinear_concat, "QLinearConcat", domain=DOMAIN),
    row(matmul, "MatMulInteger16", domain=DOMAIN),
    row(quantised(nary, (0, 2), "Both operands broadcast to the output"), "MulInteger", domain=DOMAIN),
    row(reducer(Role.CONTRACTED, 1), "ReduceSumInteger", domain=DOMAIN),
    row(quantised(reducer(Role.NORMALISED, 1), (0,), "As ReduceMean"), "QLinearReduceMean", domain=DOMAIN),
    row(attention_weights, "QAttention", domain=DOMAIN),
    row(embeddings, "QEmbedLayerNormalization", domain=DOMAIN),
    row(dynamic_lstm, "DynamicQuantizeLSTM", domain=DOMAIN),
)
REFITS: tuple[Row[RefitRule], ...] = (
    row(attributes(group="g"), "QLinearConv", domain=DOMAIN),
    row(refit_attention_weights, "QAttention", domain=DOMAIN),
    row(attributes(hidden_size="h"), "DynamicQuantizeLSTM", domain=DOMAIN),
)


def conv_cost(op: Op, shape: ShapeOf) -> int:
    """Output elements times the weights that each of them sums."""
    return prod(shape(op.y())) * prod(shape(op.x(3))[1:])


COSTS: tuple[Row[CostRule], ...] = (
    row(conv_cost, "QLinearConv", domain=DOMAIN),
    row(borrowed_cost(gemm_cost, (0, 3)), "QGemm", domain=DOMAIN),
    row(matmul_cost, "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger16", domain=DOMAIN),
    row(attention_weights_cost, "QAttention", domain=DOMAIN),
    row(recurrent_cost, "DynamicQuantizeLSTM", domain=DOMAIN),
)


BOUNDS: tuple[Row[BoundRule], ...] = (row(lengths_bound, "DynamicQuantizeLSTM", domain=DOMAIN),)

_TABLES = {2: (8, 13), 3: (9, 14), 4: (10, 15), 5: (11, 16), 6: (12, 17)}


def stored_tables(op: Op, around: Around) -> Iterator[Stored]:
    """All tables, the gain and the bias, each with one scale."""
    for table, (scale, zero) in _TABLES.items():
        yield from stored_with(table, scale, zero, -1)(op, around)


def _each_direction(arrays: Sequence[Array | None]) -> Array:
    weight, *parameters = arrays
    assert weight is not None
    scale, zero = (a if a is None else a.reshape(len(a), 1, -1) for a in parameters)
    return dequantised(weight, scale, zero)


def stored_matrices(op: Op, around: Around) -> Iterator[Stored]:
    """Both matrices, with scales for each direction or for each of their outputs."""
    for weight, scale in ((1, 8), (2, 10)):
        yield Stored(weight, (op.input(weight), op.input(scale), op.input(scale + 1)), _each_direction)


def stored_gemm(op: Op, around: Around) -> Iterator[Stored]:
    """The second matrix, with a scale for each of its outputs."""
    yield from stored_with(3, 4, 5, 0 if op.attr("transB", 0) else 1)(op, around)


def stored_both(op: Op, around: Around) -> Iterator[Stored]:
    """Either operand, with one scale."""
    for operand in (0, 3):
        yield from stored_with(operand, operand + 1, operand + 2, -1)(op, around)


def stored_factors(op: Op, around: Around) -> Iterator[Stored]:
    """Either factor; its scale comes after the product, as a factor of the output."""
    for operand in (0, 2):
        yield from stored_before(operand, operand + 1, -1)(op, around)


STORED: tuple[Row[StoredRule], ...] = (
    row(stored_with(3, 4, 5, 0), "QLinearConv", domain=DOMAIN),
    row(stored_gemm, "QGemm", domain=DOMAIN),
    row(stored_with(1, 3, 5, -1), "MatMulIntegerToFloat", domain=DOMAIN),
    row(stored_before(1, None, -1), "MatMulInteger16", domain=DOMAIN),
    row(stored_factors, "MulInteger", domain=DOMAIN),
    row(stored_with(1, 2, 3, -1), "DynamicQuantizeMatMul", domain=DOMAIN),
    row(stored_both, "QLinearAdd", "QLinearMul", domain=DOMAIN),
    row(stored_with(1, 4, 7, -1), "QAttention", domain=DOMAIN),
    row(stored_matrices, "DynamicQuantizeLSTM", domain=DOMAIN),
    row(stored_tables, "QEmbedLayerNormalization", domain=DOMAIN),
)

ROUNDERS = frozenset(o for r in (*quantization.AXES, *AXES) for o in r.operators) - {"DequantizeLinear"}
"""Operators that round activations to a grid of integers, or are fed with such."""
