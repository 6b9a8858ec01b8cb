"""The straight line, from file to proven and timed file; every stage takes frozen values and returns frozen values.

    load -> normalize -> trace -> solve -> calibrate -> score -> allocate -> rewrite -> reconstruct -> clean up ->
    validate -> measure -> report
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune import __version__
from graphprune.accuracy import Deciding, curves_of, deciding, prepare
from graphprune.allocate import Budget, Decide, allocate
from graphprune.analysis import Analysis, Clock, Progress, analyse, runnable, silent
from graphprune.costs import CostModel
from graphprune.differentiated import gradients_for
from graphprune.errors import NothingPrunable, UsageError, ValidationError
from graphprune.metric import Evaluator, find_metric, telling_unrepaired
from graphprune.model import EMBED_LIMIT, ModelLike, has_external_data, publish, tensor_bytes, write_into
from graphprune.onset import telling_onset
from graphprune.options import Calibrating, Checking, Choosing, Looking, spelled
from graphprune.order import Order
from graphprune.output import MARK, guard_data, workspace
from graphprune.plan import PruningPlan
from graphprune.pricing import align_of, budget_of, priced
from graphprune.prove import Proof, prove
from graphprune.repair import Repairing
from graphprune.result import Result
from graphprune.rewrite import Chosen, rearranged
from graphprune.score import score
from graphprune.searching import faster, less_lost, searched
from graphprune.sourced import onnx_of
from graphprune.transform.cleanup import tidy
from graphprune.turning import begun
from graphprune.validate import Verdict
from graphprune.validated import validated

if TYPE_CHECKING:
    from graphprune.calibrate.knowledge import Knowledge
    from graphprune.measure import Comparison
    from graphprune.reporting import Reporting

__all__ = [
    "MARK", "Analysis", "Calibrating", "Checking", "Choosing", "Looking", "Order", "Progress", "Result", "analyse",
    "begun", "carry_out", "make_plan", "prepare", "prune", "run_plan", "runnable",
]


def make_plan(
    analysis: Analysis, choosing: Choosing, progress: Progress = silent, known: Knowledge | None = None,
    effort: str = "medium",
) -> PruningPlan:
    """Score the groups and decide what each gives up; by error where statistics are `known`, else by weights alone.

    Raises NothingPrunable, UsageError or TargetError.
    """
    coupling = analysis.coupling
    budget = budget_of(choosing, known is not None)
    if not coupling.graph.weights:
        raise NothingPrunable("the model has no weights: there is nothing to prune")
    if not coupling.groups:
        reasons = "; ".join(dict.fromkeys(reason for _, reason, _ in coupling.pins()))
        raise NothingPrunable(f"every axis of every weight is pinned: {reasons[:300] or 'no axis is free'}")
    analysis = priced(analysis, choosing)
    progress("scoring")
    decide = decider(analysis, choosing, known, progress)
    progress("allocating")
    if choosing.speedup is not None:
        from graphprune.machine.known import know
        from graphprune.speed import allocate_for_speed

        machine = know(analysis, budget.align, choosing.machine, effort, progress)
        asked = replace(budget, targets={**choosing.targets, "latency": 1.0})
        plan = allocate_for_speed(analysis, decide, asked, choosing.speedup, machine, progress)
        plan = less_lost(decide, plan, asked, (choosing.speedup, machine), progress)
        plan = faster(decide, plan, asked, (choosing.speedup, machine), progress)
    else:
        plan = searched(decide, budget, analysis.costs, progress)
    return named(decide.swapped(plan, progress) if isinstance(decide, Deciding) else plan, analysis)


def decider(
    analysis: Analysis, choosing: Choosing, known: Knowledge | None, progress: Progress
) -> Decide:
    """Return what makes a plan for a budget: scores or error curves are computed once."""
    criterion, _ = choosing.settled(known is not None)
    if criterion == "obs":
        if known is None:
            raise UsageError("--criterion obs needs calibration, and there is none: see --calibration, and --run")
        by = align_of(choosing), choosing.layers
        return known.once(("deciding", *by), lambda: deciding(analysis, known, by, progress))
    how = (criterion, choosing.aggregate, choosing.normalise, analysis.looking.seed)
    gradients = gradients_for(analysis, criterion, known, progress)
    scores = score(analysis.coupling, *how, known=known, gradients=gradients)

    def decide(budget: Budget, costs: CostModel | None = None) -> PruningPlan:
        return allocate(analysis.coupling, scores, costs or analysis.costs, budget)

    return decide


def named(plan: PruningPlan, analysis: Analysis) -> PruningPlan:
    """Write into a plan which model it is for, and which inputs and outputs may change."""
    plan = plan.named(analysis.source.name if analysis.source else analysis.original.graph.name or "")
    return plan.allowing(analysis.looking.allow_io).turning(analysis.turned)


def run_plan(
    analysis: Analysis,
    plan: PruningPlan,
    checking: Checking,
    output: Path | None = None,
    progress: Progress = silent,
    repairing: Repairing | None = None,
    *,
    evaluator: Evaluator | None = None,
) -> Result:
    """Rewrite the model by a plan, repair it, check it, time it, and write it if everything passed.

    `evaluator` is asked about the result last; what goes wrong there is in the report. Raises ValidationError if a
    check fails (nothing is written then), PlanError if the plan does not fit.
    """
    clock = Clock()
    chosen = plan.chosen(analysis.coupling)
    after = analysis.costs(plan.sizes_of(analysis.coupling))
    proof: Proof | None = None
    if checking.run and checking.prove:  # before any work that a wrong group would make useless
        with clock.stage("prove"):
            seed = analysis.looking.seed
            proof = prove(analysis.model, analysis.coupling, analysis.calmest, seed=seed, progress=progress)
        require(proof)
    pruned, mended = _rewritten(analysis, plan, chosen, repairing, clock, progress)
    if checking.run and checking.cleanup:
        with clock.stage("clean up"):
            pruned, mended["cleanup"] = tidy(analysis, pruned, chosen, progress)
    external = has_external_data(analysis.original) or tensor_bytes(pruned) > EMBED_LIMIT
    if output is not None:
        guard_data(output, analysis.original, analysis.source)
    verdict: Verdict | None = None
    timing: Comparison | None = None
    peaks: tuple[float | None, float | None] = (None, None)
    with workspace(output.parent if output is not None else None) as work:
        with clock.stage("write"):
            progress("writing")
            written = write_into(pruned, work, output.name if output else "model.onnx", external=external)
        if checking.run:
            with clock.stage("validate"):
                verdict = validated(analysis, written, chosen, progress)
        if checking.run and checking.time and not analysis.reference.converted:
            with clock.stage("measure"):
                from graphprune.timed import latency, memory

                progress("timing")
                timing = latency(analysis, written, chosen, checking.seconds)
                progress("measuring memory")
                peaks = memory(analysis, written, chosen)
        if evaluator is not None:
            with clock.stage("evaluate"):
                progress("evaluating")
                mended = {**mended, "evaluation": evaluator.finished(mended.get("evaluation"), written)}
        if output is not None:
            publish(written, output)
    seconds = {**analysis.seconds, **clock.seconds}
    from graphprune.report.record import Findings, prune_record

    record = {**prune_record(analysis, plan, after, Findings(proof, verdict, timing, peaks), seconds), **mended}
    return Result(pruned, plan, record, analysis.original, analysis.source, external)


def _rewritten(
    analysis: Analysis, plan: PruningPlan, chosen: Chosen, repairing: Repairing | None, clock: Clock, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Return the pruned model, repaired if that is asked for, and what the report says of the repair."""
    with clock.stage("rewrite"):
        pruned = rearranged(analysis.model, analysis.coupling, chosen)
        pruned.metadata_props[MARK] = f"{__version__}: {len(plan.keep)} channel groups pruned"
    if repairing is None:
        return pruned, {}
    with clock.stage("reconstruct"):
        return pruned, repairing(analysis, pruned, chosen, progress)


