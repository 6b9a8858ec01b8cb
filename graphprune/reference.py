"""The user's model as it is, run on some inputs: what the pruned and the permuted model are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.as_float32 import as_float32, as_float32_arrays, other_floats
from graphprune.errors import SessionError
from graphprune.execute import Outputs, relative_error, session
from graphprune.model import load
from graphprune.rounding import disturbed, disturbed_arrays, is_quantised, rounds
from graphprune.runtime import Runtime, open_session, run

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-3
_LOOSEST = 0.1
_LOOSEST_QUANTISED = 2e-2
_DRAWS = 2
_NOISE_FACTOR = 10.0


@dataclass(frozen=True)
class Reference:
    """The dense model and its outputs on some inputs.

    `source` is the file it was loaded from, where there is one. `converted` names the float types that onnxruntime
    cannot compute with here: then this and every model compared with it are run as float32 copies.
    """

    model: ir.Model
    feeds: tuple[Outputs, ...]
    threads: int = 0
    source: Path | None = None
    converted: tuple[str, ...] = ()

    def open(self, model: ir.Model | Path, optimise: bool) -> onnxruntime.InferenceSession:
        """Open a model, or one like it, as this one is run; raises SessionError."""
        runtime = Runtime(threads=self.threads, optimise=optimise)
        if self.converted:
            model = as_float32(load(model))
        return open_session(model, runtime) if isinstance(model, Path) else session(model, runtime)

    @cached_property
    def plain(self) -> list[Outputs]:
        """Outputs without graph optimisation."""
        return self._outputs(False)

    @cached_property
    def optimised(self) -> list[Outputs]:
        """Outputs at full graph optimisation."""
        return self._outputs(True)

    def _outputs(self, optimise: bool) -> list[Outputs]:
        opened = self.open(self.source or self.model, optimise)
        return [run(opened, f) for f in self.feeds]

    @property
    def elements(self) -> int:
        """How many numbers there are to compare."""
        return sum(a.size for outputs in self.plain for a in outputs.values())

    @cached_property
    def noise(self) -> float:
        """What rounding alone does: the largest relative difference between the two.

        Where activations are quantised: also what changes of 1e-6 in inputs and constants do.
        """
        runs = [self.optimised, *(self._disturbed(k) for k in range(_DRAWS if self.rounds else 0))]
        errors = [relative_error(a, b)[0] for outputs in runs for a, b in zip(self.plain, outputs, strict=True)]
        found = max(errors, default=0.0)
        return found if np.isfinite(found) else 0.0

    def _disturbed(self, seed: int) -> list[Outputs]:
        opened = self.open(disturbed(self.model, seed), False)
        return [run(opened, disturbed_arrays(f, seed)) for f in self.feeds]

    @cached_property
    def rounds(self) -> bool:
        """Whether activations are quantised, so that a difference in rounding may become a whole unit."""
        return rounds(self.model)

    @property
    def tolerance(self) -> float:
        """1e-3, or ten times the noise where that is more; at most 0.1, and 2e-2 in quantised models."""
        loosest = _LOOSEST_QUANTISED if is_quantised(self.model) else _LOOSEST
        return min(max(TOLERANCE, _NOISE_FACTOR * self.noise), loosest)

    @property
    def as_float32(self) -> str:
        """Why models are run as float32 copies, if they are."""
        names = " or ".join(self.converted)
        return f"run as float32: onnxruntime has no {names} kernels here" if names else ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be told about how models were run."""
        empty = "" if self.elements else "outputs are empty on these inputs, so nothing was compared: give inputs"
        return tuple(text for text in (self.as_float32, empty) if text)


def usable(reference: Reference, others: Callable[[], Iterable[tuple[Outputs, ...]]] = tuple) -> Reference:
    """Return the reference with those of its inputs that the dense model accepts, as float32 if need be.

    `others` are inputs to try where it accepts none of its own. Raises SessionError, the first that came up.
    """
    reference, opened = _opened(reference)
    first: SessionError | None = None
    for feeds in itertools.chain([reference.feeds], others()):
        given = tuple(as_float32_arrays(f) for f in feeds) if reference.converted else feeds
        kept: list[tuple[Outputs, Outputs]] = []
        for feed in given:
            try:
                kept.append((feed, run(opened, feed)))
            except SessionError as error:
                first = first or error
        if kept:
            found = replace(reference, feeds=tuple(f for f, _ in kept))
            found.__dict__["plain"] = [outputs for _, outputs in kept]  # what the property would compute again
            return found
    raise first or SessionError("there are no inputs to run the model on")


def _opened(reference: Reference) -> tuple[Reference, onnxruntime.InferenceSession]:
    try:
        return reference, reference.open(reference.source or reference.model, False)
    except SessionError:
        names = tuple(other_floats(reference.model))
        if names:
            converted = replace(reference, converted=names)
            with suppress(SessionError):
                return converted, converted.open(reference.source or reference.model, False)
        raise
