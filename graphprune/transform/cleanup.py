"""Exact clean-up: what pruning left without a purpose goes, and the outputs are the same, bit for bit.

Nodes that hand on one of their inputs as it is (`NOOPS`), equal nodes and equal small constants, and what nothing needs
after that. Scales of channels are put into the layers before them; that rounds otherwise, so there 1e-6 of the largest
output is allowed. Passes that onnx-ir has are onnx-ir's. Nodes that quantise or read what was quantised, and their
neighbours, stay as they are: a runtime finds quantised operators by these patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphprune.checks import hushed
from graphprune.errors import SessionError
from graphprune.execute import Outputs, relative_error
from graphprune.groups import Coupling
from graphprune.model import constant_of
from graphprune.ops import NOOPS, RANDOM, ROUND_TRIP, Sight
from graphprune.rewrite import Chosen, arranged
from graphprune.rewrite.apply import drop_unused, sizes_now
from graphprune.runtime import run
from graphprune.transform.scales import fold_scales

if TYPE_CHECKING:
    from graphprune.analysis import Analysis, Progress

Sizes: TypeAlias = "Mapping[str, tuple[int | None, ...]]"
Same: TypeAlias = "Callable[[ir.Model, ir.Model, float], bool]"
"""Whether two models give the same outputs, up to a relative error; 0: bit for bit."""
Pass: TypeAlias = "Callable[[ir.Model, Sizes], None]"
_ROUNDING = 1e-6
_SMALL = 64  # elements of constants that are merged where they are equal
_QUANTISED = frozenset(ROUND_TRIP[:2])


@dataclass(frozen=True)
class Cleaned:
    """How many nodes and constants went, and which passes were not used because outputs were not the same."""

    nodes: int = 0
    constants: int = 0
    dropped: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "dropped": list(self.dropped)}


def cleaned(model: ir.Model, coupling: Coupling, chosen: Chosen, same: Same) -> tuple[ir.Model, Cleaned]:
    """Return a copy of a pruned model without what does nothing, and what that was.

    `same` is asked once about all exact passes; only where it says no is each tried by itself, and those are left out
    that change something. Passes that round otherwise are tried after them, one by one.

    >>> cleaned(pruned, analysis.coupling, chosen, same)[1].nodes  # doctest: +SKIP
    3
    """
    sizes, dropped = sizes_now(coupling, chosen), list[str]()

    def tried(base: ir.Model, names: tuple[str, ...], allowed: float) -> ir.Model | None:
        """Return what passes make of a model, the model itself if nothing, None if outputs change."""
        made = _carried_out(base, sizes, names)
        return base if _count(made) == _count(base) else made if same(base, made, allowed) else None

    done = tried(model, tuple(PASSES), 0.0)
    rest = [(name, 0.0) for name in PASSES if done is None] + [(name, _ROUNDING) for name in ROUNDING_PASSES]
    done = model if done is None else done
    for name, allowed in rest:
        made = tried(done, (name,), allowed)
        dropped += [name] if made is None else []
        done = done if made is None else made
    (nodes, constants), (nodes_left, constants_left) = _count(model), _count(done)
    return done, Cleaned(nodes - nodes_left, constants - constants_left, tuple(dropped))


def tidy(
    analysis: Analysis, pruned: ir.Model, chosen: Chosen, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Clean a pruned model up, held against itself on the inputs that the dense one is looked at with.

    Returns what a report says of it, too.
    """
    progress("cleaning up")
    reference = analysis.reference
    feeds = [arranged(f, analysis.coupling, chosen) for f in reference.feeds]

    def outputs(model: ir.Model) -> list[Outputs]:
        opened = reference.open(model, False)
        return [run(opened, f) for f in feeds]

    def same(one: ir.Model, other: ir.Model, allowed: float) -> bool:
        try:  # one after the other: both at once may be too large
            pairs = list(zip(outputs(one), outputs(other), strict=True))
            return all(bitwise(a, b) or 0 < relative_error(a, b)[0] <= allowed for a, b in pairs)
        except SessionError:  # a model that does not run is told of by its checks
            return False

    done, found = cleaned(pruned, analysis.coupling, chosen, same)
    return done, found.record()


