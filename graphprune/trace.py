"""One walk over the graph in its order: every node's axis rule is asked, and its equations are collected.

Ensures: every axis of every operand is spoken of. An axis that a rule passes over is pinned, and an operator
without a rule pins all that it touches, each with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune import pointing, stored
from graphprune.axes import Axis, Dim, Equation, Follow, Origin, Pin, Same, Use, fresh, leaves
from graphprune.axes.equations import Free, Least, Letter, Spoken
from graphprune.model import constant_of, constants
from graphprune.ops import AXES, BODIES, Op, Operand
from graphprune.ops.registry import Body
from graphprune.ops.shapes import is_filled
from graphprune.sizes import Worlds, real_inputs, thin
from graphprune.states import Adapter, Port, border, carried, ports
from graphprune.weights import FLOATS, NARROW, Weight, filling


@dataclass(frozen=True)
class AxisGraph:
    """What tracing found: operators with their operands, weights, and everything said about axes."""

    ops: tuple[Op, ...]
    values: Mapping[str, Operand]
    weights: Mapping[str, Weight]
    constants: Mapping[str, Operand]
    equations: tuple[tuple[Equation, Origin], ...]
    letters: Mapping[str, Mapping[str, Axis]]
    uses: Mapping[str, tuple[Use, ...]]
    sources: Mapping[str, frozenset[str]]
    worlds: Worlds
    ports: tuple[Port, ...] = ()
    counts: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()

    @cached_property
    def own(self) -> tuple[Weight, ...]:
        """The weights that the user's model has: not the matrices of adapters."""
        added = {a.matrix for a in self.adapters}
        return tuple(w for w in self.weights.values() if w.name not in added)


def trace(
    model: ir.Model, worlds: Worlds, allow_io: Callable[[str], bool] = lambda name: False,
    adapters: tuple[Adapter, ...] = (),
) -> AxisGraph:
    """Collect the equations of a normalised model.

    `allow_io` says of an input's or output's name whether its axes are left free. `adapters` are those in the model.
    """
    tracer = _Tracer(model, worlds)
    tracer.border(allow_io, adapters)
    for node in model.graph:
        tracer.node(node)
    return replace(tracer.result(), adapters=adapters)


