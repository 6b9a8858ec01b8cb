"""The permutation proof: a right coupling leaves the network's function unchanged when every dim is permuted.

Every index of every group is moved, consistently in all tensors, and both models are run. What rounding alone does is
measured on the dense model (with and without graph optimisation) and bounds the tolerance from below.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import Dim
from graphprune.groups import ChannelGroup, Coupling
from graphprune.model import has_external_data, tensor_bytes, write_into
from graphprune.rewrite import rearranged
from graphprune.runtime import Runtime, open_session, run

Outputs = Mapping[str, npt.NDArray[Any]]
TOLERANCE = 1e-3
_LOOSEST = 0.1
_NOISE_FACTOR = 10.0
_EMBED_LIMIT = 1_500_000_000


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


@contextmanager
def runnable(model: ir.Model) -> Iterator[str | bytes]:
    """Yield a model in the form onnxruntime opens: bytes, or a temporary file where it is too large for them."""
    if tensor_bytes(model) < _EMBED_LIMIT and not has_external_data(model):
        yield ir.to_proto(model).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        yield str(write_into(model, Path(folder), "model.onnx", external=True))


def evaluate(model: ir.Model, feeds: Outputs, *, optimise: bool = False, threads: int = 0) -> Outputs:
    """Run a model once on the CPU and return its outputs by name."""
    with runnable(model) as source:
        return run(open_session(source, Runtime(threads=threads or 2, optimise=optimise)), feeds)


def relative_error(reference: Outputs, other: Outputs) -> tuple[float, str]:
    """Return the largest difference of any output in units of that output's largest magnitude, and which it is.

    >>> relative_error({"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 2.2])})[0] < 0.11
    True
    """
    worst, name = 0.0, ""
    for key, a in reference.items():
        error = _error(a, other[key])
        if error > worst or not name:
            worst, name = error, key
    return worst, name


def _error(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.size or a.dtype.kind in "OSU":
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if same.all():
        return 0.0
    if not (np.isfinite(x[~same]).all() and np.isfinite(y[~same]).all()):
        return float("inf")
    scale = np.abs(x[np.isfinite(x)]).max(initial=1e-30)
    return float(np.abs(x - y)[~same].max() / scale)


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
    feeds: Sequence[Outputs],
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Prove the coupling of a normalised model on some inputs.

    Raises SessionError if onnxruntime cannot run the dense model.
    """
    groups = coupling.groups
    progress("running the dense model")
    dense = [evaluate(model, f) for f in feeds]
    optimised = [evaluate(model, f, optimise=True) for f in feeds]
    noise = max((relative_error(a, b)[0] for a, b in zip(dense, optimised, strict=True)), default=0.0)
    noise = noise if np.isfinite(noise) else 0.0
    tolerance = min(max(TOLERANCE, _NOISE_FACTOR * noise), _LOOSEST)

    def error(chosen: Sequence[ChannelGroup]) -> tuple[float, str]:
        permuted = rearranged(model, coupling, permutations(chosen, seed))
        with runnable(permuted) as source:
            session = open_session(source, Runtime(threads=2, optimise=False))
            return max(relative_error(a, run(session, f)) for a, f in zip(dense, feeds, strict=True))

    progress("running the permuted model")
    worst, name = error(groups) if groups else (0.0, "")
    passed = worst <= tolerance
    culprits = () if passed else tuple(_culprits(groups, lambda part: error(part)[0] > tolerance, progress))
    return Proof(len(groups), worst, tolerance, noise, passed, culprits, name)


def _culprits(
    groups: Sequence[ChannelGroup], fails: Callable[[Sequence[ChannelGroup]], bool], progress: Callable[[str], None]
) -> list[str]:
    """Halve the groups until at most three are left that fail by themselves."""
    pending, found = [list(groups)], []
    while pending and len(found) < 3:
        part = pending.pop()
        if len(part) == 1:
            found.append(part[0].name)
            continue
        progress(f"looking for the wrong group among {len(part)}")
        middle = len(part) // 2
        pending += [half for half in (part[:middle], part[middle:]) if fails(half)]
    return found
