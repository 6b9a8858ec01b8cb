"""The dependency graph in networkx: operators and values for export, axes for explanations."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.axes import Axis, Dim, Origin, Pin, Same, leaves
from graphprune.errors import UsageError
from graphprune.groups import ChannelGroup, Coupling, axis_text
from graphprune.writing import put

if TYPE_CHECKING:
    import networkx as nx


def operator_graph(coupling: Coupling) -> nx.DiGraph[str]:
    """Return operators and values as one directed graph, with shapes and axes in einops notation.

    Nodes are `op:NAME` and `value:NAME`; groups that a value's axes lie on are in its attribute `groups`. What the
    bodies of a node give is read by the node.
    """
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    for op in coupling.graph.ops:
        node = f"op:{op.name}"
        graph.add_node(node, kind="operator", operator=op.type, domain=op.domain, label=f"{op.type}\n{op.name}")
        given = tuple(o for body in op.bodies for o in body.outputs)
        for direction, operands in (("in", (*op.inputs, *given)), ("out", op.outputs)):
            for k, o in enumerate(operands):
                if o is None:
                    continue
                value = f"value:{o.name}"
                if value not in graph:
                    graph.add_node(value, **_value_attributes(coupling, o.name))
                graph.add_edge(*((value, node) if direction == "in" else (node, value)), index=k)
    return graph


def _value_attributes(coupling: Coupling, name: str) -> dict[str, Any]:
    operand = coupling.graph.values[name]
    groups = {coupling.dims[d].name for a in operand.axes for d in leaves(coupling.expand(a)) if d in coupling.dims}
    axes = " ".join(axis_text(coupling, a) for a in operand.axes)
    return {
        "kind": "weight" if name in coupling.graph.weights else "value",
        "shape": "x".join(map(str, operand.shape)),
        "axes": axes,
        "groups": ", ".join(sorted(groups)),
        "label": f"{name}\n{axes}",
    }


def export(coupling: Coupling, path: str | os.PathLike[str]) -> None:
    """Write the dependency graph as GraphML (`.graphml`) or DOT (`.dot`, `.gv`); raises UsageError."""
    import networkx as nx

    target = Path(path)
    graph = operator_graph(coupling)
    if target.suffix not in (".graphml", ".dot", ".gv"):
        raise UsageError(f"{target}: a graph is written as .graphml or .dot")
    if target.suffix == ".graphml":
        xml = io.BytesIO()
        nx.write_graphml(_as_xml(graph), xml)
        put(target, xml.getvalue())
    else:
        put(target, _dot(graph))


def _dot(graph: nx.DiGraph[str]) -> str:
    """Return the graph in the DOT language; written here because names may hold any character."""
    lines = ["digraph {"]
    for n, data in graph.nodes(data=True):
        shape = "box" if data["kind"] == "operator" else "ellipse"
        lines.append(f"  {_quoted(n)} [label={_quoted(data['label'])}, shape={shape}];")
    lines += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in graph.edges]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _printable(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _as_xml(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    import networkx as nx

    out: nx.DiGraph[str] = nx.relabel_nodes(graph, {n: _printable(n) for n in graph})
    for _, data in out.nodes(data=True):
        data.update({k: _printable(v) for k, v in data.items() if isinstance(v, str)})
    return out


@dataclass(frozen=True)
class Step:
    """One step of an explanation: this operator says that these two axes are the same."""

    origin: Origin
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.left} = {self.right}"


@dataclass(frozen=True)
class Explanation:
    """Why axes belong together, or why one is pinned, as a path of operators."""

    subject: str
    verdict: str
    steps: tuple[Step, ...]


def find_axes(coupling: Coupling, name: str) -> list[tuple[str, Axis]]:
    """Return (text, axis) of what a name stands for: a group, a value, or a value and axis as `NAME:AXIS`.

    Raises UsageError, with names that are close.
    """
    group = coupling.group(name)
    if group is not None:
        first = group.occurrences[0]
        return [(f"{first.initializer}:{first.axis}", coupling.graph.weights[first.initializer].axes[first.axis])]
    values = coupling.graph.values
    if name in values:
        return [(f"{name}:{k}", a) for k, a in enumerate(values[name].axes)]
    value, _, axis = name.rpartition(":")
    if value in values and axis.isdigit() and int(axis) < len(values[value].axes):
        return [(name, values[value].axes[int(axis)])]
    import difflib

    names = [g.name for g in coupling.groups] + list(values) + [op.name for op in coupling.graph.ops]
    ops = [op for op in coupling.graph.ops if op.name == name]
    if ops:
        return [(f"{o.name}:{k}", a) for o in ops[0].outputs if o is not None for k, a in enumerate(o.axes)]
    close = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f"; close are {', '.join(map(repr, close))}" if close else "; `inspect` lists the groups"
    raise UsageError(f"no group, value or node named {name!r}{hint}")


def explain(coupling: Coupling, name: str, other: str | None = None) -> list[Explanation]:
    """Explain why two axes are coupled, or, for one name, what its axes are coupled with or pinned by."""
    if other is not None:
        return [_between(coupling, a, b) for a in find_axes(coupling, name)[:1] for b in find_axes(coupling, other)[:1]]
    group = coupling.group(name)
    if group is not None:
        return _of_group(coupling, group)
    found = [e for text, axis in find_axes(coupling, name) for e in _of_axis(coupling, text, axis)]
    return list(dict.fromkeys(found))


def _of_group(coupling: Coupling, group: ChannelGroup) -> list[Explanation]:
    places = [(f"{o.initializer}:{o.axis}", coupling.graph.weights[o.initializer].axes[o.axis], o)
              for o in group.occurrences]
    home = next((p for p in places if p[2].role.value == "produced"), places[0])
    out = []
    for text, axis, occurrence in places:
        steps = () if text == home[0] else _path(coupling, group.dim, [home[1]], [axis])
        verdict = f"{occurrence.role.value} as {axis_text(coupling, axis)}"
        out.append(Explanation(text, verdict, tuple(steps)))
    return out


def _of_axis(coupling: Coupling, text: str, axis: Axis) -> Iterator[Explanation]:
    dims = list(dict.fromkeys(leaves(coupling.expand(axis))))
    if not dims:
        yield Explanation(text, "has size one: nothing to choose", ())
    for d in dims:
        if d in coupling.solution.pins:
            reason, origin = coupling.solution.pins[d]
            steps = _pin_path(coupling, axis, reason, origin)
            yield Explanation(text, f"pinned: {reason} ({origin})", tuple(steps))
        elif d in coupling.dims:
            group = coupling.dims[d]
            places = ", ".join(f"{o.initializer}:{o.axis} ({o.role.value})" for o in group.occurrences)
            yield Explanation(text, f"{axis_text(coupling, axis)}, in group {group.name!r} with {places}", ())
        else:
            yield Explanation(text, "free, but lies on no weight", ())


def _between(coupling: Coupling, a: tuple[str, Axis], b: tuple[str, Axis]) -> Explanation:
    shared = [d for d in leaves(coupling.expand(a[1])) if d in set(leaves(coupling.expand(b[1])))]
    subject = f"{a[0]} and {b[0]}"
    if not shared:
        return Explanation(subject, "are not coupled: they share no dim", ())
    steps = _path(coupling, shared[0], [a[1]], [b[1]])
    return Explanation(subject, f"share the dim of size {shared[0].size}", tuple(steps))


def _path(coupling: Coupling, dim: Dim, starts: list[Axis], ends: list[Axis]) -> list[Step]:
    """Return the shortest chain of equations on which a dim travels from one axis to another."""

    def carries(d: Dim) -> bool:
        return dim in set(leaves(coupling.expand(d)))

    return _shortest(_equation_graph(coupling, carries), starts, ends)


def _pin_path(coupling: Coupling, axis: Axis, reason: str, origin: Origin) -> list[Step]:
    pins = coupling.solution.pins

    def carries(d: Dim) -> bool:
        return any(pins.get(x) == (reason, origin) for x in leaves(coupling.expand(d)))

    ends = [eq.axis for eq, o in coupling.graph.equations if isinstance(eq, Pin) and (eq.reason, o) == (reason, origin)]
    return _shortest(_equation_graph(coupling, carries), [axis], ends)


def _equation_graph(coupling: Coupling, carries: Any) -> nx.Graph[Dim]:
    import networkx as nx

    graph: nx.Graph[Dim] = nx.Graph()
    known: dict[Dim, bool] = {}
    for eq, origin in coupling.graph.equations:
        if isinstance(eq, Same):
            sides = []
            for side in (eq.left, eq.right):
                dims = list(leaves(side))
                for d in dims:
                    if d not in known:
                        known[d] = carries(d)
                sides.append([d for d in dims if known[d]])
            graph.add_edges_from((a, b, {"origin": origin}) for a in sides[0] for b in sides[1])
    return graph


def _shortest(graph: nx.Graph[Dim], starts: list[Axis], ends: list[Axis]) -> list[Step]:
    import networkx as nx

    goals = {d for e in ends for d in leaves(e)}
    best: list[Dim] | None = None
    for start in (d for s in starts for d in leaves(s) if d in graph):
        reached = nx.single_source_shortest_path(graph, start)
        for goal in goals & set(reached):
            if best is None or len(reached[goal]) < len(best):
                best = reached[goal]
    return [
        Step(graph.edges[a, b]["origin"], a.label or "a factor", b.label or "a factor")
        for a, b in zip(best or [], (best or [])[1:], strict=False)
    ]
