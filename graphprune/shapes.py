"""Sizes of every value, and contents of the small ones, at given input sizes: one walk, without running the model.

Each node is asked for its outputs' types with its inputs' concrete sizes and known contents (onnx's own rules);
small integer arithmetic on sizes is carried out with onnx's reference operators. What depends on data gets a size
of its own: a prime that nothing else has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx_ir as ir

from graphprune.asking import as_float, outputs_of, read_type, reference, tensor_proto, type_proto
from graphprune.model import constant_of, values_of
from graphprune.ops import BODIES, CONTENTS, RANDOM, SHAPES, BodyRule, ShapeRule
from graphprune.ops.control_flow import join
from graphprune.ops.inference import Answer, Question, Seen
from graphprune.ops.shapes import axes_kept

Content = npt.NDArray[Any]
Observed: TypeAlias = "Mapping[str, tuple[int, tuple[int | None, ...]]]"
"""Element type and sizes of values that were seen in runs; None where they differ between inputs."""
_BFLOAT16 = onnx.TensorProto.BFLOAT16
_SMALL = 8192
_READ = 8192
_ROUNDS = 8


@dataclass
class World:
    """Everything known about values at one choice of input sizes; `open_axes` are those that depend on data.

    `times` says of nodes inside of bodies how often they run, where that is known (else 1).
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    open_axes: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)


def infer(
    model: ir.Model,
    inputs: Mapping[str, tuple[int, ...]],
    *,
    observed: Observed | None = None,
    first_prime: int = 1009,
) -> World:
    """Infer the sizes of all values of the main graph for concrete input sizes.

    `observed` gives type and sizes of values where no rule tells them. Sizes that depend on data become
    primes from `first_prime` on.
    """
    world = World()
    for value in model.graph.inputs:
        if value.name in inputs:
            world.shapes[value.name or ""] = inputs[value.name or ""]
            world.dtypes[value.name or ""] = int(value.dtype) if value.dtype is not None else 0
    for value in model.graph.initializers.values():
        _read_constant(world, value)
    walk = _Walk(model, world, dict(observed or {}), _primes(first_prime))
    for node in model.graph:
        walk.visit(node)
    return world


def _read_constant(world: World, value: ir.Value) -> bool:
    tensor = constant_of(value)
    if tensor is None or value.name is None:
        return False
    world.shapes[value.name] = tuple(tensor.shape.numpy())
    world.dtypes[value.name] = int(tensor.dtype)
    if tensor.size <= _READ and tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth >= 8:
        world.contents[value.name] = np.array(tensor.numpy())
    return True


def _primes(start: int) -> Iterator[int]:
    n = start
    while True:
        if all(n % k for k in range(2, int(n**0.5) + 1)):
            yield n
        n += 1


