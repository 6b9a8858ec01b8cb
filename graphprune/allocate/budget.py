"""Budgets: what is asked for, and which groups it is asked of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

from graphprune.axes import leaves
from graphprune.costs import CostModel, Costs
from graphprune.errors import TargetError, UsageError
from graphprune.groups import ChannelGroup, Coupling
from graphprune.kinds import KINDS


@dataclass(frozen=True)
class Budget:
    """How much to remove, and where.

    `sparsity` is the fraction of indices to remove, in [0, 1); `targets` instead are fractions of a cost to keep,
    in (0, 1], by kind (one of `KINDS`): all of them are met. `align` is the step that kept counts are multiples of
    (1: any count), `floor` the fraction of every group that always stays. `include` and `exclude` are patterns of
    names; `sparsities` gives the groups that a pattern matches a sparsity of their own, the last match counts.

    >>> Budget(targets={"macs": 0.5}, allocation="global", align=16, exclude=("fc.*",)).floor
    0.1

    Raises UsageError for a number out of its range, for both or neither of sparsity and targets.
    """

    sparsity: float | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    allocation: str = "uniform"
    align: int = 1
    floor: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sparsities: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sparsity is not None and self.targets:
            raise UsageError("give a sparsity or targets, not both")
        if self.sparsity is None and not self.targets and not self.sparsities:
            raise UsageError("nothing is asked for: give a sparsity or a target")
        if self.sparsity is not None:
            _check_sparsity("sparsity", self.sparsity)
        for kind, kept in self.targets.items():
            if kind not in KINDS:
                raise UsageError(f"no target of {kind!r}: choose {', '.join(KINDS)}")
            if not 0 < kept <= 1:
                raise UsageError(f"target {kind}={kept} is the fraction that is kept: it must be in (0, 1]")
        for pattern, sparsity in self.sparsities.items():
            _check_sparsity(f"sparsity of {pattern!r}", sparsity)
        if self.align < 1:
            raise UsageError(f"alignment {self.align}: it must be 1 or more")
        if not 0 <= self.floor <= 1:
            raise UsageError(f"floor {self.floor}: it must be in [0, 1]")

    def to_json(self) -> dict[str, Any]:
        """Return the budget as plain JSON."""
        return {
            "sparsity": self.sparsity,
            "targets": dict(self.targets),
            "allocation": self.allocation,
            "align": self.align,
            "floor": self.floor,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "sparsities": dict(self.sparsities),
        }


def limits_of(budget: Budget, costs: CostModel, dense: Costs) -> dict[str, float]:
    """Return what each kind that has a target may cost; kinds that the dense model has nothing of are left out.

    Raises UsageError for a kind that the cost model does not count.
    """
    for kind in budget.targets:
        if not costs.columns_of(kind):
            raise UsageError(f"a target of {kind!r} needs a cost model that counts it, and this one does not")
    return {kind: kept * dense.of(kind) for kind, kept in budget.targets.items() if dense.of(kind)}


def unreachable(budget: Budget, kind: str, reachable: float, groups: int) -> TargetError:
    """Return the error for a target below what floors and alignment permit; `reachable`: the smallest fraction."""
    return TargetError(
        f"target {kind}={budget.targets[kind]:g} cannot be reached: the smallest reachable fraction is "
        f"{ceil(reachable * 1e4) / 1e4:g} with a floor of {budget.floor:g} and steps of {budget.align} in "
        f"{groups} groups; lower the floor or the alignment, or include more groups"
    )


def _check_sparsity(what: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{what} {value} is the fraction that is removed: it must be in [0, 1)")


@dataclass(frozen=True)
class Selection:
    """The groups that may give something up, in the model's order, and the sparsities that some of them have."""

    groups: tuple[ChannelGroup, ...]
    fixed: Mapping[str, float]


def select(coupling: Coupling, budget: Budget) -> Selection:
    """Return the groups that a budget is asked of.

    A pattern is a full name, else a shell pattern or a part of a name. It matches a group by the group's name, by
    the name of a weight that the group's dim lies on, or by the name of a node that has the dim on an axis.

    Raises UsageError, naming what is close, for a pattern that matches nothing.
    """
    patterns = (*budget.include, *budget.exclude, *budget.sparsities)
    matched = _matches(coupling, patterns) if patterns else {}
    included = set().union(*(matched[p] for p in budget.include))
    excluded = set().union(*(matched[p] for p in budget.exclude))
    groups = tuple(
        g for g in coupling.groups if (not budget.include or g.name in included) and g.name not in excluded
    )
    chosen = {g.name for g in groups}
    fixed = {name: s for p, s in budget.sparsities.items() for name in matched[p] if name in chosen}
    return Selection(groups, fixed)


def _matches(coupling: Coupling, patterns: Iterable[str]) -> dict[str, set[str]]:
    """Return for each pattern the names of the groups that it matches."""
    names = _names(coupling)
    out: dict[str, set[str]] = {}
    for pattern in patterns:
        hits = [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern) or pattern in n]
        if not pattern or not hits:
            near = difflib.get_close_matches(pattern, names, 3, cutoff=0.4)
            hint = f": close names are {', '.join(map(repr, near))}" if near else ""
            raise UsageError(f"no channel group, weight or node matches {pattern!r}{hint}")
        out[pattern] = set().union(*(names[n] for n in hits))
    return out


def _names(coupling: Coupling) -> dict[str, set[str]]:
    """Return the names that patterns are held against, each with the groups it stands for."""
    names: dict[str, set[str]] = {}
    for group in coupling.groups:
        for name in (group.name, *(o.initializer for o in group.occurrences)):
            names.setdefault(name, set()).add(group.name)
    for op in coupling.graph.ops:
        for operand in (*op.inputs, *op.outputs):
            for axis in operand.axes if operand is not None else ():
                for dim in leaves(coupling.expand(axis)):
                    if dim in coupling.dims:
                        names.setdefault(op.name, set()).add(coupling.dims[dim].name)
    return names
