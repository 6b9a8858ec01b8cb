"""What keeps a pruned model accurate, as stages of the pipeline: calibrate, plan by error, repair, compare outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from graphprune.alike import families
from graphprune.allocate import Budget, allocate, open_branches, planned, select
from graphprune.allocate.error import Curves, Posed, kept_counts, posed
from graphprune.analysis import Analysis, Progress
from graphprune.calibrate.choice import parse_calibration
from graphprune.calibrate.contents import read
from graphprune.calibrate.knowledge import Knowledge, learn, macs_of_sample, threads_of
from graphprune.calibrate.labelled import open_labelled, unlabelled
from graphprune.calibrate.remembered import remembered
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.synthetic import synthetic
from graphprune.calibrate.turns import turns
from graphprune.calibrate.varied import varied
from graphprune.costs import CostModel
from graphprune.errors import GraphPruneError, SessionError, UsageError
from graphprune.influence import influences
from graphprune.options import Calibrating, Checking, Choosing
from graphprune.order import Learned
from graphprune.plan import PruningPlan
from graphprune.reconstruct.curves import curves, exchanged, marginal, ranked
from graphprune.reconstruct.obs import Curve
from graphprune.repair import UNSEEN, Repairing, repair, repairing_unseen
from graphprune.repaired import repair_record
from graphprune.report.data import curves_record
from graphprune.rewrite import Chosen
from graphprune.score import DATA_CRITERIA, GRADIENT_CRITERIA, Scores, score
from graphprune.trials import Things, Trial, likely, trial_work, trials, worth

_WORK = 1e11  # multiply-accumulates of one pass over made-up samples
_CHOICE_WORK = 5e11  # multiply-accumulates that may go into choosing them
_VARIED_WORK = 2e12  # multiply-accumulates of one pass over given samples; more are not used twice
_FEWEST = 32
_MOST_MADE = 2048  # made-up inputs cost nobody anything, and more of them are better
_MOST_GIVEN = 512
_MOST_BYTES = 1e15


def prepare(
    analysis: Analysis, choosing: Choosing, checking: Checking, asked: Calibrating, progress: Progress,
    learned: Learned | None = None,
) -> tuple[Knowledge | None, Repairing | None]:
    """Calibrate if anything asks for it; return what is known, and what repairs a pruned model with that.

    `learned`, if given, returns what `calibrate` did for the same model, inputs and options at another time.
    """
    _agree(checking, asked)
    untrained = _untrained(analysis, asked)
    parse_calibration(None if _off(asked) else asked.calibration, asked.preset, asked.tokenizer, asked.length)
    if asked.repair in UNSEEN and (_off(asked) or not checking.run) and analysis.coupling.groups:
        return None, repairing_unseen(asked.repair, "")
    if not calibrates(analysis, choosing, checking, asked):
        return None, None
    asked = replace(asked, repair="none") if untrained else asked
    known, remark = learned() if learned is not None else calibrate(analysis, asked, progress)
    if known is None and asked.repair in ("auto", *UNSEEN):
        return None, repairing_unseen("weights" if asked.repair == "auto" else asked.repair, remark)
    if known is not None and choosing.criterion == "cfsp":
        known = replace(known, turns=turns(
            analysis.model, analysis.coupling, known.consumers.found, known.samples, batch=known.batch,
            threads=threads_of(analysis), progress=progress,
        ))

    if untrained:
        return known, None

    def repairing(analysis: Analysis, pruned: ir.Model, chosen: Chosen, progress: Progress) -> dict[str, Any]:
        try:
            done = repair(analysis, pruned, chosen, known, asked, progress) if known is not None else None
        except SessionError as error:  # a model that does not run is told of by its checks
            return repair_record(None, None, f"not repaired: {error}")
        return repair_record(known, done, remark)

    return known, repairing


def calibrates(analysis: Analysis, choosing: Choosing, checking: Checking, asked: Calibrating) -> bool:
    """Return whether the model is to be run on samples, the caller's or made-up ones."""
    untrained = _untrained(analysis, asked)
    said = asked.calibration is not None or not (untrained or asked.repair == "none")
    wanted = said or choosing.criterion in _by_data(untrained)
    return checking.run and wanted and not _off(asked) and bool(analysis.coupling.groups)


def _untrained(analysis: Analysis, asked: Calibrating) -> bool:
    return analysis.looking.reinit is not None and asked.repair == "auto"


def _by_data(untrained: bool) -> tuple[str, ...]:
    """Return the criteria that need samples."""
    by_gradient = (name for name, c in GRADIENT_CRITERIA.items() if c.data)
    return (*(() if untrained else ("auto",)), "obs", *DATA_CRITERIA, *by_gradient)


