"""The idea that graphprune is built on, on one page, without importing graphprune.

An axis of a tensor is an expression over dims: `(a + b)` after a Concat, `(h d)` for h heads of width d. An operator
only says which axes are the same, and one small unification finds the dims. A dim that is not pinned is a channel
group; the groups are right if permuting their indices in all weights leaves the outputs as they were.
Run it with `python samples/2_core_on_one_page.py`.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


class Dim:  # indices that are kept or removed one by one
    def __init__(self, size: int, name: str = "") -> None:
        self.size, self.name = size, name

    def __repr__(self) -> str:
        return self.name or str(self.size)


class Sum(tuple):  # a concatenation of axes
    size = property(lambda self: sum(p.size for p in self))

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self)) + ")"


class Product(tuple):  # a flattened product of axes, outermost first
    size = property(lambda self: prod(p.size for p in self))

    def __repr__(self) -> str:
        return "(" + " ".join(map(repr, self)) + ")"


Axis = Dim | Sum | Product
bound: dict[Dim, Axis] = {}  # what is known of dims


def make(kind: type, *parts: Axis) -> Axis:
    flat = [q for p in parts for q in (p if isinstance(p, kind) else (p,)) if q.size != (kind is Product)]
    return flat[0] if len(flat) == 1 else kind(flat)


def solved(a: Axis) -> Axis:
    while isinstance(a, Dim) and a in bound:
        a = bound[a]
    return a if isinstance(a, Dim) else make(type(a), *map(solved, a))


def unify(a: Axis, b: Axis) -> None:
    a, b = solved(a), solved(b)
    if a is b or a.size == b.size <= 1:
        return
    if isinstance(a, Dim) or isinstance(b, Dim):
        bound.update({a: b} if isinstance(a, Dim) else {b: a})
    elif isinstance(a, Sum) or isinstance(b, Sum):  # from the front: cut both where the first term ends
        at = min((x[0] if isinstance(x, Sum) else x).size for x in (a, b))
        for x, y in zip(cut(a, at), cut(b, at), strict=True):
            unify(x, y)
    else:  # from the inside: refine the larger factor by the smaller
        (*rest, x), (*more, y) = (a, b) if a[-1].size <= b[-1].size else (b, a)
        if y.size % x.size:
            raise ValueError("factorisations do not nest")
        outer = Dim(y.size // x.size)
        unify(y, make(Product, outer, x))
        unify(make(Product, *rest), make(Product, *more, outer))


def cut(a: Axis, at: int) -> tuple[Axis, Axis]:  # into the first `at` slots and the rest
    if at in (0, a.size):
        return (a, Sum()) if at else (Sum(), a)
    if isinstance(a, Dim):
        bound[a] = Sum([Dim(at), Dim(a.size - at)])
        return bound[a]
    inner = make(type(a), *a[1:])
    if isinstance(a, Sum):
        (b, c), (d, e) = cut(a[0], min(at, a[0].size)), cut(inner, max(at - a[0].size, 0))
        return make(Sum, b, d), make(Sum, c, e)
    if at % inner.size:
        raise ValueError("a cut inside a factor")
    return tuple(make(Product, b, inner) for b in cut(a[0], at // inner.size))


def slots(a: Axis, order: dict[Dim, np.ndarray]) -> np.ndarray:  # where the indices of an axis come from
    if isinstance(a, Dim):
        return order.get(a, np.arange(a.size))
    if isinstance(a, Sum):
        return np.concatenate([slots(p, order) + Sum(a[:i]).size for i, p in enumerate(a)])
    index = np.zeros(1, int)
    for p in a:
        index = np.add.outer(index * p.size, slots(p, order)).ravel()
    return index


def rule(op: str, attrs: dict, x: list[list[Axis]], y: list[Axis]) -> tuple[list[tuple[Axis, Axis]], list[Axis]]:
    """All operator knowledge: pairs of axes that are the same, and axes that must stay."""
    if op == "Conv":
        return [(x[0][0], y[0]), (x[0][1], x[1][1]), *((w[0], y[1]) for w in x[1:])], [*x[0][2:], *x[1][2:], *y[2:]]
    if op == "Gemm":  # as torch writes it: transB=1
        return [(x[0][0], y[0]), (x[0][1], x[1][1]), *((w[0], y[1]) for w in x[1:])], []
    if op == "MatMul":
        batch = [pair for v in x for pair in zip(v[-3::-1], y[-3::-1], strict=False)]
        return [*batch, (x[0][-1], x[1][-2]), (x[0][-2], y[-2]), (x[1][-1], y[-1])], []
    if op == "Concat":
        at = attrs["axis"]
        rest = [(v[i], y[i]) for v in x for i in range(len(y)) if i != at]
        return [*rest, (make(Sum, *(v[at] for v in x)), y[at])], []
    if op in ("Reshape", "Flatten"):
        return [(make(Product, *x[0]), make(Product, *y))], []
    if op == "Transpose":
        return [(x[0][k], a) for k, a in zip(attrs["perm"], y, strict=True)], []
    if op in ("Relu", "Add", "Softmax", "GlobalAveragePool"):  # element-wise, broadcast; or axes pooled to size 1
        return [(a, b) for v in x for a, b in zip(v[::-1], y[::-1], strict=False) if a.size == b.size], []
    return [], [a for v in (*x, y) for a in v]


def dims(a: Axis) -> list[Dim]:
    return [a] if isinstance(a, Dim) else [d for p in a for d in dims(p)]


def couple(model: onnx.ModelProto) -> tuple[dict[str, list[Axis]], list[Dim]]:
    """Return the solved axes of all weights, and the dims that are free: the channel groups."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    axes = {t.name: [Dim(n) for n in t.dims] for t in graph.initializer}
    for v in (*graph.input, *graph.value_info, *graph.output):
        axes[v.name] = [Dim(d.dim_value or 1) for d in v.type.tensor_type.shape.dim]
    pinned = [a for v in (*graph.input, *graph.output) for a in axes[v.name]]
    for node in graph.node:
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        same, stay = rule(node.op_type, attrs, [axes[name] for name in node.input], axes[node.output[0]])
        pinned += stay
        for a, b in same:
            try:
                unify(a, b)
            except ValueError:
                pinned += [a, b]
    weights = {t.name: [solved(a) for a in axes[t.name]] for t in graph.initializer if t.data_type == 1}
    fixed = {d for a in pinned for d in dims(solved(a))}
    found = dict.fromkeys(d for axes in weights.values() for a in axes for d in dims(a))
    return weights, [d for d in found if d not in fixed and d.size > 1]


