"""What the inputs of a model hold (images, sound, tokens, ...), read from the graph: sizes, names, first operators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.feeds import specs
from graphprune.inputs import InputSpec, carries_content, plain
from graphprune.model import constant_of
from graphprune.ops import AFFINE, CARRIERS, CONTENTS, LOOKUPS, Table
from graphprune.sizes import input_symbols

Array: TypeAlias = npt.NDArray[Any]
Shapes: TypeAlias = Mapping[str, "tuple[int, ...]"]

_SPECTRUM = re.compile(r"_mels?_|spec|fbank|filter_?bank|mfcc|log_?mel|_feats?_|features")
_WAVE = re.compile(r"audio|wave?_|waveform|speech|input_values|signal|_pcm_|samples")
_EMBEDDED = re.compile(r"embed|hidden|states?_")
_COLOURS = (1, 3, 4)
_LONG = 2000  # numbers in a row that are more likely sound than features


@dataclass(frozen=True)
class Content:
    """One input that says what the model is asked about.

    `what` is "image", "wave", "spectrum", "series", "tokens" or "vectors". `channel` is the axis of colours, features
    or bands. The model itself turns x to `scale` x + `shift` first (one number, or one per channel). `table` are the
    rows that tokens point to.
    """

    name: str
    what: str
    dtype: np.dtype[Any]
    channel: int | None
    scale: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    table: ir.TensorProtocol | None = None
    bound: int | None = None

    @property
    def normalised(self) -> bool:
        """Whether the model itself scales or shifts this input."""
        return bool(np.any(self.scale != 1) or np.any(self.shift != 0))


@dataclass(frozen=True)
class Inputs:
    """The contents among a model's inputs, all inputs' specifications, and the axis of each that counts samples."""

    contents: tuple[Content, ...]
    specs: tuple[InputSpec, ...]
    axes: Mapping[str, int]

    @property
    def tables(self) -> dict[str, ir.TensorProtocol]:
        """Return the tables that inputs of tokens point to."""
        return {c.name: c.table for c in self.contents if c.what == "tokens" and c.table is not None}

    def shapes(self, sizes: Shapes, count: int) -> dict[str, tuple[int, ...]]:
        """Return the sizes of all inputs for so many samples at once; where the batch is fixed, as they are."""
        return {
            s.name: tuple(count if k == self.axes.get(s.name) else n for k, n in enumerate(sizes[s.name]))
            for s in self.specs
        }


def rule_of(table: Table[Any], model: ir.Model, node: ir.Node) -> Any:
    """Return what a table says of a node, None where it has no row."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return table.get(domain, node.op_type, model.graph.opset_imports.get(domain, 1))


def attributes(node: ir.Node) -> dict[str, Any]:
    """Return a node's attributes as plain values, those that hold graphs left out."""
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return {k: a.value for k, a in node.attributes.items() if isinstance(a, ir.Attr) and a.type not in graphs}


def read(model: ir.Model, sizes: Shapes, bounds: Mapping[str, int] | None = None) -> Inputs:
    """Return what the inputs of a model hold; `sizes` are those of one run.

    `bounds` tells below which number integers must lie; without it the tables that they index do.
    """
    values = {v.name: v for v in model.graph.inputs}
    starts = {name: _start(model, values[name]) for name in sizes if name in values}
    tables = {name: s.table for name, s in starts.items() if s.table is not None}
    known = {**{name: int(t.shape.numpy()[0]) for name, t in tables.items()}, **(bounds or {})}
    wanted = specs(model, known)
    contents = []
    for spec in wanted:
        if spec.dtype.kind != "O" and carries_content(spec):
            what, channel = _what(spec, sizes[spec.name], starts[spec.name])
            if what:
                start = starts[spec.name].of(sizes[spec.name][channel] if channel is not None else 1)
                table = start.table if what == "tokens" else None
                contents.append(Content(
                    spec.name, what, spec.dtype, channel, start.scale, start.shift, table, known.get(spec.name)
                ))  # fmt: skip
    return Inputs(tuple(contents), tuple(wanted), _sample_axes(model, contents, sizes))


def _sample_axes(model: ir.Model, contents: list[Content], sizes: Shapes) -> dict[str, int]:
    """Return the axis that counts samples for each input that has it; none where the batch is fixed.

    It is the open first axis of the first content. Exporters may name it otherwise in each input: an open first axis of
    an input of two axes or more counts samples too where it is of the same size. If a content had no such axis, samples
    could not be put together.
    """
    symbols = input_symbols(model)
    first = next((c.name for c in contents if len(symbols[c.name]) > 1), None)
    batch = symbols[first][0] if first is not None else None
    if first is None or not isinstance(batch, str):
        return {}
    axes = {name: s.index(batch) for name, s in symbols.items() if batch in s}
    for name, s in symbols.items():
        if len(s) > 1 and isinstance(s[0], str) and sizes[name][0] == sizes[first][0]:
            axes.setdefault(name, 0)
    return axes if all(c.name in axes for c in contents) else {}


