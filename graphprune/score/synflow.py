"""SynFlow: the flow through a network of positive weights, pruned little by little; no data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphprune.axes import Axis, Dim, keep, reduce
from graphprune.errors import UsageError
from graphprune.groups import ChannelGroup
from graphprune.score.base import Parts, Request, Vector, informative
from graphprune.score.data import completed
from graphprune.score.elements import slot_sums
from graphprune.score.gradients import FLOW, ByGradient, as_it_is

Keeps = dict[Dim, npt.NDArray[np.bool_]]
ROUNDS = 100
_LEFT = 0.01


def criterion(request: Request) -> Parts:
    """Score indices by when they go, if the network is pruned in 100 rounds by its flow; the scores are in (0, 1].

    In every round weights are made positive, the input is all ones, and R is the sum of all outputs. An index has the
    sum of |w| dR / d|w| over its elements; what is lowest over all groups goes, so that after round k of n a share of
    0.01^(k / n) of all indices is left. One index of every group always stays. For any budget those that went first go.
    Single connections go there. The sums of layers are equal (their conservation law) where nothing but rectifiers,
    pooling and residual sums lies between them; softmax and normalisations by the data break that.

    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (NeurIPS
    2020), the saliency and the algorithm of that name.
    """
    alive: Keeps = {g.dim: np.ones(g.size, np.bool_) for g in request.groups}
    flows = _flows(request, alive)
    scored = [g for g in request.groups if g.name in flows]
    if not any(v.any() for v in flows.values()):
        raise UsageError("--criterion synflow: nothing flows to the outputs (they are normalised, or have no weights)")
    total = sum(g.size for g in scored)
    gone: list[tuple[str, int]] = []
    for k in range(1, ROUNDS + 1):
        flows = flows if k == 1 else _flows(request, alive)
        gone += _lowest(scored, flows, alive, round(total * (1 - _LEFT ** (k / ROUNDS))) - len(gone))
        if request.progress is not None:
            request.progress(k, ROUNDS)
    gone += _lowest(scored, _flows(request, alive), alive, total, least=0)
    found: dict[str, Vector] = {g.name: np.zeros(g.size) for g in scored}
    for rank, (name, index) in enumerate(gone, start=1):
        found[name][index] = rank / total
    parts = completed(
        request, {g.name: (found[g.name],) if g.name in found else () for g in request.groups},
        "have no weight that is trained",
    )
    return Parts(parts.by_group, parts.notes, comparable=True)


def _lowest(
    groups: list[ChannelGroup], flows: dict[str, Vector], alive: Keeps, most: int, least: int = 1
) -> list[tuple[str, int]]:
    """Take at most so many indices out of those alive, the lowest first; `least` of every group stay."""
    ranked = sorted((flows[g.name][i], k, int(i)) for k, g in enumerate(groups) for i in np.flatnonzero(alive[g.dim]))
    out: list[tuple[str, int]] = []
    for _, k, index in ranked:
        if len(out) >= most:
            break
        left = alive[groups[k].dim]
        if int(left.sum()) > least:
            left[index] = False
            out.append((groups[k].name, index))
    return out


def _flows(request: Request, alive: Keeps) -> dict[str, Vector]:
    """Return the flow through every index, for groups with a weight that is trained."""
    assert request.gradients is not None and request.gradients.flow is not None
    coupling = request.coupling
    axes = {n: [coupling.expand(a) for a in w.axes] for n, w in coupling.graph.weights.items() if not w.filled}
    flow = request.gradients.flow({n: _mask(of, alive) for n, of in axes.items()})
    out: dict[str, Vector] = {}
    for group in request.groups:
        found = [
            reduce(axes[o.initializer][o.axis], slot_sums(flow[o.initializer], [o.axis], as_it_is)[o.axis])[group.dim]
            for o in informative(coupling, group) if o.initializer in flow
        ]
        if found:
            out[group.name] = np.sum(found, axis=0)
    return out


def _mask(axes: list[Axis], alive: Keeps) -> npt.NDArray[np.bool_]:
    """Return which elements of a weight are left."""
    mask = np.ones(tuple(a.size for a in axes), np.bool_)
    for k, axis in enumerate(axes):
        left = keep(axis, alive)
        mask &= left.reshape([-1 if i == k else 1 for i in range(len(axes))])
    return mask


SYNFLOW = ByGradient(criterion, (FLOW,))