class _Tracer:
    """Mutable lists while walking; local to `trace`."""

    def __init__(self, model: ir.Model, worlds: Worlds) -> None:
        self.model = model
        self.worlds = worlds
        self.thin = thin(worlds.traced, worlds.natural)
        self.values: dict[str, Operand] = {}
        self.constants: dict[str, Operand] = {}
        self.weights: dict[str, Weight] = {}
        self.narrow: dict[str, ir.TensorProtocol] = {}
        self.ops: list[Op] = []
        self.equations: list[tuple[Equation, Origin]] = []
        self.letters: dict[str, dict[str, Axis]] = {}
        self.uses: dict[str, tuple[Use, ...]] = {}
        self.sources: dict[str, frozenset[str]] = {}
        self.ports: tuple[Port, ...] = ()
        self.counts: set[str] = set()
        for value in model.graph.initializers.values():
            self.constant(value)

    def border(self, allow_io: Callable[[str], bool], adapters: tuple[Adapter, ...]) -> None:
        inputs = [self.operand(v) for v in real_inputs(self.model)]
        outputs = [self.operand(v) for v in self.model.graph.outputs]
        self.ports = ports([o.name for o in inputs], [o.name for o in outputs], allow_io)
        self.equations.extend(border(inputs, outputs, self.ports))
        self.equations.extend(carried(adapters, self.named))

    def pin(self, operand: Operand, reason: str, origin: str) -> None:
        for axis in (*operand.axes, *pointing.axes([operand])):
            self.equations.append((Pin(axis, reason), Origin(origin, "")))

    def constant(self, value: ir.Value) -> bool:
        tensor = constant_of(value)
        if tensor is None or value.name is None:
            return False
        operand = self.operand(value)
        if not operand.rank_known:  # in a body that nobody walked
            shape = tuple(tensor.shape.numpy())
            operand = Operand(value.name, shape, tuple(map(fresh, shape)), (False,) * len(shape))
            self.values[value.name] = operand
        self.constants[value.name] = operand
        if tensor.dtype in FLOATS:
            self.weights[value.name] = Weight(
                value.name, operand.shape, operand.axes, tensor.numpy, tensor.dtype.itemsize
            )
        elif tensor.dtype in NARROW:
            self.narrow[value.name] = tensor
        else:
            return True
        self.sources[value.name] = frozenset([value.name])
        if not value.uses() and not value.is_graph_output():
            self.pin(operand, "no operator uses it", value.name)
        return True

    def operand(self, value: ir.Value) -> Operand:
        """Return the one Operand of a value, made when first asked for."""
        return self.named(value.name or "")

    def named(self, name: str) -> Operand:
        got = self.values.get(name)
        if got is None:
            got = self.values[name] = self._make(name)
        return got

    def _make(self, name: str) -> Operand:
        traced, natural = self.worlds.traced, self.worlds.natural
        shape = traced.shapes.get(name)
        if shape is None or name in self.thin:
            return Operand(name, (), (), (), rank_known=False)
        other = natural.shapes.get(name, ())
        if len(other) != len(shape):
            other = (-1,) * len(shape)
        dynamic = tuple(a != b for a, b in zip(shape, other, strict=True))
        content = traced.contents.get(name)
        fixed = content is not None and _same(content, natural.contents.get(name))
        if name in traced.open_axes:
            dynamic = tuple(a or b for a, b in zip(dynamic, traced.open_axes[name], strict=True))
            fixed = False
        axes = tuple(fresh(n, f"{name}.{k}") for k, n in enumerate(shape))
        return Operand(name, shape, axes, dynamic, content, fixed)

    def node(self, node: ir.Node) -> None:
        if not node.inputs and len(node.outputs) == 1 and self.constant(node.outputs[0]):
            return
        version = self.model.graph.opset_imports.get(node.domain, 1)
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = BODIES.get(domain, node.op_type, version)
        bodies = tuple(self.body(node.attributes[name].as_graph()) for name in rule.bodies) if rule else ()
        op = Op(
            node.name or "", node.op_type, domain, version,
            tuple(self.operand(v) if v is not None and v.name else None for v in node.inputs),
            tuple(self.operand(v) if v.name and self.needed(v) else None for v in node.outputs),
            {k: _attribute(a) for k, a in node.attributes.items()},
            bodies,
            all(w.times.get(node.name or "") == 0 for w in (self.worlds.traced, self.worlds.natural)),
        )
        self.ops.append(op)
        self.ask(op)
        if rule is None:
            self.close(node)
        self.follow(op)

    def body(self, graph: ir.Graph) -> Body:
        """Trace the nodes inside of a node."""
        for value in graph.initializers.values():
            self.constant(value)
        for node in graph:
            self.node(node)
        return Body(tuple(self.operand(v) for v in graph.inputs), tuple(self.operand(v) for v in graph.outputs))

    def needed(self, value: ir.Value) -> bool:
        """Outputs that nobody reads and whose shape nobody tells count as absent."""
        return bool(value.uses()) or value.is_graph_output() or value.name in self.worlds.traced.shapes

    def ask(self, op: Op) -> None:
        origin = Origin(op.name, op.type if not op.domain else f"{op.domain}.{op.type}")
        rule = AXES.get(op.domain, op.type, op.version)
        operands = op.operands
        if rule is None:
            self.refuse(operands, f"no axis rule for {origin.operator}", origin)
            return
        unknown = next((o.name for o in (*op.inputs, *op.outputs) if o is not None and not o.rank_known), None)
        if unknown is not None and op.never:
            return
        if unknown is not None:
            self.refuse(operands, f"the shape of {unknown!r} is not known", origin)
            return
        said: list[Equation] = []
        try:
            said.extend(rule(op))
        except (AssertionError, IndexError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            self.refuse(operands, f"the rule does not fit this node ({type(error).__name__})", origin)
            return
        self.listen(op, said, operands, origin)

    def listen(self, op: Op, said: list[Equation], operands: list[Operand], origin: Origin) -> None:
        """Sort what a rule said, and pin every axis that it did not speak of."""
        spoken: set[Dim] = set()
        uses: list[Use] = []
        for eq in self.positions(op, said):
            if isinstance(eq, Same):
                spoken.update(leaves(eq.left))
                spoken.update(leaves(eq.right))
                self.equations.append((eq, origin))
            elif isinstance(eq, Follow | Least):
                self.equations.append((eq, origin))
            elif isinstance(eq, Letter):
                self.letters.setdefault(op.name, {})[eq.letter] = eq.axis
            else:
                spoken.update(leaves(eq.axis))
                if isinstance(eq, Use):
                    uses.append(eq)
                elif not isinstance(eq, Free):
                    self.equations.append((eq, origin))
        self.uses[op.name] = tuple(uses)
        for operand in operands:
            for axis in operand.axes:
                if isinstance(axis, Dim) and axis not in spoken:
                    self.equations.append((Pin(axis, f"a parameter of {origin.operator}"), origin))

    def refuse(self, operands: list[Operand], reason: str, origin: Origin) -> None:
        for axis in (*[a for operand in operands for a in operand.axes], *pointing.axes(operands)):
            self.equations.append((Pin(axis, reason), origin))

    def positions(self, op: Op, said: list[Equation]) -> list[Spoken]:
        """Hand on what outputs point along, and return what else is said."""
        found = pointing.follow(op, said, self.constants)
        self.counts |= found.counts
        self.values.update(found.points)
        return found.equations

    def close(self, node: ir.Node) -> None:
        """Pin what is inside of bodies that no rule knows, and what they use from outside."""
        for graph in (g for a in node.attributes.values() for g in _graphs(a)):
            for inner in (graph, *graph.subgraphs()):
                for value, _ in constants(inner):
                    self.constant(value)
                used = [v for n in inner for v in n.inputs if v is not None]
                for value in (*inner.initializers.values(), *used, *inner.outputs):
                    if value.name in self.values:
                        self.pin(self.values[value.name], f"inside a body of {node.op_type}", node.name or "")

    def follow(self, op: Op) -> None:
        """Note which weights a value is made of and nothing else; a filled output is a weight of its own."""
        y = op.output(0)
        if y is None:
            return
        if is_filled(op) and y.rank_known and not any(y.dynamic) and self.worlds.traced.dtypes.get(y.name) in FLOATS:
            self.weights[y.name] = Weight(y.name, y.shape, y.axes, filling(op, y.shape), filled=True)
            self.sources[y.name] = frozenset([y.name])
            return
        inputs = [o for o in op.inputs if o is not None]
        if all(o.name in self.sources or o.name in self.constants for o in inputs) and inputs:
            made = frozenset().union(*[self.sources.get(o.name, frozenset()) for o in inputs])
            if made:
                for out in op.outputs:
                    if out is not None:
                        self.sources[out.name] = made

    def result(self) -> AxisGraph:
        for axis in pointing.axes([self.operand(v) for v in self.model.graph.outputs]):
            self.equations.append((Pin(axis, pointing.OUTSIDE), Origin("", "")))
        reads = {name: tensor.numpy for name, tensor in self.narrow.items()}
        found: dict[str, Weight] = {}
        for name, read in stored.find(self.ops, reads, {w.name: w.read for w in self.weights.values()}):
            operand, dtype = self.constants[name], self.narrow[name].dtype
            found[name] = Weight(name, operand.shape, operand.axes, read, dtype.itemsize, quantised=True)
        self.weights = {**found, **self.weights}  # a group is called after its first weight, not after a scale
        return AxisGraph(
            tuple(self.ops), self.values, self.weights, self.constants, tuple(self.equations), self.letters,
            self.uses, self.sources, self.worlds, ports=self.ports,
            counts=frozenset(self.counts), outputs=tuple(v.name or "" for v in self.model.graph.outputs),
        )


def _same(a: npt.NDArray[Any], b: npt.NDArray[Any] | None) -> bool:
    return b is not None and a.shape == b.shape and bool(np.array_equal(a, b))


def _graphs(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _attribute(attribute: ir.Attr) -> Any:
    value = attribute.value
    return value.decode() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
