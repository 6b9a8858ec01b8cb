"""Who follows what is pruned: layers that contract no group themselves, but read what changes before them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from graphprune.consumers import Consumer, Consumers, Source, unfit
from graphprune.groups import Coupling
from graphprune.ops import DESIGNS


def followers(coupling: Coupling, found: Consumers) -> tuple[Consumer, ...]:
    """Return the other nodes that multiply data with a weight of their own: they contract no group.

    Their inputs change where something before them is pruned, so they can make up for it: depthwise convolutions, and
    layers behind one that is narrower inside.
    """
    known = {c.node for c in found.found} | {op.name for c in found.found for op, _ in c.others} | set(found.left_out)
    readers = Counter(o.name for op in coupling.graph.ops for o in op.inputs if o is not None)
    out = []
    for op in coupling.graph.ops:
        rule = DESIGNS.get(op.domain, op.type, op.version)
        if rule is None or op.name in known or any(o is not None and not o.rank_known for o in op.inputs):
            continue
        weight = next((i for i, o in enumerate(op.inputs) if o is not None and o.name in coupling.graph.sources), None)
        design = rule(op.attributes, [o.shape if o is not None else () for o in op.inputs], weight or 0)
        if weight is None or design is None or design.answers is None or design.integers is not None:
            continue
        operand = op.x(design.weight)
        held = coupling.graph.weights.get(operand.name)
        if held is None or held.filled or held.quantised or readers[operand.name] > 1 or unfit(op, design, coupling):
            continue
        axis = coupling.expand(operand.axes[design.axis])
        groups, width, _ = design.matrix(np.broadcast_to(np.float32(0), operand.shape)).shape
        if axis.size and width % axis.size == 0:
            source = Source(op.x(design.data).name)
            out.append(Consumer(op.name, op, design, operand.name, axis, width // axis.size, groups, source))
    return tuple(out)
