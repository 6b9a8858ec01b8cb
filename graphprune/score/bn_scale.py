"""Normalisation scales: how much a normalisation amplifies an index."""

from __future__ import annotations

import numpy as np

from graphprune.groups import ChannelGroup, Coupling, Occurrence
from graphprune.score.base import Parts, Request, over_weights
from graphprune.score.elements import elementwise
from graphprune.score.l2 import criterion as l2

_NAMED = 3


def criterion(request: Request) -> Parts:
    """Score indices by the absolute value of their normalisation scales; groups without any by L2, with a note.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming (ICCV 2017), section 3.
    """
    scaled = tuple(g for g in request.groups if any(o.gain for o in g.occurrences))
    others = tuple(g for g in request.groups if not any(o.gain for o in g.occurrences))
    found = over_weights(Request(request.coupling, scaled, request.seed, request.progress), _gains, _ABSOLUTE)
    if not others:
        return found
    rest = l2(Request(request.coupling, others, request.seed, request.progress))
    names = ", ".join(g.name for g in others[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
    note = f"{len(others)} of {len(request.groups)} groups have no normalisation scale and are scored by l2: {names}"
    return Parts({**found.by_group, **rest.by_group}, (*rest.notes, note))


_ABSOLUTE = elementwise(np.abs)


def _gains(coupling: Coupling, group: ChannelGroup) -> tuple[Occurrence, ...]:
    return tuple(o for o in group.occurrences if o.gain)
