"""Results as plain dictionaries, ready for JSON: the keys that scripts rely on."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graphprune import pins
from graphprune.axes import Axis, Dim, kept_size, leaves
from graphprune.border import WORTH, border
from graphprune.costs import Costs
from graphprune.groups import Coupling
from graphprune.states import Port

if TYPE_CHECKING:
    from graphprune.measure import Comparison
    from graphprune.pipeline import Analysis
    from graphprune.plan import PruningPlan
    from graphprune.prove import Proof
    from graphprune.validate import Verdict


def model_record(analysis: Analysis) -> dict[str, Any]:
    """Return nodes, opset, parameters, MACs (at the natural input sizes) and bytes of weights."""
    graph = analysis.original.graph
    costs = analysis.dense
    return {
        "nodes": len(graph),
        "opset": graph.opset_imports.get("", 0),
        "ir_version": analysis.original.ir_version,
        "producer": analysis.original.producer_name or "",
        "parameters": costs.parameters,
        "macs": costs.macs,
        "bytes": costs.bytes,
        "inputs": {k: list(v) for k, v in analysis.coupling.graph.worlds.natural_inputs.items()},
    }


def open_record(coupling: Coupling) -> list[dict[str, Any]]:
    """Return the inputs and outputs that may change: their sizes (None: open), groups by axis, and pinned axes."""
    out = []
    for port in coupling.graph.ports:
        groups: dict[str, list[str]] = {}
        pinned: dict[str, str] = {}
        for k, axis in enumerate(coupling.graph.values[port.name].axes):
            dims = list(dict.fromkeys(leaves(coupling.expand(axis))))
            names = [coupling.dims[d].name for d in coupling.free(axis)]
            if names:
                groups[str(k)] = names
            elif dims:
                pinned[str(k)] = coupling.solution.pins.get(dims[0], ("no weight lies on it", None))[0]
        shape = _sizes(coupling, port, {})
        out.append({**asdict(port), "shape": shape, "groups": groups, "pinned": pinned})
    return out


def state_record(coupling: Coupling, sizes: Mapping[Dim, int]) -> list[dict[str, Any]]:
    """Return the inputs and outputs whose sizes change (None: open), before and after."""
    out = []
    for port in coupling.graph.ports:
        before, after = _sizes(coupling, port, {}), _sizes(coupling, port, sizes)
        if before != after:
            out.append({**asdict(port), "before": before, "after": after})
    return out


def adapters_record(coupling: Coupling, sizes: Mapping[Dim, int]) -> list[dict[str, Any]]:
    """Return the inputs and outputs that keep a size which is free inside: what it is there, and its groups."""
    out = []
    for adapter in coupling.graph.adapters:
        axis = coupling.expand(coupling.graph.constants[adapter.matrix].axes[adapter.inner])
        names = [coupling.dims[d].name for d in coupling.free(axis)]
        at = {"name": adapter.port, "side": adapter.side, "axis": adapter.axis}
        out.append({**at, "size": axis.size, "inside": kept_size(axis, sizes), "groups": names})
    return out


def _sizes(coupling: Coupling, port: Port, sizes: Mapping[Dim, int]) -> list[int | None]:
    operand = coupling.graph.values[port.name]

    def size(axis: Axis) -> int:
        return kept_size(coupling.expand(axis), sizes)

    return [None if d else size(a) for a, d in zip(operand.axes, operand.dynamic, strict=True)]


def survey_record(models: Sequence[pins.ModelPins], top: int | None) -> dict[str, Any]:
    """Return what `pins --json` prints: each model with what pins it, and the operators that pin most."""
    middle = pins.middle(models)
    return {
        "models": [{**asdict(m), "path": str(m.path), "pins": [asdict(p) for p in m.pins]} for m in models],
        "operators": [asdict(o) for o in pins.rank(models)[:top]],
        "median_coverage": middle[0] if middle else None,
        "mean_coverage": middle[1] if middle else None,
    }


def inspect_record(analysis: Analysis, pinned: bool = False) -> dict[str, Any]:
    """Return every group with its occurrences, every pin with its reason, and the coverage.

    `pinned` adds which operators pin which share of the weights.
    """
    coupling = analysis.coupling
    macs = analysis.costs.macs_by_group()
    return {
        "model": model_record(analysis),
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "parameters": g.parameters,
                "macs": macs[g.name],
                "normalised": g.normalised,
                "occurrences": [
                    {"initializer": o.initializer, "axis": o.axis, "role": o.role.value, "expression": o.expression}
                    for o in g.occurrences
                ],
            }
            for g in coupling.groups
        ],
        "branches": branches_record(analysis),
        "pins": [{"name": n, "reason": r, "elements": size} for n, r, size in coupling.pins()],
        "coverage": coupling.coverage,
        "border": border_record(analysis),
        "adapters": adapters_record(coupling, {}),
        "state": open_record(coupling),
        **(_pinned(coupling) if pinned else {}),
        "seconds": dict(analysis.seconds),
    }


def branches_record(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the residual branches: what goes with each if it is bypassed, and the reason why one cannot be."""
    branches, macs = analysis.coupling.branches, analysis.costs.op_macs({})
    weights = analysis.coupling.graph.weights
    return [
        {
            "name": b.name,
            "nodes": len(b.nodes),
            "parameters": sum(weights[w].size for w in branches.unread(b.nodes)),
            "macs": sum(macs.get(n, 0) for n in b.nodes),
            "reason": b.reason,
        }
        for b in branches.all
    ]


