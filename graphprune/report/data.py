"""What a report page and its plots show, as one plain dictionary: record, profile, the graph with its groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from graphprune import __version__
from graphprune.axes import Axis, leaves
from graphprune.groups import Coupling, axis_text
from graphprune.ops import Op, Operand
from graphprune.report.layout import layered
from graphprune.report.record import plain

_SHOWN = (
    "before", "after", "speedup", "noise_band", "groups", "pins", "coverage", "border", "divergence", "evaluation",
    "remark", "proof", "checks", "assumed", "curves", "pareto", "plans", "bypass", "cleanup",
)
_MOST_NODES = 8000
_MOST_WEIGHTS = 8  # named for each node
_POINTS = 33


def report_data(
    coupling: Coupling, record: Mapping[str, Any], names: tuple[str, str], profile: Mapping[str, Any] | None,
    profile_said: str = "",
) -> dict[str, Any]:
    """Return all that a page shows of one pruning; `names` are those of the model and of the file written.

    >>> data = report_data(analysis.coupling, result.report, ("a.onnx", "b.onnx"), None)  # doctest: +SKIP
    >>> len(data["graph"]["nodes"])  # doctest: +SKIP
    122
    """
    shown = {key: record.get(key) for key in _SHOWN}
    calibration = record.get("calibration")
    shown["calibration"] = {"assumed": calibration["assumed"]} if calibration else None
    found: dict[str, Any] = plain({
        "version": __version__, "model": names[0], "output": names[1], "record": shown, "profile": profile,
        "profile_said": profile_said, "graph": graph_data(coupling, record.get("bypass") or ()),
    })
    return found


def node_names(coupling: Coupling) -> dict[str, str]:
    """Return which node gives each value: onnxruntime names fused nodes after their outputs."""
    return {o.name: op.name for op in coupling.graph.ops for o in op.outputs if o is not None}


def curves_record(
    errors: Mapping[str, tuple[Any, Any]], losses: Mapping[str, tuple[Any, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return curves of error against width in at most 33 points each, with three digits.

    `errors` are those of layers, `losses` those of the outputs, where there were trials.

    >>> curves_record({"a": ([4, 2], [0.0, 0.25])})
    [{'group': 'a', 'widths': [4, 2], 'errors': [0.0, 0.25], 'losses': None}]
    """
    out = []
    for name, (widths, values) in errors.items():
        picked = np.unique(np.linspace(0, len(widths) - 1, min(len(widths), _POINTS)).round().astype(int))
        loss = losses[name][1] if losses is not None and name in losses else None
        out.append({
            "group": name,
            "widths": [int(widths[k]) for k in picked],
            "errors": [_three(values[k]) for k in picked],
            "losses": None if loss is None else [_three(loss[k]) for k in picked],
        })
    return out


def _three(number: float) -> float:
    return float(f"{float(number):.3g}")


def graph_data(coupling: Coupling, bypass: Collection[str] = ()) -> dict[str, Any]:
    """Return the operators with their places in a drawing, and the lines between them.

    A node has its name `n`, type `t`, place `x` and `y`, weights `w`, axes of its first output `a`, and groups by
    number: those on its outputs `g`, and others on its inputs `r`; `o` says that it is out, in a branch of `bypass`. A
    line leads from node to node, by the places in between.
    """
    ops = coupling.graph.ops[:_MOST_NODES]
    lines = _lines(ops)
    layout = layered(len(ops), lines)
    out = set(bypassed_nodes(coupling, bypass))
    numbers = {g.dim: k for k, g in enumerate(coupling.groups)}
    seen: dict[int, list[int]] = {}

    def groups(operands: Sequence[Operand | None]) -> list[int]:
        axes = [a for o in operands if o is not None for a in o.axes]
        return list(dict.fromkeys(k for a in axes for k in on(a)))

    def on(axis: Axis) -> list[int]:
        if id(axis) not in seen:  # axes live as long as the coupling
            seen[id(axis)] = [numbers[d] for d in leaves(coupling.expand(axis)) if d in numbers]
        return seen[id(axis)]

    nodes = []
    for k, op in enumerate(ops):
        given, read = groups(op.outputs), groups(op.inputs)
        weights = [o.name for o in op.inputs if o is not None and o.name in coupling.graph.weights]
        nodes.append({
            "n": op.name, "t": op.type, "x": layout.x[k], "y": layout.y[k], "w": weights[:_MOST_WEIGHTS],
            "a": _axes(coupling, op), "g": given, "r": [g for g in read if g not in given],
            "o": k in out,
        })
    edges = [[a, b, bends] for (a, b), bends in zip(lines, layout.bends, strict=True)]
    return {"nodes": nodes, "edges": edges, "left_out": len(coupling.graph.ops) - len(ops)}


def bypassed_nodes(coupling: Coupling, bypass: Collection[str]) -> list[int]:
    """Return which of the operators that are drawn lie in branches that are bypassed, by number."""
    out = {name for b in coupling.branches.all if b.name in bypass for name in b.nodes}
    return [k for k, op in enumerate(coupling.graph.ops[:_MOST_NODES]) if op.name in out]


def _axes(coupling: Coupling, op: Op) -> str:
    first = next((o for o in op.outputs if o is not None), None)
    return " ".join(axis_text(coupling, a) for a in first.axes) if first is not None else ""


def _lines(ops: Sequence[Op]) -> list[tuple[int, int]]:
    """Return which operator leads to which; what the bodies of a node give leads to the node."""
    makers = {o.name: k for k, op in enumerate(ops) for o in op.outputs if o is not None}
    found: dict[tuple[int, int], None] = {}
    for k, op in enumerate(ops):
        inside = [o for body in op.bodies for o in body.outputs]
        for o in (*op.inputs, *inside):
            if o is not None and makers.get(o.name, k) != k:
                found[makers[o.name], k] = None
    return list(found)
