"""Random weights in place of trained ones: what a model is before training."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.contents import attributes, rule_of
from graphprune.errors import UsageError
from graphprune.model import constant_of, constants, set_constant
from graphprune.normalize import name_nodes, name_values
from graphprune.ops import BIASES, INITIAL, Start
from graphprune.weights import FLOATS

MARK = "graphprune.reinit"
_NAMED = 3
_WIDEST = 1  # numbers that are no weight: a scalar factor, an epsilon


@dataclass(frozen=True)
class Reinitialised:
    """A model with random weights; `kept` are the names of constants that nothing is known of, and that stay."""

    model: ir.Model
    kept: tuple[str, ...]


def reinit(model: ir.Model, seed: int) -> Reinitialised:
    """Return a copy of a model whose weights are random again, as before training.

    >>> reinit(load("model.onnx"), 0).kept  # doctest: +SKIP
    ('position_table',)

    Kernels of convolutions are normal numbers of deviation sqrt(2 / fan-in) (He et al., ICCV 2015, eq. 10), matrices
    and tables 1 / sqrt(fan-in) (LeCun et al., Efficient BackProp, 1998, section 4.6), those of recurrent nodes 1 /
    sqrt(3 hidden). Biases are 0, scales of normalisations 1, running means 0 and variances 1. Real constants of more
    than one number that no table speaks of (`ops/initial.py`) stay as they are. Every weight's numbers depend on the
    seed and its name only. Raises UsageError where no weight is known.
    """
    out = model.clone()
    name_nodes(out)
    name_values(out)
    starts: dict[ir.Value, Start] = {}
    for graph in out.graphs():
        for node in graph:
            for k, start in _starts(out, node).items():
                value = node.inputs[k] if k < len(node.inputs) else None
                tensor = constant_of(value)
                if value is not None and tensor is not None and tensor.dtype in FLOATS:
                    starts.setdefault(value, start)
    if not starts:
        raise UsageError("--reinit: no weight of the model can be initialised; quantised ones cannot")
    kept = []
    for graph in out.graphs():
        for value, tensor in list(constants(graph)):
            if value in starts:
                set_constant(value, _filled(tensor, starts[value], seed, value.name or ""))
            elif tensor.dtype in FLOATS and tensor.size > _WIDEST:
                kept.append(value.name or "")
    out.metadata_props[MARK] = said(seed, kept)
    return Reinitialised(out, tuple(kept))


def said(seed: int, kept: list[str]) -> str:
    """Return what a report says of it."""
    names = ", ".join(kept[:_NAMED]) + (", ..." if len(kept) > _NAMED else "")
    return f"random weights by seed {seed}" + (f"; {len(kept)} constants stayed as they are: {names}" if kept else "")


def _starts(model: ir.Model, node: ir.Node) -> dict[int, Start]:
    rule = rule_of(INITIAL, model, node)
    if rule is None:
        rule = rule_of(BIASES, model, node)
        layers = [rule_of(INITIAL, model, maker) for v in node.inputs if v is not None and (maker := v.producer())]
        if rule is None or not any(layers):
            return {}
    return dict(rule(attributes(node), [_sizes(v) for v in node.inputs] + [None] * 4))


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    tensor = constant_of(value)
    return None if tensor is None else tuple(int(n) for n in tensor.shape.numpy())


def _filled(tensor: ir.TensorProtocol, start: Start, seed: int, name: str) -> ir.TensorProtocol:
    shape = tuple(int(n) for n in tensor.shape.numpy())
    if start.fan_in:
        drawn = np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, np.float32)
        array = drawn * np.float32(start.gain / np.sqrt(start.fan_in))
    else:
        array = np.full(shape, start.value, np.float32)
    return ir.Tensor(array.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=name)
