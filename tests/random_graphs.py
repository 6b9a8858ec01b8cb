"""Random valid ONNX graphs: a builder that adds random layers, from single operators to blocks of real networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import blocks
import numpy as np
import onnx
from building import BATCH, Builder, CannotBuild
from onnx import TensorProto

MOST_SLOTS = 4000
_CHANNELS = (2, 3, 4, 6, 8, 12, 16)
_SMOOTH = ("Relu", "Sigmoid", "Tanh", "Elu", "LeakyRelu", "Softplus", "HardSigmoid", "Erf", "Abs", "Neg", "Sin", "Cos",
           "Selu", "Celu", "ThresholdedRelu", "Softsign", "Atan", "Identity", "Shrink", "Asinh")  # fmt: skip
_SINCE = {"HardSwish": 14, "Mish": 18, "Gelu": 20}
_BOUNDED = ("Asin", "Acos", "Atanh", "Sinh", "Cosh", "Tan", "Exp")


class Fuzz(Builder):
    """A builder that adds random layers to random values."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 77])
        opset = int(rng.integers(11, 22)) if rng.random() < 0.85 else 23
        super().__init__(opset, seed, bool(rng.random() < 0.6), bool(rng.random() < 0.1))
        self.rng = rng
        self.live: list[str] = []

    def pick(self, options: Iterable[Any]) -> Any:
        options = list(options)
        if not options:
            raise CannotBuild("nothing to pick from")
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def axis(self, x: str, first: int = 1) -> int:
        """Pick an axis other than the batch."""
        return self.pick(range(first, len(self.shapes[x])))

    def rank(self, x: str, *ranks: int) -> int:
        if len(self.shapes[x]) not in ranks:
            raise CannotBuild("rank")
        return len(self.shapes[x])

    def factors(self, n: int) -> list[int]:
        return [k for k in range(1, n + 1) if n % k == 0]

    def weight(self, *shape: int, fan: int | None = None, near: float = 0.0) -> str:
        """Now and then, the same weight twice."""
        known = [n for n, a in self.constants.items() if n.startswith("w") and a.shape == shape and a.dtype.kind == "f"]
        if known and self.chance(0.05) and len(shape) > 1:
            return self.pick(known)
        return super().weight(*shape, fan=fan, near=near)

    def build(self) -> onnx.ModelProto:
        for _ in range(self.pick((1, 1, 1, 2))):
            self.live.append(self.entry())
        goal = len(self.live) + int(self.rng.integers(3, 22))
        for _ in range(90):
            if len(self.live) >= goal:
                break
            self.grow()
        self.finish()
        return self.model()

    def entry(self) -> str:
        kind = self.pick(["map", "map", "tokens", "vector", "signal", "ids"])
        if kind == "ids":
            table = self.weight(self.pick((5, 9)), self.pick(_CHANNELS[3:]))
            return self.op("Gather", table, self.input(self.pick((4, 5, 6)), kind=TensorProto.INT64), axis=0)
        c = self.pick(_CHANNELS[1:])
        if kind == "map":
            x = self.input(self.pick((1, 3, 4)), self.pick((6, 8)), self.pick((6, 8)))
            return self.conv(x, c)
        if kind == "signal":
            return self.conv(self.input(self.pick((1, 2)), self.pick((8, 9, 12))), c)
        if kind == "vector":
            return self.linear(self.input(self.pick((5, 7, 8))), self.pick((8, 12, 16, 24)))
        return self.linear(self.input(self.pick((4, 6)), self.pick((5, 8))), self.pick((6, 8, 12, 16)))

    def grow(self) -> None:
        """Add one layer; what does not fit is taken back."""
        before = len(self.nodes), dict(self.constants), dict(self.shapes)
        x = self.live[-1] if self.chance(0.7) else self.pick(self.live)
        layer = self.pick(LAYERS)
        try:
            made = layer(self, x)
            made = [made] if isinstance(made, str) else made
            if any(prod(self.shapes[y]) > MOST_SLOTS * BATCH or not 2 <= len(self.shapes[y]) <= 6 for y in made):
                raise CannotBuild("too large")
        except CannotBuild:
            del self.nodes[before[0] :]
            self.constants, self.shapes = before[1:]
            return
        self.live.extend(made)

    def finish(self) -> None:
        """Make everything that nobody reads an output, mostly through a readout or a projection."""
        read = {i for n in self.nodes for i in n.input}
        ends = [x for x in self.live if x not in read] or [self.live[-1]]
        for x in ends:
            kind = self.pick(["readout", "readout", "readout", "readout", "linear", "plain"])
            y = self.readout(x) if kind == "readout" else self.linear(x, self.pick((2, 5))) if kind == "linear" else x
            self.output(y)


