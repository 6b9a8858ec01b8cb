"""What a page about a whole curve shows: the dense model, and of every plan its widths and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.plan import PruningPlan
from graphprune.report.data import bypassed_nodes, report_data
from graphprune.report.record import pinned_record

if TYPE_CHECKING:
    from graphprune.analysis import Analysis


def curve_data(
    analysis: Analysis, record: Mapping[str, Any], points: Sequence[Mapping[str, Any]], names: tuple[str, str]
) -> dict[str, Any]:
    """Return what `report_data` does, for the record of a curve; `points` are those of its file, as they are shown.

    >>> data = curve_data(analysis, record, read_curve(folder / "pareto.json"), ("a.onnx", "curve"))  # doctest: +SKIP
    >>> data["record"]["plans"][-1]["kept"]  # doctest: +SKIP
    [32, 48]

    A plan has `kept` by group, `bypass`, and `out`: the numbers of the nodes that went with its branches. What is of
    one result only (its costs, checks, profile) is None.
    """
    coupling = analysis.coupling
    plans = []
    for p in record["pareto"]:
        plan = PruningPlan.load(p["plan"])
        kept = [len(plan.keep.get(g.name, range(g.size))) for g in coupling.groups]
        out = bypassed_nodes(coupling, plan.bypass)
        plans.append({"plan": Path(p["plan"]).name, "kept": kept, "bypass": list(plan.bypass), "out": out})
    shown = {
        **{key: record[key] for key in ("before", "evaluation", "curves")},
        "groups": [{"name": g.name, "size": g.size, "kept": g.size} for g in coupling.groups],
        **pinned_record(analysis),
        "assumed": list(analysis.assumed),
        "pareto": points,
        "plans": plans,
    }
    return report_data(coupling, shown, names, None)