class _Walk:
    """State of one walk: caches of schemas and of answers to equal questions."""

    def __init__(self, model: ir.Model, world: World, observed: Observed, primes: Iterator[int]):
        self.world = world
        self.observed = observed
        self.primes = primes
        self.opsets = dict(model.graph.opset_imports)
        self.ir_version = model.ir_version
        self.opset_protos = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        self.answers: dict[tuple[Any, ...], list[Answer] | None] = {}
        self.times = 1

    def visit(self, node: ir.Node) -> None:
        outputs = [o for o in node.outputs if o.name]
        if not node.inputs and len(outputs) == 1 and _read_constant(self.world, outputs[0]):
            return
        version = self.opsets.get(node.domain, 1)
        bodies = BODIES.get(node.domain, node.op_type, version)
        answer = self.ask(node, version) if bodies is None else self.bodies(node, bodies)
        for i, out in enumerate(node.outputs):
            if out.name:
                self.record(out, answer[i] if answer is not None and i < len(answer) else None)
        if bodies is None:
            self.evaluate(node, version)

    def bodies(self, node: ir.Node, rule: BodyRule) -> list[Answer] | None:
        """Walk the bodies of a node until the sizes of what they hand on stay the same; return the node's outputs."""
        world = self.world
        asked = self.question(node, [world.contents.get(v.name or "") if v is not None else None for v in node.inputs])
        graphs = [node.attributes[name].as_graph() for name in rule.bodies]
        try:
            answers, taken, states = rule.enter(asked), rule.taken(asked), rule.states(asked)
            times = [rule.times(asked) if taken in (None, k) else 0 for k in range(len(graphs))]
            inner: list[list[Answer]] = []
            for _ in range(_ROUNDS):
                inner = [self.body(g, answers, n) for g, n in zip(graphs, times, strict=True)]
                joined = list(answers)
                for i, o in states:
                    joined[i] = join(answers[i], inner[0][o])
                if joined == answers:
                    break
                answers = joined
            else:
                return None
            if taken is not None:
                self.hand_on(node, graphs[taken])
            return rule.leave(asked, inner)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            world.conflicts.append(f"{node.op_type} {node.name!r}: its bodies do not fit ({type(error).__name__})")
            return None

    def body(self, graph: ir.Graph, answers: list[Answer], times: int) -> list[Answer]:
        """Walk a body that runs so many times, with inputs of these types and sizes; return those of its outputs."""
        world, known = self.world, len(self.world.conflicts)
        for value in (v for g in (graph, *graph.subgraphs()) for v in values_of(g)):
            for known_of in (world.contents, world.shapes, world.open_axes):
                known_of.pop(value.name or "", None)
        for value, answer in zip(graph.inputs, answers, strict=True):
            self.record(value, answer)
        for value in graph.initializers.values():
            _read_constant(world, value)
        outer, self.times = self.times, self.times * times
        for node in graph:
            world.times[node.name or ""] = self.times
            self.visit(node)
        self.times = outer
        if not times:
            del world.conflicts[known:]  # nobody runs it
        return [(world.dtypes.get(v.name or "", 0), world.shapes.get(v.name or "")) for v in graph.outputs]

    def hand_on(self, node: ir.Node, graph: ir.Graph) -> None:
        """Give outputs the known contents of the branch that is taken."""
        for out, inner in zip(node.outputs, graph.outputs, strict=True):
            content = self.world.contents.get(inner.name or "")
            if content is not None:
                self.world.contents[out.name or ""] = content

    def record(self, out: ir.Value, answer: Answer) -> None:
        name = out.name or ""
        dtype, shape = answer if answer is not None else (0, None)
        if out.shape is not None:
            stated = tuple(int(n) if isinstance(n, int) else None for n in out.shape)
            if shape is None:
                shape = stated
            elif len(shape) == len(stated):
                shape = tuple(b if a is None else a for a, b in zip(shape, stated, strict=True))
        if name in self.observed:
            seen_dtype, seen = self.observed[name]
            dtype = dtype or seen_dtype
            if shape is None or len(shape) == len(seen):
                shape = tuple(b if a is None else a for a, b in zip(shape or (None,) * len(seen), seen, strict=True))
        self.world.dtypes[name] = dtype or (int(out.dtype) if out.dtype is not None else 0)
        if shape is None:
            return
        if any(n is None for n in shape):
            self.world.open_axes[name] = tuple(n is None for n in shape)
        self.world.shapes[name] = tuple(next(self.primes) if n is None else n for n in shape)

    def ask(self, node: ir.Node, version: int) -> list[Answer] | None:
        """Return (type, sizes) of each output as onnx's inference tells, None where it cannot."""
        names = [v.name if v is not None else "" for v in node.inputs]
        known = [self.world.contents.get(n or "") for n in names]
        small = [c if c is not None and c.size <= _SMALL else None for c in known]
        key = (
            node.domain, node.op_type, len(node.outputs), repr(tuple(node.attributes.values())),
            tuple((self.world.dtypes.get(n or ""), self.world.shapes.get(n or "")) if n else None for n in names),
            tuple(None if c is None else (c.dtype.str, c.tobytes()) for c in small),
        )
        if key not in self.answers:
            self.answers[key] = self.infer_node(node, version, small)
        return self.answers[key]

    def infer_node(self, node: ir.Node, version: int, known: list[Content | None]) -> list[Answer] | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = SHAPES.get(domain, node.op_type, version)
        if rule is not None:
            return self.own_answer(rule, node, known)
        try:
            schema = onnx.defs.get_schema(node.op_type, version, domain)
        except Exception:
            return None
        proto = ir.serde.serialize_node(node)
        del proto.input[:], proto.output[:]
        types, data = {}, {}
        for i, value in enumerate(node.inputs):
            name = f"i{i}" if value is not None and value.name else ""
            proto.input.append(name)
            if value is None or not value.name:
                continue
            types[name] = type_proto(self.world.dtypes.get(value.name, 0), self.world.shapes.get(value.name))
            content = known[i]
            if content is not None and self.world.dtypes.get(value.name):
                data[name] = tensor_proto(content, self.world.dtypes[value.name])
        proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return None
        got = outputs_of(schema, proto, types, data, self.opset_protos, self.ir_version)
        if isinstance(got, str) and any(t.tensor_type.elem_type == _BFLOAT16 for t in types.values()):
            # sizes do not depend on the type
            got = outputs_of(schema, proto, as_float(types), data, self.opset_protos, self.ir_version)
        if isinstance(got, str):
            self.world.conflicts.append(f"{node.op_type} {node.name!r}: {got}")
            return None
        answers = [read_type(got.get(f"o{i}")) for i in range(len(node.outputs))]
        return [self.complete(node, answers[0]), *answers[1:]]

    def question(self, node: ir.Node, known: list[Content | None]) -> Question:
        """Return what a rule for sizes sees of a node."""
        world = self.world
        inputs = tuple(
            Seen(world.dtypes.get(v.name, 0), world.shapes.get(v.name), content) if v is not None and v.name else None
            for v, content in zip(node.inputs, known, strict=True)
        )
        return Question(inputs, {k: a.value for k, a in node.attributes.items()}, len(node.outputs))

    def own_answer(self, rule: ShapeRule, node: ir.Node, known: list[Content | None]) -> list[Answer] | None:
        """Ask the table of shapes; a rule that does not fit the node is a conflict."""
        try:
            return rule(self.question(node, known))
        except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
            self.world.conflicts.append(f"{node.op_type} {node.name!r}: its sizes do not fit ({type(error).__name__})")
            return None

    def complete(self, node: ir.Node, answer: Answer) -> Answer:
        """Fill in sizes that a node with parameters of unknown content passes on."""
        first = self.world.shapes.get((node.inputs[0].name or "") if node.inputs and node.inputs[0] is not None else "")
        if answer is None or answer[1] is None or first is None or len(first) != len(answer[1]):
            return answer
        if None not in answer[1]:
            return answer
        attributes = {k: a.value for k, a in node.attributes.items()}
        contents = [self.world.contents.get(v.name or "") if v is not None else None for v in node.inputs]
        kept = axes_kept(node.op_type, attributes, contents, len(first))
        return answer[0], tuple(first[k] if n is None and k in kept else n for k, n in enumerate(answer[1]))

    def evaluate(self, node: ir.Node, version: int) -> None:
        """Carry out a node on small known contents."""
        world = self.world
        rule = CONTENTS.get(node.domain, node.op_type, version)
        names = [v.name if v is not None else None for v in node.inputs]
        if rule is not None and names[0] in world.shapes:
            attributes = {k: a.value for k, a in node.attributes.items()}
            world.contents[node.outputs[0].name or ""] = rule(world.shapes[names[0] or ""], attributes)
            return
        if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM or not names:
            return
        contents = [world.contents.get(n) if n else None for n in names]
        if any(c is None and n for c, n in zip(contents, names, strict=True)):
            return
        outs = [world.shapes.get(o.name or "") for o in node.outputs]
        if any(s is not None and np.prod(s, dtype=np.int64) > _SMALL for s in outs):
            return
        results = reference(node, version, contents)
        for out, result in zip(node.outputs, results or (), strict=False):
            if out.name and isinstance(result, np.ndarray | np.generic):
                array = np.asarray(result)
                known = world.shapes.get(out.name)
                if known is None or array.shape == known or out.name in world.open_axes:
                    world.contents[out.name] = array
                    world.shapes[out.name] = array.shape
                    world.open_axes.pop(out.name, None)
