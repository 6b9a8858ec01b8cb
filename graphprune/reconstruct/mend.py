"""Repair of a pruned model: every layer's weights are fitted anew to what the dense layer gave, in closed form.

Bias: weights stay, and what a layer read of removed inputs becomes its mean. Symmetric: each layer by itself, from
statistics of the dense model. Sequential: then, in the order of the graph, layers are corrected: each reads what the
model as repaired so far gives it, and is fitted to the dense model's outputs. What held-back samples do not confirm is
not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.statistics import Gram
from graphprune.groups import Coupling
from graphprune.model import all_nodes
from graphprune.reconstruct.layers import Layer, Matrix, Part, bias_of, layer, write
from graphprune.reconstruct.obs import Quadratic
from graphprune.reconstruct.paired import Pair, gather_pairs
from graphprune.reconstruct.ridge import Moments, Refit, repair
from graphprune.rewrite import Chosen, arranged

Progress = Callable[[str], None]
Item = TypeVar("Item")
Watch = Callable[[int, int], float]
_CORRECTIONS = 16


@dataclass(frozen=True)
class Mended:
    """What became of one layer: errors on held-back rows before and after, as fractions of the output's variance.

    `before` may be far above 1: an output that hardly varies around a constant loses much of the constant.
    """

    node: str
    before: float
    after: float
    strength: float | None


def mend(
    dense: ir.Model,
    pruned: ir.Model,
    coupling: Coupling,
    chosen: Chosen,
    known: Knowledge,
    *,
    corrections: int = _CORRECTIONS,
    strengths: Sequence[float] | None = None,
    threads: int = 0,
    progress: Progress = lambda text: None,
    watch: Watch = lambda done, corrections: 0.0,
) -> list[Mended]:
    """Repair a pruned model in place; `dense` is the normalised model that it was made from.

    Every layer is refitted symmetrically; then so many of them (`corrections`, evenly along the graph, the last one
    among them), one after the other, to what the model as repaired so far gives them: both models run over all samples
    for each. Several layers between two corrections are not fitted to the same accumulated error: each would take it
    back, and together they would take it back several times. `strengths` are those of refits that are tried; with none
    of them only biases are repaired. `watch` is told (corrections done, in all) before the first and after
    each, and says how far the outputs are off: where that is more at the end than before, corrections are taken back.
    """
    layers = _layers(pruned, coupling, chosen, known)
    nodes = all_nodes(pruned)
    refits = {x.node: _symmetric(x, coupling, known, strengths) for x in layers if x.touched}
    done = {x.node: _written(pruned, x, refits[x.node]) for x in layers if x.touched}
    correctable = [
        x for x in layers if x.consumer.design.answers is not None and bias_of(nodes[x.node], x) is not None
    ]
    points = evenly(correctable, corrections)
    off = watch(0, len(points)) if points else 0.0
    corrected: dict[str, tuple[list[Refit], list[Refit]]] = {}
    for k, each in enumerate(points, start=1):
        progress(f"refitting {each.node}, {k} of {len(points)}")
        pairs = gather_pairs(dense, pruned, each, known, lambda feed: arranged(feed, coupling, chosen), threads)
        before = refits.get(each.node) or _unchanged(each, coupling)
        now = _asymmetric(pruned, each, coupling, pairs, before)
        if any(r.lam is not None for r in now):
            corrected[each.node] = before, now
            done[each.node] = _written(pruned, each, now, before)
        if watch(k, len(points)) > off and k == len(points):
            done = {n: x for n, x in done.items() if n in refits}
            for one in (x for x in points if x.node in corrected):
                first, last = corrected[one.node]
                told = _written(pruned, one, first, last)
                if one.node in refits:
                    done[one.node] = told
    return list(done.values())


def _layers(pruned: ir.Model, coupling: Coupling, chosen: Chosen, known: Knowledge) -> list[Layer]:
    """Return the consumers that are left, in the graph's order."""
    nodes = all_nodes(pruned)
    found = []
    for c in known.consumers.found:
        node = nodes.get(c.node)
        if node is not None and c.key in known.stats.fit:
            attributes = {k: _plain(a.value) for k, a in node.attributes.items()}
            made = layer(c, coupling, chosen, attributes)
            if made is not None:
                found.append(made)
    return found


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def evenly(items: Sequence[Item], number: int) -> list[Item]:
    """Return so many of the items, at distances as equal as can be, the last one among them.

    >>> evenly("abcdef", 3)
    ['b', 'd', 'f']
    """
    number = max(0, min(number, len(items)))
    return [items[round((k + 1) * len(items) / number) - 1] for k in range(number)]


