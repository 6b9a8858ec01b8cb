"""From model to channel groups: load, normalise, trace, solve; and the dense model's own outputs when asked for."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from graphprune import feeds as feeding
from graphprune.adapters import adapted
from graphprune.border import Opened
from graphprune.costs import CostModel, Costs, Pricing
from graphprune.errors import SessionError, UsageError
from graphprune.execute import Outputs
from graphprune.groups import Coupling, couple
from graphprune.model import ModelLike, load
from graphprune.normalize import normalize
from graphprune.options import Looking
from graphprune.reference import Reference, usable
from graphprune.reinit import MARK, reinit
from graphprune.sizes import Shapes, alternatives, choose
from graphprune.trace import trace

Progress: TypeAlias = Callable[[str], None]
_CALM = 1e-4
_OTHER_SEEDS = 5


def silent(text: str) -> None:
    """Say nothing."""


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
    """A model, solved: what `inspect` shows and everything else starts from.

    `turned` names the groups whose indices are directions of a basis that `turning` chose.
    """

    original: ir.Model
    model: ir.Model
    coupling: Coupling
    costs: CostModel
    looking: Looking
    seconds: Mapping[str, float]
    source: Path | None = None
    turned: tuple[str, ...] = ()

    @cached_property
    def dense(self) -> Costs:
        return self.costs({})

    @cached_property
    def opened(self) -> Opened:
        """The solved model, to be asked what its inputs and outputs hold; weights' numbers do not matter there."""
        return Opened(self.model, self.coupling)

    def pricing(self, *pricings: Pricing) -> Analysis:
        """Return the same with further kinds of cost."""
        return self.counting(CostModel(self.coupling, (*self.costs.pricings, *pricings)))

    def counting(self, costs: CostModel) -> Analysis:
        """Return the same with other costs; what has been run is not run again."""
        return self._keeping(replace(self, costs=costs))

    def turning(self, model: ir.Model, coupling: Coupling, names: tuple[str, ...]) -> Analysis:
        """Return the same of a model that computes the same, and whose groups are the same."""
        costs = CostModel(coupling, self.costs.pricings)
        return self._keeping(replace(self, model=model, coupling=coupling, costs=costs, turned=names))

    def _keeping(self, out: Analysis) -> Analysis:
        kept = {"opened", "reference", "calmest", "_feeds", "_bounds"} & self.__dict__.keys()
        out.__dict__.update({name: self.__dict__[name] for name in kept})
        return out

    @property
    def assumed(self) -> tuple[str, ...]:
        """What was assumed of inputs that nobody gave, and of how the model is run."""
        remarks = self.reference.remarks if "reference" in self.__dict__ else ()
        started = (self.original.metadata_props[MARK],) if self.looking.reinit is not None else ()
        return (*started, *[f"input {said}" for said in self._feeds[1]], *remarks)

    @cached_property
    def _bounds(self) -> dict[str, int]:
        return feeding.index_bounds(self.coupling.graph.ops)

    @property
    def index_bounds(self) -> dict[str, int]:
        """For each value whose elements index something, the number that they must lie below."""
        return self._bounds

    @cached_property
    def _feeds(self) -> tuple[tuple[feeding.Feeds, ...], tuple[str, ...]]:
        worlds = self.coupling.graph.worlds
        given = self.looking.inputs
        natural, said = feeding.make(self.model, worlds.natural_inputs, self._bounds, given, self.looking.seed)
        if not worlds.has_dynamic or given:
            return (natural,), said
        traced, _ = feeding.make(self.model, worlds.traced_inputs, self._bounds, {}, self.looking.seed)
        return (natural, traced), said

    @property
    def feeds(self) -> tuple[feeding.Feeds, ...]:
        """Inputs at the natural sizes and, where sizes are open, at the traced ones."""
        return self._feeds[0]

    @cached_property
    def reference(self) -> Reference:
        """The dense model and its outputs: at both choices of input sizes if it runs at both, and through branches."""
        own = Reference(self.original, self.feeds, self.looking.runtime.threads, self.source)
        found = usable(own, self._others)
        more = self._steered(found) if not self.looking.inputs else ()
        return replace(found, feeds=(*found.feeds, *more)) if more else found

    def _steered(self, found: Reference) -> tuple[Outputs, ...]:
        """Inputs that lead through other branches, as far as the dense model runs on them."""
        runs: list[Outputs] = []
        for feed in feeding.steered(self.coupling.graph.ops, dict(found.feeds[0])):
            with suppress(SessionError):
                runs += usable(replace(found, feeds=(feed,))).feeds
        return tuple(runs)

    def _others(self) -> Iterator[tuple[feeding.Feeds, ...]]:
        """Inputs of other sizes, to try where the model does not run at the chosen ones."""
        if not self.looking.inputs:
            for shapes in alternatives(self.model, self.coupling.graph.worlds.natural_inputs):
                with suppress(UsageError):
                    yield self._made([shapes], self.looking.seed)

    def _made(self, sizes: list[Shapes], seed: int) -> tuple[feeding.Feeds, ...]:
        return tuple(feeding.make(self.model, shapes, self._bounds, {}, seed)[0] for shapes in sizes)

    @cached_property
    def calmest(self) -> Reference:
        """The reference for a proof: where rounding alone moves the outputs (selections, ties), on other inputs."""
        best = self.reference
        if self.looking.inputs or best.converted or len(best.feeds) != len(self.feeds):
            return best
        worlds = self.coupling.graph.worlds
        sizes = [worlds.natural_inputs, worlds.traced_inputs][: len(best.feeds)]
        for seed in range(self.looking.seed + 1, self.looking.seed + 1 + _OTHER_SEEDS):
            if best.noise <= _CALM:
                break
            other = replace(best, feeds=self._made(sizes, seed))
            with suppress(SessionError):
                if other.elements >= best.elements:
                    best = min(best, other, key=lambda r: r.noise)
        return best


