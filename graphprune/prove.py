"""The permutation proof: a right coupling leaves the network's function unchanged when every dim is permuted.

Every index of every group is moved, consistently in all tensors, and both models are run. What rounding alone does is
measured on the dense model (with and without graph optimisation) and bounds the tolerance from below.

Where activations are quantised, another order of a sum differs by 1e-7 and may turn a unit, which later layers carry
on: by chance, where a wrong group is wrong in every order. So where such a model is off, a copy is proven that does not
round what is quantised and read back at once; and if some rounding is left in it, the groups in parts, each part on
each input by one of a few orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Dim
from graphprune.errors import SessionError
from graphprune.execute import relative_error
from graphprune.groups import ChannelGroup, Coupling
from graphprune.lively import lively
from graphprune.reference import TOLERANCE, Reference
from graphprune.rewrite import arranged, rearranged
from graphprune.rounding import smoothed
from graphprune.runtime import run

__all__ = ["TOLERANCE", "Proof", "Reference", "permutations", "prove"]

_GAINS = (1.0, 0.5, 1.4, 0.25, 2.0)
_ORDERS = 5
_NOISY = 1e-2
_VISIBLE = 1e-8  # rounding moves the outputs of a network that is alive


@dataclass(frozen=True)
class Proof:
    """The outcome of a permutation proof; `noise` is what rounding alone does to the dense model.

    `random_weights` says that it was found on a copy with random weights, because the model's own hide everything.
    """

    groups: int
    max_relative_error: float
    tolerance: float
    noise: float
    passed: bool
    culprits: tuple[str, ...] = ()
    worst_output: str = ""
    random_weights: bool = False

    @property
    def failure(self) -> str:
        """What is told of a proof that failed: how far off, in which output, by which groups."""
        return (
            f"the permutation proof failed (relative error {self.max_relative_error:.1e} above {self.tolerance:.0e} "
            f"in output {self.worst_output!r}); wrong groups: {', '.join(self.culprits) or 'not found alone'}"
        )


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

    Inputs and outputs that may change are shuffled with the groups that lie on them. Where not a single bit of the
    outputs changes, the weights may be such that nothing could be seen (all one value, a last layer of zeros): then the
    proof is repeated on a copy with random weights. So it is where it fails and rounding alone moves the outputs by
    more than a percent (ties of an untrained detector, say). Raises SessionError if onnxruntime cannot run the dense
    model.
    """
    proof = _permuted(model, coupling, reference, seed, progress)
    unseen = proof.passed and proof.max_relative_error == 0.0
    drowned = not proof.passed and reference.noise > _NOISY and not reference.rounds
    if proof.groups and (unseen or drowned):
        progress("repeating the proof with random weights")
        return _on_random_weights(model, coupling, reference, seed, progress) or proof
    return proof


def _on_random_weights(
    model: ir.Model, coupling: Coupling, reference: Reference, seed: int, progress: Callable[[str], None]
) -> Proof | None:
    """Prove a copy with random weights of a scale at which outputs neither vanish nor saturate."""
    for gain in _GAINS[: 1 if reference.rounds else None]:  # quantised weights keep their scale
        made = lively(model, coupling, gain, seed)
        if made is None:
            return None
        other = replace(reference, model=made[0], source=None)
        with suppress(SessionError):
            if _finite(other) and _VISIBLE < other.noise < TOLERANCE:
                return replace(_permuted(*made, other, seed, progress), random_weights=True)
    return None


def _finite(reference: Reference) -> bool:
    """Return whether outputs are numbers, so that a comparison of them means something."""
    arrays = [a for outputs in reference.plain for a in outputs.values() if a.dtype.kind == "f"]
    return all(np.isfinite(a).all() for a in arrays)


def _permuted(
    model: ir.Model, coupling: Coupling, reference: Reference, seed: int, progress: Callable[[str], None]
) -> Proof:
    groups = coupling.groups
    progress("running the dense model")
    tolerance = reference.tolerance

    def errors(chosen: Sequence[ChannelGroup], seed: int) -> list[tuple[float, str]]:
        orders = permutations(chosen, seed)
        permuted = rearranged(model, coupling, orders)
        opened = reference.open(permuted, optimise=False)
        pairs = zip(reference.plain, reference.feeds, strict=True)
        return [
            relative_error(arranged(a, coupling, orders), run(opened, arranged(f, coupling, orders))) for a, f in pairs
        ]

    progress("running the permuted model")
    worst, name = max(errors(groups, seed))
    passed, culprits = worst <= tolerance, tuple[str, ...]()
    if not passed and reference.rounds:
        smooth = smoothed(model)
        if smooth is not None:
            proof = _permuted(smooth, coupling, replace(reference, model=smooth, source=None), seed, progress)
            if proof.passed:
                return proof
        parts: list[tuple[float, str]] = []
        fails = _by_chance(errors, seed, tolerance, parts)
        culprits = tuple(_culprits(groups, fails, progress)) if fails(groups) else ()
        passed = not culprits
        worst, name = max(parts) if passed else (worst, name)
    elif not passed:
        culprits = tuple(_culprits(groups, lambda part: max(errors(part, seed))[0] > tolerance, progress))
    return Proof(len(groups), worst, tolerance, reference.noise, passed, culprits, name)


def _by_chance(
    errors: Callable[[Sequence[ChannelGroup], int], list[tuple[float, str]]],
    seed: int,
    tolerance: float,
    passed: list[tuple[float, str]],
) -> Callable[[Sequence[ChannelGroup]], bool]:
    """Return what tells whether a part of the groups fails in all orders on some input; `passed` gets the others."""

    def fails(part: Sequence[ChannelGroup]) -> bool:
        least = errors(part, seed)
        for order in range(seed + 1, seed + _ORDERS):
            if max(least)[0] <= tolerance:
                break
            least = [min(pair) for pair in zip(least, errors(part, order), strict=True)]
        passed.extend(least if max(least)[0] <= tolerance else ())
        return max(least)[0] > tolerance

    return fails


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
