"""What cannot be pruned, by operator and reason: of one model, and over many, as a list of what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean, median
from typing import TypeAlias

from graphprune.axes import Axis, Dim, Origin, Product, Sum, leaves
from graphprune.errors import GraphPruneError, UsageError
from graphprune.groups import Coupling
from graphprune.weights import Weight

EXPECTED = "kernel positions"  # every convolution has them
GRAPH = "(graph)"
Cause: TypeAlias = tuple[str, str]
_SINGLE: Cause = (GRAPH, "single indices, nothing to choose")


@dataclass(frozen=True)
class PinShare:
    """What one operator pins for one reason: of how many weights, and which share of all weight elements."""

    operator: str
    reason: str
    weights: int
    share: float
    example: str


@dataclass(frozen=True)
class ModelPins:
    """One model of many: its coverage (None: no weights) and what pins the rest, or why it could not be read."""

    path: Path
    coverage: float | None = None
    parameters: int = 0
    pins: tuple[PinShare, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class OperatorPins:
    """What one operator pins over many models; `mean_share` counts the models in which it pins nothing, too."""

    operator: str
    mean_share: float
    models: int
    reason: str
    worst: str
    worst_share: float


def shares(coupling: Coupling) -> list[PinShare]:
    """Return which share of a model's weight elements is pinned by whom, the largest first.

    A weight element is pinned where it lies on no group. The pinned elements of a weight fall in equal parts to its
    axes (those of size 1 have nothing to pin), and on an axis in equal parts to its slots, each slot to what pins its
    dim (in equal parts where it lies on several). Kernel positions and single indices (the four gates of a recurrence)
    count only where no other axis or dim is pinned. So the shares add up to 1 - coverage.
    """
    return _ranked(coupling, [(w, w.size - coupling.covered(w), list(w.axes)) for w in _weights(coupling)])


def halves(coupling: Coupling) -> list[PinShare]:
    """Return what pins the other axes of weights that lie on a group: there more could go, by another axis.

    The share is that of the weights' elements which lie on a group, in equal parts for the axes that are pinned.
    """
    wanted = []
    for w in _weights(coupling):
        pinned = [a for a in w.axes if not any(d in coupling.dims for d in leaves(coupling.expand(a)))]
        if coupling.covered(w) and _telling(coupling, pinned):
            wanted.append((w, coupling.covered(w), pinned))
    return [p for p in _ranked(coupling, wanted) if not p.reason.startswith(EXPECTED)]


def _weights(coupling: Coupling) -> list[Weight]:
    return [w for w in coupling.graph.own if w.size]


def _ranked(coupling: Coupling, wanted: Iterable[tuple[Weight, int, Sequence[Axis]]]) -> list[PinShare]:
    total = sum(w.size for w in coupling.graph.own)
    found: dict[Cause, dict[str, float]] = {}
    for weight, elements, axes in wanted:
        if elements:
            for cause, part in _causes(coupling, axes).items():
                found.setdefault(cause, {})[weight.name] = elements * part
    out = [
        PinShare(operator, reason, len(parts), sum(parts.values()) / total, max(parts, key=lambda n: parts[n]))
        for (operator, reason), parts in found.items()
    ]
    return sorted(out, key=lambda p: (-p.share, p.operator, p.reason))


def _telling(coupling: Coupling, axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes that could be pinned or not."""
    return [a for a in axes if a.size > 1 and any(leaves(coupling.expand(a)))]


def _causes(coupling: Coupling, axes: Sequence[Axis]) -> dict[Cause, float]:
    """Return the fraction of a weight's pinned elements that falls to each cause."""
    owned = _first([_owners(coupling, coupling.expand(a)) for a in axes if a.size > 1])
    out: dict[Cause, float] = {}
    for owners in owned:
        _add(out, owners, 1 / (sum(owners.values()) * len(owned)))
    return out or {_SINGLE: 1.0}


def _first(owned: list[dict[Cause, float]]) -> list[dict[Cause, float]]:
    """Return those whose pin could be another one, or all where there are none."""
    return [o for o in owned if any(c != _SINGLE and not c[1].startswith(EXPECTED) for c in o)] or owned


