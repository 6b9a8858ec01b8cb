"""How nodes that contract an axis compute y = x W + b: the rows x from their data, the matrix W from their weight.

With this a layer is a least-squares problem, whatever its operator: statistics are sums over rows, repaired matrices
are written back as weights. All arrays of rows and matrices have an axis for groups in front (grouped convolutions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.ops.registry import Row, row

Array: TypeAlias = npt.NDArray[Any]
Attributes: TypeAlias = Mapping[str, Any]
Positions: TypeAlias = "Callable[[int], Array]"
"""Which of so many output positions are looked at: indices, the same whenever it is asked for the same number."""


@dataclass(frozen=True)
class Design:
    """One node as y = x W + b.

    `data`, `weight` and `bias` are numbers of inputs (`bias` None: the operator takes none), `axis` is the axis of the
    weight that is contracted. `rows(x, positions)` has shape [groups, rows, columns], `answers(y, positions)` [groups,
    rows, outputs] (None: the output is not x W + b but something made of it), `matrix(w)` [groups, columns, outputs],
    and `weights(m, shape)` is its inverse. Columns are ordered slot by slot, `positions` of the kernel inside. Nodes
    that read one value and have equal keys have equal rows.

    Where data are integers, `integers` has the inputs that are their scale and zero point (None: there is no such
    input, or no zero point). `units` are the inputs whose product is the unit of an integer bias.
    """

    data: int
    weight: int
    bias: int | None
    axis: int
    key: tuple[Any, ...]
    rows: Callable[[Array, Positions], Array]
    answers: Callable[[Array, Positions], Array] | None
    matrix: Callable[[Array], Array]
    weights: Callable[[Array, Sequence[int]], Array]
    integers: tuple[int | None, int | None] | None = None
    units: tuple[int, ...] = ()

    @property
    def spatial(self) -> int:
        """How many axes of positions come behind the outputs' axis."""
        return len(self.key[1].kernel) if self.key[0] in ("conv", "turned") else 0


DesignRule: TypeAlias = Callable[[Attributes, "Sequence[tuple[int, ...]]", int], "Design | None"]
"""Asked with attributes, sizes of the inputs, and which input is the constant weight; None: not a plain product."""


def everywhere(number: int) -> Array:
    """Look at every position."""
    return np.arange(number)


# Matrix products


def _leading(x: Array, positions: Positions) -> Array:
    """Return [1, rows, last axis]: some of the places in front of the last axis, the same for every sample."""
    if x.ndim < 3:
        return x.reshape(1, -1, x.shape[-1])
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return np.ascontiguousarray(flat[:, positions(flat.shape[1])]).reshape(1, -1, x.shape[-1])


def matmul(attributes: Attributes, shapes: Sequence[tuple[int, ...]], weight: int) -> Design | None:
    """`*b k, k n -> *b n`: rows are all leading places."""
    if weight != 1 or len(shapes[1]) != 2:
        return None
    return Design(
        0, 1, None, 0, ("rows",), _leading, _leading,
        lambda w: w[None], lambda m, shape: m[0].reshape(shape),
    )


def fused_attention(attributes: Attributes, shapes: Sequence[tuple[int, ...]], weight: int) -> Design | None:
    """Queries, keys and values of com.microsoft's Attention: what is multiplied is not put out."""
    plain = matmul(attributes, shapes, weight)
    return None if plain is None else Design(
        0, 1, 2, 0, plain.key, plain.rows, None, plain.matrix, plain.weights
    )


def gemm(attributes: Attributes, shapes: Sequence[tuple[int, ...]], weight: int) -> Design | None:
    """`m k, k n -> m n`, either matrix transposed, with factors."""
    alpha, turned = float(attributes.get("alpha", 1.0)), bool(attributes.get("transB", 0))
    if weight != 1 or not alpha or float(attributes.get("beta", 1.0)) != 1.0:
        return None
    swapped = bool(attributes.get("transA", 0))

    def rows(x: Array, positions: Positions) -> Array:
        return (x.T if swapped else x)[None]

    def matrix(w: Array) -> Array:
        return alpha * (w.T if turned else w)[None]

    def weights(m: Array, shape: Sequence[int]) -> Array:
        return np.ascontiguousarray(m[0].T if turned else m[0]).reshape(shape) / alpha

    return Design(
        0, 1, 2, int(turned), ("gemm", swapped), rows, lambda y, positions: y[None], matrix, weights
    )


# Convolutions


