"""Pruning and tuning in turn, a little at a time; what is needed to go on after a break is kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil, log
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune.analysis import analyse
from graphprune.calibrate.choice import Calibration
from graphprune.calibrate.labelled import open_labelled, unlabelled
from graphprune.converters.finetune import Saving, finetune
from graphprune.converters.tuning import Tuning
from graphprune.errors import GraphPruneError, UsageError
from graphprune.kinds import SPELLED
from graphprune.model import ModelLike, constants, load, save
from graphprune.normalize import normalize
from graphprune.options import Looking, parse_targets
from graphprune.pipeline import prune
from graphprune.plan import PruningPlan
from graphprune.report.record import plain
from graphprune.rewrite import rearranged
from graphprune.writing import put

Progress = Callable[[str], None]
_CALIBRATING = 512
"""Samples: what `prune` takes at most if nothing is said."""


@dataclass(frozen=True)
class Steps:
    """How much is left in the end, of the dense model, and in how many steps; `options` are those of `prune`."""

    target: Mapping[str, float]
    count: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"{self.count} steps: give 1 or more")
        parse_targets(f"{kind}={keep}" for kind, keep in self.target.items())

    @staticmethod
    def by(target: Mapping[str, float], fraction: float, options: Mapping[str, Any] | None = None) -> Steps:
        """Return steps that each remove at most this fraction of what they find, as many as the target takes.

        >>> Steps.by({"macs": 0.25}, 0.05).count
        28
        """
        if not 0 < fraction < 1:
            raise UsageError(f"steps of {fraction:g}: give the fraction that each removes, between 0 and 1")
        count = ceil(log(min(target.values())) / log(1 - fraction) - 1e-9)
        return Steps(target, max(count, 1), options or {})

    def part(self, k: int, dense: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
        """Return what step k keeps of what it finds, so that it ends where it should: every step by the same factor."""
        out = {}
        for kind, keep in self.target.items():
            name = SPELLED.get(kind, kind)
            whole = now[name] / dense[name] if dense.get(name) and now.get(name) else keep ** (k / self.count)
            out[kind] = min(keep ** ((k + 1) / self.count) / whole, 1.0)
        return out

    def epochs(self, k: int, most: int) -> int:
        """Return how long step k is tuned: the more is gone, the longer, evenly up to `most`."""
        return max(round(most * (k + 1) / self.count), 1)


@dataclass(frozen=True)
class Stepped:
    """A model that was pruned and tuned in steps, what was seen, and one plan for all; None: `record` says why not."""

    model: ir.Model
    record: Mapping[str, Any]
    plan: PruningPlan | None


def prune_in_steps(
    model: ModelLike, steps: Steps, data: Calibration, asked: Tuning, *, labels: str | None = None,
    folder: Path | None = None, resume: bool = False, progress: Progress = lambda text: None,
) -> Stepped:
    """Prune in steps and tune to the dense model after each, as Adapt-Pruner does (arXiv 2502.03460).

    >>> prune_in_steps("dense.onnx", Steps({"macs": 0.25}, 5), parse_calibration("x.npz"), Tuning()).record["steps"]
    ... # doctest: +SKIP

    Whole branches stay unless `steps.options` has `layers=True`. The record is that of the last step, with all of them
    in `steps`. `folder` keeps the state; `resume` goes on from it. Raises what pruning and tuning raise.
    """
    kept = _Folder(folder, {"target": dict(steps.target), "steps": steps.count, "options": dict(steps.options),
                            "asked": {k: v for k, v in asdict(asked).items() if k != "device"}})  # fmt: skip
    dense = load(model)
    now, records, plans = kept.begin(dense, resume)
    given = _calibration(dense, data, labels, asked.seed)
    for k in range(len(records), steps.count):
        progress(f"step {k + 1}/{steps.count}: pruning")
        smaller, found = kept.pruned()
        if smaller is None:
            before, last = (records[0]["dense"], records[-1]["after"]) if records else ({}, {})
            part = steps.part(k, before, last)
            options = {"layers": False, "time": False, "turn": False, "seed": asked.seed, **given, **steps.options}
            result = prune(now, target=part, progress=progress, **options)
            report = plain(dict(result.report))
            smaller, found = result.ir_model, {"dense": before or report["before"], "after": report["after"],
                                               "plan": result.plan.to_json()}  # fmt: skip
            if "latency" in part:
                found["dense"]["latency"] = 1.0
                found["after"]["latency"] = _left(result.plan, last.get("latency", 1.0))
            kept.keep_pruned(smaller, found)
        whole = replace(asked, epochs=steps.epochs(k, asked.epochs))
        plans = [*plans, PruningPlan.from_json(found["plan"])]
        done = finetune(
            smaller, dense, data, whole, labels=labels, saving=kept.saving(), progress=progress,
            plan=_composed(dense, plans, smaller)[0] if asked.features else None,
        )  # fmt: skip
        records.append({**done.record, "dense": found["dense"], "after": found["after"]})
        now = done.model
        kept.keep(now, records, plans)
    plan, why = _composed(dense, plans, now)
    return Stepped(now, {**records[-1], "steps": records, "no_plan": why}, plan)


def _left(plan: PruningPlan, before: float) -> float:
    """Return how much of the dense model's latency is left after a plan, if that much was left before.

    Measured, or predicted where it is another machine's; a plan that had nothing to remove says neither.
    """
    speed = plan.meta.get("speed", {})
    return float(before / (speed.get("measured") or speed.get("predicted", 1.0)))


def _calibration(dense: ir.Model, data: Calibration, labels: str | None, seed: int) -> dict[str, Any]:
    """Return the options of `prune` that say what to calibrate with: the data to tune on, without labels."""
    given: Any = data.data
    if labels is not None:
        samples = open_labelled(dense, data, labels, seed, batch=_CALIBRATING, limit=_CALIBRATING)
        given = list(unlabelled(samples).open())
    elif isinstance(given, (str, Path)) and data.source == "out-of-distribution":
        given = f"ood:{given}"
    return {"calibration": given, "preset": data.preset, "tokenizer": data.tokenizer, "length": data.length}


def _composed(dense: ir.Model, plans: list[PruningPlan], now: ir.Model) -> tuple[PruningPlan | None, str]:
    """Return the plan that does all at once, if by it weights have the sizes that are there; or why there is none."""
    try:
        whole = plans[0]
        for later in plans[1:]:
            whole = whole.then(later)
        analysis = analyse(dense, Looking(observe=False).allowing(whole.allow_io))
        made = _shapes(rearranged(analysis.model, analysis.coupling, whole.chosen(analysis.coupling)))
        there = _shapes(normalize(now))
        wrong = [n for n in made if n in there and made[n] != there[n]]
        why = f"no plan says all steps at once: {wrong[0]!r} has other sizes by it" if wrong else ""
        return (None if wrong else whole), why
    except GraphPruneError as error:
        return None, f"no plan says all steps at once: {error}"


def _shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {v.name or "": tuple(t.shape.numpy()) for graph in model.graphs() for v, t in constants(graph)}


@dataclass(frozen=True)
class _Folder:
    """What is kept of steps: the model after the last one, that of the step under way, and the state of its tuning."""

    path: Path | None
    asked: Mapping[str, Any]

    def begin(self, dense: ir.Model, resume: bool) -> tuple[ir.Model, list[dict[str, Any]], list[PruningPlan]]:
        """Return where to go on: the model, the records and the plans of steps that are done; raises UsageError."""
        if self.path is None:
            return dense, [], []
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            if any(self.path.iterdir()):
                raise UsageError(f"{self.path}: is not empty: give another folder, or --resume to go on from it")
            put(self.path / "steps.json", json.dumps({"asked": plain(dict(self.asked)), "records": [], "plans": []}))
            return dense, [], []
        try:
            held = json.loads((self.path / "steps.json").read_text(encoding="utf-8"))
            other = [k for k, v in plain(dict(self.asked)).items() if held["asked"][k] != json.loads(json.dumps(v))]
            records, plans = held["records"], [PruningPlan.from_json(p) for p in held["plans"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self.path}: is no folder of steps ({type(error).__name__})") from error
        if other:
            raise UsageError(f"{self.path}: was made with another {', '.join(other)}: give the same, or no --resume")
        return (load(self.path / f"step-{len(records)}.onnx") if records else dense), records, plans

    def pruned(self) -> tuple[ir.Model | None, dict[str, Any]]:
        """Return the model that a step under way has to tune, if it was pruned already."""
        if self.path is None or not (self.path / "pruned.json").exists():
            return None, {}
        return load(self.path / "pruned.onnx"), json.loads((self.path / "pruned.json").read_text(encoding="utf-8"))

    def keep_pruned(self, model: ir.Model, found: Mapping[str, Any]) -> None:
        """Keep a pruned model before it is tuned."""
        if self.path is not None:
            save(model, self.path / "pruned.onnx")
            put(self.path / "pruned.json", json.dumps(found))

    def saving(self) -> Saving:
        """Return where the state of tuning goes."""
        return Saving() if self.path is None else Saving(self.path / "tuning.pt", resume=True)

    def keep(self, model: ir.Model, records: list[dict[str, Any]], plans: list[PruningPlan]) -> None:
        """Keep what a step made; what it needed goes."""
        if self.path is None:
            return
        save(model, self.path / f"step-{len(records)}.onnx")
        whole = {"asked": self.asked, "records": records, "plans": [p.to_json() for p in plans]}
        put(self.path / "steps.json", json.dumps(plain(whole)))
        for name in ("pruned.json", "pruned.onnx", "pruned.onnx.data", "tuning.pt"):
            (self.path / name).unlink(missing_ok=True)