# Layers: each adds nodes to a graph and returns the values to go on from.


def unary(b: Fuzz, x: str) -> str:
    names = [*_SMOOTH, *[k for k, since in _SINCE.items() if b.opset >= since]]
    return b.op(b.pick(names), x)


def bounded(b: Fuzz, x: str) -> str:
    """Functions with a domain, or with steps."""
    steps = ["Round", "Floor", "Ceil", "Sign", "Mod"]
    kind = b.pick(["Sqrt", "Log", "Reciprocal", "Clip", "Dropout", "Cast", "CastLike", *steps, *_BOUNDED])
    if kind in ("Sqrt", "Log", "Reciprocal"):
        return b.op(kind, b.op("Add", b.op("Abs", x), b.constant(np.float32(0.5))))
    if kind in _BOUNDED:
        return b.op(kind, b.op("Mul", b.op("Tanh", x), b.constant(np.float32(0.8))))
    if kind == "Mod":
        return b.op(kind, x, b.constant(np.float32(1.5)), fmod=1)
    if kind == "CastLike":
        if b.opset < 15:
            raise CannotBuild("opset")
        return b.op(kind, x, b.constant(np.float32(1)))
    if kind == "Clip":
        return b.op(kind, x, b.constant(np.float32(-0.5)), b.constant(np.float32(1)))
    if kind == "Cast":
        return b.op(kind, b.op("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    if kind == "Dropout" and b.opset < 12:
        raise CannotBuild("training mode")
    return b.op(kind, x)


def _mate(b: Fuzz, x: str, near: float = 0.0) -> str:
    """Return a constant that broadcasts with a value."""
    shape = [n if b.chance(0.6) else 1 for n in b.shapes[x][1:]]
    shape = shape[b.pick(range(len(shape))) :] if b.chance(0.5) else ([1] if b.chance(0.3) else []) + shape
    return b.weight(*shape, near=near)


def affine(b: Fuzz, x: str) -> str:
    kind = b.pick(["Add", "Mul", "Sub", "Max", "Min", "PRelu", "Div"])
    if kind == "Div":
        return b.op(kind, x, b.op("Abs", _mate(b, x, 2.0)))
    pair = [x, _mate(b, x, 1.0 if kind == "Mul" else 0.0)]
    return b.op(kind, *(pair[::-1] if kind != "PRelu" and b.chance(0.3) else pair))


def select(b: Fuzz, x: str) -> str:
    """Where with a condition that is computed, or fixed."""
    if b.chance(0.5):
        kind = b.pick(["Greater", "Less"] + ["GreaterOrEqual", "LessOrEqual"] * (b.opset >= 12))
        mask = b.op(kind, x, _mate(b, x))
    else:
        mask = b.constant(b.rng.random([n if b.chance(0.5) else 1 for n in b.shapes[x][1:]]) < 0.5)
    if b.chance(0.3) and mask not in b.constants:
        mask = b.op("Not", mask)
    if b.chance(0.3):
        mask = b.op(b.pick(["And", "Or", "Xor"]), mask, b.op("Less", x, b.constant(np.float32(0.3))))
    return b.op("Where", mask, x, _mate(b, x))


def combine(b: Fuzz, x: str) -> str:
    """Join two values that broadcast."""
    def fits(y: str) -> bool:
        pairs = zip(b.shapes[x][::-1], b.shapes[y][::-1], strict=False)
        lead = len(b.shapes[x]) == len(b.shapes[y])
        return lead and all(m == n or 1 in (m, n) for m, n in pairs) and b.shapes[x][0] == b.shapes[y][0]

    others = [y for y in b.live if y != x and fits(y)]
    return b.op(b.pick(["Add", "Add", "Mul", "Sub", "Max", "Sum", "Mean"]), x, b.pick(others or [x]))


def linear(b: Fuzz, x: str) -> str:
    out, into = b.pick(_CHANNELS), b.shapes[x][-1]
    rank = len(b.shapes[x])
    if rank == 2 and b.chance(0.7):
        turned = b.chance(0.5)
        w = b.weight(*((out, into) if turned else (into, out)), fan=into)
        bias = [b.weight(*b.pick([(out,), (1, out)]))] if b.chance(0.7) else []
        return b.op("Gemm", x, w, *bias, transB=int(turned), alpha=b.pick((None, 0.5)))
    if rank == 3 and b.opset >= 12 and b.chance(0.3):
        return b.op("Einsum", x, b.weight(into, out, fan=into), equation="bti,io->bto")
    return b.linear(x, out, b.chance(0.6))


def per_head(b: Fuzz, x: str) -> str:
    """A different matrix for each index of the axis before."""
    b.rank(x, 3, 4, 5)
    shape = b.shapes[x]
    out = b.pick(_CHANNELS)
    if len(shape) == 4:
        return b.op("MatMul", x, b.weight(shape[1], shape[3], out, fan=shape[3]))
    if len(shape) == 3 and b.opset >= 12:
        return b.op("Einsum", x, b.weight(shape[1], shape[2], out, fan=shape[2]), equation="bhi,hio->bho")
    raise CannotBuild("rank")


def pairwise(b: Fuzz, x: str) -> str:
    """Products of a value with itself, turned."""
    rank = b.rank(x, 3, 4)
    turned = b.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])
    y = b.op("MatMul", x, turned)
    return b.softmax(y) if b.chance(0.5) else b.op("Mul", y, b.constant(np.float32(0.2)))


