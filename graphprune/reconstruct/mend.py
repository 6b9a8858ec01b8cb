"""Repair of a pruned model: every layer's weights are fitted anew to what the dense layer gave, in closed form.

Bias: weights stay, and what a layer read of removed inputs becomes its mean. Symmetric: each layer by itself, from
statistics of the dense model. Sequential and matched: then single layers are corrected in the order of the graph
(`correct.py`). What check rows do not confirm is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.statistics import Gram
from graphprune.followers import followers
from graphprune.groups import Coupling
from graphprune.model import all_nodes
from graphprune.reconstruct.confirm import confirmed
from graphprune.reconstruct.correct import Corrector, Refits, originals, written
from graphprune.reconstruct.layers import Layer, Matrix, Part, bias_of, layer, plain_attributes
from graphprune.reconstruct.obs import Quadratic
from graphprune.reconstruct.paired import SideBySide
from graphprune.reconstruct.ridge import Moments, Refit
from graphprune.reconstruct.shifts import place_of
from graphprune.rewrite import Chosen, arranged

Progress = Callable[[str], None]
Watch = Callable[[int, int], bool]
Item = TypeVar("Item")
Mode = Literal["bias", "symmetric", "sequential", "matched"]
_CORRECTIONS = 32


@dataclass(frozen=True)
class Mended:
    """What became of one layer: errors on check rows, fractions of the output's energy, before and after."""

    node: str
    before: float
    after: float
    strength: float | None

    @staticmethod
    def of(node: str, refits: Refits) -> Mended:
        plain, after = (max(float(np.mean([getattr(r, k) for r in refits])), 0.0) for k in ("plain", "error"))
        return Mended(node, plain, after, max((r.lam for r in refits if r.lam is not None), default=None))


def mend(
    dense: ir.Model,
    pruned: ir.Model,
    coupling: Coupling,
    chosen: Chosen,
    known: Knowledge,
    *,
    mode: Mode = "sequential",
    corrections: int = _CORRECTIONS,
    rounds: int = 0,
    threads: int = 0,
    progress: Progress = lambda text: None,
    watch: Watch = lambda done, corrections: True,
) -> list[Mended]:
    """Repair a pruned model in place; `dense` is the normalised model that it was made from.

    Every layer is refitted symmetrically; then, in the modes sequential and matched, so many of them (`corrections`,
    evenly along the graph, the last one among them), one after the other, to what the model as repaired so far gives
    them: both models run over all samples for each, and again for each of `rounds`. Several layers between two
    corrections are not fitted to the same accumulated error: each would take it back, and together they would take it
    back several times. Where every layer is corrected, those that lost nothing make up for what changed before them,
    too. `watch` is told (corrections done, in all) before the first and after each, and says whether the outputs
    are nearer by them: where they are not at the end, corrections are taken back.
    """
    in_order = mode in ("sequential", "matched")
    layers = _layers(pruned, coupling, chosen, known, corrections if in_order else 0)
    touched = [x for x in layers if x.touched]
    refits = {x.node: _symmetric(x, coupling, known, () if mode == "bias" else None) for x in touched}
    for each in touched:
        written(pruned, each, refits[each.node])
    done = {name: Mended.of(name, found) for name, found in refits.items()}
    if not in_order:
        return list(done.values())
    nodes = all_nodes(pruned)
    points = evenly([x for x in layers if _in_order(x, nodes[x.node])], corrections)
    both = SideBySide(dense, pruned, known, lambda feed: arranged(feed, coupling, chosen), threads)
    corrector = Corrector(both, coupling, matched=mode == "matched", rounds=rounds)
    if points:
        watch(0, len(points))
    corrected = dict(done)
    for k, each in enumerate(points, start=1):
        progress(f"refitting {each.node}, {k} of {len(points)}")
        found = corrector.correct(each, refits.get(each.node))
        if found is not None:
            corrected[each.node] = Mended.of(each.node, found)
        if not watch(k, len(points)) and k == len(points):
            corrector.take_back()
            return list(done.values())
    return list(corrected.values())


def writable(each: Layer, nodes: Mapping[str, ir.Node]) -> bool:
    """Return whether what a repair adds to a layer's outputs can be written."""
    if each.consumer.frozen:
        return place_of(nodes[each.node], each.design, each.outputs) is not None
    if each.design.answers is not None or each.design.bias is None:
        return True
    return all(bias_of(nodes[name], each) is not None for name in each.consumer.nodes if name in nodes)


def _in_order(each: Layer, node: ir.Node) -> bool:
    """Return whether a layer can be fitted to the outputs of the dense one: it has one place, and answers there."""
    one = each.consumer
    return one.design.answers is not None and not one.others and not one.frozen and bias_of(node, each) is not None


def evenly(items: Sequence[Item], number: int) -> list[Item]:
    """Return so many of the items, at distances as equal as can be, the last one among them.

    >>> evenly("abcdef", 3)
    ['b', 'd', 'f']
    """
    number = max(0, min(number, len(items)))
    return [items[round((k + 1) * len(items) / number) - 1] for k in range(number)]


def _layers(
    pruned: ir.Model, coupling: Coupling, chosen: Chosen, known: Knowledge, corrections: int
) -> list[Layer]:
    """Return the consumers that are left, in the graph's order.

    Where all of them can be corrected, also layers that contract no group, if anything before them has changed.
    """
    nodes = all_nodes(pruned)
    place = {name: k for k, name in enumerate(nodes)}
    others = followers(coupling, known.consumers) if corrections else ()
    ready = [c for c in known.consumers.found if c.key in known.stats.fit]
    found = []
    for c in sorted([*ready, *others], key=lambda c: place.get(c.node, 0)):
        node = nodes.get(c.node)
        made = layer(c, coupling, chosen, plain_attributes(node)) if node is not None else None
        if made is not None and writable(made, nodes):
            found.append(made)
    moved = _moved(pruned, found) if len(found) <= corrections else set()
    idle = {c.node for c in others}
    return [x for x in found if x.node not in idle or x.consumer.data in moved]


def _moved(pruned: ir.Model, layers: Sequence[Layer]) -> set[str]:
    """Return the values that layers which lost inputs have changed."""
    touched = {x.node for x in layers if x.touched}
    moved: set[str] = set()
    for node in pruned.graph:
        if node.name in touched or any(v is not None and v.name in moved for v in node.inputs):
            moved |= {str(o.name) for o in node.outputs}
    return moved


def _symmetric(each: Layer, coupling: Coupling, known: Knowledge, strengths: Sequence[float] | None) -> list[Refit]:
    matrix = originals(each, coupling)
    biased = each.biased
    refits = []
    for part in each.parts:
        sums = known.stats.fit[each.consumer.key], known.stats.check.get(each.consumer.key)
        fit, check = (moments_of(g, part, matrix, biased) if g is not None else None for g in sums)
        assert fit is not None
        weight = matrix[part.block][np.ix_(part.columns, part.outputs)]
        lams = () if each.consumer.frozen else strengths
        refits.append(confirmed(fit, check, weight, lams, biased, apart=known.apart))
    return refits


def moments_of(gram: Gram, part: Part, matrix: Matrix, biased: bool) -> Moments:
    """Return what the sums of a dense layer say of one of its parts."""
    rows = max(gram.rows, 1)
    quadratic = Quadratic(
        gram.second[part.block] / rows, gram.first[part.block] / rows, gram.rows,
        matrix[part.block][:, part.outputs], None, biased,
    )
    return Moments.symmetric(quadratic, part.columns)
