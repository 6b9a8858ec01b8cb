"""Inner values as an aim: the dense model's values of the same names, cut by the plan, or compared by similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import Tensor
from graphprune.errors import PlanError, UsageError
from graphprune.model import constant_of, values_of
from graphprune.plan import PruningPlan

Array = Any
Index = tuple["Array | None", ...]
_TINY = 1e-7


@dataclass(frozen=True)
class Matched:
    """Values that both models have, and how each is compared.

    `kept` has, for values that the plan tells about, the slots of every axis that stay (None: all). `similar` names
    those whose sizes differ without a plan. The loss is the mean over values, times `weight`: of the square of the
    difference over that of the dense values (FitNets, arXiv 1412.6550, without a regressor: the slots are the same
    ones); or of similarities of samples, |G' - G|^2 with G the rows of F F^T normalised to 1 (Tung and Mori, arXiv
    1907.09682, equations 1 to 4; divided by the number of samples rather than by its square).
    """

    names: tuple[str, ...] = ()
    kept: Mapping[str, Index] = field(default_factory=dict)
    similar: frozenset[str] = frozenset()
    weight: float = 1.0

    def cut(self, answers: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return answers with only those slots of inner values that the pruned model has."""
        return {n: sliced(a, self.kept[n]) if n in self.kept else a for n, a in answers.items()}

    def loss(self, made: Mapping[str, Tensor], answers: Mapping[str, Array]) -> Tensor:
        """Return the distance of inner values from the dense model's, which are cut already."""
        parts = []
        for name in self.names:
            mine = made[name].float()
            told = torch.as_tensor(np.asarray(answers[name])).to(mine.device, torch.float32)
            if name in self.similar:
                parts.append((similarities(mine) - similarities(told)).square().sum() / len(mine))
            else:
                parts.append((mine - told).square().sum() / told.square().sum().clamp(min=_TINY))
        return self.weight * torch.stack(parts).mean()


def similarities(values: Tensor) -> Tensor:
    """Return how like each other samples are, [samples, samples], every row of length 1."""
    rows = values.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def sliced(array: Array, index: Index) -> Array:
    """Return the slots of every axis that an index keeps.

    >>> sliced(np.arange(6).reshape(2, 3), (None, np.array([0, 2]))).tolist()
    [[0, 2], [3, 5]]
    """
    for axis, kept in enumerate(index):
        array = array if kept is None else np.take(array, kept, axis)
    return array


def shared(start: ir.Model, dense: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Return inner values that both models compute and that fit a pattern; both models are normalised.

    Raises UsageError for a pattern that fits none.
    """
    own, other = _inner(start), _inner(dense)
    found = [n for n in own if n in other and any(fnmatch(n, p) for p in patterns)]
    for pattern in patterns:
        if not any(fnmatch(n, pattern) for n in found):
            near = ", ".join([n for n in own if n in other][:3])
            raise UsageError(f"--features {pattern!r} fits no inner value that both models have, such as {near}")
    return found


def _inner(model: ir.Model) -> list[str]:
    made = {o.name for node in model.graph for o in node.outputs}
    outside = {v.name for v in model.graph.outputs}
    return [v.name for v in values_of(model.graph) if v.name and v.name in made - outside and constant_of(v) is None]


def kept_slots(dense: ir.Model, plan: PruningPlan, names: Sequence[str]) -> dict[str, Index]:
    """Return the slots of each value's axes that a plan keeps; raises PlanError where it is not the dense model's."""
    from graphprune.analysis import analyse
    from graphprune.options import Looking
    from graphprune.rewrite.apply import kept_index

    coupling = analyse(dense, Looking(observe=False).allowing(plan.allow_io)).coupling
    chosen = plan.straight().chosen(coupling)
    return {n: kept_index(coupling, chosen, n) for n in names if n in coupling.graph.values}


def matched(
    names: Sequence[str], made: Mapping[str, Any], told: Mapping[str, Any], kept: Mapping[str, Index], weight: float
) -> Matched:
    """Decide how each value is compared, by its sizes in both models for the same samples; raises UsageError."""
    used, similar = {}, set()
    for name in names:
        mine, whole = tuple(made[name].shape), np.asarray(told[name])
        if whole.dtype.kind != "f" or not whole.ndim:
            raise UsageError(f"--features: {name!r} is {whole.dtype}{list(whole.shape)}, no real numbers per sample")
        if name in kept and len(kept[name]) == whole.ndim:
            used[name] = kept[name]
            if sliced(whole, kept[name]).shape != mine:
                raise PlanError(f"the plan is not that of the pruned model: {name!r} is {list(mine)} there")
        elif whole.shape != mine:
            if whole.shape[0] != mine[0] or len(mine) < 2:
                raise UsageError(f"--features: {name!r} is {list(mine)}, dense {list(whole.shape)}: give its --plan")
            similar.add(name)
    return Matched(tuple(names), used, frozenset(similar), weight)
