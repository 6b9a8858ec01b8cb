"""Repair of a pruned model: every layer's weights are fitted anew to what the dense layer gave, in closed form.

Symmetric: each layer by itself, from statistics of the dense model. Sequential: then, in the order of the graph, layers
are corrected: each reads what the model as repaired so far gives it, and is fitted to the dense model's outputs.
What held-back samples do not confirm is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from graphprune.reconstruct.shifts import place_of
from graphprune.rewrite import Chosen, arranged

Progress = Callable[[str], None]
Item = TypeVar("Item")
_CORRECTIONS = 16
_LEAST = 1e-30


@dataclass(frozen=True)
class Mended:
    """What became of one layer: errors on held-back rows, fractions of the output's energy, before and after."""

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
    threads: int = 0,
    progress: Progress = lambda text: None,
) -> list[Mended]:
    """Repair a pruned model in place; `dense` is the normalised model that it was made from.

    Every layer is refitted symmetrically; then so many of them (`corrections`, evenly along the graph, the last one
    among them), one after the other, to what the model as repaired so far gives them: both models run over all samples
    for each. Several layers between two corrections are not fitted to the same accumulated error: each would take it
    back, and together they would take it back several times.
    """
    layers = _layers(pruned, coupling, chosen, known)
    nodes = all_nodes(pruned)
    refits = {x.node: _symmetric(x, coupling, known) for x in layers if x.touched}
    done = {x.node: _written(pruned, x, refits[x.node]) for x in layers if x.touched}
    correctable = [x for x in layers if _in_order(x, nodes[x.node])]
    points = evenly(correctable, corrections)
    for k, each in enumerate(points):
        progress(f"refitting {each.node}, {k + 1} of {len(points)}")
        fit, held = gather_pairs(
            dense, pruned, each, known, lambda feed: arranged(feed, coupling, chosen), threads
        )
        if held is not None:
            before = refits.get(each.node)
            found = _asymmetric(pruned, each, coupling, (fit, held), before)
            if any(r.lam is not None for r in found):
                done[each.node] = _written(pruned, each, found, before)
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
            if made is not None and _writable(made, nodes):
                found.append(made)
    return found


def _writable(each: Layer, nodes: Mapping[str, ir.Node]) -> bool:
    """Return whether what a repair adds to a layer's outputs can be written."""
    if each.consumer.frozen:
        return place_of(nodes[each.node], each.design, each.outputs) is not None
    if each.design.answers is not None or each.design.bias is None:
        return True
    return all(bias_of(nodes[name], each) is not None for name in each.consumer.nodes)


def _in_order(each: Layer, node: ir.Node) -> bool:
    """Return whether a layer can be fitted to the outputs of the dense one: it has one place, and answers there."""
    one = each.consumer
    return one.design.answers is not None and not one.others and not one.frozen and bias_of(node, each) is not None


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
    return each.consumer.frozen or each.design.answers is not None or each.design.bias is not None


def _originals(each: Layer, coupling: Coupling) -> Matrix:
    return np.asarray(each.consumer.design.matrix(coupling.graph.weights[each.consumer.weight].read()), np.float64)


def _symmetric(each: Layer, coupling: Coupling, known: Knowledge) -> list[Refit]:
    matrix = _originals(each, coupling)
    refits = []
    for part in each.parts:
        sums = known.stats.fit[each.consumer.key], known.stats.held.get(each.consumer.key)
        fit, held = (_moments(g, part, matrix, _biased(each)) if g is not None else None for g in sums)
        assert fit is not None
        left = matrix[part.block][np.ix_(part.columns, part.outputs)]
        refits.append(_refit(fit, held, left, _biased(each), () if each.consumer.frozen else None))
    return refits


def _moments(gram: Gram, part: Part, matrix: Matrix, biased: bool) -> Moments:
    rows = max(gram.rows, 1)
    quadratic = Quadratic(
        gram.second[part.block] / rows, gram.first[part.block] / rows, gram.rows,
        matrix[part.block][:, part.outputs], None, biased,
    )
    return Moments.symmetric(quadratic, part.columns)


def _asymmetric(
    pruned: ir.Model, each: Layer, coupling: Coupling, pairs: tuple[Sequence[Pair], Sequence[Pair]],
    before: Sequence[Refit] | None,
) -> list[Refit]:
    """Return the refit of the original weights, whatever refit was written `before`."""
    matrix = _originals(each, coupling)
    bias = bias_of(all_nodes(pruned)[each.node], each)
    assert bias is not None
    if before is not None and each.design.bias is not None:
        bias = bias - _shift(before)
    biases = bias.reshape(len(each.parts), -1)
    return [
        _refit(_paired(fit, b), _paired(held, b), matrix[part.block][np.ix_(part.columns, part.outputs)], True)
        for part, fit, held, b in zip(each.parts, *pairs, biases, strict=True)
    ]


def _shift(refits: Sequence[Refit]) -> Matrix:
    return np.concatenate([r.bias.ravel() for r in refits])


def _refit(
    fit: Moments, held: Moments | None, weight: Matrix, biased: bool, strengths: tuple[float, ...] | None = None
) -> Refit:
    """Return the repair that held-back rows confirm; nothing is repaired where there are none."""
    if held is not None:
        return repair(fit, held, weight, strengths, biased)
    error = fit.error(weight) / max(fit.variance(biased), _LEAST)
    return Refit(weight, np.zeros(len(fit.target)), None, error, error)


def _paired(pair: Pair, bias: Matrix) -> Moments:
    """Return the moments of inputs and of outputs without what is added to them."""
    n = max(pair.rows, 1)
    mean, target = pair.x / n, pair.y / n
    energy = pair.yy / n - 2 * float(target @ bias) + float(bias @ bias)
    return Moments(pair.xx / n, mean, pair.xy / n - np.outer(mean, bias), target - bias, energy, pair.rows)


def _written(pruned: ir.Model, each: Layer, refits: Sequence[Refit], before: Sequence[Refit] | None = None) -> Mended:
    """Write refits of the original weights into a model, over those that were written `before`."""
    node = all_nodes(pruned)[each.node]
    fitted = any(r.lam is not None for r in (*refits, *(before or ())))
    shift = [_shift(refits) - (_shift(before) if before else 0.0)] if _biased(each) else None
    write(pruned, node, each, [r.weight for r in refits] if fitted else None, shift)
    plain, after = (max(float(np.mean([getattr(r, k) for r in refits])), 0.0) for k in ("plain", "error"))
    strengths = [r.lam for r in refits if r.lam is not None]
    return Mended(each.node, plain, after, max(strengths, default=None) if strengths else None)
