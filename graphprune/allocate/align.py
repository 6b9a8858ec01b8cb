"""Alignment: which counts run fast. Processors compute channels in blocks; counts between blocks cost more than dense.

Measured on a CPU with AVX-512 (onnxruntime, 3x3 convolution): a multiple of 4 takes the blocked path at the cost of the
next multiple of 16; any other count falls back to plain convolution, so 64 -> 63 channels is 36 % slower and
64 -> 48 is 35 % faster.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Collection, Iterable
from math import gcd, lcm, prod
from pathlib import Path

from graphprune.axes import Axis, Dim, Sum, leaves
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

    A count must keep every weight axis that the dim lies on aligned: on an axis `(h d)` with d = 8 a step of 2 heads
    is 16 slots. Parts of sums count by themselves. Where two dims of a product can both be removed, the outer one
    relies on the inner one's dense size, and the inner one has to stay aligned alone. A group smaller than two steps
    may also keep what makes its axes multiples of 4. A dense size that is no such multiple is on the slow path
    already: there multiples of 2, or any count, will do.

    >>> allowed_sizes(group, coupling, 16)  # a dim of size 64, alone on its axes  # doctest: +SKIP
    [16, 32, 48, 64]
    """
    return allowed(group.size, coefficients([group], coupling).get(group.dim, {1}), align)


def allowed(size: int, lengths: Iterable[int], align: int) -> list[int]:
    """Return the allowed counts of a dim of which one index is `lengths` slots long on its axes.

    >>> allowed(64, [1], 16), allowed(24, [1], 16), allowed(12, [1, 8], 1)[:3]
    ([16, 32, 48, 64], [4, 8, 12, 16, 20, 24], [1, 2, 3])
    """
    lengths = set(lengths)

    def step(to: int) -> int:
        return lcm(*(to // gcd(to, c) for c in lengths))

    steps = {step(align)}
    if size < 2 * step(align):
        unit = min(_BLOCKED, align)
        if size % step(unit):
            unit = next(u for u in (unit, unit // 2, 1) if u and (size >= 2 * step(u) or u == 1))
        steps.add(step(unit))
    counts = {n for s in steps for n in range(s, size, s)}
    return sorted(counts | {size})


def coefficients(groups: Iterable[ChannelGroup], coupling: Coupling) -> dict[Dim, set[int]]:
    """Return for each group's dim how many slots one of its indices takes on each weight axis that it lies on.

    Vectors along the dim count only for dims that lie on nothing else: their length costs no time.
    """
    wanted = {g.dim: g for g in groups}
    places = {(o.initializer, o.axis) for g in wanted.values() for o in g.occurrences}
    matrices: dict[Dim, set[int]] = {}
    vectors: dict[Dim, set[int]] = {}
    for name, k in sorted(places):
        weight = coupling.graph.weights[name]
        into = matrices if weight.size > weight.shape[k] else vectors
        for dim, length in _lengths(coupling.expand(weight.axes[k]), coupling.dims).items():
            if dim in wanted:
                into.setdefault(dim, set()).add(length)
    return {**vectors, **matrices}


def _lengths(axis: Axis, prunable: Collection[Dim]) -> dict[Dim, int]:
    """Return how many slots one index of each dim takes, where outer prunable factors count once."""
    if isinstance(axis, Dim):
        return {axis: 1}
    out: dict[Dim, int] = {}
    outer = 1
    for i, part in enumerate(axis.parts):
        others = 1 if isinstance(axis, Sum) else outer * prod(p.size for p in axis.parts[i + 1 :])
        for dim, length in _lengths(part, prunable).items():
            out[dim] = out.get(dim, 0) + others * length
        if not any(d in prunable for d in leaves(part)):
            outer *= part.size
    return out
