"""Random chains of operators that move slots, between two matrices: what is free must be right, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx
import pytest
from oracles import Net, check

Shape = tuple[int, ...]
Value = tuple[str, Shape]
"""A name with its static sizes; the first axis is the open batch size and is not among them."""


class Chain:
    """Draw operators one after the other; older values stay at hand for Concat and Add."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.net = Net(18, seed=seed)
        x = self.net.input("x", ["batch", int(self.rng.choice([2, 3, 4])), 5])
        rows = self.net.inputs[0].type.tensor_type.shape.dim[1].dim_value
        width = int(self.rng.choice([6, 8, 12]))
        self.values: list[Value] = [(self.net.matmul(x, 5, width, name="a"), (rows, width))]
        self.moves: list[Callable[[str, Shape], Value | None]] = [
            self.reshape, self.reshape, self.transpose, self.transpose, self.cut, self.beside, self.split, self.pick,
            self.pad, self.repeat, self.weigh, self.normalise, self.reduce, self.add, self.mix, self.swap_halves,
        ]

    def axis(self, shape: Shape) -> int:
        return int(self.rng.integers(len(shape)))

    def step(self) -> None:
        name, shape = self.values[-1 if self.rng.random() < 0.8 else int(self.rng.integers(len(self.values)))]
        made = self.moves[int(self.rng.integers(len(self.moves)))](name, shape)
        if made is not None and 0 < prod(made[1]) <= 400 and len(made[1]) <= 5:
            self.values.append(made)

    def reshape(self, name: str, shape: Shape) -> Value:
        rest, sizes = prod(shape), []
        while rest > 1 and len(sizes) < 4:
            n = int(self.rng.choice([d for d in range(1, rest + 1) if rest % d == 0]))
            sizes.append(n)
            rest //= n
        new = (*sizes, rest) if rest > 1 or not sizes else tuple(sizes)
        if self.rng.random() < 0.3:
            shape_of = self.net("Shape", name)
            sizes = [self.net("Gather", shape_of, self.net.ints(0)), *[self.size(shape_of, shape, n) for n in new]]
            return self.net("Reshape", name, self.net("Concat", *sizes, axis=0)), new
        asked = [0, *new]
        if self.rng.random() < 0.4:
            asked[int(self.rng.integers(1, len(asked)))] = -1
        return self.net("Reshape", name, self.net.ints(*asked)), new

    def size(self, shape_of: str, shape: Shape, n: int) -> str:
        """Return a size as a number computed from others, perhaps of an axis that has nothing to do with it."""
        for k in self.rng.permutation(len(shape)):
            whole = self.net("Gather", shape_of, self.net.ints(int(k) + 1))
            if shape[k] == n:
                return whole
            if shape[k] % n == 0:
                return self.net("Div", whole, self.net.ints(shape[k] // n))
            if n % shape[k] == 0:
                return self.net("Mul", whole, self.net.ints(n // shape[k]))
        return self.net.ints(n)

    def transpose(self, name: str, shape: Shape) -> Value:
        order = self.rng.permutation(len(shape))
        return self.net("Transpose", name, perm=[0, *(order + 1).tolist()]), tuple(shape[k] for k in order)

    def cut(self, name: str, shape: Shape) -> Value | None:
        k = self.axis(shape)
        start, step = int(self.rng.integers(shape[k])), int(self.rng.choice([1, 1, 1, 2, 3]))
        end = int(self.rng.integers(start + 1, shape[k] + 1))
        size = len(range(start, end, step))
        ints = [self.net.ints(v) for v in (start, end, k + 1, step)]
        return self.net("Slice", name, *ints), (*shape[:k], size, *shape[k + 1 :])

    def fitting(self, shape: Shape, k: int) -> Value | None:
        found = [v for v in self.values if len(v[1]) == len(shape)
                 and all(a == b for i, (a, b) in enumerate(zip(v[1], shape, strict=True)) if i != k)]
        return found[int(self.rng.integers(len(found)))] if found else None

    def beside(self, name: str, shape: Shape) -> Value | None:
        k = self.axis(shape)
        other = self.fitting(shape, k)
        if other is None:
            return None
        size = shape[k] + other[1][k]
        return self.net("Concat", name, other[0], axis=k + 1), (*shape[:k], size, *shape[k + 1 :])

    def split(self, name: str, shape: Shape) -> Value | None:
        k = self.axis(shape)
        n = int(self.rng.choice([2, 3]))
        if shape[k] % n:
            return None
        parts = self.net("Split", name, n=n, axis=k + 1, num_outputs=n)
        kind = ["Add", "Mul", "Max"][int(self.rng.integers(3))]
        return self.net(kind, parts[0], parts[-1]), (*shape[:k], shape[k] // n, *shape[k + 1 :])

    def pick(self, name: str, shape: Shape) -> Value:
        k = self.axis(shape)
        number = int(self.rng.integers(1, shape[k] + 2))
        at = np.arange(shape[k])[-number:]
        at = self.rng.integers(-shape[k], shape[k], number) if self.rng.random() < 0.4 else at
        return self.net("Gather", name, self.net.const(at), axis=k + 1), (*shape[:k], len(at), *shape[k + 1 :])

    def pad(self, name: str, shape: Shape) -> Value:
        k = self.axis(shape)
        a, b = (int(v) for v in self.rng.integers(0, 3, 2))
        pads = np.zeros((2, len(shape) + 1), dtype=np.int64)  # by axes, onnxruntime's optimisation would break it
        pads[:, k + 1] = a, b
        made = self.net("Pad", name, self.net.const(pads.ravel()), self.net.const(0.3))
        return made, (*shape[:k], shape[k] + a + b, *shape[k + 1 :])

    def repeat(self, name: str, shape: Shape) -> Value:
        k, n = self.axis(shape), int(self.rng.choice([2, 3]))
        if self.rng.random() < 0.5:
            times = [n if i == k + 1 else 1 for i in range(len(shape) + 1)]
            return self.net("Tile", name, self.net.ints(*times)), (*shape[:k], shape[k] * n, *shape[k + 1 :])
        if self.rng.random() < 0.3:
            shape_of = self.net("Shape", name)
            parts = [self.net("Gather", shape_of, self.net.ints(i)) for i in range(len(shape) + 1)]
            wide = self.net("Unsqueeze", name, self.net.ints(k + 1))
            parts.insert(k + 1, self.size(shape_of, shape, n))
            return self.net("Expand", wide, self.net("Concat", *parts, axis=0)), (*shape[:k], n, *shape[k:])
        wide = self.net("Unsqueeze", name, self.net.ints(k + 1))
        sizes = [n if i == k + 1 else 1 for i in range(len(shape) + 2)]
        return self.net("Expand", wide, self.net.ints(*sizes)), (*shape[:k], n, *shape[k:])

    def weigh(self, name: str, shape: Shape) -> Value:
        sizes = [n if self.rng.random() < 0.6 else 1 for n in shape]
        return self.net("Mul", name, self.net.weight(*sizes)), shape

    def normalise(self, name: str, shape: Shape) -> Value:
        if self.rng.random() < 0.5:
            return self.net("Softmax", name, axis=self.axis(shape) + 1), shape
        weights = [self.net.weight(shape[-1], positive=True), self.net.weight(shape[-1])]
        return self.net("LayerNormalization", name, *weights, axis=-1, epsilon=1e-2), shape

    def reduce(self, name: str, shape: Shape) -> Value | None:
        k, kind = self.axis(shape), ["ReduceSum", "ReduceMean", "ReduceMax"][int(self.rng.integers(3))]
        if len(shape) < 2:
            return None
        keep = bool(self.rng.random() < 0.5)
        made = self.net(kind, name, self.net.ints(k + 1), keepdims=int(keep))
        return made, (*shape[:k], *([1] if keep else []), *shape[k + 1 :])

    def add(self, name: str, shape: Shape) -> Value | None:
        other = self.fitting(shape, -1)
        return (self.net("Add", name, other[0]), shape) if other is not None else None

    def mix(self, name: str, shape: Shape) -> Value:
        size = int(self.rng.choice([4, 6, 8]))
        return self.net("Sin", self.net.matmul(name, shape[-1], size)), (*shape[:-1], size)

    def swap_halves(self, name: str, shape: Shape) -> Value | None:
        k = self.axis(shape)
        if shape[k] % 2:
            return None
        a, b = self.net("Split", name, n=2, axis=k + 1, num_outputs=2)
        return self.net("Concat", self.net("Neg", b), a, axis=k + 1), shape

    def finish(self) -> Net:
        name, shape = self.values[-1]
        flat = self.net("Reshape", name, self.net.ints(0, -1))
        return self.net.output(self.net.matmul(flat, prod(shape), 3, name="z"))


def drawn(seed: int) -> Net:
    chain = Chain(seed)
    for _ in range(int(chain.rng.integers(3, 14))):
        chain.step()
    return chain.finish()


@pytest.mark.parametrize("seed", range(60))
def test_chain(seed: int) -> None:
    net = drawn(seed)
    onnx.checker.check_model(net.model())
    check(net, tolerance=1e-3)
