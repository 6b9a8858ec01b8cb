"""The module that runs an ONNX graph in torch and can be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from graphprune.converters.torch_ops.registry import Call, Node, Program, Tensor, host_tensor
from graphprune.converters.torch_program import opsets_of, program_of, watched
from graphprune.converters.trainable import FROZEN, STATISTIC, WEIGHT, Choice, Roles
from graphprune.errors import GraphPruneError, UsageError
from graphprune.model import constants

_TYPES = {
    "FLOAT": torch.float32, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16, "DOUBLE": torch.float64,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64, "UINT8": torch.uint8,
    "UINT16": torch.uint16, "UINT32": torch.uint32, "UINT64": torch.uint64, "BOOL": torch.bool,
    "COMPLEX64": torch.complex64, "COMPLEX128": torch.complex128,
}  # fmt: skip
_DTYPES = {ir.DataType[k].value: v for k, v in _TYPES.items()}
_SMALL = 1024
"""Whole numbers up to so many stay in host memory, where sizes are read without waiting for a device."""


class Scope(dict[str, Any]):
    """Values by name; what is not here is looked for outside."""

    def __init__(self, outer: Mapping[str, Any]) -> None:
        super().__init__()
        self.outer = outer

    def __missing__(self, name: str) -> Any:
        return self.outer[name]


class OnnxModule(nn.Module):  # type: ignore[misc]
    """An ONNX graph as a torch module; see `graphprune.converters.pytorch.to_module`."""

    weights: nn.Module
    tables: nn.Module

    def __init__(self, model: ir.Model, choice: Choice) -> None:
        super().__init__()
        self.program = program_of(model)
        self.batch_statistics = True
        self.inputs = {v.name or "": _element(v) for v in model.graph.inputs if v.name not in model.graph.initializers}
        self.onnx_names: dict[str, str] = {}
        self.statistics: tuple[str, ...] = ()
        self.weights, self.tables = nn.Module(), nn.Module()
        self._host: dict[str, Any] = {}
        self.register_buffer("_number", torch.zeros(()), persistent=False)
        self._load(model, Roles(opsets_of(model), choice))

    def _load(self, model: ir.Model, roles: Roles) -> None:
        """Sort all constants into parameters, buffers, and what stays in host memory."""
        for graph in model.graphs():
            for value, tensor in constants(graph):
                name, role = value.name or "", roles.of(value, tensor)
                content: Any = tensor.numpy()
                if tensor.dtype == ir.DataType.STRING:
                    self._host[name] = content
                    continue
                content = host_tensor(content)
                if role == WEIGHT:
                    key = _key(self.weights, name)
                    self.weights.register_parameter(key, nn.Parameter(content))
                    self.onnx_names[f"weights.{key}"] = name
                elif role == FROZEN and (content.numel() <= _SMALL and not content.is_floating_point()):
                    self._host[name] = content
                else:
                    key = _key(self.tables, name)
                    self.tables.register_buffer(key, content)
                    self.onnx_names[f"tables.{key}"] = name
                    self.statistics += (name,) if role == STATISTIC else ()

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self._anchor().device

    def dtype(self, element: int) -> torch.dtype:
        """Return the torch type of an ONNX element type; all real numbers follow the module's own type."""
        if element not in _DTYPES:
            raise UsageError(f"torch has no type for ONNX element type {element}")
        exact = _DTYPES[element]
        number = self._anchor().dtype
        return number if exact.is_floating_point and number != torch.float32 else exact

    def _anchor(self) -> Tensor:
        """Return a number that goes where the module goes, and has its type."""
        number = self._number
        assert isinstance(number, torch.Tensor)
        return number

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what may change in training under its ONNX name: weights and running statistics."""
        for key, name in self.onnx_names.items():
            if key.startswith("weights.") or name in self.statistics:
                yield name, self._held(key)

    def _held(self, key: str) -> Tensor:
        """Return a constant as it is now: where a weight has an update (LoRA), with it."""
        place, _, name = key.partition(".")
        value = getattr(self.weights if place == "weights" else self.tables, name)
        assert isinstance(value, torch.Tensor)
        return value

    def watch(self, names: Sequence[str]) -> None:
        """Return inner values with the outputs, too."""
        self.program = watched(self.program, names)

    def forward(self, *given: Any, **named: Any) -> dict[str, Any]:
        """Run the graph; inputs by name or in the file's order, outputs by name in the file's order."""
        if len(given) > len(self.inputs):
            raise UsageError(f"{len(given)} inputs were given, the model has {len(self.inputs)}")
        feeds: dict[str, Any] = {**dict(zip(self.inputs, given, strict=False)), **named}
        wrong = sorted(set(feeds) ^ set(self.inputs))
        if wrong:
            raise UsageError(f"the model's inputs are {', '.join(self.inputs)}; missing or unknown: {', '.join(wrong)}")
        scope: dict[str, Any] = {**self._host, **{name: self._held(key) for key, name in self.onnx_names.items()}}
        values = [self._input(feeds[name], element) for name, element in self.inputs.items()]
        return dict(zip(self.program.outputs, self.execute(self.program, values, scope), strict=True))

    def _input(self, value: Any, element: int | None) -> Any:
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and element is None:
            return [self._input(v, None) for v in value]
        tensor = value if isinstance(value, torch.Tensor) else host_tensor(np.asarray(value))
        tensor = tensor.to(self.dtype(element)) if element in _DTYPES else tensor
        return tensor.to(self.device) if tensor.is_floating_point() or tensor.numel() > _SMALL else tensor

    def execute(self, program: Program, given: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]:
        """Run a graph or a body; values are let go after their last use."""
        scope = Scope(outer)
        scope.update(zip(program.inputs, given, strict=True))
        for node, free in zip(program.nodes, program.free, strict=True):
            made = self._run(node, scope)
            several = isinstance(made, tuple)
            for k, name in enumerate(node.outputs):
                if name is not None:
                    scope[name] = (made[k] if k < len(made) else None) if several else made
            for name in free:
                scope.pop(name, None)
        return [scope[name] for name in program.outputs]

    def _run(self, node: Node, scope: Scope) -> Any:
        call = Call(node, tuple(None if n is None else scope[n] for n in node.inputs), self, scope)
        try:
            return node.rule(call)
        except GraphPruneError:
            raise
        except Exception as error:
            raise call.error(f"{type(error).__name__}: {error}") from error


def _element(value: ir.Value) -> int | None:
    return value.dtype.value if value.dtype is not None and isinstance(value.type, ir.TensorType) else None


def _key(module: nn.Module, name: str) -> str:
    """Return a name that torch takes: it forbids dots, and names that a module has already."""
    key = name.replace(".", "/") or "_"
    while hasattr(module, key):
        key += "_"
    return key
