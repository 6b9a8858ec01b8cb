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

from graphprune.model import constant_of
from graphprune.ops import CONTENTS, RANDOM, SHAPES, ShapeRule
from graphprune.ops.inference import Answer, Question, Seen
from graphprune.ops.shapes import axes_kept

Content = npt.NDArray[Any]
Observed: TypeAlias = "Mapping[str, tuple[int, tuple[int | None, ...]]]"
"""Element type and sizes of values that were seen in runs; None where they differ between inputs."""
_BFLOAT16 = onnx.TensorProto.BFLOAT16
_SMALL = 8192
_READ = 8192


@dataclass
class World:
    """Everything known about values at one choice of input sizes; `open_axes` are those that depend on data."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    open_axes: dict[str, tuple[bool, ...]] = field(default_factory=dict)


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

    def visit(self, node: ir.Node) -> None:
        outputs = [o for o in node.outputs if o.name]
        if not node.inputs and len(outputs) == 1 and _read_constant(self.world, outputs[0]):
            return
        version = self.opsets.get(node.domain, 1)
        answer = self.ask(node, version)
        for i, out in enumerate(node.outputs):
            if out.name:
                self.record(node, out, answer[i] if answer is not None and i < len(answer) else None)
        self.evaluate(node, version)

    def record(self, node: ir.Node, out: ir.Value, answer: Answer) -> None:
        name = out.name or ""
        dtype, shape = answer if answer is not None else (0, None)
        if shape is None and out.shape is not None:
            shape = tuple(int(n) if isinstance(n, int) else None for n in out.shape)
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
            types[name] = _type_proto(self.world.dtypes.get(value.name, 0), self.world.shapes.get(value.name))
            content = known[i]
            if content is not None:
                data[name] = _tensor_proto(content, self.world.dtypes[value.name])
        proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return None
        got = self.outputs_of(schema, proto, types, data)
        if isinstance(got, str) and any(t.tensor_type.elem_type == _BFLOAT16 for t in types.values()):
            got = self.outputs_of(schema, proto, _as_float(types), data)  # sizes do not depend on the type
        if isinstance(got, str):
            self.world.conflicts.append(f"{node.op_type} {node.name!r}: {got}")
            return None
        answers = [_read_type(got.get(f"o{i}")) for i in range(len(node.outputs))]
        return [self.complete(node, answers[0]), *answers[1:]]

    def own_answer(self, rule: ShapeRule, node: ir.Node, known: list[Content | None]) -> list[Answer] | None:
        """Ask the table of shapes; a rule that does not fit the node is a conflict."""
        world = self.world
        inputs = tuple(
            Seen(world.dtypes.get(v.name, 0), world.shapes.get(v.name), content) if v is not None and v.name else None
            for v, content in zip(node.inputs, known, strict=True)
        )
        attributes = {k: a.value for k, a in node.attributes.items()}
        try:
            return rule(Question(inputs, attributes, len(node.outputs)))
        except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
            world.conflicts.append(f"{node.op_type} {node.name!r}: its sizes do not fit ({type(error).__name__})")
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

    def outputs_of(
        self,
        schema: onnx.defs.OpSchema,
        proto: onnx.NodeProto,
        types: dict[str, onnx.TypeProto],
        data: dict[str, onnx.TensorProto],
    ) -> dict[str, onnx.TypeProto] | str:
        """Return what onnx infers, or what it objects to."""
        try:
            return onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.opset_protos, ir_version=self.ir_version
            )
        except Exception as error:
            return str(error).splitlines()[0][:200]

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
        results = _reference(node, version, contents)
        for out, result in zip(node.outputs, results or (), strict=False):
            if out.name and isinstance(result, np.ndarray | np.generic):
                array = np.asarray(result)
                known = world.shapes.get(out.name)
                if known is None or array.shape == known or out.name in world.open_axes:
                    world.contents[out.name] = array
                    world.shapes[out.name] = array.shape
                    world.open_axes.pop(out.name, None)


def _reference(node: ir.Node, version: int, contents: list[Content | None]) -> tuple[Any, ...] | None:
    """Run onnx's reference operator; None where there is none or it fails."""
    from onnx.reference.ops import load_op

    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    try:
        kernel = load_op("", node.op_type, version)
        proto = ir.serde.serialize_node(node)
        run = kernel(proto, {"log": _quiet, "opsets": {"": version}, "verbose": 0, "new_ops": None})
        with np.errstate(all="ignore"):
            result = run.run(*contents)
    except Exception:
        return None
    return result if isinstance(result, tuple) else (result,)


def _quiet(*_: object) -> None:
    return None


def _as_float(types: dict[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
    """Replace bfloat16, which older opsets do not list, by float."""
    out = {}
    for name, proto in types.items():
        out[name] = onnx.TypeProto()
        out[name].CopyFrom(proto)
        if proto.tensor_type.elem_type == _BFLOAT16:
            out[name].tensor_type.elem_type = onnx.TensorProto.FLOAT
    return out


def _type_proto(dtype: int, shape: tuple[int, ...] | None) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(dtype, shape)


def _tensor_proto(content: Content, dtype: int) -> onnx.TensorProto:
    tensor = ir.serde.serialize_tensor(ir.Tensor(np.array(content, order="C"), dtype=ir.DataType(dtype)))
    return tensor


def _read_type(proto: onnx.TypeProto | None) -> Answer:
    if proto is None or not proto.HasField("tensor_type"):
        return None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(
        d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
    )
