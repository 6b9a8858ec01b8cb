"""Inputs to run a model with: the user's own, or made up to fit what the graph does with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.errors import GraphPruneError, UsageError
from graphprune.execute import observe_shapes
from graphprune.inputs import InputSpec, synthesise
from graphprune.ops import BOUNDS, CARRIERS, PICKERS, Op
from graphprune.shapes import Observed, World
from graphprune.sizes import Shapes, input_symbols, real_inputs

Feeds = dict[str, npt.NDArray[Any]]
_MOST_STEERED = 4


def index_bounds(ops: Iterable[Op]) -> dict[str, int]:
    """Return for each value whose elements index something the number that they must lie below.

    Bounds are carried back through operators that only move elements, up to the inputs.
    """
    bounds: dict[str, int] = {}
    for op in reversed(list(ops)):
        rule = BOUNDS.get(op.domain, op.type, op.version)
        operands = [o for o in (*op.inputs, *op.outputs) if o is not None]
        if rule is not None and all(o.rank_known for o in operands):
            i, bound = rule(op)
            indices = op.input(i)
            if indices is not None:
                bounds[indices.name] = min(bound, bounds.get(indices.name, bound))
        if op.type in PICKERS and op.inputs and op.inputs[0] is not None:
            for y in op.outputs:
                if y is not None and y.name in bounds:
                    name = op.inputs[0].name
                    bounds[name] = min(bounds[y.name], bounds.get(name, bounds[y.name]))
    return bounds


def steered(ops: Sequence[Op], feed: Feeds) -> list[Feeds]:
    """Return inputs that may lead a model through other branches: single integers and truth values changed.

    An integer becomes the number that the graph compares it with, or the next one. Empty where nothing branches.
    """
    if not any(len(op.bodies) > 1 for op in ops):
        return []
    origin = {name: name for name, a in feed.items() if a.size == 1 and a.dtype.kind in "iub"}
    numbers: dict[str, set[int]] = {name: {0, 1} for name, a in feed.items() if name in origin and a.dtype.kind == "b"}
    for op in ops:
        first = op.input(0)
        if op.type in CARRIERS and first is not None and first.name in origin:
            origin.update((o.name, origin[first.name]) for o in op.outputs if o is not None)
        for i, j in ((0, 1), (1, 0)) if len(op.inputs) == 2 else ():
            one, other = op.input(i), op.fixed(j)
            if one is not None and one.name in origin and other is not None and other.size == 1:
                at = int(other.ravel()[0])
                numbers.setdefault(origin[one.name], set()).update((at, at + 1))
    changed = [(name, n) for name, found in numbers.items() for n in sorted(found) if n != int(feed[name].ravel()[0])]
    return [{**feed, name: np.full_like(feed[name], n)} for name, n in changed[:_MOST_STEERED]]


def specs(model: ir.Model, bounds: Mapping[str, int]) -> list[InputSpec]:
    """Return what must be made for each input of a model."""
    symbols = input_symbols(model)
    return [
        InputSpec(v.name or "", _dtype(v), symbols[v.name or ""], bounds.get(v.name or ""))
        for v in real_inputs(model)
    ]


def _dtype(value: ir.Value) -> np.dtype[Any]:
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        raise UsageError(f"input {value.name!r} is not a tensor: inputs for it cannot be made up")
    return np.dtype(object) if value.dtype == ir.DataType.STRING else np.dtype(value.dtype.numpy())


def make(
    model: ir.Model, shapes: Shapes, bounds: Mapping[str, int], given: Mapping[str, npt.NDArray[Any]], seed: int = 0
) -> tuple[Feeds, tuple[str, ...]]:
    """Return inputs of the given shapes and what was assumed of those made up; `given` ones are used as they are."""
    wanted = [s for s in specs(model, bounds) if s.name not in given]
    if not wanted:
        return dict(given), ()
    sizes = {s.name: shapes[s.name] for s in wanted}
    made, said = synthesise(wanted, sizes, seed)
    return {**made, **given}, said


def read_inputs(path: str | os.PathLike[str], model: ir.Model) -> Feeds:
    """Read one set of inputs from an `.npz` with one array per input name."""
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file of inputs")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {k: data[k] for k in data.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path}: is not an .npz file of arrays ({error})") from error
    symbols = input_symbols(model)
    types = {v.name: _dtype(v) for v in real_inputs(model)}
    for name, array in arrays.items():
        if name not in symbols:
            raise UsageError(f"{path}: the model has no input {name!r}; its inputs are {', '.join(sorted(symbols))}")
        if array.dtype != types[name]:
            raise UsageError(f"{path}: input {name!r} is {array.dtype}, the model wants {types[name]}")
    return arrays


def allowed(model: ir.Model, patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Return whether an input or output may change; raises UsageError for a pattern that fits none of them."""

    def fits(name: str, pattern: str) -> bool:
        return name == pattern or fnmatch(name, pattern)

    names = [v.name or "" for v in (*real_inputs(model), *model.graph.outputs)]
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            raise UsageError(f"--allow-io {pattern!r} fits no input or output; they are {', '.join(map(repr, names))}")
    return lambda name: any(fits(name, p) for p in patterns)


def observer() -> Callable[[ir.Model, Shapes, World], Observed]:
    """Return a function that runs a model on two inputs to see the sizes that no rule tells."""

    def observe(model: ir.Model, shapes: Shapes, world: World) -> Observed:
        wanted = [
            o.name
            for node in model.graph
            for o in node.outputs
            if o.name and (o.name not in world.shapes or o.name in world.open_axes)
        ]
        try:
            runs = [observe_shapes(model, wanted, make(model, shapes, {}, {}, seed)[0]) for seed in (0, 1)]
        except GraphPruneError:
            return {}
        return {
            name: (dtype, tuple(a if a == b else None for a, b in zip(sizes, runs[1][name][1], strict=True)))
            for name, (dtype, sizes) in runs[0].items()
            if name in runs[1] and len(runs[1][name][1]) == len(sizes)
        }

    return observe
