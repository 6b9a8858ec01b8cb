"""The whole curve: plans from nearly nothing to all that is asked for, each as a file, repaired, checked and timed.

What is there from an earlier run is kept: plans as they are, models whose plan and entry in `pareto.json` are there.
All models are timed in turn with the dense one at the end, so that points can be compared. A point that another one
beats in both latency and divergence is listed, but is not on the front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from graphprune.accuracy import curves_of
from graphprune.analysis import Analysis, Progress, silent
from graphprune.errors import NothingPrunable, PlanError, UsageError
from graphprune.execute import runnable
from graphprune.measure import race
from graphprune.metric import Evaluator, find_metric, judge
from graphprune.options import Choosing
from graphprune.output import check_folder, guard, workspace
from graphprune.pipeline import Order, begun, make_plan, run_plan
from graphprune.plan import PruningPlan
from graphprune.pricing import priced
from graphprune.report.record import costs_record, model_record
from graphprune.rewrite import arranged
from graphprune.writing import as_csv, put

POINTS = 6
DEEPEST = {"macs": 0.25}  # where nothing is asked for
_INDEX = "pareto.json"


@dataclass(frozen=True)
class Point:
    """One plan of the curve: files, costs, and what was measured; None where it was not.

    `metric` has the numbers of the user's own metric, by name.
    """

    plan: str
    model: str | None
    macs: int
    parameters: int
    divergence: float | None
    latency_ms: float | None = None
    speedup: float | None = None
    front: bool = True
    metric: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Along:
    """Where the curve goes: a folder, how many points, whether their models are kept."""

    folder: Path
    points: int = POINTS
    models: bool = True

    def __post_init__(self) -> None:
        if self.points < 2:
            raise UsageError(f"a curve of {self.points} points is none: give 2 or more (--points)")


def deepest(choosing: Choosing) -> Choosing:
    """Return what the last point is asked for: a quarter of the multiply-accumulates where nothing is said.

    >>> deepest(Choosing()).targets
    {'macs': 0.25}
    """
    said = choosing.sparsity is not None or choosing.speedup is not None or choosing.targets
    return choosing if said else replace(choosing, targets=dict(DEEPEST))


def eased(choosing: Choosing, share: float) -> tuple[str, Choosing]:
    """Return a name and what is asked for at a share of the way to the last point.

    >>> eased(Choosing(targets={"macs": 0.25}), 0.5)[0]
    'macs_0.625'
    """
    if choosing.sparsity is not None:
        sparsity = round(choosing.sparsity * share, 4)
        return f"sparsity_{sparsity:.3f}", replace(choosing, sparsity=sparsity)
    targets = {kind: round(1 - (1 - kept) * share, 4) for kind, kept in choosing.targets.items()}
    speedup = None if choosing.speedup is None else round(1 + (choosing.speedup - 1) * share, 3)
    named = {**({} if speedup is None else {"speedup": speedup}), **targets}
    name = "_".join(f"{kind}_{amount:.3f}" for kind, amount in named.items())
    return name, replace(choosing, speedup=speedup, targets=targets)


def curve(analysis: Analysis, order: Order, along: Along, progress: Progress = silent) -> dict[str, Any]:
    """Make the plans and models of a curve, measure them, and return the record; raises a GraphPruneError.

    >>> curve(analysis, Order(Choosing(), Checking(), Calibrating()), Along(Path("curve")))["pareto"]  # doctest: +SKIP
    [{'plan': 'curve/macs_0.875.plan.json', 'model': 'curve/macs_0.875.onnx', 'macs': 1200, ...}, ...]
    """
    _room(along.folder)
    choosing, checking = deepest(order.choosing), replace(order.checking, time=False)
    metric = find_metric(checking.evaluate)
    evaluator = Evaluator.of(analysis, metric, progress) if metric is not None else None
    effort = order.calibrating.effort
    analysis, known, repairing = begun(analysis, replace(order, choosing=choosing, checking=checking), progress)
    analysis = priced(analysis, choosing)
    wanted = [eased(choosing, (k + 1) / along.points) for k in range(along.points)]
    points, earlier = list[Point](), _earlier(along)
    with ExitStack() as stack:
        models = along.folder if along.models else stack.enter_context(workspace(None))
        for k, (name, asked) in enumerate(wanted):
            file = along.folder / f"{name}.plan.json"

            def said(text: str, k: int = k, name: str = name) -> None:
                progress(f"{name}, {k + 1} of {len(wanted)}: {text}")

            kept = _kept(earlier, file, models / f"{name}.onnx")
            plan = _plan(analysis, file)
            if plan is None:
                kept, plan = None, make_plan(analysis, asked, said, known, effort)
                plan.save(file)
            if kept is None:
                guard(models / f"{name}.onnx", analysis.source or file)
                result = run_plan(analysis, plan, checking, models / f"{name}.onnx", said, repairing)
                checking = replace(checking, prove=False)  # the groups are the same for all plans
                kept = _point(file, models / f"{name}.onnx" if along.models else None, result.report)
            points.append(_judged(kept, evaluator, models / f"{name}.onnx", said))
            _save(along.folder, points)
        if order.checking.time and order.checking.run:
            points = _timed(analysis, points, [models / f"{name}.onnx" for name, _ in wanted], order, progress)
    points = fronted(points)
    _save(along.folder, points)
    return {
        "model": model_record(analysis),
        "before": costs_record(analysis.dense, _dense_ms(points)),
        "pareto": [asdict(p) for p in points],
        "evaluation": evaluator.record() if evaluator is not None else None,
        "curves": curves_of(known),
        "seconds": dict(analysis.seconds),
        "output": str(along.folder),
    }


def fronted(points: Sequence[Point]) -> list[Point]:
    """Return points with those off the front that another one beats: no slower and no worse, and one of both better.

    Where nothing was timed, multiply-accumulates stand for latency; points without a divergence stay.
    """
    timed = all(p.latency_ms is not None for p in points)

    def beaten(p: Point) -> bool:
        own = _pair(p, timed)
        return any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in (_pair(q, timed) for q in points))

    return [replace(p, front=p.divergence is None or not beaten(p)) for p in points]


def _pair(point: Point, timed: bool) -> tuple[float, float]:
    cost = point.latency_ms if timed and point.latency_ms is not None else float(point.macs)
    return cost, float("inf") if point.divergence is None else point.divergence


def _room(folder: Path) -> None:
    """Make the folder; raises UsageError where that is not possible."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is no folder: give another name for the curve")
    check_folder(folder if folder.exists() else folder.parent)
    folder.mkdir(exist_ok=True)