def border_record(analysis: Analysis) -> dict[str, Any]:
    """Return what inputs and outputs keep from being pruned, and what to type to free them (None: nothing to gain)."""
    found = border(analysis.opened)
    names = [*analysis.looking.allow_io, *[glob.escape(name) for name in found.names]] if found.names else []
    options = " ".join(f"--allow-io {shlex.quote(name)}" for name in names)
    path = shlex.quote(str(analysis.source or "MODEL"))
    return {**asdict(found), "options": options, "command": f"graphprune inspect {path} {options}" if options else None}


def pinned_record(analysis: Analysis) -> dict[str, Any]:
    """Return what stays as it is and why, which share of the weights may go, and what inputs and outputs hold."""
    coupling = analysis.coupling
    return {
        "pins": [{"name": n, "reason": r, "elements": size} for n, r, size in coupling.pins()],
        "coverage": coupling.coverage,
        "border": border_record(analysis) if coupling.coverage < 1 - WORTH else None,
    }


def _pinned(coupling: Coupling) -> dict[str, Any]:
    return {
        "pin_shares": [asdict(p) for p in pins.shares(coupling)],
        "half_prunable": [asdict(p) for p in pins.halves(coupling)],
    }


def proof_record(proof: Proof) -> dict[str, Any]:
    """Return the outcome of a permutation proof."""
    return {
        "groups": proof.groups,
        "max_relative_error": proof.max_relative_error,
        "tolerance": proof.tolerance,
        "rounding_noise": proof.noise,
        "passed": proof.passed,
        "culprits": list(proof.culprits),
        "random_weights": proof.random_weights,
    }


def costs_record(costs: Costs, latency_ms: float | None = None, memory_mb: float | None = None) -> dict[str, Any]:
    """Return one side of a comparison."""
    return {
        "parameters": costs.parameters,
        "macs": costs.macs,
        "bytes": costs.bytes,
        "latency_ms": latency_ms,
        "peak_memory_mb": memory_mb,
    }


def timing_record(timing: Comparison | None) -> dict[str, Any]:
    """Return the measured speed-up and the band inside which it could be noise; None where nothing was timed."""
    return {
        "speedup": timing.speedup if timing else None,
        "noise_band": timing.noise_band if timing else None,
        "faster_beyond_noise": bool(timing and timing.significant and timing.speedup > 1) if timing else None,
    }


def plain(value: Any) -> Any:
    """Return a value for JSON: infinities and NaN, which it does not have, are None.

    >>> plain({"a": (1.0, float("inf"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


@dataclass(frozen=True)
class Findings:
    """What was found out about a pruned model; None where that was not asked for."""

    proof: Proof | None = None
    verdict: Verdict | None = None
    timing: Comparison | None = None
    memory: tuple[float | None, float | None] = (None, None)


def prune_record(
    analysis: Analysis, plan: PruningPlan, after: Costs, found: Findings, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return what `prune --json` prints; stages that were not run leave None."""
    proof, verdict, timing = found.proof, found.verdict, found.timing
    coupling = analysis.coupling
    return {
        "model": model_record(analysis),
        "before": costs_record(analysis.dense, timing.before.median_ms if timing else None, found.memory[0]),
        "after": costs_record(after, timing.after.median_ms if timing else None, found.memory[1]),
        **timing_record(timing),
        "groups": [
            {"name": g.name, "size": g.size, "kept": len(plan.keep.get(g.name, range(g.size)))} for g in coupling.groups
        ],
        "bypass": list(plan.bypass),
        **pinned_record(analysis),
        "adapters": adapters_record(coupling, plan.sizes_of(coupling)),
        "state": state_record(coupling, plan.sizes_of(coupling)),
        "proof": proof_record(proof) if proof else None,
        "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in verdict.checks] if verdict else [],
        "assumed": list(analysis.assumed) if verdict else [],
        "calibration": None,
        "repair": None,
        "cleanup": None,
        "divergence": None,
        "evaluation": None,
        "curves": None,
        "remark": "",
        "seconds": dict(seconds),
        "plan": plan.to_json(),
    }