def require(proof: Proof) -> None:
    """Raise ValidationError if a proof failed, naming the groups."""
    if not proof.passed:
        raise ValidationError(f"{proof.failure}; nothing was written; prune without them by --exclude")


def prune(
    model: ModelLike,
    sparsity: float | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    plan: PruningPlan | str | os.PathLike[str] | None = None,
    choosing: Choosing | None = None,
    looking: Looking | None = None,
    checking: Checking | None = None,
    calibrating: Calibrating | None = None,
    reporting: Reporting | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Result:
    """Prune a model: every group loses `sparsity` of its indices, or as much as a target asks for.

    >>> result = prune("resnet50.onnx", 0.5)                      # doctest: +SKIP
    >>> result = prune("resnet50.onnx", target={"macs": 0.5})     # doctest: +SKIP
    >>> result.save("pruned.onnx")                                # doctest: +SKIP

    `model` is a path, ModelProto, onnx_ir Model or graphsurgeon Graph and is not changed; or what `graphprune
    convert` takes, as text: a file or folder of another framework (`trust` allows to unpickle it),
    `module:attribute`. `sparsity` is the fraction removed, in [0, 1); `target` maps `macs`, `params` or `bytes` to
    the fraction kept; `speedup` is measured latency; `plan` is a plan or its file. Other options are the fields of
    `Choosing` (criterion, allocation, align, floor, include, exclude ...), `Looking` (input_shapes, inputs, batch
    ...) and `Checking` (run, prove, time), `provider` and `threads`. `reporting` says where a page or plots go.
    Raises a GraphPruneError.
    """
    options = spelled(options)
    trust = bool(options.pop("trust", False))
    groups = {cls: {k: options.pop(k) for k in list(options) if k in cls.__dataclass_fields__} for cls in _OPTIONS}
    if options:
        raise UsageError(f"prune() has no option {next(iter(options))!r}")
    if sparsity is not None:
        groups[Choosing]["sparsity"] = sparsity
    chosen = _with(choosing or Choosing(), groups[Choosing])
    if plan is not None and not isinstance(plan, PruningPlan):
        plan = PruningPlan.load(plan)
    looking = _with(looking or Looking(), groups[Looking])
    checks = _with(checking or Checking(), groups[Checking])
    checks = replace(checks, evaluate=find_metric(checks.evaluate))
    model = onnx_of(model, looking.input_shapes, trust)
    analysis = analyse(model, looking if plan is None else looking.allowing(plan.allow_io), progress)
    asked = _with(calibrating or Calibrating(), {**groups[Calibrating], "seed": analysis.looking.seed})
    where = Path(output) if output is not None else None
    if reporting is not None:
        reporting.guarded([p for p in (analysis.source, where) if p is not None])
    result = carry_out(analysis, Order(chosen, checks, asked, plan), where, progress)
    if reporting is not None:
        reporting.write(analysis, result, where or Path("a model in memory"), progress)
    return result


def carry_out(analysis: Analysis, order: Order, output: Path | None = None, progress: Progress = silent) -> Result:
    """Calibrate, plan, rewrite, repair, check, time and write, as ordered; raises a GraphPruneError."""
    checking, choosing, asked = order.checking, order.choosing, order.calibrating
    metric = find_metric(checking.evaluate)
    evaluator = Evaluator.of(analysis, metric, progress) if metric is not None else None
    analysis, known, repairing = begun(analysis, order, progress)
    plan = order.plan
    if plan is None:
        analysis = priced(analysis, choosing)
        plan = make_plan(analysis, choosing, progress, known, asked.effort)
        if repairing is not None and known is not None and asked.effort != "low" and order.onset:
            budget = budget_of(choosing, known is not None)
            decide = partial(decider, analysis, choosing, known, progress)
            repairing = telling_onset(repairing, known, budget, decide)
    if repairing is not None and evaluator is not None:
        repairing = telling_unrepaired(repairing, evaluator)
    result = run_plan(analysis, plan, checking, output, progress, repairing, evaluator=evaluator)
    return replace(result, report={**result.report, "curves": curves_of(known)})


_OPTIONS: tuple[type[Any], ...] = (Choosing, Looking, Checking, Calibrating)


def _with(value: Any, changes: Mapping[str, Any]) -> Any:
    return replace(value, **changes) if changes else value
