"""The straight line, from file to proven and timed file; every stage takes frozen values and returns frozen values.

    load -> normalize -> trace -> solve -> score -> allocate -> rewrite -> validate -> measure -> report
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
import onnx_ir as ir

from graphprune import __version__
from graphprune import feeds as feeding
from graphprune.allocate import Budget, allocate
from graphprune.allocate.align import detect_alignment
from graphprune.costs import CostModel, Costs
from graphprune.errors import NothingPrunable, SessionError, UsageError, ValidationError
from graphprune.groups import Coupling, couple
from graphprune.model import ModelLike, has_external_data, load, publish, save, tensor_bytes, write_into
from graphprune.normalize import normalize
from graphprune.plan import PruningPlan
from graphprune.prove import Proof, Reference, prove
from graphprune.rewrite import rearranged
from graphprune.runtime import Runtime
from graphprune.score import score
from graphprune.sizes import Shapes, alternatives, choose
from graphprune.trace import trace
from graphprune.validate import Verdict, check_file, validate

if TYPE_CHECKING:
    import onnx

    from graphprune.measure import Comparison

Progress = Callable[[str], None]
MARK = "graphprune"
_EMBED_LIMIT = 1_900_000_000
_CALM = 1e-4
_OTHER_SEEDS = 5


def _silent(text: str) -> None:
    return None


@dataclass(frozen=True)
class Looking:
    """How a model is looked at and run: input sizes and contents, provider, threads."""

    input_shapes: Shapes = field(default_factory=dict)
    inputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    batch: int | None = None
    allow_io: tuple[str, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    observe: bool = True


@dataclass(frozen=True)
class Choosing:
    """How it is decided what goes: criterion, budget, patterns; see `score` and `allocate`."""

    sparsity: float | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    speedup: float | None = None
    criterion: str = "l2"
    aggregate: str = "sum"
    normalise: str = "mean"
    allocation: Literal["uniform", "global"] = "uniform"
    align: int | Literal["auto"] = "auto"
    floor: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checking:
    """What is done with the result before it is given: run, prove, time."""

    run: bool = True
    prove: bool = True
    time: bool = True
    seconds: float = 2.0


class Clock:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Analysis:
    """A model, solved: what `inspect` shows and everything else starts from."""

    original: ir.Model
    model: ir.Model
    coupling: Coupling
    costs: CostModel
    looking: Looking
    seconds: Mapping[str, float]
    source: Path | None = None

    @cached_property
    def dense(self) -> Costs:
        return self.costs({})

    @cached_property
    def assumed(self) -> tuple[str, ...]:
        """What was assumed of inputs that nobody gave."""
        return self._feeds[1]

    @cached_property
    def _feeds(self) -> tuple[tuple[feeding.Feeds, ...], tuple[str, ...]]:
        worlds = self.coupling.graph.worlds
        bounds = feeding.index_bounds(self.coupling.graph.ops)
        given = self.looking.inputs
        natural, said = feeding.make(self.model, worlds.natural_inputs, bounds, given, self.looking.seed)
        if not worlds.has_dynamic or given:
            return (natural,), said
        traced, _ = feeding.make(self.model, worlds.traced_inputs, bounds, {}, self.looking.seed)
        return (natural, traced), said

    @property
    def feeds(self) -> tuple[feeding.Feeds, ...]:
        """Inputs at the natural sizes and, where sizes are open, at the traced ones."""
        return self._feeds[0]

    @cached_property
    def reference(self) -> Reference:
        """The dense model and its outputs: at both choices of input sizes if it runs at both."""
        threads = self.looking.runtime.threads
        try:
            return self._calmest(usable(Reference(self.original, self.feeds, threads)))
        except SessionError:
            natural = self.coupling.graph.worlds.natural_inputs
            for shapes in alternatives(self.model, natural) if not self.looking.inputs else ():
                with suppress(SessionError, UsageError):
                    bounds = feeding.index_bounds(self.coupling.graph.ops)
                    feed, _ = feeding.make(self.model, shapes, bounds, {}, self.looking.seed)
                    return usable(Reference(self.original, (feed,), threads))
            raise

    def _calmest(self, reference: Reference) -> Reference:
        """Where rounding alone moves the outputs (selections, ties), try other made-up inputs and take the calmest."""
        if self.looking.inputs or len(reference.feeds) < len(self.feeds):
            return reference
        worlds = self.coupling.graph.worlds
        shapes = [worlds.natural_inputs, worlds.traced_inputs][: len(reference.feeds)]
        bounds = feeding.index_bounds(self.coupling.graph.ops)
        for seed in range(self.looking.seed + 1, self.looking.seed + 1 + _OTHER_SEEDS):
            if reference.noise <= _CALM:
                break
            feeds = tuple(feeding.make(self.model, s, bounds, {}, seed)[0] for s in shapes)
            other = Reference(self.original, feeds, reference.threads)
            with suppress(SessionError):
                if other.elements >= reference.elements:
                    reference = min(reference, other, key=lambda r: r.noise)
        return reference


def usable(reference: Reference) -> Reference:
    """Return the reference with the inputs that the dense model accepts; raise SessionError if it accepts none."""
    try:
        reference.plain  # noqa: B018
        return reference
    except SessionError:
        if len(reference.feeds) == 1:
            raise
    first, *others = reference.feeds
    try:
        return usable(Reference(reference.model, (first,), reference.threads))
    except SessionError:
        return usable(Reference(reference.model, tuple(others), reference.threads))


def analyse(model: ModelLike, looking: Looking | None = None, progress: Progress = _silent) -> Analysis:
    """Load, normalise, trace and solve a model.

    >>> analyse("resnet50.onnx").coupling.coverage  # doctest: +SKIP
    0.9999

    Raises ModelError or UsageError.
    """
    looking = looking or Looking()
    clock = Clock()
    with clock.stage("load"):
        original = load(model)
    with clock.stage("normalize"):
        normalised = normalize(original)
    with clock.stage("shapes"):
        progress("reading sizes")
        given = dict(looking.input_shapes)
        given.update({k: tuple(v.shape) for k, v in looking.inputs.items()})
        worlds = choose(normalised, given, feeding.observer() if looking.observe else None, looking.batch)
    with clock.stage("trace"):
        graph = trace(normalised, worlds, feeding.matcher(looking.allow_io))
    with clock.stage("solve"):
        coupling = couple(graph)
    source = Path(model) if isinstance(model, (str, os.PathLike)) else None
    return Analysis(original, normalised, coupling, CostModel(coupling), looking, clock.seconds, source)


def make_plan(analysis: Analysis, choosing: Choosing, progress: Progress = _silent) -> PruningPlan:
    """Score the groups and decide what each gives up.

    Raises NothingPrunable, UsageError or TargetError.
    """
    coupling = analysis.coupling
    if not coupling.graph.weights:
        raise NothingPrunable("the model has no weights: there is nothing to prune")
    if not coupling.groups:
        reasons = "; ".join(dict.fromkeys(reason for _, reason, _ in coupling.pins()))
        raise NothingPrunable(f"every axis of every weight is pinned: {reasons[:300] or 'no axis is free'}")
    progress("scoring")
    scores = score(coupling, choosing.criterion, choosing.aggregate, choosing.normalise, analysis.looking.seed)
    budget = Budget(
        sparsity=choosing.sparsity,
        targets={"macs": 1 / max(choosing.speedup, 1.0)} if choosing.speedup else dict(choosing.targets),
        allocation=choosing.allocation,
        align=detect_alignment() if choosing.align == "auto" else int(choosing.align),
        floor=choosing.floor,
        include=choosing.include,
        exclude=choosing.exclude,
    )
    progress("allocating")
    if choosing.speedup is not None:
        from graphprune.speed import allocate_for_speed

        return named(allocate_for_speed(analysis, scores, budget, choosing.speedup, progress), analysis)
    return named(allocate(coupling, scores, analysis.costs, budget), analysis)


def named(plan: PruningPlan, analysis: Analysis) -> PruningPlan:
    """Write the model's name into a plan's header."""
    return plan.named(analysis.source.name if analysis.source else analysis.original.graph.name or "")


@dataclass(frozen=True)
class Result:
    """A pruned model that passed its checks, with its plan and what was measured."""

    ir_model: ir.Model
    plan: PruningPlan
    report: Mapping[str, Any]
    external: bool = False

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The pruned model as a ModelProto, weights included."""
        return ir.to_proto(self.ir_model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model (beside its place, then renamed); weights go into `NAME.data` if the source's did."""
        save(self.ir_model, path, external=self.external or None)


def run_plan(
    analysis: Analysis,
    plan: PruningPlan,
    checking: Checking,
    output: Path | None = None,
    progress: Progress = _silent,
) -> Result:
    """Rewrite the model by a plan, check it, time it, and write it if everything passed.

    Raises ValidationError if a check fails (nothing is written then), PlanError if the plan does not fit.
    """
    clock = Clock()
    chosen = plan.chosen(analysis.coupling)
    after = analysis.costs(plan.sizes_of(analysis.coupling))
    with clock.stage("rewrite"):
        pruned = rearranged(analysis.model, analysis.coupling, chosen)
        pruned.metadata_props[MARK] = f"{__version__}: {len(plan.keep)} channel groups pruned"
    external = has_external_data(analysis.original) or tensor_bytes(pruned) > _EMBED_LIMIT
    folder = output.parent if output is not None else None
    proof: Proof | None = None
    verdict: Verdict | None = None
    timing: Comparison | None = None
    memory: tuple[float | None, float | None] = (None, None)
    with _workspace(folder) as work:
        with clock.stage("write"):
            progress("writing")
            written = write_into(pruned, work, output.name if output else "model.onnx", external=external)
        if checking.run:
            with clock.stage("validate"):
                verdict = validate(
                    written, analysis.reference, dense_passes_checker=lambda: _passes(analysis), progress=progress
                )
            if not verdict.passed:
                raise ValidationError(f"the pruned model failed its checks, nothing was written: {verdict.failures}")
        if checking.run and checking.prove:
            with clock.stage("prove"):
                proof = prove(
                    analysis.model, analysis.coupling, analysis.reference, seed=analysis.looking.seed, progress=progress
                )
            require(proof)
        if checking.run and checking.time:
            with clock.stage("measure"):
                progress("timing")
                timing = _time(analysis, written, checking.seconds)
                progress("measuring memory")
                memory = _memory(analysis, written)
        if output is not None:
            publish(written, output)
    seconds = {**analysis.seconds, **clock.seconds}
    from graphprune.report.record import Findings, prune_record

    record = prune_record(analysis, plan, after, Findings(proof, verdict, timing, memory), seconds)
    return Result(pruned, plan, record, external)


@contextmanager
def _workspace(folder: Path | None) -> Iterator[Path]:
    """Yield a temporary folder beside the output, so that publishing is a rename."""
    if folder is not None and not folder.is_dir():
        raise UsageError(f"cannot write into {folder}: no such folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".graphprune-", dir=folder) as name:
            yield Path(name)
    except OSError as error:
        raise UsageError(f"cannot write into {folder or tempfile.gettempdir()}: {error.strerror or error}") from error


def _passes(analysis: Analysis) -> bool:
    """Return whether the dense model itself passes onnx's checker."""
    if analysis.source is not None:
        return check_file(analysis.source).passed
    with tempfile.TemporaryDirectory() as folder:
        return check_file(write_into(analysis.original, Path(folder), "model.onnx", external=False)).passed


def require(proof: Proof) -> None:
    """Raise ValidationError if a proof failed, naming the groups."""
    if not proof.passed:
        raise ValidationError(
            f"the permutation proof failed (relative error {proof.max_relative_error:.1e} above {proof.tolerance:.0e} "
            f"in output {proof.worst_output!r}); wrong groups: {', '.join(proof.culprits) or 'not found alone'}; "
            "nothing was written; prune without them by --exclude"
        )


def _time(analysis: Analysis, written: Path, seconds: float) -> Comparison:
    from graphprune.execute import runnable
    from graphprune.measure import compare_latency

    feed = analysis.reference.feeds[0]
    with runnable(analysis.original) as dense:
        return compare_latency(dense, str(written), feed, feed, analysis.looking.runtime, seconds)


def _memory(analysis: Analysis, written: Path) -> tuple[float | None, float | None]:
    """Return the peak memory in MB of loading and running the dense and the pruned model once."""
    from graphprune.execute import runnable
    from graphprune.measure import peak_memory_mb

    feed, runtime = analysis.reference.feeds[0], analysis.looking.runtime
    with runnable(analysis.original) as dense:
        return peak_memory_mb(dense, feed, runtime), peak_memory_mb(str(written), feed, runtime)


def prune(
    model: ModelLike,
    sparsity: float | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    plan: PruningPlan | None = None,
    choosing: Choosing | None = None,
    looking: Looking | None = None,
    checking: Checking | None = None,
    progress: Progress = _silent,
    **options: Any,
) -> Result:
    """Prune a model: every group loses `sparsity` of its indices, or as much as a target asks for.

    >>> result = prune("resnet50.onnx", 0.5)                      # doctest: +SKIP
    >>> result = prune("resnet50.onnx", target={"macs": 0.5})     # doctest: +SKIP
    >>> result.save("pruned.onnx")                                # doctest: +SKIP

    `model` is a path, ModelProto, onnx_ir Model or graphsurgeon Graph and is not changed. `sparsity` is the fraction
    removed, in [0, 1); `target` maps `macs`, `params` or `bytes` to the fraction kept; `speedup` is measured latency.
    Other options are the fields of `Choosing` (criterion, allocation, align, floor, include, exclude ...), `Looking`
    (input_shapes, inputs, runtime ...) and `Checking` (run, prove, time). Raises a GraphPruneError.
    """
    target = options.pop("target", None)
    groups = {cls: {k: options.pop(k) for k in list(options) if k in cls.__dataclass_fields__} for cls in _OPTIONS}
    if options:
        raise UsageError(f"prune() has no option {next(iter(options))!r}")
    if target is not None:
        groups[Choosing]["targets"] = dict(target)
    if sparsity is not None:
        groups[Choosing]["sparsity"] = sparsity
    chosen = _with(choosing or Choosing(), groups[Choosing])
    analysis = analyse(model, _with(looking or Looking(), groups[Looking]), progress)
    if plan is None:
        plan = make_plan(analysis, chosen, progress)
    where = Path(output) if output is not None else None
    return run_plan(analysis, plan, _with(checking or Checking(), groups[Checking]), where, progress)


_OPTIONS: tuple[type[Any], ...] = (Choosing, Looking, Checking)


def _with(value: Any, changes: Mapping[str, Any]) -> Any:
    from dataclasses import replace

    return replace(value, **changes) if changes else value