def conv(b: Fuzz, x: str) -> str:
    rank = b.rank(x, 3, 4, 5) - 2
    c = b.shapes[x][1]
    group = b.pick(b.factors(c)) if b.chance(0.5) else 1
    out = group * b.pick((1, 2, 3, 4)) if group > 1 else b.pick(_CHANNELS)
    kernel = b.pick((1, 3)) if min(b.shapes[x][2:]) >= 3 else 1
    stride = [b.pick((1, 1, 2))] * rank
    return b.conv(x, out, kernel, group, b.chance(0.6), strides=stride)


def conv_transpose(b: Fuzz, x: str) -> str:
    rank = b.rank(x, 3, 4) - 2
    c = b.shapes[x][1]
    group = b.pick(b.factors(c)) if b.chance(0.4) else 1
    out = b.pick((1, 2, 4))
    w = b.weight(c, out, *[2] * rank, fan=c * 2**rank // group)
    bias = [b.weight(out * group)] if b.chance(0.5) else []
    return b.op("ConvTranspose", x, w, *bias, group=group, strides=[2] * rank)


def norm(b: Fuzz, x: str) -> str:
    rank, c = len(b.shapes[x]), b.shapes[x][1]
    kinds = ["batch", "batch", "instance", "group", "layer", "layer", "lp", "softmax", "mvn", "hand"]
    kind = b.pick([*kinds, "rms"] if b.opset >= 23 else kinds)
    if kind == "batch":
        return b.batch_norm(x)
    if kind == "instance":
        b.rank(x, 3, 4)
        return b.op("InstanceNormalization", x, b.weight(c, near=1), b.weight(c), epsilon=1e-2)
    if kind == "group":
        return group_norm(b, x)
    if kind == "layer":
        return b.layer_norm(x, b.pick(range(1, rank)) if b.chance(0.3) else -1)
    if kind == "rms":
        return b.op("RMSNormalization", x, b.weight(b.shapes[x][-1], near=1), axis=-1)
    if kind == "lp":
        return b.op("LpNormalization", b.op("Add", x, b.constant(np.float32(0.1))), axis=b.axis(x), p=2)
    if kind == "softmax":
        return b.op(b.pick(["Softmax", "LogSoftmax"]), x, axis=b.axis(x))
    if kind == "mvn":
        return b.op("MeanVarianceNormalization", x, axes=sorted({b.axis(x), b.axis(x)}))
    mean = b.op("Add", b.reduce("ReduceMean", b.op("Mul", x, x), [rank - 1]), b.constant(np.float32(0.1)))
    return b.op("Mul", b.op("Div", x, b.op("Sqrt", mean)), b.weight(b.shapes[x][-1]))


def group_norm(b: Fuzz, x: str) -> str:
    """GroupNormalization, or its usual spelling: reshape, InstanceNormalization, reshape."""
    b.rank(x, 3, 4)
    _, c, *rest = b.shapes[x]
    g = b.pick(b.factors(c))
    if b.opset >= 18 and b.chance(0.6):
        n = c if b.opset >= 21 else g
        return b.op("GroupNormalization", x, b.weight(n, near=1), b.weight(n), num_groups=g, epsilon=1e-2)
    y = b.op("Reshape", x, b.ints(0, g, -1))
    one, zero = b.constant(np.ones(g, np.float32)), b.constant(np.zeros(g, np.float32))
    y = b.op("InstanceNormalization", y, one, zero, epsilon=1e-2)
    back = b.op("Shape", x) if b.chance(0.3) else b.ints(0, c, *rest)
    y = reshaped(b, y, b.shapes[x], back)
    scale = [c, *[1] * len(rest)]
    return b.op("Add", b.op("Mul", y, b.weight(*scale)), b.weight(*scale))


def join(b: Fuzz, x: str) -> str:
    axis = b.axis(x)
    shape = b.shapes[x]

    def fits(y: str) -> bool:
        other = b.shapes[y]
        return len(other) == len(shape) and all(k == axis or n == other[k] for k, n in enumerate(shape))

    others = [y for y in b.live if fits(y)]
    parts = [x, *[b.pick(others) for _ in range(b.pick((1, 1, 2)))]]
    return b.op("Concat", *parts, axis=axis - len(shape) * b.chance(0.2))


def split(b: Fuzz, x: str) -> list[str]:
    axis = b.axis(x)
    n = b.shapes[x][axis]
    if n < 2:
        raise CannotBuild("size one")
    if n % 2 == 0 and b.chance(0.4):
        return b.halves(x, axis)
    at = sorted({0, n, *[int(b.rng.integers(1, n)) for _ in range(b.pick((1, 2)))]})
    return b.split(x, axis, [int(v) for v in np.diff(at)])


def cut(b: Fuzz, x: str) -> str:
    axis = b.axis(x)
    n = b.shapes[x][axis]
    if n < 2:
        raise CannotBuild("size one")
    start = int(b.rng.integers(0, n - 1))
    end = int(b.rng.integers(start + 1, n + 1))
    step = b.pick((1, 1, 1, 2, 3))
    if b.chance(0.1):
        return b.slice(x, axis, n, -n - 1, -1)
    if step > 1:
        start, end = b.pick((0, 1)), 2**31 - 1 if b.chance(0.7) else end
    if b.chance(0.3):
        start, axis = start - n if start else start, axis - len(b.shapes[x])
    return b.slice(x, axis, start, end, step)


def reshaped(b: Fuzz, x: str, shape: tuple[int, ...], by: str) -> str:
    """Reshape by a value whose content inference may not know."""
    try:
        return b.op("Reshape", x, by)
    except CannotBuild:
        if prod(b.shapes[x]) != prod(shape):
            raise
    return b.forced("Reshape", x, by, shape=shape)


def reshape(b: Fuzz, x: str) -> str:
    """Merge or split axes; the new sizes are written, copied, or computed from another shape."""
    shape = b.shapes[x]
    rest = list(shape[1:])
    for _ in range(b.pick((1, 1, 2))):
        k = b.pick(range(len(rest)))
        if b.chance(0.5) and k + 1 < len(rest):
            rest[k : k + 2] = [rest[k] * rest[k + 1]]
        elif len(rest) < 5:
            f = b.pick(b.factors(rest[k]))
            rest[k : k + 1] = [f, rest[k] // f]
    style = b.pick(["zero", "minus", "guess", "computed"])
    written = [0, *rest]
    if style == "minus" or (style == "zero" and shape[0] == BATCH and not b.batch and b.chance(0.5)):
        written = [-1, *rest]
    elif style == "guess":
        written = [0, *rest]
        written[b.pick(range(1, len(written)))] = -1
    elif style == "computed":
        return computed_reshape(b, x, rest)
    return b.op("Reshape", x, b.ints(*written))


def computed_reshape(b: Fuzz, x: str, rest: list[int]) -> str:
    """The way exporters write `x.reshape(x.shape[0], ...)`, some sizes taken from the value."""
    sizes = b.op("Shape", x)
    parts = []
    for k, n in enumerate([b.shapes[x][0], *rest]):
        if k == 0 or (k < len(b.shapes[x]) and n == b.shapes[x][k] and b.chance(0.4)):
            parts.append(b.squeeze(b.op("Gather", sizes, b.constant(np.int64(k)), axis=0), [0], "Unsqueeze"))
        else:
            parts.append(b.ints(n))
    return reshaped(b, x, (b.shapes[x][0], *rest), b.op("Concat", *parts, axis=0))


def flatten(b: Fuzz, x: str) -> str:
    return b.op("Flatten", x, axis=1)


def fold(b: Fuzz, x: str) -> str:
    """Take an axis into the batch, or out of it."""
    shape = b.shapes[x]
    if shape[0] != BATCH and shape[0] % BATCH == 0:
        return b.op("Reshape", x, b.ints(-1, shape[0] // BATCH, *shape[1:]))
    b.rank(x, 3, 4, 5)
    if shape[0] != BATCH:
        raise CannotBuild("batch")
    return b.op("Reshape", x, b.ints(-1, *shape[2:]))


def transpose(b: Fuzz, x: str) -> str:
    rank = b.rank(x, 3, 4, 5)
    return b.op("Transpose", x, perm=[0, *[int(k) + 1 for k in b.rng.permutation(rank - 1)]])


def ones(b: Fuzz, x: str) -> str:
    """Axes of size one come and go."""
    gone = [k for k, n in enumerate(b.shapes[x]) if n == 1 and k]
    if gone and len(b.shapes[x]) > 2 and b.chance(0.7):
        return b.squeeze(x, [b.pick(gone)])
    return b.squeeze(x, [b.axis(x)], "Unsqueeze")


def repeat(b: Fuzz, x: str) -> str:
    shape = b.shapes[x]
    single = [k for k, n in enumerate(shape) if n == 1 and k]
    if single and b.chance(0.7):
        k = b.pick(single)
        return b.op("Expand", x, b.ints(*[1 if j != k else b.pick((2, 3)) for j in range(len(shape))]))
    k = b.axis(x)
    return b.op("Tile", x, b.ints(*[2 if j == k else 1 for j in range(len(shape))]))


def pad(b: Fuzz, x: str) -> str:
    rank = len(b.shapes[x])
    pads = [0] * 2 * rank
    k = b.axis(x)
    pads[k], pads[rank + k] = b.pick((0, 1, 2)), b.pick((0, 1))
    mode = b.pick(["constant", "constant", "reflect" if b.shapes[x][k] > 2 else "edge"])
    return b.op("Pad", x, b.ints(*pads), *([b.constant(np.float32(0.5))] if b.chance(0.3) else []), mode=mode)


def resize(b: Fuzz, x: str) -> str:
    b.rank(x, 4)
    _, c, h, w = b.shapes[x]
    empty = b.constant(np.zeros(0, np.float32))
    none = "" if b.opset >= 13 else empty
    if b.chance(0.5):
        scales = b.constant(np.asarray([1, 1, 2, 2], np.float32))
        return b.op("Resize", x, empty, scales, mode=b.pick(["nearest", "linear"]))
    if b.batch:
        y = b.op("Shape", x)
        first = b.slice(y, 0, 0, 2)
        sizes = b.op("Concat", first, b.ints(2 * h, w + 1), axis=0)
        return b.forced("Resize", x, empty, none, sizes, shape=(b.shapes[x][0], c, 2 * h, w + 1), mode="nearest")
    return b.op("Resize", x, empty, none, b.ints(b.shapes[x][0], c, 2 * h, w + 1), mode="nearest")


def pool(b: Fuzz, x: str) -> str:
    rank = b.rank(x, 3, 4) - 2
    kind = b.pick(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
    if kind.startswith("Global"):
        return b.op(kind, x)
    if min(b.shapes[x][2:]) < 2:
        raise CannotBuild("too small")
    return b.op(kind, x, kernel_shape=[2] * rank, strides=[b.pick((1, 2))] * rank)


def reduce(b: Fuzz, x: str) -> str:
    kind = b.pick(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
                   "ReduceSumSquare", "ReduceProd"])  # fmt: skip
    rank = len(b.shapes[x])
    axes = sorted({b.axis(x) for _ in range(b.pick((1, 1, 2)))})
    keep = 1 if len(axes) >= rank - 1 else int(b.chance(0.5))
    return b.reduce(kind, x, [a - rank for a in axes] if b.chance(0.3) else axes, keep)


def gather(b: Fuzz, x: str) -> str:
    axis = b.axis(x)
    n = b.shapes[x][axis]
    kind = b.pick(["run", "order", "one", "any", "roll"])
    if kind == "one":
        b.rank(x, 3, 4, 5)
        return b.op("Gather", x, b.constant(np.int64(b.rng.integers(-n, n))), axis=axis)
    if kind == "run":
        start = int(b.rng.integers(0, n))
        index = np.arange(start, int(b.rng.integers(start, n)) + 1)
    elif kind == "roll":
        index = np.roll(np.arange(n), int(b.rng.integers(0, n)))
    else:
        index = b.rng.permutation(n) if kind == "order" else b.rng.integers(-n, n, 3)
    return b.op("Gather", x, b.constant(index.astype(np.int64), "i"), axis=axis)


def block_move(b: Fuzz, x: str) -> str:
    b.rank(x, 4)
    _, c, h, w = b.shapes[x]
    if c % 4 == 0 and b.chance(0.6):
        return b.op("DepthToSpace", x, blocksize=2, mode=b.pick(["DCR", "CRD"]))
    if h % 2 or w % 2:
        raise CannotBuild("odd")
    return b.op("SpaceToDepth", x, blocksize=2)


def positional(b: Fuzz, x: str) -> Any:
    """Operators that look at places."""
    kind = b.pick(["CumSum", "Trilu", "LRN", "TopK", "ArgMax", "ArgMin", "GatherElements", "Hardmax", "CenterCropPad",
                   "GridSample", "OneHot"])  # fmt: skip
    axis = b.axis(x)
    if kind == "CumSum":
        return b.op(kind, x, b.constant(np.int64(axis)))
    if kind == "Trilu":
        b.rank(x, 3, 4)
        if b.opset < 14:
            raise CannotBuild("opset")
        return b.op(kind, x, upper=int(b.chance(0.5)))
    if kind == "LRN":
        b.rank(x, 4)
        return b.op(kind, x, size=3)
    if kind == "TopK":
        return b.op(kind, x, b.ints(1 + b.shapes[x][axis] // 2), outputs=2, axis=axis)[0]
    if kind == "GatherElements":
        if b.batch or b.everything or b.shapes[x][0] != BATCH:
            raise CannotBuild("batch")
        index = np.argsort(b.rng.random(b.shapes[x]), axis=axis).astype(np.int64)
        return b.op(kind, x, b.constant(index if b.chance(0.5) else np.take(index, [0, 0], axis=axis)), axis=axis)
    if kind == "CenterCropPad":
        if b.opset < 18:
            raise CannotBuild("opset")
        return b.op(kind, x, b.ints(b.shapes[x][axis] + b.pick((-1, 1, 2))), axes=[axis])
    if kind == "GridSample":
        b.rank(x, 4)
        if b.batch or b.everything or b.shapes[x][0] != BATCH or b.opset < 16:
            raise CannotBuild("batch")
        grid = (b.rng.random((BATCH, 3, 4, 2)) - 0.5).astype(np.float32)
        return b.op(kind, x, b.constant(grid, "grid"))
    if kind == "OneHot":
        best = b.op("ArgMax", x, axis=axis, keepdims=0)
        values = b.constant(np.asarray([0, 1], np.float32))
        return b.op(kind, best, b.ints(b.shapes[x][axis]), values, axis=axis)
    if kind == "Hardmax":
        return b.op("Mul", b.op(kind, x, axis=len(b.shapes[x]) - 1), x)
    return b.op("Cast", b.op(kind, x, axis=axis, keepdims=1), to=TensorProto.FLOAT)


def made(b: Fuzz, x: str) -> str:
    """Add something made at the value's own size, or scaled by its size."""
    if b.chance(0.5):
        rest = b.shapes[x][1:]
        one = onnx.numpy_helper.from_array(np.asarray([0.3], np.float32))
        if b.chance(0.5):
            return b.op("Add", x, b.op("ConstantOfShape", b.ints(*rest), value=one))
        sizes = b.op("Shape", x)
        return b.op("Add", x, b.forced("ConstantOfShape", sizes, shape=b.shapes[x], value=one))
    if b.chance(0.2) and not b.batch and not b.everything:
        return b.op("Div", x, b.op("Sqrt", b.op("Cast", b.op("Size", x), to=TensorProto.FLOAT)))
    k = b.axis(x)
    size = b.op("Cast", b.op("Gather", b.op("Shape", x), b.constant(np.int64(k)), axis=0), to=TensorProto.FLOAT)
    return b.op("Div", x, b.op("Sqrt", size))


def _map(b: Fuzz, x: str, divisor: int = 1) -> None:
    b.rank(x, 4)
    if b.shapes[x][1] % divisor:
        raise CannotBuild("channels")


def _tokens(b: Fuzz, x: str) -> None:
    b.rank(x, 3)
    if b.shapes[x][1] > 16:
        raise CannotBuild("long")


def conv_block(b: Fuzz, x: str) -> str:
    kind = b.pick(["residual", "inverted", "dense", "shuffle", "se", "unet"])
    _map(b, x, 2 if kind == "shuffle" else 1)
    width = b.pick(_CHANNELS)
    if kind == "shuffle":
        return blocks.shuffle(b, x, b.pick(b.factors(b.shapes[x][1])))
    if kind == "unet" and (b.shapes[x][2] % 2 or b.shapes[x][3] % 2):
        raise CannotBuild("odd")
    table = {"residual": blocks.residual, "inverted": blocks.inverted, "dense": blocks.dense,
             "se": blocks.squeeze_excite, "unet": blocks.unet}  # fmt: skip
    return table[kind](b, x, width)


def token_block(b: Fuzz, x: str) -> str:
    _tokens(b, x)
    heads, d = b.pick((1, 2, 3, 4)), b.pick((2, 4, 6))
    kind = b.pick(["mlp", "gated", "mixer", "attention", "fused", "split", "grouped"])
    y = b.layer_norm(x) if b.chance(0.5) else x
    if kind == "mixer":
        return blocks.mixer(b, x, b.pick(_CHANNELS), b.pick(_CHANNELS))
    if kind in ("mlp", "gated"):
        return {"mlp": blocks.mlp, "gated": blocks.gated}[kind](b, y, b.pick(_CHANNELS))
    if kind == "attention":
        return blocks.attention(b, y, heads, d, b.pick(["", "half", "pairs"]))
    if kind == "grouped":
        return blocks.grouped_attention(b, y, heads * b.pick((1, 2)), heads, d, b.pick(["", "half", "pairs"]))
    return {"fused": blocks.fused_attention, "split": blocks.split_attention}[kind](b, y, heads, d)


def fused_operators(b: Fuzz, x: str) -> str:
    """Attention and rotary embedding as single operators, on `n t (h d)` or `n h t d`."""
    _tokens(b, x)
    if b.opset < 23:
        raise CannotBuild("opset")
    shared, rep, d = b.pick((1, 2)), b.pick((1, 2)), b.pick((4, 6))
    if b.chance(0.5):
        q = b.linear(x, shared * rep * d)
        k, v = b.linear(x, shared * d), b.linear(x, shared * d)
        y = b.op("Attention", q, k, v, q_num_heads=shared * rep, kv_num_heads=shared)
    else:
        q = blocks.heads_of(b, b.linear(x, shared * rep * d), shared * rep, d)
        k, v = (blocks.heads_of(b, b.linear(x, shared * d), shared, d) for _ in range(2))
        if b.chance(0.7):
            angle = b.rng.random((b.shapes[x][1], d // 2)).astype(np.float32)
            places = b.constant(np.arange(b.shapes[x][1])[None].repeat(BATCH, 0), "place")
            tables = [b.constant(f(angle), "w") for f in (np.cos, np.sin)]
            if b.batch or b.everything or b.shapes[x][0] != BATCH:
                raise CannotBuild("batch")
            pairs = int(b.chance(0.5))
            q, k = (b.op("RotaryEmbedding", y, *tables, places, interleaved=pairs) for y in (q, k))
        y = b.op("Transpose", b.op("Attention", q, k, v), perm=[0, 2, 1, 3])
        y = b.shape(y, b.shapes[x][1], shared * rep * d)
    return b.op("Add", x, b.linear(y, b.shapes[x][-1]))


def shortcut(b: Fuzz, x: str) -> str:
    """Add a value to what a few layers that keep its shape make of it."""
    y = x
    for _ in range(b.pick((1, 2))):
        layer = b.pick([unary, affine, norm, linear, conv])
        z = layer(b, y)
        y = z if b.shapes[z] == b.shapes[x] else y
    if b.shapes[y] != b.shapes[x] or y == x:
        raise CannotBuild("shape")
    return b.op("Add", x, y)


LAYERS: list[Callable[[Fuzz, str], Any]] = [
    *[unary, bounded, affine, affine, select, combine, combine, linear, linear, linear, per_head, pairwise],
    *[conv, conv, conv, conv_transpose, norm, norm, join, join, split, split, cut, cut, reshape, reshape, reshape],
    *[flatten, fold, transpose, transpose, ones, repeat, pad, resize, pool, reduce, gather, block_move, positional],
    *[fused_operators, made, conv_block, conv_block, token_block, token_block, shortcut],
]