def _agree(checking: Checking, asked: Calibrating) -> None:
    """Raise UsageError where what is asked for would not be done."""
    off = "--calibration off" if _off(asked) else "" if checking.run else "--no-run"
    if off and asked.repair not in ("auto", "none", *UNSEEN):
        raise UsageError(f"repair {asked.repair} needs statistics of the model's layers, but {off} is given")
    if asked.labels is not None and not asked.given:
        raise UsageError(f"--labels {asked.labels!r} is an array in the .npz of --calibration, and none is given")
    if not checking.run and asked.given:
        raise UsageError("calibration data are given, but with --no-run no model is run on them")


def _off(asked: Calibrating) -> bool:
    return isinstance(asked.calibration, str) and asked.calibration == "off"  # an array would compare its entries


def samples_for(analysis: Analysis, asked: Calibrating) -> Samples:
    """Open calibration data, with labels if these are given, or make inputs up where there is none."""
    choice = parse_calibration(asked.calibration, asked.preset, asked.tokenizer, asked.length)
    bounds = analysis.index_bounds
    sizes = {name: tuple(a.shape) for name, a in analysis.reference.feeds[0].items()}
    limit = asked.samples or _MOST_GIVEN
    if asked.labels is not None:
        how: dict[str, Any] = {"limit": limit, "shapes": sizes, "bounds": bounds}
        return open_labelled(analysis.model, choice, asked.labels, asked.seed, option="--calibration", **how)
    if choice.kind == "data":
        opened = choice.open(analysis.model, limit=limit, seed=asked.seed, shapes=sizes, bounds=bounds)
        if not asked.vary or not (inputs := read(analysis.model, sizes, bounds)).tables:
            return opened
        work = macs_of_sample(analysis, opened) * (opened.count or limit)
        return varied(opened, inputs, asked.seed) if work <= _VARIED_WORK else opened
    macs = max(analysis.dense.macs, 1)
    count = min(asked.samples or _MOST_MADE, max(_FEWEST, int(_WORK / macs)))
    kind = "noise" if choice.kind == "noise" else "auto"
    return synthetic(
        analysis.model, sizes, kind=kind, count=count, seed=asked.seed, bounds=bounds, answers=int(_CHOICE_WORK / macs)
    )


def calibrate(
    analysis: Analysis, asked: Calibrating, progress: Progress, opened: Samples | None = None
) -> tuple[Knowledge | None, str]:
    """Return what running the model on samples tells, or None and why there is nothing; they may be `opened` already.

    Where the caller gave data, what is wrong with it is raised; made-up inputs that do not work are only a remark.
    """
    if _off(asked):
        return None, ""
    try:
        labelled = samples_for(analysis, asked) if opened is None else opened
        samples = remembered(labelled if asked.labels is None else unlabelled(labelled))
        known = learn(
            analysis, samples, limit=int(min(asked.memory * 1e9, _MOST_BYTES)), seed=asked.seed, pool=asked.pool,
            progress=progress,
        )
    except GraphPruneError as error:
        if asked.given:
            raise
        return None, f"not calibrated: made-up inputs do not work here ({error})"
    if not known.stats.fit:
        why = _reasons(known)
        return None, f"not calibrated: no layer of this model can be fitted anew{why}; scores are of weights"
    return replace(known, effort=asked.effort, labelled=None if asked.labels is None else labelled), ""


def _reasons(known: Knowledge) -> str:
    """Return why layers are left out, the most frequent reason first; nothing where there are none."""
    counted = Counter(known.consumers.left_out.values()).most_common()
    return f" ({'; '.join(f'{number} layers: {reason}' for reason, number in counted)})" if counted else ""


