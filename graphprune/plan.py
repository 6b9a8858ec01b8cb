"""Pruning plans: which indices each channel group keeps. The artefact that people commit, compare and replay."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.axes import Dim
from graphprune.errors import PlanError
from graphprune.groups import Coupling
from graphprune.writing import put

FORMAT = "graphprune plan 1"
_FIELDS = ("format", "model", "meta", "groups")
_OPTIONAL = ("bypass",)
_LARGEST = 1 << 24
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True)
class PruningPlan:
    """What every channel group keeps.

    `keep` maps a group's name to the kept indices, ascending; a group that keeps all of its indices is absent.
    `sizes` has the dense sizes of the same groups. `model` says what the plan was made for (graphprune's version,
    the model's name and totals), `meta` how (criterion, allocation, budget); both are plain JSON. `bypass` names the
    residual branches that go as a whole; their own groups are in no plan.
    """

    model: Mapping[str, Any]
    keep: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    meta: Mapping[str, Any] = field(default_factory=dict)
    bypass: tuple[str, ...] = ()

    def named(self, name: str) -> PruningPlan:
        """Return the plan with the model's name in its header."""
        return replace(self, model={**self.model, "name": name})

    @property
    def allow_io(self) -> tuple[str, ...]:
        """Patterns of the inputs and outputs whose sizes may change; raises PlanError where that is no such list."""
        return self._texts("allow_io", "patterns")

    def allowing(self, patterns: Sequence[str]) -> PruningPlan:
        """Return the plan with the patterns that it needs to be replayed."""
        return self._noting("allow_io", patterns)

    @property
    def turned(self) -> tuple[str, ...]:
        """Names of groups whose indices are directions of a basis chosen by data (`turning`), not those of the file."""
        return self._texts("turned", "groups")

    def turning(self, names: Sequence[str]) -> PruningPlan:
        """Return the plan with the names of groups that are turned."""
        return self._noting("turned", names)

    def _texts(self, key: str, what: str) -> tuple[str, ...]:
        found = self.meta.get(key, [])
        if not isinstance(found, (list, tuple)) or not all(isinstance(text, str) for text in found):
            raise PlanError(f"the plan's {key} is {found!r}: it must be a list of {what}")
        return tuple(found)

    def _noting(self, key: str, texts: Sequence[str]) -> PruningPlan:
        return replace(self, meta={**self.meta, key: list(texts)}) if texts else self

    def straight(self) -> PruningPlan:
        """Return the plan, for use on weights and values of the dense file; raises PlanError where some are turned."""
        if set(self.turned) & self.keep.keys():
            name = self.turned[0]
            raise PlanError(f"the plan is for widths that are turned ({name!r}): plan with --no-turn (turn=False)")
        return self

    def then(self, later: PruningPlan) -> PruningPlan:
        """Return the plan that does both at once, `later` being made for the model that this one leaves.

        >>> PruningPlan({}, {"a": (1, 2, 5)}, {"a": 6}).then(PruningPlan({}, {"a": (0, 2)}, {"a": 3})).keep
        {'a': (1, 5)}

        Raises PlanError where a group of `later` is not as large as this plan leaves it, or is turned.
        """
        keep, sizes = dict(self.keep), dict(self.sizes)
        later.straight()
        for name, kept in later.keep.items():
            if name in keep and later.sizes[name] != len(keep[name]):
                raise PlanError(f"the group {name!r} has size {later.sizes[name]} where {len(keep[name])} are left")
            keep[name] = tuple(keep[name][i] for i in kept) if name in keep else kept
            sizes.setdefault(name, later.sizes[name])
        return replace(self, keep=keep, sizes=sizes, bypass=(*self.bypass, *later.bypass))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON; kept indices are ranges such as `0-15,17,20-31`.

        >>> PruningPlan({}, {"w:0": (0, 1, 3)}, {"w:0": 4}).to_json()["groups"]
        {'w:0': {'size': 4, 'keep': '0-1,3'}}
        """
        groups = {name: {"size": self.sizes[name], "keep": ranges(kept)} for name, kept in self.keep.items()}
        head = {"format": FORMAT, "model": dict(self.model), "meta": dict(self.meta)}
        return {**head, **({"bypass": list(self.bypass)} if self.bypass else {}), "groups": groups}

    @staticmethod
    def from_json(data: object) -> PruningPlan:
        """Return the plan that `to_json` wrote; raise PlanError where a field is missing, unknown or wrong."""
        if not isinstance(data, dict):
            raise PlanError("a plan is a JSON object with the fields " + ", ".join(_FIELDS))
        for name in _FIELDS:
            if name not in data:
                raise PlanError(f"the plan has no field {name!r}")
        for name in data:
            if name not in (*_FIELDS, *_OPTIONAL):
                raise PlanError(f"the plan has an unknown field {name!r}")
        if data["format"] != FORMAT:
            raise PlanError(f"the plan's format is {data['format']!r}, this graphprune reads {FORMAT!r}")
        for name in ("model", "meta", "groups"):
            if not isinstance(data[name], dict):
                raise PlanError(f"the plan's field {name!r} is not an object")
        found = {name: _group(name, entry) for name, entry in data["groups"].items()}
        keep = {name: kept for name, (_, kept) in found.items()}
        sizes = {name: size for name, (size, _) in found.items()}
        return PruningPlan(data["model"], keep, sizes, data["meta"], _branches(data.get("bypass", [])))

    def text(self) -> str:
        """Return the plan as JSON text with one group a line."""
        data = self.to_json()
        groups = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in data.pop("groups").items()]
        head = json.dumps(data, indent=2).removesuffix("\n}")
        return head + ',\n  "groups": {' + ("\n" + ",\n".join(groups) + "\n  " if groups else "") + "}\n}\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan beside its destination, then rename; raise UsageError if that is not possible."""
        put(Path(path), self.text())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> PruningPlan:
        """Read a plan; raise PlanError if the file is missing, not JSON, or not a plan."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise PlanError(f"{path}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PlanError(f"{path}: is not JSON: it is not text") from error
        try:
            return PruningPlan.from_json(json.loads(text, object_pairs_hook=_unique))
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path}: is not JSON: {error}") from error

    def chosen(self, coupling: Coupling) -> dict[Dim, npt.NDArray[np.int64]]:
        """Return the kept indices of each dim, ascending, shape [kept]; none for the gates of bypassed branches.

        Raises PlanError naming the first group that the model does not have, or has in another size, or whose kept
        indices are none, out of range, twice there or out of order; or the first branch that cannot be bypassed.
        """
        out = {gate: np.zeros(0, dtype=np.int64) for gate in self._gates(coupling)}
        for name, kept in self.keep.items():
            group = coupling.group(name)
            if group is None:
                near = difflib.get_close_matches(name, [g.name for g in coupling.groups], 1)
                hint = f": did you mean {near[0]!r}?" if near else ": it was made for another model"
                raise PlanError(f"the plan's group {name!r} is not in the model{hint}")
            if self.sizes.get(name) != group.size:
                raise PlanError(f"the plan's group {name!r} has size {self.sizes.get(name)}, in the model {group.size}")
            check_keep(name, kept, group.size)
            if len(kept) < group.least:
                raise PlanError(f"the plan's group {name!r} keeps {len(kept)}: at least {group.least} are needed")
            out[group.dim] = np.array(kept, dtype=np.int64)
        return out

    def _gates(self, coupling: Coupling) -> list[Dim]:
        """Return the gates of the branches that are bypassed."""
        gates = []
        for name in self.bypass:
            branch = coupling.branches.named(name)
            if branch is None:
                near = difflib.get_close_matches(name, [b.name for b in coupling.branches.all], 1)
                hint = f": did you mean {near[0]!r}?" if near else ": it was made for another model"
                raise PlanError(f"the plan's branch {name!r} is not in the model{hint}")
            if branch.reason:
                raise PlanError(f"the plan's branch {name!r} cannot be bypassed: {branch.reason}")
            gates.append(branch.gate)
        return gates

    def sizes_of(self, coupling: Coupling) -> dict[Dim, int]:
        """Return how many indices each dim of the plan keeps; raises as `chosen` does."""
        return {dim: len(kept) for dim, kept in self.chosen(coupling).items()}


def header(totals: Mapping[str, float]) -> dict[str, Any]:
    """Return the `model` field of a new plan: graphprune's version, an empty name, and the dense totals."""
    try:
        version = metadata.version("graphprune")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {"graphprune": version, "name": "", **totals}


def ranges(indices: Iterable[int]) -> str:
    """Return ascending indices as text, runs as ranges.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def check_keep(name: str, kept: Sequence[int], size: int) -> None:
    """Raise PlanError unless the kept indices of a group are there, in range, and ascending without repetition."""
    if not len(kept):
        raise PlanError(f"the plan's group {name!r} keeps nothing: keep at least one index")
    previous = -1
    for i in kept:
        if not 0 <= i < size:
            raise PlanError(f"the plan's group {name!r} keeps index {i}, which is out of range: its size is {size}")
        if i <= previous:
            what = "twice" if i == previous else f"after {previous}, out of order"
            raise PlanError(f"the plan's group {name!r} keeps index {i} {what}")
        previous = i


def _group(name: str, entry: object) -> tuple[int, tuple[int, ...]]:
    if not isinstance(entry, dict) or set(entry) != {"size", "keep"}:
        raise PlanError(f"the plan's group {name!r} is not an object with the fields size and keep")
    size, text = entry["size"], entry["keep"]
    if type(size) is not int or not 0 < size <= _LARGEST:
        raise PlanError(f"the plan's group {name!r} has size {size!r}: it must be a number from 1 to {_LARGEST}")
    if not isinstance(text, str):
        raise PlanError(f"the plan's group {name!r} keeps {text!r}: it must be text such as '0-15,17'")
    kept: list[int] = []
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise PlanError(f"the plan's group {name!r} keeps {part!r}, which is neither an index nor a range")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first or last >= size:
            raise PlanError(f"the plan's group {name!r} keeps {part!r}, which is out of range: its size is {size}")
        kept.extend(range(first, last + 1))
        if len(kept) > size:
            break
    check_keep(name, kept, size)
    return size, tuple(kept)


def _branches(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise PlanError("the plan's field 'bypass' is not a list of names, each once")
    return tuple(names)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise PlanError(f"the field {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return out
