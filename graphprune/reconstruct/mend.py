"""Repair of a pruned model: every layer's weights are fitted anew to what the dense layer gave, in closed form.

Symmetric: each layer by itself, from statistics of the dense model. Sequential: in the order of the graph, each layer
reads what the model as repaired so far gives it, and is fitted to the dense model's outputs; errors do not add up.
What held-back samples do not confirm is not used.

Matched: sequential, and then outputs get back half of the deviation that fitting took from them, channel by channel.
A least-squares fit explains part of a variance and drops the rest; what follows (a rectifier, most of all) was
trained for all of it. Where BatchNormalization is a node behind the layer, that is what recomputing its statistics
does (He et al., 2017, and Jordan et al., REPAIR, ICLR 2023), here with the gain bounded and shrunk; where it was
folded, it is done to the weights. Only for data of the kind that the model will meet: on made-up inputs the
deviations of a model mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.contents import rule_of
from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.statistics import Gram
from graphprune.consumers import Consumer, followers
from graphprune.groups import Coupling
from graphprune.model import all_nodes, constant_of
from graphprune.ops import FLOORS
from graphprune.reconstruct.layers import Layer, Matrix, Part, bias_of, layer, write
from graphprune.reconstruct.obs import Quadratic
from graphprune.reconstruct.paired import Pair, Paired, gather_pairs
from graphprune.reconstruct.ridge import Moments, Refit, repair
from graphprune.rewrite import Chosen, arranged

Progress = Callable[[str], None]
_STAGES = 16
_LEAST = 1e-30
_GAIN = 1.5  # at most
_SHARE = 0.5  # of the gain: what the full one restores is noise for the rest

Mode = Literal["bias", "symmetric", "sequential", "matched"]


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
    mode: Mode = "sequential",
    stages: int = _STAGES,
    rounds: int = 0,
    threads: int = 0,
    progress: Progress = lambda text: None,
) -> list[Mended]:
    """Repair a pruned model in place; `dense` is the normalised model that it was made from.

    Sequential and matched repair take `stages` runs of both models over the samples (at most one for each layer):
    layers of one stage do not see each other's repair. Where every layer has a stage, layers that lost nothing make
    up for what changed before them, too; and in `rounds` more, those behind which a rectifier follows are fitted to
    what passes it (`_rectified`). `bias`: weights stay, what is gone is replaced by its mean.
    """
    sequential = mode in ("sequential", "matched")
    others = followers(coupling, known.consumers) if sequential else ()
    layers = _layers(pruned, coupling, chosen, known, others)
    moved = _moved(pruned, layers) if len(layers) <= stages else set()
    layers = [x for x in layers if x.touched or x.consumer.data in moved or x.consumer not in others]
    nodes = all_nodes(pruned)
    by_itself = [
        x for x in layers
        if not sequential or x.consumer.design.answers is None or bias_of(nodes[x.node], x) is None
    ]
    lams = () if mode == "bias" else None
    done = [_symmetric(pruned, x, coupling, known, lams) for x in by_itself if x.touched]
    rest = [x for x in layers if x not in by_itself]

    def gathered(part: Sequence[Layer], floors: Mapping[str, tuple[str, float]]) -> Paired:
        return gather_pairs(
            dense, pruned, part, known.samples, batch=known.batch, seed=known.seed, threads=threads, floors=floors,
            arrange=lambda feed: arranged(feed, coupling, chosen), progress=progress,
        )

    share = _SHARE if mode == "matched" else 0.0
    for part in _stages(rest, stages):
        pairs = gathered(part, {})
        done += [_asymmetric(pruned, x, pairs.fit[x.node], pairs.held.get(x.node), share) for x in part]
        if rounds and len(part) == 1:
            _rectified(pruned, part[0], gathered, rounds)
    return done


def _rectified(
    pruned: ir.Model, each: Layer, gathered: Callable[[Sequence[Layer], Mapping[str, tuple[str, float]]], Paired],
    rounds: int,
) -> None:
    """Fit a layer again to what passes the rectifier behind it.

    Where the dense output and that of the pruned model are both below its floor, nothing is wrong, and least squares
    need not spend weights on it: such outputs are wanted as they are now, and the fit is repeated. After the
    asymmetric, nonlinear reconstruction of Zhang et al., Accelerating very deep convolutional networks (TPAMI 2016),
    section 3.2, with the outputs of the last fit in place of its auxiliary variables.
    """
    floor = _floor(pruned, all_nodes(pruned)[each.node])
    if floor is None or each.design.answers is None:
        return
    for _ in range(rounds):
        pairs = gathered([each], {each.node: (str(all_nodes(pruned)[each.node].outputs[0].name), floor)})
        _asymmetric(pruned, each, pairs.fit[each.node], pairs.held.get(each.node), 0.0)


def _floor(model: ir.Model, node: ir.Node) -> float | None:
    """Return the number below which all outputs of a node give the same, None where there is none."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0][1] != 0:
        return None
    reader = uses[0][0]
    rule = rule_of(FLOORS, model, reader)
    second = constant_of(reader.inputs[1]) if len(reader.inputs) > 1 else None
    return rule(plain_attributes(reader), None if second is None else second.numpy()) if rule is not None else None