def _biased(each: Layer) -> bool:
    """Return whether something can be added to what a layer puts out."""
    return each.design.answers is not None or each.design.bias is not None


def _originals(each: Layer, coupling: Coupling) -> Matrix:
    return np.asarray(each.consumer.design.matrix(coupling.graph.weights[each.consumer.weight].read()), np.float64)


def _symmetric(each: Layer, coupling: Coupling, known: Knowledge, strengths: Sequence[float] | None) -> list[Refit]:
    matrix = _originals(each, coupling)
    refits = []
    for part in each.parts:
        sums = known.stats.fit[each.consumer.key], known.stats.held.get(each.consumer.key)
        fit, held = (_moments(g, part, matrix, _biased(each)) if g is not None else None for g in sums)
        assert fit is not None
        weight = matrix[part.block][np.ix_(part.columns, part.outputs)]
        refits.append(_refit(fit, held, weight, _biased(each), strengths))
    return refits


def _moments(gram: Gram, part: Part, matrix: Matrix, biased: bool) -> Moments:
    rows = max(gram.rows, 1)
    quadratic = Quadratic(
        gram.second[part.block] / rows, gram.first[part.block] / rows, gram.rows,
        matrix[part.block][:, part.outputs], None, biased,
    )
    return Moments.symmetric(quadratic, part.columns)


def _unchanged(each: Layer, coupling: Coupling) -> list[Refit]:
    """Return the refit that changes nothing."""
    matrix = _originals(each, coupling)
    return [
        Refit(matrix[p.block][np.ix_(p.columns, p.outputs)], np.zeros(len(p.outputs)), None) for p in each.parts
    ]


def _asymmetric(
    pruned: ir.Model, each: Layer, coupling: Coupling, pairs: tuple[Sequence[Pair], Sequence[Pair] | None],
    before: Sequence[Refit],
) -> list[Refit]:
    """Return the refit of the original weights, over refits written `before`."""
    bias = bias_of(all_nodes(pruned)[each.node], each)
    assert bias is not None
    if each.design.bias is not None:
        bias = bias - _shift(before)
    biases = bias.reshape(len(each.parts), -1)
    fit, held = pairs
    return [
        _refit(_paired(fit[g], b), _paired(held[g], b) if held is not None else None, plain.weight, True)
        for g, (b, plain) in enumerate(zip(biases, _unchanged(each, coupling), strict=True))
    ]


def _shift(refits: Sequence[Refit]) -> Matrix:
    return np.concatenate([r.bias.ravel() for r in refits])


def _refit(
    fit: Moments, held: Moments | None, weight: Matrix, biased: bool, strengths: Sequence[float] | None = None
) -> Refit:
    """Return the repair that held-back rows confirm; nothing is repaired where there are none."""
    if held is not None:
        return repair(fit, held, weight, strengths, biased)
    error = fit.error(weight) / fit.scale(biased)
    return Refit(weight, np.zeros(len(fit.target)), None, error, error)


def _paired(pair: Pair, bias: Matrix) -> Moments:
    """Return the moments of inputs and of outputs without what is added to them."""
    n = max(pair.rows, 1)
    mean, target = pair.x / n, pair.y / n
    energy = pair.yy / n - 2 * float(target @ bias) + float(bias @ bias)
    return Moments(pair.xx / n, mean, pair.xy / n - np.outer(mean, bias), target - bias, energy, pair.rows)


def _written(pruned: ir.Model, each: Layer, refits: Sequence[Refit], before: Sequence[Refit] = ()) -> Mended:
    """Write refits of the original weights into a model, over those that were written `before`."""
    node = all_nodes(pruned)[each.node]
    fitted = any(r.lam is not None for r in (*refits, *before))
    shift = [_shift(refits) - (_shift(before) if before else 0.0)] if _biased(each) else None
    write(pruned, node, each, [r.weight for r in refits] if fitted else None, shift)
    plain, after = (max(float(np.mean([getattr(r, k) for r in refits])), 0.0) for k in ("plain", "error"))
    strengths = [r.lam for r in refits if r.lam is not None]
    return Mended(each.node, plain, after, max(strengths, default=None) if strengths else None)
