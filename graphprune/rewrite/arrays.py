"""What goes in and out of a model whose inputs or outputs change: the same arrays with the same indices chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.axes import leaves, slots
from graphprune.groups import Coupling
from graphprune.rewrite.apply import Chosen

Arrays = Mapping[str, npt.NDArray[Any]]


def arranged(arrays: Arrays, coupling: Coupling, chosen: Chosen) -> Arrays:
    """Return a dense model's inputs or outputs as the model that `rearranged` made takes or gives them.

    Only inputs and outputs that may change are touched: pruning slices their free axes, a permutation shuffles them.
    """
    out = dict(arrays)
    for port in coupling.graph.ports:
        if port.name not in out:
            continue
        for k, axis in enumerate(coupling.graph.values[port.name].axes):
            axis = coupling.expand(axis)
            if any(d in chosen for d in leaves(axis)):
                out[port.name] = np.take(out[port.name], slots(axis, chosen), axis=k)
    return out