@dataclass(frozen=True)
class _Start:
    """What happens to an input first: an affine map, then a table, or a node with a weight of some shape."""

    scale: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    table: ir.TensorProtocol | None
    weights: tuple[tuple[int, ...], ...]

    def of(self, channels: int) -> _Start:
        """Return it with as many numbers as there are channels, or one; the identity where they do not fit."""
        if self.scale.size in (1, channels) and self.shift.size in (1, channels):
            return self
        return _Start(np.ones(1), np.zeros(1), self.table, self.weights)


def _start(model: ir.Model, value: ir.Value) -> _Start:
    """Follow an input through what only moves, converts, scales or shifts it."""
    scale, shift = np.ones(1), np.zeros(1)
    while True:
        uses = [(n, i) for n, i in value.uses() if rule_of(CONTENTS, model, n) is None or n.op_type in CARRIERS]
        if len({id(n) for n, _ in uses}) != 1:
            break
        node, i = uses[0]
        if node.op_type in CARRIERS and i == 0:
            value = node.outputs[0]
            continue
        mapped = _affine(model, node, i)
        if mapped is None or (mapped[0].size > 1 and scale.size not in (1, mapped[0].size)):
            break
        scale, shift = scale * mapped[0], shift * mapped[0] + mapped[1]
        value = node.outputs[0]
    table, weights = None, []
    for node, i in uses:
        rule = rule_of(LOOKUPS, model, node)
        found = rule(attributes(node)) if rule is not None else None
        if found is not None and found.indices == i:
            rows = constant_of(node.inputs[found.table])
            table = rows if rows is not None and len(rows.shape) == 2 else table
        constants = [constant_of(v) for v in node.inputs if v is not None]
        weights += [tuple(int(n) for n in c.shape.numpy()) for c in constants if c is not None and len(c.shape) > 1]
    return _Start(scale, shift, table, tuple(weights))


def _affine(model: ir.Model, node: ir.Node, i: int) -> tuple[Array, Array] | None:
    """Return (a, b) of a node that computes a x + b with constants of one number, or one per channel."""
    rule = rule_of(AFFINE, model, node)
    constant = constant_of(node.inputs[1 - i]) if rule is not None and len(node.inputs) == 2 else None
    if rule is None or constant is None or max(constant.shape.numpy(), default=1) != constant.size:
        return None
    a, b = rule(constant.numpy().astype(np.float64).ravel(), 1 - i)
    return (a, b) if np.isfinite(a).all() and np.isfinite(b).all() and np.all(a) else None


def _what(spec: InputSpec, shape: tuple[int, ...], start: _Start) -> tuple[str, int | None]:
    """Say what an input holds and which of its axes has channels; "" where it is none of the contents."""
    name, rank = plain(spec.name), len(shape)
    whole = spec.dtype.kind in "iub"
    if whole and (start.table is not None or spec.bound is not None or spec.dtype != np.uint8):
        return ("tokens", None) if spec.bound is not None and rank else ("", None)
    ranks = {len(w) for w in start.weights}
    if rank == 4 and _SPECTRUM.search(name) and shape[1] == 1:
        return "spectrum", None
    if rank >= 4 or (rank == 3 and 4 in ranks):
        return "image", _colour_axis(shape, start)
    if rank == 3 and not _EMBEDDED.search(name):
        first = any(len(w) == 3 and w[1] == shape[1] for w in start.weights)
        if 1 in shape[1:] and (_WAVE.search(name) or max(shape[1:]) >= _LONG):
            return "wave", None
        spectral = bool(_SPECTRUM.search(name) or _WAVE.search(name))
        return ("spectrum" if spectral else "series"), (1 if first or spec.shape[2] != shape[2] else 2)
    if rank in (1, 2) and (_WAVE.search(name) or 3 in ranks or shape[-1] >= _LONG):
        return "wave", None
    return "vectors", rank - 1 if rank > 1 else None


def _colour_axis(shape: tuple[int, ...], start: _Start) -> int | None:
    """Return the axis of colours of an image: the one that a first convolution contracts, else a small one."""
    if len(shape) < 4:
        return 0 if shape[0] in _COLOURS and shape[0] > 1 else None
    if any(len(w) == len(shape) and w[1] == shape[1] for w in start.weights) and shape[1] in _COLOURS:
        return 1
    last = len(shape) - 1
    return last if shape[last] in _COLOURS and shape[1] not in _COLOURS else 1
