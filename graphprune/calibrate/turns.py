"""How much residual blocks turn what flows through them: the angle between what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.axes import leaves
from graphprune.calibrate.padding import real_tokens
from graphprune.calibrate.samples import Samples
from graphprune.calibrate.statistics import Watched
from graphprune.consumers import Consumer
from graphprune.groups import Coupling
from graphprune.ops import Op

Array = npt.NDArray[Any]
Progress = Callable[[str], None]
_SAMPLES = 64
_TINY = 1e-12


@dataclass(frozen=True)
class Block:
    """A residual block: the value that goes in and past it, the one that comes out, and the axis of their channels."""

    before: str
    after: str
    axis: int


def turns(
    model: ir.Model, coupling: Coupling, consumers: Sequence[Consumer], samples: Samples, *, batch: int = 1,
    threads: int = 0, progress: Progress = lambda text: None,
) -> dict[str, float]:
    """Return by node the change of direction across the residual block that it ends: the mean of the angle over pi.

    The model is run once on at most 64 samples. Nodes that lie in no block are left out, and nodes that read the
    stream which flows past the blocks. 0: what comes out points where what went in did; 0.5: at a right angle to it.

    >>> turns(model, coupling, consumers, samples)  # doctest: +SKIP
    {'layer1/down': 0.21, 'layer2/down': 0.07}

    Source: Wang et al., CFSP (COLING 2025), the coarse importance of blocks, as in its authors' code.
    """
    found = blocks(coupling, consumers)
    watched = Watched(model, [v for b in found.values() for v in (b.before, b.after)], threads)
    sums = {b: [0.0, 0.0] for b in found.values()}
    for feed in islice(samples.batches(batch), max(1, -(-_SAMPLES // batch))) if found else ():
        progress("angles across blocks")
        values, real = watched(feed), real_tokens(feed)
        for block, total in sums.items():
            a, b = (np.moveaxis(np.asarray(values[v], np.float64), block.axis, -1) for v in (block.before, block.after))
            if a.shape != b.shape:
                continue
            if real is not None and a.shape[:2] == real.shape:
                a, b = a[real], b[real]
            angle = angles(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]))
            total[0] += float(angle.sum())
            total[1] += len(angle)
    return {node: sums[b][0] / sums[b][1] for node, b in found.items() if sums[b][1]}


def angles(before: Array, after: Array) -> Array:
    """Return arccos(cos(x, y)) / pi for each row; rows of zeros and rows that are not finite are left out.

    >>> angles(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])).tolist()
    [0.5]
    """
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    some = np.isfinite(norms) & (norms > _TINY)
    cosines = np.sum(before[some] * after[some], axis=1) / norms[some]
    return np.asarray(np.arccos(np.clip(cosines, -1.0, 1.0)) / np.pi)


def blocks(coupling: Coupling, consumers: Sequence[Consumer]) -> dict[str, Block]:
    """Return the residual block that each node ends, by node.

    Such a block ends where what the node puts out meets, in a node of equal sizes on both sides, what the node itself
    was computed from.
    """
    made_by = {o.name: op for op in coupling.graph.ops for o in op.outputs if o is not None}
    out: dict[str, Block] = {}
    for c in consumers:
        met = _meeting(coupling, c, _ancestors(c, made_by))
        if met is None:
            continue
        before, after = met
        through = {d for a in coupling.graph.values[before].axes for d in leaves(coupling.expand(a))}
        if not through & set(leaves(c.axis)):
            out[c.node] = Block(before, after, 1 if c.design.key[0] in ("conv", "turned") else -1)
    return out


def _ancestors(consumer: Consumer, made_by: Mapping[str, Op]) -> set[str]:
    """Return the values that what a node reads was computed from."""
    found: set[str] = set()
    ahead = [consumer.data]
    while ahead:
        name = ahead.pop()
        op = made_by.get(name)
        if name not in found:
            found.add(name)
            ahead += [o.name for o in op.inputs if o is not None] if op is not None else []
    return found


def _meeting(coupling: Coupling, consumer: Consumer, ancestors: set[str]) -> tuple[str, str] | None:
    """Return the value that goes past a block, and what it and the block's end become together."""
    behind = {consumer.output}
    for op in coupling.graph.ops:
        reads = [o for o in op.inputs if o is not None]
        if not any(o.name in behind for o in reads):
            continue
        result = op.output(0)
        if result is None:
            continue
        past = [o for o in reads if o.name in ancestors and o.name not in coupling.graph.sources]
        inner = [o for o in reads if o.name in behind]
        if past and past[0].shape == inner[0].shape == result.shape and len(result.shape) > 1:
            return past[0].name, result.name
        behind |= {o.name for o in op.outputs if o is not None}
    return None