def _owners(coupling: Coupling, axis: Axis) -> dict[Cause, float]:
    """Return how many of an axis's slots that lie on no group fall to each cause."""
    if isinstance(axis, Dim):
        return {} if axis in coupling.dims else {_cause(coupling, axis): float(axis.size)}
    out: dict[Cause, float] = {}
    if isinstance(axis, Sum):
        for part in axis.parts:
            _add(out, _owners(coupling, part), 1.0)
        return out
    assert isinstance(axis, Product)
    if not axis.parts:
        return {_SINGLE: 1.0}
    owned = [_owners(coupling, part) for part in axis.parts]
    slots = prod(sum(owners.values()) for owners in owned)
    first = _first(owned)
    for owners in first if slots else ():
        _add(out, owners, slots / (sum(owners.values()) * len(first)))
    return out


def _cause(coupling: Coupling, dim: Dim) -> Cause:
    reason, origin = coupling.solution.pins.get(dim, ("no weight lies on it", Origin("", "")))
    return origin.operator or GRAPH, plain_reason(reason)


def plain_reason(reason: str) -> str:
    """Return a reason without the names and numbers of one model, so that models can be added up.

    >>> plain_reason("the shape of 'x' is not known"), plain_reason("sizes disagree: 3 of 3 against 4 of 4")
    ("the shape of '...' is not known", 'sizes disagree')
    """
    return re.sub(r"'[^']*'", "'...'", reason).partition(": ")[0]


def _add(out: dict[Cause, float], more: Mapping[Cause, float], factor: float) -> None:
    for cause, n in more.items():
        out[cause] = out.get(cause, 0.0) + n * factor


def model_files(places: Iterable[Path]) -> list[Path]:
    """Return the .onnx files given and those in the folders given, each once; raises UsageError if there are none."""
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise UsageError(f"{place}: no such file or folder")
        found += sorted(place.rglob("*.onnx")) if place.is_dir() else [place]
    if not found:
        raise UsageError(f"{', '.join(map(str, places))}: no .onnx files in there")
    return list(dict.fromkeys(found))


def survey(paths: Sequence[Path], progress: Callable[[str], None]) -> list[ModelPins]:
    """Look at many models; one that cannot be looked at is told in its `error`."""
    out = []
    for path in paths:
        progress(path.name)
        try:
            out.append(_look(path))
        except GraphPruneError as error:
            out.append(ModelPins(path, error=str(error)))
        except Exception as error:  # a mistake of ours in one model must not hide the others
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            out.append(ModelPins(path, error=f"internal error: {said}"))
    return out


def _look(path: Path) -> ModelPins:
    from graphprune.analysis import analyse

    coupling = analyse(path).coupling
    parameters = sum(w.size for w in coupling.graph.own)
    return ModelPins(path, coupling.coverage if parameters else None, parameters, tuple(shares(coupling)))


def rank(models: Sequence[ModelPins]) -> list[OperatorPins]:
    """Return the operators that pin most: by their mean share over all models that have weights."""
    counted = [m for m in models if m.coverage is not None]
    found: dict[str, dict[Path, float]] = {}
    reasons: dict[str, dict[str, float]] = {}
    for m in counted:
        for p in m.pins:
            by_model, by_reason = found.setdefault(p.operator, {}), reasons.setdefault(p.operator, {})
            by_model[m.path] = by_model.get(m.path, 0.0) + p.share
            by_reason[p.reason] = by_reason.get(p.reason, 0.0) + p.share
    out = []
    for operator, parts in found.items():
        worst, reason = max(parts, key=lambda k: parts[k]), max(reasons[operator], key=lambda k: reasons[operator][k])
        mean = sum(parts.values()) / len(counted)
        out.append(OperatorPins(operator, mean, len(parts), reason, str(worst), parts[worst]))
    return sorted(out, key=lambda o: (-o.mean_share, o.operator))


def middle(models: Sequence[ModelPins]) -> tuple[float, float] | None:
    """Return the median and the mean coverage of the models that have weights."""
    found = [m.coverage for m in models if m.coverage is not None]
    return (median(found), fmean(found)) if found else None
