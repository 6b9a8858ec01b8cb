"""A model at fixed sizes, as a torch program: what converters that take those are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from graphprune.converters.pytorch import to_module
from graphprune.converters.torch_module import OnnxModule
from graphprune.execute import Outputs
from graphprune.model import EMBED_LIMIT, load, tensor_bytes, write_into
from graphprune.output import workspace
from graphprune.runtime import Runtime, open_session


@dataclass(frozen=True)
class Fixed:
    """A module that takes `examples`, in order; names of both sides are identifiers."""

    module: OnnxModule
    examples: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]

    def run(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """Run the module on arrays."""
        with torch.no_grad():
            return [x.numpy() for x in self.module(*arrays).values()]

    def operators(self) -> torch.fx.GraphModule:
        """Return the module as a graph of torch's own operators, without Python, to a tuple."""
        traced = make_fx(lambda *x: tuple(self.module(*x).values()), tracing_mode="real", _allow_non_fake_inputs=True)
        with torch.no_grad():
            found: torch.fx.GraphModule = traced(*self.examples.values())
        found.graph.eliminate_dead_code()
        found.recompile()
        return found.eval()


class Plain(torch.nn.Module):  # type: ignore[misc]
    """A module to a tuple of outputs."""

    def __init__(self, program: Fixed) -> None:
        super().__init__()
        self.body = program.module

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module."""
        return tuple(self.body(*given).values())


class Named(torch.nn.Module):  # type: ignore[misc]
    """The operators of a module, called with names, to outputs by name: converters keep these names."""

    def __init__(self, program: Fixed) -> None:
        super().__init__()
        self.body, self.names, self.outputs = program.operators(), tuple(program.examples), program.outputs

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the operators."""
        return dict(zip(self.outputs, self.body(*[given[name] for name in self.names]), strict=True))


def fixed(path: Path, feed: Outputs) -> Fixed:
    """Return a model at the sizes of `feed`, in evaluation mode.

    >>> fixed(Path("net.onnx"), {"x": np.zeros((1, 8), np.float32)}).outputs  # doctest: +SKIP
    ('logits',)

    At fixed sizes, whatever computes shapes has constant results. onnxruntime folds these, so that a trace holds
    no size that depends on data. Raises ModelError for operators that torch has no rule for.
    """
    with workspace(None) as work:
        model = load(path)
        for value in model.graph.inputs:
            if value.name is not None and value.name in feed:
                value.shape = ir.Shape(feed[value.name].shape)
        written = write_into(model, work, "sized.onnx", external=tensor_bytes(model) > EMBED_LIMIT)
        folded = work / "folded.onnx"
        open_session(str(written), Runtime(folded=str(folded)))
        module = to_module(folded).eval().requires_grad_(False)
    names = _identifiers([*module.inputs, *module.program.outputs])
    notes = tuple(f"{old!r} is called {new!r}" for old, new in names.items() if old != new)
    examples = {names[name]: torch.from_numpy(np.array(feed[name])) for name in module.inputs}
    return Fixed(module, examples, tuple(names[name] for name in module.program.outputs), notes)


def _identifiers(names: Sequence[str]) -> dict[str, str]:
    """Return names that programming languages take, no two the same.

    >>> _identifiers(["x", "a.b", "a/b", "0"])
    {'x': 'x', 'a.b': 'a_b', 'a/b': 'a_b_', '0': '_0'}
    """
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain and not plain[0].isdigit() else f"_{plain}"
        while plain in found.values() and found.get(name) != plain:
            plain += "_"
        found.setdefault(name, plain)
    return found
