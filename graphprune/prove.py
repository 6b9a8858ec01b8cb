"""The permutation proof: a right coupling leaves the network's function unchanged when every dim is permuted.

Every index of every group is moved, consistently in all tensors, and both models are run. What rounding alone does is
measured on the dense model (with and without graph optimisation) and bounds the tolerance from below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Dim
from graphprune.execute import relative_error
from graphprune.groups import ChannelGroup, Coupling
from graphprune.reference import TOLERANCE, Reference
from graphprune.rewrite import rearranged
from graphprune.runtime import run

__all__ = ["TOLERANCE", "Proof", "Reference", "permutations", "prove"]


@dataclass(frozen=True)
class Proof:
    """The outcome of a permutation proof; `noise` is what rounding alone does to the dense model."""

    groups: int
    max_relative_error: float
    tolerance: float
    noise: float
    passed: bool
    culprits: tuple[str, ...] = ()
    worst_output: str = ""


def permutations(groups: Sequence[ChannelGroup], seed: int) -> dict[Dim, npt.NDArray[np.int64]]:
    """Return a random order for every group's dim that moves something."""
    rng = np.random.default_rng(seed)
    out = {}
    for g in groups:
        order = rng.permutation(g.size)
        out[g.dim] = np.roll(order, 1) if (order == np.arange(g.size)).all() else order
    return out


def prove(
    model: ir.Model,
    coupling: Coupling,
    reference: Reference,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Prove the coupling of a normalised model against the model it was made from.

    Raises SessionError if onnxruntime cannot run the dense model.
    """
    groups = coupling.groups
    progress("running the dense model")
    tolerance = reference.tolerance

    def error(chosen: Sequence[ChannelGroup]) -> tuple[float, str]:
        permuted = rearranged(model, coupling, permutations(chosen, seed))
        opened = reference.open(permuted, optimise=False)
        pairs = zip(reference.plain, reference.feeds, strict=True)
        return max(relative_error(a, run(opened, f)) for a, f in pairs)

    progress("running the permuted model")
    worst, name = error(groups)
    passed = worst <= tolerance
    culprits = () if passed else tuple(_culprits(groups, lambda part: error(part)[0] > tolerance, progress))
    return Proof(len(groups), worst, tolerance, reference.noise, passed, culprits, name)


def _culprits(
    groups: Sequence[ChannelGroup], fails: Callable[[Sequence[ChannelGroup]], bool], progress: Callable[[str], None]
) -> list[str]:
    """Halve the groups until at most three are left that fail by themselves."""
    pending: list[list[ChannelGroup]] = [list(groups)]
    found: list[str] = []
    while pending and len(found) < 3:
        part = pending.pop()
        if len(part) == 1:
            found.append(part[0].name)
            continue
        progress(f"looking for the wrong group among {len(part)}")
        middle = len(part) // 2
        pending += [half for half in (part[:middle], part[middle:]) if fails(half)]
    return found
