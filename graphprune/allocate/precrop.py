"""Widths from the architecture alone: the densities of layers whose product is largest for what they cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphprune.groups import ChannelGroup, Coupling

PRECROP = "precrop"


def profile(coupling: Coupling) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Return for each group widths, and what each of them loses: -n log(width / size), n the kernels that it lies on.

    >>> profile(coupling)["conv1.weight:0"][1][-1]  # all channels  # doctest: +SKIP
    0.0

    A kernel between groups a and b keeps the share (a / A) (b / B) of its weights, its density. The sum of the
    logarithms of all densities is what is to be largest for a budget: that of the flow expected through a network of
    random weights. So a group that many layers share, as along residual sums, keeps more than one inside a
    block that costs as much.

    Source: Cai et al., Structured Pruning is All You Need for Pruning CNNs at Initialization (arXiv 2203.02549), the
    expected flow (SynExp) and PreCrop. They solve for densities first and then take widths inside blocks; here widths
    are chosen at once, residual ones as well, by the solver of the allocation by error.
    """
    out = {}
    for group in coupling.groups:
        widths = np.arange(1, group.size + 1, dtype=np.float64)
        out[group.name] = widths, -kernels(coupling, group) * np.log(widths / group.size)
    return out


def kernels(coupling: Coupling, group: ChannelGroup) -> int:
    """Return on how many axes of kernels and matrices a group lies, 1 at least."""
    weights = coupling.graph.weights
    return max(sum(sum(n > 1 for n in weights[o.initializer].shape) > 1 for o in group.occurrences), 1)


def best_scored(scores: Mapping[str, npt.NDArray[np.float64]], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return so many indices of the groups that lose any, those of the highest scores.

    >>> best_scored({"a": np.array([1.0, 3.0, 2.0])}, {"a": 2})
    {'a': [1, 2]}
    """
    kept = {name: np.argsort(-scores[name], kind="stable")[:k] for name, k in counts.items() if k < len(scores[name])}
    return {name: sorted(int(i) for i in indices) for name, indices in kept.items()}