def _carried_out(model: ir.Model, sizes: Sizes, names: tuple[str, ...]) -> ir.Model:
    out = model.clone()
    with hushed():
        for name in names:
            {**PASSES, **ROUNDING_PASSES}[name](out, sizes)
        drop_unused(out)
    return out


def _count(model: ir.Model) -> tuple[int, int]:
    graphs = list(model.graphs())
    return sum(len(g) for g in graphs), sum(len(g.initializers) for g in graphs)


def without_noops(model: ir.Model, sizes: Sizes) -> None:
    """Let readers of nodes that do nothing read what these read."""
    opsets = model.graph.opset_imports
    for node in list(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = NOOPS.get(domain, node.op_type, opsets.get(domain, 1))
        if rule is None or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]) or _by_quantised(node):
            continue
        k = rule(_sight(node, sizes))
        source = node.inputs[k] if k is not None else None
        if source is not None:
            _bridge(model.graph, node, source)


def _bridge(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Take out a node whose output is the same as a value; where it is an output of the model, its name stays."""
    output = node.outputs[0]
    if output.is_graph_output():
        maker = source.producer()
        foreign = maker is None or maker.graph is not graph or source.is_graph_output() or constant_of(source)
        if foreign or any(n.graph is not graph for n, _ in source.uses()):
            return
        name, kind, shape = output.name, output.type, output.shape
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        output.name = f"{name}/before"
        source.name, source.type, source.shape = name, kind, shape
    else:
        output.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def _by_quantised(node: ir.Node) -> bool:
    """Return whether a node makes, reads or stands beside what is quantised."""
    makers = [v.producer() for v in node.inputs if v is not None]
    readers = [reader for o in node.outputs for reader, _ in o.uses()]
    return any(n is not None and n.op_type in _QUANTISED for n in (node, *makers, *readers))


def _sight(node: ir.Node, sizes: Sizes) -> Sight:
    def size(value: ir.Value | None) -> tuple[int | None, ...] | None:
        tensor = constant_of(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        return sizes.get(value.name or "") if value is not None else None

    def constant(k: int) -> Any:
        tensor = constant_of(node.inputs[k]) if k < len(node.inputs) else None
        return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.numpy()

    return Sight(
        {k: _plain(a) for k, a in node.attributes.items()},
        [size(v) for v in node.inputs],
        [size(v) for v in node.outputs],
        [int(v.dtype) if v is not None and v.dtype is not None else None for v in node.inputs],
        constant,
    )


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    return value.decode() if isinstance(value, bytes) else value


def without_twins(model: ir.Model, sizes: Sizes) -> None:
    """Merge nodes of the main graph that compute the same."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    if not {node.op_type for graph in model.graphs() for node in graph} & (_QUANTISED | RANDOM):
        CommonSubexpressionEliminationPass()(model)


def without_copies(model: ir.Model, sizes: Sizes) -> None:
    """Merge small constants with the same content."""
    from onnx_ir.passes.common import DeduplicateInitializersPass

    if model.ir_version >= 4 and not any(n.op_type in _QUANTISED for graph in model.graphs() for n in graph):
        DeduplicateInitializersPass(size_limit=_SMALL)(model)


PASSES: Mapping[str, Pass] = {
    "nodes that do nothing": without_noops, "equal constants": without_copies, "equal nodes": without_twins,
}
"""What is done, in this order, by the name that a report has for it."""

ROUNDING_PASSES: Mapping[str, Pass] = {"scales behind layers": fold_scales}
"""What is done after that, and changes the last digits."""


def bitwise(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether outputs have the same names, types, sizes and numbers; NaN equals NaN.

    >>> bitwise({"y": np.array([1.0, np.nan])}, {"y": np.array([1.0, np.nan])})
    True
    """
    if list(one) != list(other):
        return False
    return all(_equal(np.asarray(a), np.asarray(other[name])) for name, a in one.items())


def _equal(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