def analyse(model: ModelLike, looking: Looking | None = None, progress: Progress = silent) -> Analysis:
    """Load, normalise, trace and solve a model.

    >>> analyse("resnet50.onnx").coupling.coverage  # doctest: +SKIP
    0.9999

    Raises ModelError or UsageError.
    """
    with uncollected():
        return _analyse(model, looking or Looking(), progress)


def runnable(analysis: Analysis, run: bool = True) -> Analysis:
    """Ask for the dense model's outputs early, so that a model that does not run is told before any work."""
    if run and analysis.coupling.groups:
        analysis.reference.plain  # noqa: B018
    return analysis


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold back Python's garbage collector: tracing makes many small values and no garbage."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _adapted(plain: Opened, looking: Looking) -> Opened:
    """Return a model with adapters, solved, where inputs and outputs would pin many weights; else what is given."""
    made, adapters = adapted(plain) if looking.adapters else (plain.model, ())
    if not adapters:
        return plain
    natural = plain.coupling.graph.worlds.natural_inputs
    worlds = choose(made, natural, feeding.observer() if looking.observe else None)
    found = couple(trace(made, worlds, feeding.allowed(made, looking.allow_io), adapters))
    return Opened(made, found) if found.coverage > plain.coupling.coverage else plain


def _analyse(model: ModelLike, looking: Looking, progress: Progress) -> Analysis:
    clock = Clock()
    with clock.stage("load"):
        original = load(model)
        if looking.reinit is not None:
            original = reinit(original, looking.reinit).model
    with clock.stage("normalize"):
        normalised = normalize(original)
    with clock.stage("shapes"):
        progress("reading sizes")
        given = dict(looking.input_shapes)
        given.update({k: tuple(v.shape) for k, v in looking.inputs.items()})
        observer = feeding.observer() if looking.observe else None
        worlds = choose(normalised, given, observer, looking.batch, looking.sizes)
    with clock.stage("trace"):
        graph = trace(normalised, worlds, feeding.allowed(normalised, looking.allow_io))
    with clock.stage("solve"):
        coupling = couple(graph)
    with clock.stage("adapt"):
        opened = _adapted(Opened(normalised, coupling), looking)
    on_disk = isinstance(model, (str, os.PathLike)) and looking.reinit is None  # its weights are what is looked at
    source = Path(model) if on_disk else None  # type: ignore[arg-type]
    adapted_model, solved = opened.model, opened.coupling
    out = Analysis(original, adapted_model, solved, CostModel(solved), looking, clock.seconds, source)
    out.__dict__["opened"] = opened  # its free border may be solved already
    return out
