"""Corrections: a layer is fitted to the dense model's outputs with the inputs that the model as repaired gives it.

Where a layer's outputs are added to what goes past it, it is the sum that is fitted (`beside.py`), and never matched.

Matched: outputs then get back half of the deviation that fitting took from them, channel by channel. A least-squares
fit explains part of a variance and drops the rest; what follows (a rectifier, most of all) was trained for all of it.
Where BatchNormalization is a node behind the layer, that is what recomputing its statistics does (He et al., 2017, and
Jordan et al., REPAIR, ICLR 2023), here with the gain bounded and shrunk; where it was folded, it is done to the
weights. Only for data of the kind that the model will meet: on made-up inputs the deviations of a model mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.contents import rule_of
from graphprune.groups import Coupling
from graphprune.model import all_nodes, constant_of
from graphprune.ops import FLOORS
from graphprune.reconstruct.beside import beside
from graphprune.reconstruct.confirm import confirmed
from graphprune.reconstruct.layers import Layer, Matrix, bias_of, plain_attributes, write
from graphprune.reconstruct.paired import Aim, Pair, Pairs, SideBySide
from graphprune.reconstruct.ridge import Moments, Refit

Refits: TypeAlias = Sequence[Refit]
"""One for each block of a layer: weights, and what is added to the bias that pruning left."""

_LEAST = 1e-30
_GAIN = 1.5  # at most
_SHARE = 0.5  # of the gain: what the full one restores is noise for the rest


@dataclass(frozen=True)
class Corrector:
    """What corrects layers of one pruned model in place, and can take it back."""

    both: SideBySide
    coupling: Coupling
    matched: bool
    rounds: int
    _done: list[tuple[Layer, Refits, Refits]] = field(default_factory=list)

    def correct(self, each: Layer, before: Refits | None) -> Refits | None:
        """Refit a layer's original weights, over the refits written `before`; return it, None if nothing helps."""
        plain = [
            Refit(w, np.zeros(w.shape[1]), None)
            for w in (originals(each, self.coupling)[p.block][np.ix_(p.columns, p.outputs)] for p in each.parts)
        ]
        before = before or plain
        past = self._past(each)
        pairs = self.both.pairs(each, Aim(past=past))
        now: Refits = self._fit(each, plain, pairs, -shift_of(before), matched=self.matched and past is None)
        if all(r.lam is None for r in now):
            return None
        written(self.both.pruned, each, now, before)
        told = now
        floor = floor_of(self.both.pruned, self._node(each)) if each.design.answers is not None else None
        for _ in range(self.rounds if floor is not None else 0):
            now = self._rectified(each, now, floor or 0.0)
        self._done.append((each, before, now))
        return told

    def take_back(self) -> None:
        """Undo all corrections."""
        for each, before, now in self._done:
            written(self.both.pruned, each, before, now)

    def _rectified(self, each: Layer, now: Refits, floor: float) -> Refits:
        """Fit a layer again to what passes the rectifier behind it.

        Where the dense output and that of the pruned model are both below its floor, nothing is wrong, and least
        squares need not spend weights on it: such outputs are wanted as they are now. After the asymmetric, nonlinear
        reconstruction of Zhang et al., Accelerating very deep convolutional networks (TPAMI 2016), with the outputs
        of the last fit in place of its auxiliary variables.
        """
        pairs = self.both.pairs(each, Aim(floor=(str(self._node(each).outputs[0].name), floor)))
        more = self._fit(each, now, pairs, np.zeros(sum(len(r.bias) for r in now)), matched=False)
        found = [replace(m, bias=r.bias + m.bias, lam=m.lam or r.lam) for r, m in zip(now, more, strict=True)]
        written(self.both.pruned, each, found, now)
        return found

    def _past(self, each: Layer) -> tuple[str, str] | None:
        """Return what is added to a layer's outputs, as it is named in the dense model and in the pruned one."""
        found = beside(self.coupling, each.consumer.output)
        node = all_nodes(self.both.pruned).get(found.join) if found is not None else None
        value = node.inputs[found.other] if node is not None and found is not None else None
        return (found.value, str(value.name)) if found is not None and value is not None else None

    def _node(self, each: Layer) -> ir.Node:
        return all_nodes(self.both.pruned)[each.node]

    def _fit(self, each: Layer, old: Refits, pairs: Pairs, shift: Matrix, *, matched: bool) -> list[Refit]:
        """Return refits of `old`; `shift` is what to add to the layer's bias so that it is the one of `old`."""
        bias = bias_of(self._node(each), each)
        assert bias is not None
        biases = (bias + shift if each.design.bias is not None else bias).reshape(len(each.parts), -1)
        fit, check = pairs
        found = []
        for g, (b, refit) in enumerate(zip(biases, old, strict=True)):
            moments = _paired(fit[g], b)
            held = _paired(check[g], b) if check is not None else None
            made = confirmed(moments, held, refit.weight, apart=self.both.known.apart)
            found.append(_matched(made, moments, fit[g]) if matched and made.lam is not None else made)
        return found


def originals(each: Layer, coupling: Coupling) -> Matrix:
    """Return the dense layer's matrix [blocks, columns, outputs]."""
    return np.asarray(each.consumer.design.matrix(coupling.graph.weights[each.consumer.weight].read()), np.float64)


def shift_of(refits: Refits) -> Matrix:
    """Return what all blocks of refits add to a layer's bias."""
    return np.concatenate([r.bias.ravel() for r in refits])


def written(pruned: ir.Model, each: Layer, refits: Refits, before: Refits = ()) -> None:
    """Write refits into a model, over those that were written `before`."""
    fitted = any(r.lam is not None for r in (*refits, *before))
    shift = [shift_of(refits) - (shift_of(before) if before else 0.0)] if each.biased else None
    write(pruned, all_nodes(pruned)[each.node], each, [r.weight for r in refits] if fitted else None, shift)


def floor_of(model: ir.Model, node: ir.Node) -> float | None:
    """Return the number below which all outputs of a node give the same, None where there is none."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0][1] != 0:
        return None
    reader = uses[0][0]
    rule = rule_of(FLOORS, model, reader)
    second = constant_of(reader.inputs[1]) if len(reader.inputs) > 1 else None
    return rule(plain_attributes(reader), None if second is None else second.numpy()) if rule is not None else None


def _matched(refit: Refit, moments: Moments, pair: Pair) -> Refit:
    """Return a refit whose outputs have more of the dense outputs' deviation, and their mean."""
    centred = moments.second - np.outer(moments.mean, moments.mean)
    now = np.einsum("ko,ko->o", refit.weight, centred @ refit.weight)
    wanted = pair.yy / pair.rows - (pair.y / pair.rows) ** 2
    gain = np.clip(np.sqrt(np.maximum(wanted, 0) / np.maximum(now, _LEAST)), 1, _GAIN)
    weight = refit.weight * (1 + _SHARE * (gain - 1))
    return replace(refit, weight=weight, bias=moments.target - moments.mean @ weight)


def _paired(pair: Pair, bias: Matrix) -> Moments:
    """Return the moments of inputs and of outputs without what is added to them."""
    n = max(pair.rows, 1)
    mean, target = pair.x / n, pair.y / n
    energy = pair.yy / n - 2 * target * bias + bias**2
    return Moments(pair.xx / n, mean, pair.xy / n - np.outer(mean, bias), target - bias, energy, pair.rows)
