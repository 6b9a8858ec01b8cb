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
            self.freeze(node, change)

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
        node.replace_input_with(change.operand, self.corrected(node, value, elements))

    def corrected(
        self, near: ir.Node, value: ir.Value | None, elements: Sequence[Element | None], *, scalar: bool = False
    ) -> ir.Value:
        """Return a value computed at run time with exact elements overridden and others rescaled.

        The nodes that do it follow the one that makes the value; `near` gives them names.
        """
        assert value is not None
        code = self.worlds.traced.dtypes.get(value.name or "", 0)
        dtype = ir.DataType(code).numpy() if code else np.int64

        def row(numbers: list[int] | list[bool], kind: npt.DTypeLike) -> ir.Value:
            return self.constant(near, np.asarray(numbers[0] if scalar else numbers, dtype=kind))

        exact = [e is not None and e.exact and self.opset >= _WHERE_SINCE for e in elements]
        if any(exact):
            new = row([e.new if e else 0 for e in elements], dtype)
            value = self.made(near, "Where", [row(exact, np.bool_), new, value])
        scaled = [e if e is not None and not x else None for e, x in zip(elements, exact, strict=True)]
        if any(scaled):
            if any(e is not None and e.old == 0 for e in scaled):
                raise ValidationError(f"{near.op_type} {near.name!r}: a size of zero cannot be rescaled at run time")
            value = self.made(near, "Div", [value, row([e.old // _gcd(e) if e else 1 for e in scaled], dtype)])
            value = self.made(near, "Mul", [value, row([e.new // _gcd(e) if e else 1 for e in scaled], dtype)])
        return value

    def made(self, near: ir.Node, op_type: str, inputs: list[ir.Value]) -> ir.Value:
        """Put a node where its inputs are known, and return its output."""
        self.count += 1
        node = ir.node(op_type, inputs, name=f"{near.name}/{op_type.lower()}_{self.count}")
        node.outputs[0].name = f"{near.name}/{op_type.lower()}_{self.count}_out"
        producers = [p for p in (v.producer() for v in inputs) if p is not None and p.inputs]
        if producers:
            (producers[0].graph or self.graph).insert_after(producers[0], node)
        else:
            (near.graph or self.graph).insert_before(near, node)
        return node.outputs[0]

    def freeze(self, node: ir.Node, change: FreezeOutput) -> None:
        """Give the readers of a size the number it was: as a constant where they read nothing else."""
        output = node.outputs[0]
        changed = {k for k, e in enumerate(change.elements) if e is not None}
        uses, frozen = list(output.uses()), None
        for reader, index in uses:
            if index == 0:
                contents = self._contents(reader)
                read = elements_read(reader.op_type, self._attributes(reader), contents, len(change.elements))
                if read is not None and not read & changed:
                    continue
                fixed = self._fixed_outputs(reader)
                if fixed is not None:
                    for out, content in fixed:
                        out.replace_all_uses_with(self.constant(reader, content), replace_graph_outputs=False)
                    continue
            frozen = frozen or self.frozen(node, output, change)
            reader.replace_input_with(index, frozen)
        if output.is_graph_output():
            self.freeze_output(node, output, change)

    def frozen(self, node: ir.Node, output: ir.Value, change: FreezeOutput) -> ir.Value:
        if change.whole is not None:
            return self.constant(node, np.asarray(change.whole[0] if change.scalar else change.whole, dtype=np.int64))
        return self.corrected(node, output, change.elements, scalar=change.scalar)

    def freeze_output(self, node: ir.Node, output: ir.Value, change: FreezeOutput) -> None:
        """Let a size that leaves the graph say what it was, under its own name."""
        was = self.corrected(node, output, change.elements, scalar=change.scalar)
        was.type, was.shape = output.type, output.shape
        name = output.name
        output.name, was.name = f"{name}/now", name
        for graph in self.model.graphs():
            for k, value in enumerate(list(graph.outputs)):
                if value is output:
                    graph.outputs[k] = was

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