def run(model: onnx.ModelProto, weights: dict[str, list[Axis]], order: dict[Dim, np.ndarray]) -> np.ndarray:
    """Run the model in onnxruntime with the slots of all weights in this order; what the order lacks is removed."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for t in changed.graph.initializer:
        if t.name in weights:
            array = numpy_helper.to_array(t)[np.ix_(*(slots(a, order) for a in weights[t.name]))]
            t.CopyFrom(numpy_helper.from_array(array, t.name))
    (x,) = changed.graph.input
    shape = [d.dim_value or 1 for d in x.type.tensor_type.shape.dim]
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    return onnxruntime.InferenceSession(changed.SerializeToString()).run(None, {x.name: image})[0]


def check(model: onnx.ModelProto) -> None:
    """Print the groups of a model, and what a random permutation of all of them does to its output."""
    weights, free = couple(model)
    for i, d in enumerate(free):
        d.name = f"{chr(97 + i)}{d.size}"
        places = [f"{name}:{k} {a!r}" for name, axes in weights.items() for k, a in enumerate(axes) if d in dims(a)]
        print(f"  group {d!r} of {d.size:3}: {', '.join(places)}")
    rng = np.random.default_rng(0)
    before, after = (run(model, weights, o) for o in ({}, {d: rng.permutation(d.size) for d in free}))
    print(f"  permuting all groups changes the output by {abs(after - before).max() / abs(before).max():.0e}")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    small = onnx.parser.parse_model((here / "2_graph.txt").read_text())
    rng = np.random.default_rng(0)
    for v in small.graph.value_info:  # weights without a value
        array = rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim], np.float32) / 4
        small.graph.initializer.append(numpy_helper.from_array(array, v.name))
    print("convolutions, Concat, attention:")
    check(small)
    print("the residual CNN:")
    check(onnx.load(here / "fashion_mnist_resnet.onnx"))