def _plan(analysis: Analysis, file: Path) -> PruningPlan | None:
    """Return a plan of an earlier run, None where there is none; raises UsageError where it is for another model."""
    if not file.exists():
        return None
    try:
        plan = PruningPlan.load(file)
        plan.chosen(analysis.coupling)
    except PlanError as error:
        raise UsageError(f"{file}: is in the way: {error}; give another folder") from error
    return plan


def _earlier(along: Along) -> list[Point]:
    """Return the points of an earlier run, none where there was none."""
    if not along.models:
        return []
    try:
        entries = json.loads((along.folder / _INDEX).read_text(encoding="utf-8"))["pareto"]
        return [replace(Point(**e), latency_ms=None, speedup=None, metric=None) for e in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _kept(earlier: Sequence[Point], plan: Path, model: Path) -> Point | None:
    """Return the point of an earlier run whose model is still there and newer than its plan."""
    if not (plan.exists() and model.exists()) or model.stat().st_mtime < plan.stat().st_mtime:
        return None
    return next((p for p in earlier if p.plan == str(plan) and p.model == str(model)), None)


def _point(plan: Path, model: Path | None, report: Mapping[str, Any]) -> Point:
    after, quality = report["after"], report["divergence"]
    found = [d["relative"] if d["kl"] is None else d["kl"] for d in (quality["after"] if quality else ())]
    divergence = fmean(found) if found else None
    return Point(str(plan), str(model) if model is not None else None, after["macs"], after["parameters"], divergence)


def _judged(point: Point, evaluator: Evaluator | None, model: Path, progress: Progress) -> Point:
    """Return a point with what the user's metric says of its model; raises UsageError where that fails."""
    if evaluator is None:
        return point
    progress("evaluating")
    return replace(point, metric=judge(evaluator.metric, model, model.name))


def _timed(
    analysis: Analysis, points: Sequence[Point], models: Sequence[Path], order: Order, progress: Progress
) -> list[Point]:
    """Time each model in turn with the dense one."""
    progress("timing")
    feed, runtime = analysis.reference.feeds[0], analysis.looking.runtime
    kept = [PruningPlan.load(p.plan).chosen(analysis.coupling) for p in points]
    with runnable(analysis.original, analysis.source) as dense:
        made = [(str(m), arranged(feed, analysis.coupling, chosen)) for m, chosen in zip(models, kept, strict=True)]
        _, *found = race([(dense, feed), *made], runtime, order.checking.seconds * (len(made) + 1) / 2)
    return [
        replace(p, latency_ms=c.after.median_ms, speedup=c.speedup) for p, c in zip(points, found, strict=True)
    ]


def _dense_ms(points: Sequence[Point]) -> float | None:
    """Return the latency that speed-ups are told against."""
    found = [p.latency_ms * p.speedup for p in points if p.latency_ms is not None and p.speedup is not None]
    return float(np.median(found)) if found else None


def _save(folder: Path, points: Sequence[Point]) -> None:
    """Write what there is so far, as JSON and as a table of comma separated values."""
    rows = [asdict(p) for p in points]
    if not rows:
        raise NothingPrunable("the curve has no point")
    put(folder / _INDEX, json.dumps({"pareto": rows}, indent=1) + "\n")
    flat = [{**{k: v for k, v in row.items() if k != "metric"}, **(row["metric"] or {})} for row in rows]
    put(folder / "pareto.csv", as_csv(flat, list(flat[0])))