def _layers(
    pruned: ir.Model, coupling: Coupling, chosen: Chosen, known: Knowledge, others: Sequence[Consumer]
) -> list[Layer]:
    """Return the consumers that are left, and others, in the graph's order."""
    nodes = all_nodes(pruned)
    place = {name: k for k, name in enumerate(nodes)}
    ready = [c for c in known.consumers.found if c.key in known.stats.fit]
    found = []
    for c in sorted([*ready, *others], key=lambda c: place.get(c.node, 0)):
        node = nodes.get(c.node)
        if node is not None:
            made = layer(c, coupling, chosen, plain_attributes(node))
            if made is not None:
                found.append(made)
    return found


def plain_attributes(node: ir.Node) -> dict[str, object]:
    """Return a node's attributes as plain values."""
    values = {k: a.value for k, a in node.attributes.items()}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def _moved(pruned: ir.Model, layers: Sequence[Layer]) -> set[str]:
    """Return the values that layers which lost inputs have changed."""
    touched = {x.node for x in layers if x.touched}
    moved: set[str] = set()
    for node in pruned.graph:
        if node.name in touched or any(v is not None and v.name in moved for v in node.inputs):
            moved |= {str(o.name) for o in node.outputs}
    return moved


def _stages(layers: Sequence[Layer], number: int) -> list[list[Layer]]:
    """Cut layers into so many stretches, as equal as can be."""
    number = max(1, min(number, len(layers)))
    cuts = [round(k * len(layers) / number) for k in range(number + 1)]
    return [list(layers[a:b]) for a, b in pairwise(cuts) if b > a]


def _symmetric(
    pruned: ir.Model, each: Layer, coupling: Coupling, known: Knowledge, lams: Sequence[float] | None
) -> Mended:
    weight = coupling.graph.weights[each.consumer.weight]
    matrix = np.asarray(each.consumer.design.matrix(weight.read()), np.float64)
    biased = each.design.answers is not None or each.design.bias is not None
    refits = []
    for part in each.parts:
        sums = known.stats.fit[each.consumer.key], known.stats.held.get(each.consumer.key)
        fit, held = (_moments(g, part, matrix, biased) if g is not None else None for g in sums)
        assert fit is not None
        refits.append(_refit(fit, held, matrix[part.block][np.ix_(part.columns, part.outputs)], biased, lams))
    return _finish(pruned, each, refits, biased)


def _moments(gram: Gram, part: Part, matrix: Matrix, biased: bool) -> Moments:
    rows = max(gram.rows, 1)
    quadratic = Quadratic(
        gram.second[part.block] / rows, gram.first[part.block] / rows, gram.rows,
        matrix[part.block][:, part.outputs], None, biased,
    )
    return Moments.symmetric(quadratic, part.columns)


def _asymmetric(
    pruned: ir.Model, each: Layer, fit: Sequence[Pair], held: Sequence[Pair] | None, share: float
) -> Mended:
    node = all_nodes(pruned)[each.node]
    weight = constant_of(node.inputs[each.design.weight])
    assert weight is not None
    matrix = np.asarray(each.design.matrix(weight.numpy()), np.float64)
    bias = bias_of(node, each)
    assert bias is not None
    biases = bias.reshape(len(each.parts), -1)
    refits = []
    for g in range(len(each.parts)):
        others = _paired(held[g], biases[g]) if held is not None else None
        moments = _paired(fit[g], biases[g])
        found = _refit(moments, others, matrix[g], True)
        refits.append(_matched(found, moments, fit[g], share) if share and found.lam is not None else found)
    return _finish(pruned, each, refits, True)


def _matched(refit: Refit, moments: Moments, pair: Pair, share: float) -> Refit:
    """Return a refit whose outputs have more of the dense outputs' deviation, and their mean."""
    centred = moments.second - np.outer(moments.mean, moments.mean)
    now = np.einsum("ko,ko->o", refit.weight, centred @ refit.weight)
    wanted = pair.yy / pair.rows - (pair.y / pair.rows) ** 2
    gain = np.clip(np.sqrt(np.maximum(wanted, 0) / np.maximum(now, _LEAST)), 1, _GAIN)
    weight = refit.weight * (1 + share * (gain - 1))
    return replace(refit, weight=weight, bias=moments.target - moments.mean @ weight)


def _refit(
    fit: Moments, held: Moments | None, weight: Matrix, biased: bool, lams: Sequence[float] | None = None
) -> Refit:
    """Return the repair that held-back rows confirm; nothing is repaired where there are none."""
    if held is not None:
        return repair(fit, held, weight, lams, biased)
    error = fit.error(weight) / max(fit.variance(biased), _LEAST)
    return Refit(weight, np.zeros(len(fit.target)), None, error, error)


def _paired(pair: Pair, bias: Matrix) -> Moments:
    """Return the moments of inputs and of outputs without what is added to them."""
    n = max(pair.rows, 1)
    mean, target = pair.x / n, pair.y / n
    energy = float(pair.yy.sum()) / n - 2 * float(target @ bias) + float(bias @ bias)
    return Moments(pair.xx / n, mean, pair.xy / n - np.outer(mean, bias), target - bias, energy, pair.rows)


def _finish(pruned: ir.Model, each: Layer, refits: Sequence[Refit], biased: bool) -> Mended:
    node = all_nodes(pruned)[each.node]
    fitted = any(r.lam is not None for r in refits)
    weights = [r.weight for r in refits] if fitted else None
    write(pruned, node, each, weights, [r.bias for r in refits] if biased else None)
    plain, after = (max(float(np.mean([getattr(r, k) for r in refits])), 0.0) for k in ("plain", "error"))
    strengths = [r.lam for r in refits if r.lam is not None]
    return Mended(each.node, plain, after, max(strengths, default=None) if strengths else None)
