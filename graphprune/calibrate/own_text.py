"""Token inputs: from the embedding table, and where a model answers with logits over its vocabulary, its own text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.contents import Content, Inputs, Shapes
from graphprune.calibrate.tokens_made import Ids, Vocabulary, packed, vocabulary, written
from graphprune.errors import GraphPruneError
from graphprune.execute import session
from graphprune.inputs import synthesise
from graphprune.model import tensor_bytes
from graphprune.runtime import Runtime, run

Array: TypeAlias = npt.NDArray[Any]

_WORK = 2e12  # multiply-adds to spend on writing: a minute or so on two cores
_PASSES = 16
_LENGTH = 64
_AT_ONCE = 8
_OWN = 0.75  # of the samples are the model's own text, the others drawn from the table
_SCALE = 0.02


@dataclass(frozen=True)
class Texts:
    """The vocabularies of token inputs by name, the model's own text where it writes, and what to say of them."""

    vocabularies: Mapping[str, tuple[Vocabulary, Vocabulary]]
    own: Mapping[str, Ids]
    said: tuple[str, ...]

    def draw(self, c: Content, rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
        """Return ids of a shape whose last axis is the sequence."""
        zipf, uniform = self.vocabularies[c.name]
        if kind == "uniform" or len(shape) < 2:
            return (uniform if kind == "uniform" else zipf).draw(rng, shape).astype(c.dtype)
        flat = (int(np.prod(shape[:-1])), shape[-1])
        drawn = zipf.sequences(rng, flat)
        if c.name in self.own:
            texts = packed(self.own[c.name], rng, flat)
            drawn = np.where(rng.random((flat[0], 1)) < _OWN, texts, drawn)
        return drawn.reshape(shape).astype(c.dtype)


def prepare(model: ir.Model, inputs: Inputs, sizes: Shapes, count: int, seed: int) -> Texts:
    """Return vocabularies for a model's token inputs, and let it write where it can."""
    vocabularies, own, said = {}, {}, []
    tokens = [c for c in inputs.contents if c.what == "tokens"]
    for c in tokens:
        table = c.table.numpy() if c.table is not None else None
        size = c.bound or (len(table) if table is not None else 2)
        vocabularies[c.name] = (vocabulary(table, size), vocabulary(table, size, uniform=True))
        zipf = vocabularies[c.name][0]
        rank = "Zipf's law over rows by length, some tokens recurring" if table is not None else "all alike"
        text = f"{c.name}: made up, {len(zipf.ids)} of {size} tokens, {rank}"
        if len(tokens) == 1 and table is not None:
            try:
                found = _write(model, inputs, sizes, c, zipf, (count, seed))
            except GraphPruneError:
                found = None
            if found is not None:
                own[c.name] = found[0]
                text = f"{text}; {_OWN:.0%} of the samples from {found[0].size} tokens that the model wrote itself"
        said.append(text)
    return Texts(vocabularies, own, tuple(said))


def _write(
    model: ir.Model, inputs: Inputs, sizes: Shapes, c: Content, zipf: Vocabulary, wanted: tuple[int, int]
) -> tuple[Ids, int] | None:
    """Let a model write, within bounded work; None where no output has logits for every token."""
    count, seed = wanted
    length = sizes[c.name][-1] if len(sizes[c.name]) == 2 else 0
    size = c.bound or 0
    output = next((o for o in model.graph.outputs if _is_logits(o, size)), None)
    if output is None or length < 2:
        return None
    free = isinstance(_declared(model, c.name)[-1], str)
    length = min(length, _LENGTH) if free else length
    most = int(_WORK / (tensor_bytes(model) / 4 * length * _PASSES))
    number = min(count * -(-sizes[c.name][-1] // length), most)
    if number < 1:
        return None
    opened = session(model, Runtime(threads=0, optimise=True))
    batch = _AT_ONCE if inputs.axes else 1
    allowed = np.zeros(size, bool)
    allowed[zipf.ids] = True
    rng = np.random.default_rng([seed, 1])
    texts = []
    for start in range(0, number, batch):
        n = min(batch, number - start) if inputs.axes else 1
        shapes = _resized(inputs, inputs.shapes(sizes, n), c.name, length)
        rest = [s for s in inputs.specs if s.name != c.name]
        others, _ = synthesise(rest, {s.name: shapes[s.name] for s in rest}, seed)

        def logits(ids: Ids, others: Mapping[str, Array] = others) -> npt.NDArray[np.float32]:
            got = run(opened, {**others, c.name: ids.astype(c.dtype)}, [output.name or ""])[output.name or ""]
            return np.asarray(got, np.float32).reshape(*ids.shape, -1)[..., :size]

        first = zipf.sequences(rng, (shapes[c.name][0], length))
        texts.append(written(logits, first, rng, _PASSES, allowed=allowed))
    return np.concatenate(texts), length


def _declared(model: ir.Model, name: str) -> tuple[int | str, ...]:
    from graphprune.sizes import input_symbols

    return input_symbols(model)[name]


def _is_logits(value: ir.Value, size: int) -> bool:
    """Whether an output has one number per token of the vocabulary at each place of a sequence."""
    shape = value.shape
    return shape is not None and len(shape) == 3 and shape[2] == size and size > 2


def _resized(inputs: Inputs, shapes: dict[str, tuple[int, ...]], name: str, length: int) -> dict[str, tuple[int, ...]]:
    """Return sizes for shorter sequences: every open axis named like the sequence's."""
    symbol = next(s.shape[-1] for s in inputs.specs if s.name == name)
    if not isinstance(symbol, str):
        return shapes
    return {
        s.name: tuple(length if a == symbol else n for a, n in zip(s.shape, shapes[s.name], strict=True))
        for s in inputs.specs
    }
