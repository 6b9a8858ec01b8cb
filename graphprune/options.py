"""What can be asked for: how a model is looked at, what is chosen to go, how the result is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy.typing as npt

from graphprune.errors import UsageError
from graphprune.kinds import KINDS
from graphprune.runtime import Runtime
from graphprune.scale import Pool
from graphprune.sizes import Shapes

Repair: TypeAlias = Literal["auto", "none", "weights", "fold", "bias", "symmetric", "sequential", "matched"]
"""How what is left is fitted anew; `auto` goes by the data: matched where they are given, sequential where made up."""

Allocation: TypeAlias = Literal["auto", "uniform", "global", "error", "precrop"]
"""Who gives up how much."""


@dataclass(frozen=True)
class Looking:
    """How a model is looked at and run: input sizes and contents, provider, threads.

    `allow_io` has shell patterns of the inputs and outputs whose sizes may change (state that goes in and out).
    `threads` are those of runs that nobody times (calibration, repair), 0 for one per core; None: those of the
    runtime where it has more than one, else one per core. `sizes` are open sizes by their names (`sequence`, `height`).
    `reinit` is the seed of random weights that take the place of the model's own. `adapters`: where inputs and outputs
    that keep their sizes would pin many weights, the width inside is free, with a matrix between (see `adapters.py`).
    """

    input_shapes: Shapes = field(default_factory=dict)
    inputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    batch: int | None = None
    allow_io: tuple[str, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    observe: bool = True
    threads: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    reinit: int | None = None
    adapters: bool = True

    def allowing(self, patterns: Iterable[str]) -> Looking:
        """Return the same with more patterns of inputs and outputs that may change.

        >>> Looking(allow_io=("past*",)).allowing(["past*", "present*"]).allow_io
        ('past*', 'present*')
        """
        return replace(self, allow_io=tuple(dict.fromkeys([*self.allow_io, *patterns])))

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}: give 0 or more")
        if self.reinit is not None and self.reinit < 0:
            raise UsageError(f"reinit is {self.reinit}: give a seed of 0 or more")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch is {self.batch}: give 1 or more")


@dataclass(frozen=True)
class Choosing:
    """How it is decided what goes: criterion, budget, patterns; see `score` and `allocate`.

    A target of `latency` is measured, as a speed-up is, and becomes one: 0.5 of the latency is `speedup` 2.
    `layers`: residual branches may go as a whole where trials tell what that costs.
    `machine` is the file of another machine's times (`graphprune profile-machine`), for latency there.
    """

    sparsity: float | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    speedup: float | None = None
    criterion: str = "auto"
    aggregate: str = "sum"
    normalise: str = "mean"
    allocation: Allocation = "auto"
    align: int | Literal["auto"] = "auto"
    floor: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: bool = True
    machine: Any = None

    def __post_init__(self) -> None:
        kept = self.targets.get("latency")
        if kept is None:
            return
        if self.speedup is not None:
            raise UsageError("--speedup and a target of latency say the same thing: give one of them")
        others = {k: v for k, v in self.targets.items() if k != "latency"}
        object.__setattr__(self, "targets", others if kept < 1 else {"macs": 1.0, **others})
        object.__setattr__(self, "speedup", 1 / kept if kept < 1 else None)

    def settled(self, calibrated: bool) -> tuple[str, Allocation]:
        """Return criterion and allocation with `auto` resolved; raises UsageError where they contradict each other.

        >>> Choosing(targets={"macs": 0.5}).settled(calibrated=True)
        ('obs', 'error')
        >>> Choosing(0.5, normalise="max").settled(calibrated=True)  # how scores of weights are scaled
        ('l2', 'uniform')
        """
        scaled = (self.aggregate, self.normalise) != ("sum", "mean")
        criterion = self.criterion if self.criterion != "auto" else "obs" if calibrated and not scaled else "l2"
        if criterion == "obs" and scaled:
            raise UsageError("--aggregate and --normalise are for criteria of weights, not for --criterion obs")
        allocation = self.allocation
        if allocation == "auto":
            allocation = "error" if criterion == "obs" and self.sparsity is None else "uniform"
        if allocation == "error" and criterion != "obs":
            raise UsageError("--allocation error goes by error curves: it needs --criterion obs, and calibration")
        return criterion, allocation


@dataclass(frozen=True)
class Calibrating:
    """What a model is run on to see what its layers read, and how it is repaired with that.

    `calibration` is a path, a dict of arrays, a CalibrationDataReader or an iterable; None or "none": inputs are made
    up; "noise", "ood:PATH"; "off": nothing is run. At most `samples` are used (512 of data; 2,048 made-up ones, as far
    as the model's size allows); sums of statistics take at most `memory` GB. `repair` is one of `Repair`; `effort`
    low, medium or high. The workers of `pool` share the samples, and the trials of single groups.
    `labels` is the key of labels beside the inputs, where `calibration` is an .npz: what criteria from
    gradients hold answers against. `turn`: samples choose bases for widths that have none of their own. `vary`:
    the caller's sequences of tokens are used twice, the second time with some random tokens, unless they are many.
    """

    calibration: Any = None
    preset: str | None = None
    tokenizer: str | None = None
    length: int | None = None
    samples: int | None = None
    memory: float = 2.0
    repair: Repair = "auto"
    effort: Literal["low", "medium", "high"] = "medium"
    seed: int = 0
    pool: Pool = field(default_factory=Pool)
    labels: str | None = None
    turn: bool = True
    vary: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (("repair", self.repair, REPAIRS), ("effort", self.effort, EFFORTS)):
            if value not in known:
                raise UsageError(f"{name} is {value!r}: choose {', '.join(known)}")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples is {self.samples}: give 1 or more")
        if not self.memory > 0:
            raise UsageError(f"memory is {self.memory} GB: give more than 0")

    @property
    def given(self) -> bool:
        """Whether the caller has data."""
        return self.calibration is not None and not (
            isinstance(self.calibration, str) and self.calibration in ("none", "noise", "off")
        )


REPAIRS = get_args(Repair)
EFFORTS = ("low", "medium", "high")


@dataclass(frozen=True)
class Checking:
    """What is done with the result before it is given: run, prove, time, evaluate, clean up.

    `evaluate` is the caller's own metric: a function (or its name, `module:function`) that takes the path of an ONNX
    file and returns a number, or numbers by name. `cleanup`: what does nothing any more goes, if outputs stay the same,
    bit for bit.
    """

    run: bool = True
    prove: bool = True
    time: bool = True
    seconds: float = 2.0
    evaluate: str | Callable[[str], Any] | None = None
    cleanup: bool = True

    def __post_init__(self) -> None:
        if self.evaluate is not None and not self.run:
            raise UsageError("--evaluate runs the pruned model, but --no-run is given")


def parse_targets(texts: Iterable[str]) -> dict[str, float]:
    """Read `macs=0.5` and the like; raises UsageError.

    >>> parse_targets(["macs=0.5"])
    {'macs': 0.5}
    """
    out = {}
    for text in texts:
        kind, _, number = text.partition("=")
        try:
            fraction = float(number)
        except ValueError:
            raise UsageError(f"target {text!r} is not of the form macs=0.5") from None
        if kind not in KINDS:
            raise UsageError(f"target {text!r}: {kind!r} is not one of {', '.join(KINDS)}")
        if not 0 < fraction <= 1:
            raise UsageError(f"target {text!r}: {number} is not a fraction to keep, in (0, 1]")
        out[kind] = fraction
    return out


def spelled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of the Python function as fields of the classes above; accepts the command line's spellings.

    >>> spelled({"target": "macs=0.5", "threads": 2, "exclude": "*/Add"})["exclude"]
    ('*/Add',)
    """
    out = dict(options)
    target = out.pop("target", None)
    if target is not None:
        texts = [target] if isinstance(target, str) else target
        given = target if isinstance(target, Mapping) else parse_targets(texts)
        out["targets"] = parse_targets(f"{kind}={fraction}" for kind, fraction in given.items())
    if "at" in out:
        at = out.pop("at")
        said = [f"{k}={n}" for k, n in at.items()] if isinstance(at, Mapping) else [at] if isinstance(at, str) else at
        out.update(_deployed(said))
    if out.keys() & {"provider", "threads"}:
        out["runtime"] = Runtime(**{k: out[k] for k in ("provider", "threads") if out.get(k) is not None})
        out.pop("provider", None)
    for name in ("include", "exclude", "allow_io"):
        if name in out:
            out[name] = (out[name],) if isinstance(out[name], str) else tuple(out[name])
    return out


def _deployed(texts: Iterable[str]) -> dict[str, Any]:
    from graphprune.deployment import parse_at

    at = parse_at(texts)
    return {k: v for k, v in (("batch", at.batch), ("threads", at.threads), ("sizes", at.sizes)) if v}
