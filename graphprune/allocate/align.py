"""Alignment: which counts run fast. Processors compute channels in blocks; counts between blocks cost more than dense.

Measured on a CPU with AVX-512 (onnxruntime, 3x3 convolution): a multiple of 4 takes the blocked path at the cost of the
next multiple of 16; any other count falls back to plain convolution, so 64 -> 63 channels is 36 % slower and
64 -> 48 is 35 % faster.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import gcd, lcm, prod
from pathlib import Path

from graphprune.axes import Axis, Dim, Role, Sum, leaves
from graphprune.groups import ChannelGroup, Coupling

_BLOCKED = 4
"""The smallest multiple that takes the blocked path."""


def detect_alignment() -> int:
    """Return the alignment of this machine's CPU: 16 with AVX-512, 8 with AVX2 or NEON, else 4.

    >>> detect_alignment() in (4, 8, 16)
    True
    """
    return alignment_of(_flags(), platform.machine())


def alignment_of(flags: Collection[str], machine: str) -> int:
    """Return the alignment of a CPU with these feature flags; `machine` decides where the flags are unknown.

    >>> alignment_of({"avx2", "avx512f"}, "x86_64"), alignment_of({"sse4_2"}, "x86_64"), alignment_of((), "arm64")
    (16, 4, 8)
    """
    known = {f.lower() for f in flags}
    if "avx512f" in known:
        return 16
    if known & {"avx2", "asimd", "neon"} or machine.lower() in ("arm64", "aarch64"):
        return 8
    return 8 if not known and machine.lower() in ("x86_64", "amd64") else 4


def _flags() -> set[str]:
    """Return the CPU's feature flags, none where the system does not tell."""
    try:
        if platform.system() == "Darwin":
            names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
            run = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, timeout=5, check=False)
            return set(run.stdout.lower().split())
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, subprocess.SubprocessError):
        return set()
    line = next((x for x in lines if x.lower().startswith(("flags", "features"))), "")
    return set(line.partition(":")[2].split())


def allowed_sizes(group: ChannelGroup, coupling: Coupling, align: int) -> list[int]:
    """Return the counts that a group may keep, ascending; the dense size is always the last.

    A count must keep every axis aligned that weights produce or contract: on an axis `(h d)` with d = 8 a step of 2
    heads is 16 slots. Parts of sums count by themselves. Where two dims of a product can both be removed, the outer
    one relies on the inner one's dense size, and the inner one has to stay aligned alone. A group smaller than two
    steps may also keep what makes its axes multiples of 4. Whatever the groups on an axis choose, an axis that is a
    multiple of 4 stays one; an axis that is none is on the slow path already, and may get any size.

    >>> allowed_sizes(group, coupling, 16)  # a dim of size 64, alone on its axes  # doctest: +SKIP
    [16, 32, 48, 64]
    """
    return allowed(group.size, places([group], coupling).get(group.dim, ()), align)


def allowed(size: int, found: Iterable[Place], align: int) -> list[int]:
    """Return the allowed counts of a dim with these places; none: alone on its axes.

    >>> allowed(64, (), 16), allowed(24, (), 16), allowed(12, [Place(8, 96)], 16)[:3]
    ([16, 32, 48, 64], [4, 8, 12, 16, 20, 24], [2, 4, 6])

    On the axis (58 + 58) counts keep the remainder, so that the sum stays a multiple of 4:

    >>> allowed(58, [Place(1, 116)], 16)
    [10, 26, 42, 58]
    """
    on = set(found) or {Place(1, size)}
    unit = min(_BLOCKED, align)

    def step(to: int) -> int:
        return lcm(*(to // gcd(to, p.slots) for p in on))

    def stays_blocked(count: int) -> bool:
        return all(p.axis % unit or p.slots * (size - count) % unit == 0 for p in on)

    steps = [step(align)]
    if size < 2 * step(align):
        steps.append(next(step(u) for u in (unit, 2, 1) if u == 1 or size % step(u) == 0 or size >= 2 * step(u)))
    multiples = {n for s in steps for n in range(s, size, s) if stays_blocked(n)}
    remainders = {n for s in steps for n in range(size - s, 0, -s) if stays_blocked(n)}
    return [*sorted(multiples or remainders), size]


@dataclass(frozen=True)
class Place:
    """A dim on a weight axis: how many slots one index takes there, and the size of the axis."""

    slots: int
    axis: int


def places(groups: Iterable[ChannelGroup], coupling: Coupling) -> dict[Dim, set[Place]]:
    """Return for each group's dim its places on weight axes.

    What is aligned are the axes that weights produce or contract. Axes of tables (position biases by head), and then
    vectors along the dim, count only for dims that have nothing better: their lengths cost no time.
    """
    roles = {(o.initializer, o.axis, g.dim): o.role for g in groups for o in g.occurrences}
    found: dict[Dim, tuple[set[Place], set[Place], set[Place]]] = {}
    for name, k in dict.fromkeys((name, k) for name, k, _ in roles):
        weight = coupling.graph.weights[name]
        axis = coupling.expand(weight.axes[k])
        for dim, slots in slots_of_one(axis, coupling.dims).items():
            role = roles.get((name, k, dim))
            if role is not None:
                tier = 2 if weight.size == axis.size else 0 if role in (Role.PRODUCED, Role.CONTRACTED) else 1
                found.setdefault(dim, (set(), set(), set()))[tier].add(Place(slots, axis.size))
    return {dim: next(t for t in tiers if t) for dim, tiers in found.items()}


def slots_of_one(axis: Axis, prunable: Collection[Dim]) -> dict[Dim, int]:
    """Return how many slots one index of each dim takes on an axis, where outer prunable factors count once.

    >>> from graphprune.axes import product
    >>> h, d = Dim(12), Dim(64)
    >>> [slots_of_one(product(h, d), {h, d})[x] for x in (h, d)]
    [64, 1]
    """
    if isinstance(axis, Dim):
        return {axis: 1}
    out: dict[Dim, int] = {}
    outer = 1
    for i, part in enumerate(axis.parts):
        others = 1 if isinstance(axis, Sum) else outer * prod(p.size for p in axis.parts[i + 1 :])
        for dim, slots in slots_of_one(part, prunable).items():
            out[dim] = out.get(dim, 0) + others * slots
        if not any(d in prunable for d in leaves(part)):
            outer *= part.size
    return out
