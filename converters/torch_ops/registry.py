"""What a torch rule sees of a node while it runs, and how the simplest rules are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from graphprune.errors import ModelError

Tensor: TypeAlias = torch.Tensor
Made: TypeAlias = "Any"
"""What a rule returns: one value, or a tuple with one per output (None for those nobody reads)."""

MICROSOFT = "com.microsoft"
_ON_HOST = 64  # elements: sizes and positions up to here stay where Python reads them without waiting for a device


@dataclass(frozen=True)
class Program:
    """A graph, or the body of a node, in the order it runs; `free` are the names that a node is the last to read."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    free: tuple[tuple[str, ...], ...]

    def all_nodes(self) -> Iterator[Node]:
        """Yield all nodes, those of bodies included."""
        for node in self.nodes:
            yield node
            for attribute in node.attributes.values():
                if isinstance(attribute, Program):
                    yield from attribute.all_nodes()


@dataclass(frozen=True)
class Node:
    """A node: its rule, its attributes as Python values (graphs as programs), the names it reads and makes."""

    name: str
    type: str
    domain: str
    version: int
    rule: Callable[[Call], Made] = field(repr=False)
    attributes: Mapping[str, Any]
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    source: ir.Node = field(repr=False)


class Host(Protocol):
    """What rules ask of the module that runs them."""

    training: bool
    batch_statistics: bool

    @property
    def device(self) -> torch.device: ...

    def dtype(self, element: int) -> torch.dtype: ...

    def execute(self, program: Program, given: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A node at one run: the values it reads; absent optional inputs are None."""

    node: Node
    values: tuple[Any, ...]
    host: Host
    scope: Mapping[str, Any]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def raw(self, i: int) -> Any:
        """Return an input as it is, None where it is absent."""
        return self.values[i] if i < len(self.values) else None

    def has(self, i: int) -> bool:
        return self.raw(i) is not None

    def x(self, i: int = 0) -> Tensor:
        """Return an input that must be there, on the device that the node computes on."""
        got = self.raw(i)
        if got is None:
            raise self.error(f"input {i} is missing")
        return got.to(self.device) if isinstance(got, torch.Tensor) else got

    def maybe(self, i: int) -> Tensor | None:
        return self.x(i) if self.has(i) else None

    def tensors(self) -> list[Tensor]:
        """Return all inputs that are there, on one device."""
        return [self.x(i) for i, v in enumerate(self.values) if v is not None]

    @property
    def device(self) -> torch.device:
        """The device of any input that is not in host memory; small sizes and positions follow."""
        for v in self.values:
            if isinstance(v, torch.Tensor) and not v.is_cpu:
                return v.device
        return torch.device("cpu")

    def ints(self, i: int, attribute: str = "") -> list[int] | None:
        """Return a parameter that newer opsets take as input `i` and older ones as an attribute."""
        got = self.raw(i) if i >= 0 else None
        if got is None:
            got = self.attr(attribute) if attribute else None
        if got is None:
            return None
        if isinstance(got, torch.Tensor):
            return [int(v) for v in got.reshape(-1).tolist()]
        return [int(got)] if isinstance(got, int) else [int(v) for v in got]

    def number(self, i: int, attribute: str = "", default: Any = None) -> Any:
        """Return a number that newer opsets take as input `i` and older ones as an attribute."""
        got = self.raw(i) if i >= 0 else None
        if isinstance(got, torch.Tensor):
            return got.reshape(-1)[0].item() if got.numel() else default
        return self.attr(attribute, default) if attribute else default

    def wanted(self, i: int) -> bool:
        """Return whether anybody asks for output `i`."""
        return i < len(self.node.outputs) and bool(self.node.outputs[i])

    def run(self, body: str, given: Sequence[Any]) -> list[Any]:
        """Run the body that is an attribute of the node."""
        return self.host.execute(self.attr(body), given, self.scope)

    def place(self, elements: int) -> torch.device:
        """Return where a new tensor of integers belongs: small ones are sizes and stay where Python reads them."""
        return torch.device("cpu") if elements <= _ON_HOST else self.host.device

    def error(self, why: str) -> ModelError:
        return ModelError(f"node {self.node.name!r} ({self.node.type}) cannot run in torch: {why}")


TorchRule: TypeAlias = Callable[[Call], Made]


def plain(function: Callable[..., Any]) -> TorchRule:
    """Return the rule of an operator that is one function of its inputs."""

    def rule(call: Call) -> Made:
        return function(*call.tensors())

    rule.__doc__ = getattr(function, "__name__", "")
    return rule


def given(function: Callable[..., Any], **attributes: Any) -> TorchRule:
    """Return the rule of a function of the inputs and of attributes, here with their defaults."""

    def rule(call: Call) -> Made:
        return function(*call.tensors(), **{k: call.attr(k, v) for k, v in attributes.items()})

    return rule


def axis_of(call: Call, rank: int, default: int = 0, name: str = "axis") -> int:
    """Return an axis attribute counted from the front."""
    axis = int(call.attr(name, default))
    return axis + rank if axis < 0 else axis


def host_tensor(array: Any) -> Tensor:
    """Return an array as a tensor in host memory, types that numpy has from ml_dtypes included."""
    array = np.asarray(array)
    if array.dtype.isbuiltin == 2:  # a type of ml_dtypes
        exact = torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)).reshape(array.shape).copy())
        return exact.to(torch.bfloat16) if array.dtype.name == "bfloat16" else exact
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), copy=True, order="C"))