@dataclass(frozen=True)
class _Window:
    """Kernel sizes and how a kernel moves."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto: str
    groups: int

    def before(self, axis: int, size: int, out: int) -> int:
        """Return how many zeros are in front of an axis."""
        if self.pads is not None:
            return self.pads[axis]
        if not self.auto.startswith("SAME"):
            return 0
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        total = max((out - 1) * self.strides[axis] + reach - size, 0)
        return total // 2 if self.auto == "SAME_UPPER" else total - total // 2

    def outputs(self, axis: int, size: int) -> int:
        """Return the size of an axis of a convolution's output."""
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        if self.pads is not None:
            both = self.pads[axis] + self.pads[axis + len(self.kernel)]
            return (size + both - reach) // self.strides[axis] + 1
        if self.auto.startswith("SAME"):
            return -(-size // self.strides[axis])
        return (size - reach) // self.strides[axis] + 1


def _window(attributes: Attributes, shape: tuple[int, ...]) -> _Window:
    n = len(shape) - 2
    auto = str(attributes.get("auto_pad", "NOTSET"))
    given = auto in ("NOTSET", "")
    return _Window(
        tuple(shape[2:]),
        tuple(attributes.get("strides") or (1,) * n),
        tuple(attributes.get("dilations") or (1,) * n),
        tuple(attributes.get("pads") or (0,) * (2 * n)) if given else None,
        auto,
        int(attributes.get("group", 1)),
    )


def _grid(window: _Window, sizes: Sequence[int], positions: Positions) -> list[tuple[Array, Array]]:
    """Return, for each spatial axis, the place in the input of [position, kernel place], and whether there is one."""
    outs = [window.outputs(k, n) for k, n in enumerate(sizes)]
    where = np.unravel_index(positions(prod(outs)), outs)
    found = []
    for k, size in enumerate(sizes):
        step = np.arange(window.kernel[k]) * window.dilations[k]
        place = where[k][:, None] * window.strides[k] + step - window.before(k, size, outs[k])
        found.append((np.clip(place, 0, size - 1), (place >= 0) & (place < size)))
    return found


def _patches(x: Array, grid: list[tuple[Array, Array]], groups: int) -> Array:
    """Return [groups, samples x positions, slots x kernel places]."""
    n, dims = len(grid[0][0]), len(grid)
    index: list[Any] = [slice(None), slice(None)]
    inside: Array = np.ones((1,) * (dims + 1), bool)
    for k, (place, there) in enumerate(grid):
        shape = (n, *[-1 if j == k else 1 for j in range(dims)])
        index.append(place.reshape(shape))
        inside = inside & there.reshape(shape)
    took = x[tuple(index)]
    took = took * inside.astype(x.dtype)
    samples, channels = x.shape[:2]
    cells = took.reshape(samples, groups, channels // groups, n, -1).transpose(1, 0, 3, 2, 4)
    return np.ascontiguousarray(cells).reshape(groups, samples * n, -1)


def _maps(y: Array, positions: Positions, groups: int) -> Array:
    """Return [groups, samples x positions, channels] of feature maps."""
    samples, channels = y.shape[:2]
    flat = y.reshape(samples, groups, channels // groups, -1)
    flat = flat[..., positions(flat.shape[-1])].transpose(1, 0, 3, 2)
    return np.ascontiguousarray(flat).reshape(groups, -1, channels // groups)


def conv(attributes: Attributes, shapes: Sequence[tuple[int, ...]], weight: int) -> Design | None:
    """Rows are patches under the kernel, at some positions of every sample; padding counts as zeros."""
    if weight != 1:
        return None
    window = _window(attributes, shapes[1])
    groups = window.groups

    def rows(x: Array, positions: Positions) -> Array:
        return _patches(x, _grid(window, x.shape[2:], positions), groups)

    def matrix(w: Array) -> Array:
        each: Array = w.reshape(groups, w.shape[0] // groups, -1)
        turned: Array = each.transpose(0, 2, 1)
        return turned

    def weights(m: Array, shape: Sequence[int]) -> Array:
        return np.ascontiguousarray(m.transpose(0, 2, 1)).reshape(shape)

    return Design(
        0, 1, 2, 1, ("conv", window), rows, lambda y, positions: _maps(y, positions, groups), matrix, weights
    )


def conv_transpose(attributes: Attributes, shapes: Sequence[tuple[int, ...]], weight: int) -> Design | None:
    """Rows have, for every place of the kernel, the input that it carries to the output position, else zero."""
    if weight != 1 or "output_shape" in attributes or str(attributes.get("auto_pad", "NOTSET")) not in ("NOTSET", ""):
        return None
    window = _window(attributes, shapes[1])
    extra = tuple(attributes.get("output_padding") or (0,) * len(window.kernel))
    groups, pads = window.groups, window.pads or ()

    def rows(x: Array, positions: Positions) -> Array:
        outs = [
            (n - 1) * window.strides[k] + (window.kernel[k] - 1) * window.dilations[k] + 1 + extra[k]
            - pads[k] - pads[k + len(window.kernel)]
            for k, n in enumerate(x.shape[2:])
        ]
        where = np.unravel_index(positions(prod(outs)), outs)
        grid = []
        for k, size in enumerate(x.shape[2:]):
            place = where[k][:, None] + pads[k] - np.arange(window.kernel[k]) * window.dilations[k]
            source = place // window.strides[k]
            there = (place % window.strides[k] == 0) & (source >= 0) & (source < size)
            grid.append((np.clip(source, 0, size - 1), there))
        return _patches(x, grid, groups)

    def matrix(w: Array) -> Array:
        each = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
        turned: Array = each.transpose(0, 1, 3, 2).reshape(groups, -1, w.shape[1])
        return turned

    def weights(m: Array, shape: Sequence[int]) -> Array:
        each = m.reshape(groups, shape[0] // groups, -1, shape[1]).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(each).reshape(shape)

    return Design(
        0, 1, 2, 0, ("turned", window, extra), rows, lambda y, positions: _maps(y, positions, groups), matrix, weights
    )


# Recurrences


def recurrence(attributes: Attributes, shapes: Sequence[tuple[int, ...]], weight: int) -> Design | None:
    """What the steps' inputs are multiplied with: one matrix for all gates and directions, nothing of it put out."""
    if weight != 1:
        return None

    def matrix(w: Array) -> Array:
        turned: Array = w.transpose(2, 0, 1).reshape(1, w.shape[2], -1)
        return turned

    def weights(m: Array, shape: Sequence[int]) -> Array:
        return np.ascontiguousarray(m[0].reshape(shape[2], shape[0], shape[1]).transpose(1, 2, 0))

    return Design(0, 1, None, 2, ("rows",), _leading, None, matrix, weights)


DESIGNS: tuple[Row[DesignRule], ...] = (
    row(matmul, "MatMul"),
    row(gemm, "Gemm"),
    row(conv, "Conv"),
    row(conv_transpose, "ConvTranspose"),
    row(recurrence, "LSTM", "GRU", "RNN"),
    row(fused_attention, "Attention", domain="com.microsoft"),
)