def deciding(
    analysis: Analysis, known: Knowledge, by: tuple[int, bool], progress: Progress
) -> Deciding:
    """Return what makes plans by the error curves of all groups, computed once.

    `by` has the alignment, and whether branches may be bypassed for targets where trials tell what that costs.

    With the allocation `error` a plan's outputs lose least, by trials of single groups as far as the effort permits;
    with low effort it is the errors of layers, as repair would leave them, that are least in sum.
    """
    coupling, (align, layers) = analysis.coupling, by
    fallback = score(coupling, "l2").by_group
    found = curves(coupling, coupling.groups, known.consumers, known.stats, fallback, align=align,
                   progress=progress)
    tried: dict[tuple[str, ...], list[Trial]] = {}

    def told(budget: Budget) -> Sequence[Trial]:
        if budget.allocation != "error":
            return ()
        groups = select(coupling, budget).groups
        macs = analysis.costs.macs_by_group() if {"macs", "latency"} & budget.targets.keys() else {}
        ordered = sorted(groups, key=lambda g: -macs.get(g.name, g.parameters))
        branches = open_branches(coupling, budget) if layers else ()
        names = (*(g.name for g in ordered), *(b.name for b in branches))  # the order counts: not all may be tried
        if names not in tried:
            work = trial_work(analysis, known, groups)
            turned = influences(analysis, known, branches) if work else {}
            things: Things = [*ordered, *sorted(branches, key=lambda b: turned.get(b.name, 0.0))]
            tried[names] = trials(analysis, known, found, things, work, progress) if work else []
        return tried[names]

    return Deciding(analysis, known, found, told)


@dataclass(frozen=True)
class Deciding:
    """Makes plans for budgets; `found` are the groups' error curves, `tried` gives for a budget what was tried.

    >>> deciding(analysis, known, 8, print)(Budget(targets={"macs": 0.5}, allocation="error"))  # doctest: +SKIP
    """

    analysis: Analysis
    known: Knowledge
    found: Mapping[str, Curve]
    tried: Callable[[Budget], Sequence[Trial]]

    def __call__(self, budget: Budget, costs: CostModel | None = None) -> PruningPlan:
        """Return the plan for a budget, by these costs where they are given; raises as `kept_counts` and `allocate`."""
        if costs is not None and costs is not self.analysis.costs:
            return self.counting(costs)(budget)
        coupling, costs = self.analysis.coupling, self.analysis.costs
        if budget.allocation == "error":
            by_width, losses = self._by_width(budget), self.branches(budget)
            return self.plan(kept_counts(coupling, by_width, costs, budget, losses), budget)
        self._by_width(budget)  # for the report
        order = marginal if budget.allocation == "global" else ranked
        scores = Scores({name: order(c) for name, c in self.found.items()}, "obs", "sum", "none")
        return allocate(coupling, scores, costs, budget)

    def counting(self, costs: CostModel) -> Deciding:
        """Return the same that goes by these costs."""
        return replace(self, analysis=self.analysis.counting(costs))

    def posed(self, budget: Budget) -> Posed:
        """Return the task that the allocation `error` solves for a budget."""
        by_width = self._by_width(budget)
        return posed(self.analysis.coupling, by_width, self.analysis.costs, budget, self.branches(budget))

    def branches(self, budget: Budget) -> dict[str, float]:
        """Return the branches that may be bypassed for a budget, with what the outputs lose by each."""
        return {t.group: t.loss for t in self.tried(budget) if t.width == 0}

    def plan(self, counts: Mapping[str, int], budget: Budget) -> PruningPlan:
        """Return the plan in which groups keep so many indices, the others all; branches with none are bypassed."""
        found = self.found
        keep = {n: found[n].kept(kept).tolist() for n, kept in counts.items() if n in found and kept < found[n].size}
        bypass = [name for name in self.branches(budget) if counts.get(name, 1) == 0]
        meta = {
            "criterion": "obs", "allocation": "error", "trials": len(self.tried(budget)), "budget": budget.to_json()
        }
        return planned(self.analysis.coupling, keep, self.analysis.costs, meta, bypass)

    def swapped(self, plan: PruningPlan, progress: Progress) -> PruningPlan:
        """Return a plan after swaps of what goes and what stays (`exchanged`), with high effort."""
        if self.known.effort != "high":
            return plan
        known = self.known
        keep = exchanged(self.analysis.coupling, plan.keep, known.consumers, known.stats, progress)
        return replace(plan, keep={name: tuple(kept) for name, kept in keep.items()})

    def _by_width(self, budget: Budget) -> Curves:
        tried, errors = self.tried(budget), {n: c.by_width() for n, c in self.found.items()}
        by_width: Curves = errors
        if tried:
            alike = families(self.analysis.coupling, self.analysis.coupling.groups)
            by_width = worth(self.found, [*tried, *likely(self.found, tried, alike)])
        told: dict[str, Any] = self.known.once("told", dict)
        told.update(errors=errors, losses=by_width if tried else None)
        return by_width


def curves_of(known: Knowledge | None) -> list[dict[str, Any]] | None:
    """Return the curves that plans were made by, for a report; None where there are none."""
    if known is None:
        return None
    told: dict[str, Any] = known.once("told", dict)  # by whoever decided last
    return curves_record(told["errors"], told["losses"]) if told else None
