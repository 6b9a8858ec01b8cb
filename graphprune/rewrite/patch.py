"""Carry out the changes that refit rules ask for on the nodes of a model."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.errors import ValidationError
from graphprune.model import add_constant, constant_of
from graphprune.ops import Op
from graphprune.ops.shapes import elements_read
from graphprune.ops.sizes import BecomeReshape, Change, Element, FreezeOutput, SetAttribute, SetElements, SetInput
from graphprune.sizes import Worlds

_WHERE_SINCE = 9


class Patcher:
    """Changes nodes of one model; new constants get names of their own; `resized` values do not stay what they were."""

    def __init__(self, model: ir.Model, worlds: Worlds, resized: Container[str | None] = ()) -> None:
        self.model = model
        self.resized = resized
        self.graph = model.graph
        self.worlds = worlds
        self.opset = model.graph.opset_imports.get("", 1)
        self.count = 0

    def apply(self, node: ir.Node, op: Op, change: Change) -> None:
        if isinstance(change, SetAttribute):
            value = list(change.value) if isinstance(change.value, tuple) else change.value
            node.attributes[change.name] = ir.convenience.convert_attribute(change.name, value)
        elif isinstance(change, SetInput):
            dtype = self.dtype(node, change.operand)
            content = np.asarray(change.value[0] if change.scalar else change.value, dtype=dtype)
            self.set_input(node, change.operand, content)
        elif isinstance(change, SetElements):
            self.set_elements(node, op, change)
        elif isinstance(change, BecomeReshape):
            self.become_reshape(node, change)
        else:
            self.freeze(node, op, change)

    def become_reshape(self, node: ir.Node, change: BecomeReshape) -> None:
        node.op_type = change.operator
        node.attributes.clear()
        self.set_input(node, 1, np.asarray(change.shape, dtype=np.int64))

    def dtype(self, node: ir.Node, operand: int) -> npt.DTypeLike:
        value = node.inputs[operand] if operand < len(node.inputs) else None
        code = self.worlds.traced.dtypes.get(value.name or "", 0) if value is not None else 0
        return ir.DataType(code).numpy() if code else np.int64

    def constant(self, node: ir.Node, content: npt.NDArray[np.generic]) -> ir.Value:
        self.count += 1
        name = f"{node.name}/size_{self.count}"
        return add_constant(self.graph, name, ir.tensor(content, name=name), self.model.ir_version)

    def set_input(self, node: ir.Node, operand: int, content: npt.NDArray[np.generic]) -> None:
        if operand >= len(node.inputs):
            node.resize_inputs(operand + 1)
        node.replace_input_with(operand, self.constant(node, content))

    def set_elements(self, node: ir.Node, op: Op, change: SetElements) -> None:
        """Change elements of an input: in its content where that is fixed, else by nodes that correct it."""
        elements = change.elements
        given = op.input(change.operand)
        if given is None:
            node.attributes.pop("num_outputs", None)
            self.set_input(node, change.operand, np.asarray([e.new if e else 0 for e in elements], dtype=np.int64))
            return
        value = node.inputs[change.operand]
        tensor = constant_of(value)
        trusted = given.fixed and not self.worlds.depends_on_data
        content: npt.NDArray[np.generic] | None = given.value if trusted else None
        if tensor is not None:
            content = tensor.numpy()
        if content is not None:
            new = np.array(content)
            for k, e in enumerate(elements):
                if e is not None:
                    new[k] = e.new
            self.set_input(node, change.operand, new)
            return
        self.correct(node, change.operand, elements)

    def correct(self, node: ir.Node, operand: int, elements: Sequence[Element | None]) -> None:
        """Put nodes before an input computed at run time: exact elements are overridden, others rescaled."""
        dtype = self.dtype(node, operand)
        exact = [e is not None and e.exact and self.opset >= _WHERE_SINCE for e in elements]
        if any(exact):
            mask = self.constant(node, np.asarray(exact))
            new = self.constant(node, np.asarray([e.new if e else 0 for e in elements], dtype=dtype))
            self.insert(node, operand, "Where", lambda value: [mask, new, value])
        scaled = [e if e is not None and not x else None for e, x in zip(elements, exact, strict=True)]
        if any(scaled):
            if any(e is not None and e.old == 0 for e in scaled):
                raise ValidationError(f"{node.op_type} {node.name!r}: a size of zero cannot be rescaled at run time")
            old = self.constant(node, np.asarray([e.old // _gcd(e) if e else 1 for e in scaled], dtype=dtype))
            new = self.constant(node, np.asarray([e.new // _gcd(e) if e else 1 for e in scaled], dtype=dtype))
            self.insert(node, operand, "Div", lambda value: [value, old])
            self.insert(node, operand, "Mul", lambda value: [value, new])

    def insert(self, node: ir.Node, operand: int, op_type: str, inputs: object) -> None:
        value = node.inputs[operand]
        self.count += 1
        made = ir.node(op_type, inputs(value), name=f"{node.name}/{op_type.lower()}_{self.count}")  # type: ignore[operator]
        made.outputs[0].name = f"{node.name}/{op_type.lower()}_{self.count}_out"
        self.graph.insert_before(node, made)
        node.replace_input_with(operand, made.outputs[0])

    def freeze(self, node: ir.Node, op: Op, change: FreezeOutput) -> None:
        """Give the readers of a size the number it was: as a constant where they read nothing else."""
        output = node.outputs[0]
        if output.is_graph_output():
            self.freeze_output(output, change)
        for reader, index in list(output.uses()):
            if reader.graph is not self.graph or index != 0:
                self.freeze_use(reader, index, change)
                continue
            read = elements_read(reader.op_type, self._attributes(reader), self._contents(reader), len(change.elements))
            if read is not None and not read & change.changed:
                continue
            fixed = self._fixed_outputs(reader)
            if fixed is None:
                self.freeze_use(reader, index, change)
                continue
            for out, content in fixed:
                out.replace_all_uses_with(self.constant(reader, content), replace_graph_outputs=False)

    def freeze_output(self, output: ir.Value, change: FreezeOutput) -> None:
        """Let a size that leaves the graph say what it was, under its own name."""
        name, dtype = output.name, np.int64
        known = [e is not None for e in change.elements]
        old = [0 if e is None else e for e in change.elements]
        producer = output.producer()
        assert producer is not None
        mask = self.constant(producer, np.asarray(known[0] if change.scalar else known))
        was = self.constant(producer, np.asarray(old[0] if change.scalar else old, dtype=dtype))
        made = ir.node("Where", [mask, was, output], name=f"{producer.name}/where_{self.count}")
        out = made.outputs[0]
        out.type, out.shape = output.type, output.shape
        output.name, out.name = f"{name}/now", name
        self.graph.insert_after(producer, made)
        for k, value in enumerate(list(self.graph.outputs)):
            if value is output:
                self.graph.outputs[k] = out

    def freeze_use(self, reader: ir.Node, index: int, change: FreezeOutput) -> None:
        if all(e is not None for e in change.elements):
            content = np.asarray(change.elements[0] if change.scalar else change.elements, dtype=np.int64)
            reader.replace_input_with(index, self.constant(reader, content))
            return
        self.correct(reader, index, [None if e is None else Element(e, e) for e in change.elements])

    def _attributes(self, node: ir.Node) -> dict[str, object]:
        return {k: a.value for k, a in node.attributes.items()}

    def _contents(self, node: ir.Node) -> list[npt.NDArray[np.generic] | None]:
        known = self.worlds.traced.contents
        return [known.get(v.name or "") if v is not None else None for v in node.inputs]

    def _fixed_outputs(self, node: ir.Node) -> list[tuple[ir.Value, npt.NDArray[np.generic]]] | None:
        """Return the outputs with their contents if all of them are the same at all input sizes."""
        found = []
        for out in node.outputs:
            a = self.worlds.traced.contents.get(out.name or "")
            b = self.worlds.natural.contents.get(out.name or "")
            if a is None or b is None or a.shape != b.shape or not np.array_equal(a, b):
                return None
            if out.is_graph_output() or out.name in self.resized:
                return None
            found.append((out, a))
        return found


def _gcd(e: Element) -> int:
    return int(np.gcd(e.old, e.new)) or 1
