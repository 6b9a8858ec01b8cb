"""A model as the runtime runs it: nodes of the optimised graph, with their sizes as functions of groups' sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from graphprune.analysis import Analysis
from graphprune.axes import Dim
from graphprune.execute import runnable
from graphprune.groups import Coupling
from graphprune.machine.profile import Profile, Timed, profiles
from graphprune.machine.variants import Matching, Sized, widths
from graphprune.ops.workloads import Seen, Workload, workload
from graphprune.rewrite import arranged, rearranged
from graphprune.runtime import Feeds

Sizes: TypeAlias = "Mapping[Dim, int]"
Progress: TypeAlias = Callable[[str], None]
_AT_A_TIME = 1_000_000_000  # bytes of weights of models that are open together
_SEEN, _TIMED = 2, 2000  # rounds that tell the shapes, and at most those that tell the times


@dataclass(frozen=True)
class Node:
    """A node of the optimised graph, for any sizes of groups; `owner` is the model's own node that it comes from."""

    key: str
    owner: str
    operator: str
    inputs: tuple[tuple[float, tuple[Sized, ...]], ...]
    outputs: tuple[tuple[float, tuple[Sized, ...]], ...]

    def workload(self, sizes: Sizes) -> Workload:
        """Return what the node has to do when each dim in `sizes` has that size."""
        sides = (tuple((b, tuple(f(sizes) for f in axes)) for b, axes in s) for s in (self.inputs, self.outputs))
        return workload(Seen(self.operator, *sides))

    @property
    def dims(self) -> tuple[Dim, ...]:
        """Return the dims that its sizes depend on."""
        found = (d for side in (self.inputs, self.outputs) for _, axes in side for f in axes for d in f.dims)
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Looked:
    """What profiles of a model and its variants tell: nodes, and for each variant its sizes and its profile."""

    nodes: tuple[Node, ...]
    variants: tuple[tuple[Sizes, Profile], ...]

    @property
    def dense(self) -> Profile:
        return self.variants[0][1]


def look(analysis: Analysis, align: int, count: int, seconds: float, progress: Progress) -> Looked | None:
    """Run a model and variants of it with the profiler on; None where the dense model does not run so.

    `count` variants are run in turn, again and again for `seconds`; with 0 seconds just often enough to tell shapes.
    """
    sizes = widths(analysis.coupling, count, align, analysis.looking.seed)
    found: list[tuple[Sizes, Profile]] = []
    step = max(int(_AT_A_TIME // max(analysis.dense.bytes, 1)), 2)
    for start in range(0, len(sizes), step):
        part = sizes[start : start + step]
        progress(f"timing nodes of {len(sizes)} variants, {start + 1} and on")
        rounds = _TIMED if seconds else _SEEN
        share = seconds * len(part) / len(sizes)
        done = profiled(analysis, part, rounds, share)
        found += [(s, p) for s, p in zip(part, done, strict=True) if p is not None and p.nodes]
        if not start and (not found or found[0][0]):
            return None
    return Looked(tuple(_nodes(analysis.coupling, found)), tuple(found))


def profiled(
    analysis: Analysis, variants: Sequence[Sizes], rounds: int, seconds: float
) -> list[Profile | None]:
    """Return where the time goes in a model at several pruned sizes, run in turn."""
    feed = analysis.reference.feeds[0]
    with ExitStack() as stack:
        models: list[tuple[str | bytes, Feeds]] = []
        for sizes in variants:
            chosen = {dim: np.arange(n) for dim, n in sizes.items()}
            model = rearranged(analysis.model, analysis.coupling, chosen) if sizes else analysis.model
            models.append((stack.enter_context(runnable(model)), arranged(feed, analysis.coupling, chosen)))
        found = profiles(models, analysis.looking.runtime, rounds, seconds)
    owners = _owners(analysis.coupling)
    return [None if profile is None else owned(profile, owners) for profile in found]


def owned(profile: Profile, owners: Mapping[str, str]) -> Profile:
    """Return a profile whose nodes have owners, and the same key as in other variants' profiles.

    Nodes that the runtime puts in, such as changes of layout, are numbered by it as they come, and which come depends
    on the widths. So they are called after the last node before them that is the model's own.
    """
    out: list[Timed] = []
    last, taken = "", Counter[str]()
    for node in profile.nodes:
        owner = _owner(node.key, owners)
        if owner is not None:
            out.append(replace(node, owner=owner))
            last = owner
            continue
        name = f"{node.seen.operator} after {last}"
        key = f"{name}, {taken[name]}"
        taken[name] += 1
        out.append(replace(node, key=key, owner=last or key))
    return Profile(tuple(out))


def _nodes(coupling: Coupling, found: Sequence[tuple[Sizes, Profile]]) -> list[Node]:
    """Return the nodes of the dense model, with fixed sizes where those of the variants do not tell what they are."""
    matching = Matching(coupling, [sizes for sizes, _ in found])
    seen = [{n.key: n.seen for n in profile.nodes} for _, profile in found]
    out = []
    for node in found[0][1].nodes:
        key, first = node.key, node.seen
        alike = [s[key] if key in s and _ranks(s[key]) == _ranks(first) else None for s in seen]
        sides = []
        for side in ("inputs", "outputs"):
            operands = []
            for i, (element, shape) in enumerate(getattr(first, side)):
                columns = [
                    [None if s is None else getattr(s, side)[i][1][k] for s in alike] for k in range(len(shape))
                ]
                operands.append((element, tuple(_sized(matching, c) for c in columns)))
            sides.append(tuple(operands))
        out.append(Node(key, node.owner, first.operator, sides[0], sides[1]))
    return out


def _sized(matching: Matching, observed: Sequence[int | None]) -> Sized:
    found = matching.sized(observed)
    return Sized(None, observed[0] or 0, 1) if found is None else found


def _ranks(seen: Seen) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(len(shape) for _, shape in side) for side in (seen.inputs, seen.outputs))


def _owners(coupling: Coupling) -> dict[str, str]:
    """Return names that optimised nodes may be called after: nodes, and the values that nodes give."""
    out = {o.name: op.name for op in coupling.graph.ops for o in op.outputs if o is not None}
    return out | {op.name: op.name for op in coupling.graph.ops}


def _owner(key: str, owners: Mapping[str, str]) -> str | None:
    """Return the model's node that an optimised node is called after, None where it is none."""
    name = key.rpartition(":")[0]
    for candidate in (name, name.removesuffix("_nchwc"), *_shorter(name)):
        if candidate in owners:
            return owners[candidate]
    return None


def _shorter(name: str) -> list[str]:
    parts = name.rstrip("/").split("/")
    return ["/".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
