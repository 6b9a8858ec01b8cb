"""Batch normalisations that an exporter folded into convolutions, put back while a model is tuned, and folded again.

A network is trained faster with normalisations, at rates that would ruin it without (Ioffe and Szegedy, arXiv
1502.03167, section 4.2), but files for inference have none: exporters multiply them into the weights. They come back
as the identity: scale and shift are what the convolution's own output has for deviation and mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from graphprune.calibrate.labelled import inputs_of
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Call, Made, Node, Program, Tensor, TorchRule
from graphprune.converters.torch_ops.roles import FOLDED, NORMS
from graphprune.converters.tuning import AUTO, RESTORED, Tuning
from graphprune.converters.tuning_data import Batches
from graphprune.errors import UsageError

_FEEDS = 16
_WORTH = 16
_LONG = 200
"""Steps: running statistics forget the past in some tens of them."""
_EPS = 1e-5
_MOMENTUM = 0.1
_DAMPED = 1e-3
"""Channels that hardly move are not blown up: so much of the mean variance is added to each."""


class Norm(nn.Module):  # type: ignore[misc]
    """A batch normalisation over axis 1 between a layer's product and what reads it; at first it changes nothing."""

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter((variance + _EPS).sqrt())
        self.shift = nn.Parameter(mean.clone())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", variance.clone())

    def forward(self, x: Tensor, batch: bool) -> Tensor:
        """Normalise by the batch, which moves the running statistics, or by these."""
        made: Tensor = nn.functional.batch_norm(
            x, self.mean, self.variance, self.scale, self.shift, batch, _MOMENTUM, _EPS
        )
        return made


@dataclass(frozen=True)
class Folded:
    """A layer that a normalisation can be folded into: its node, and the keys of its weight and bias."""

    node: Node
    weight: str
    bias: str
    axis: int


@dataclass(frozen=True)
class Restored:
    """The rule of a layer with a normalisation behind it."""

    rule: TorchRule
    norm: Norm

    def __call__(self, call: Call) -> Made:
        """Return the layer's output, normalised."""
        return self.norm(self.rule(call), call.host.training and call.host.batch_statistics)


def folded(module: OnnxModule) -> list[Folded]:
    """Return layers that a normalisation was probably folded into; none where the model has normalisations left.

    These are convolutions with a bias, at the top level of the graph, whose weights nobody else reads and whose output
    is not the model's. A model with any normalisation of its own (transformers, ConvNeXt) had no others.
    """
    nodes = module.program.nodes
    if any(NORMS.get(n.domain, n.type, n.version) for n in module.program.all_nodes()):
        return []
    keys = {name: key.partition(".")[2] for key, name in module.onnx_names.items() if key.startswith("weights.")}
    read: dict[str, int] = {}
    for name in (name for node in module.program.all_nodes() for name in node.inputs if name):
        read[name] = read.get(name, 0) + 1
    found = []
    for node in nodes:
        layer = FOLDED.get(node.domain, node.type, node.version)
        if layer is None or node.outputs[0] in module.program.outputs:
            continue
        own = [node.inputs[i] or "" for i in (layer.weight, layer.bias) if i < len(node.inputs)]
        if len(own) == 2 and all(name in keys and read[name] == 1 for name in own):
            found.append(Folded(node, keys[own[0]], keys[own[1]], layer.axis))
    return found


def restored(module: OnnxModule, asked: Tuning, towards: bool, data: Batches) -> list[Folded]:
    """Put normalisations back where tuning asks for it, and return their layers.

    `norms` "auto" does so where all weights are tuned, in batches and for so many steps that statistics are worth
    something. Raises UsageError where "restored" is asked for and cannot be.
    """
    if asked.norms not in (AUTO, RESTORED):
        return []
    some = bool(asked.only or asked.lora or towards)
    if asked.norms == RESTORED and some:
        raise UsageError("--norms restored is for tuning all weights: give no --only, --lora, --towards")
    brief = asked.norms == AUTO and (asked.batch < _WORTH or data.steps() * asked.epochs < _LONG)
    layers = [] if some or brief else folded(module)
    if asked.norms == RESTORED and not layers:
        raise UsageError("--norms restored: the model has no convolutions with folded normalisations")
    if layers:
        restore(module, layers, (inputs_of(f) for f in islice(data.samples.batches(asked.batch), _FEEDS)))
    return layers


def restore(module: OnnxModule, layers: Iterable[Folded], feeds: Iterable[Mapping[str, Any]]) -> None:
    """Put a normalisation behind every layer, with the statistics of these feeds; the module computes what it did.

    A layer's weights are divided by the deviation of each output, which the normalisation takes back: so they are as
    large as in a network that is trained with normalisations from the start, whatever scale was folded into them.
    """
    layers = list(layers)
    sums = _statistics(module, layers, feeds)
    norms, rules = nn.ModuleList(), {}
    with torch.no_grad():
        for layer, (mean, variance) in zip(layers, sums, strict=True):
            norm = Norm(mean, variance)
            size = (variance + _DAMPED * variance.mean() + _EPS).sqrt()
            weight, bias = getattr(module.weights, layer.weight), getattr(module.weights, layer.bias)
            weight.div_(_along(size, weight, layer.axis))
            bias.copy_((bias - mean) / size)
            norm.mean.zero_()
            norm.variance.copy_(variance / size.square())
            norm.scale.copy_(size * (norm.variance + _EPS).sqrt())
            norms.append(norm)
            rules[layer.node.outputs[0]] = Restored(layer.node.rule, norm)
    module.add_module("norms", norms)
    module.program = _with(module.program, rules)


def fold(module: OnnxModule, layers: Iterable[Folded]) -> None:
    """Multiply normalisations into the weights and biases of their layers, and take them away."""
    if not hasattr(module, "norms"):
        return
    rules = {}
    with torch.no_grad():
        for layer, norm in zip(layers, module.norms, strict=True):
            factor = norm.scale / (norm.variance + _EPS).sqrt()
            weight, bias = getattr(module.weights, layer.weight), getattr(module.weights, layer.bias)
            weight.mul_(_along(factor, weight, layer.axis))
            bias.copy_((bias - norm.mean) * factor + norm.shift)
            rules[layer.node.outputs[0]] = layer.node.rule
    del module.norms
    module.program = _with(module.program, rules)


def _statistics(
    module: OnnxModule, layers: list[Folded], feeds: Iterable[Mapping[str, Any]]
) -> list[tuple[Tensor, Tensor]]:
    """Return mean and variance of each output channel of layers."""
    sums: dict[int, list[Tensor]] = {}

    def seen(k: int, rule: TorchRule) -> TorchRule:
        def watching(call: Call) -> Made:
            made = rule(call)
            rows = made.detach().double().transpose(0, 1).flatten(1)
            new = torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)])
            sums[k] = [*sums.get(k, []), new]
            return made

        return watching

    before = module.program
    module.program = _with(before, {x.node.outputs[0]: seen(k, x.node.rule) for k, x in enumerate(layers)})
    module.eval()
    with torch.no_grad():
        for feed in feeds:
            module(**feed)
    module.program = before
    out = []
    for k, layer in enumerate(layers):
        count, total, squares = torch.stack(sums[k]).sum(0)
        mean = total / count
        like = getattr(module.weights, layer.weight).dtype
        out.append((mean.to(like), (squares / count - mean.square()).clamp(min=0).to(like)))
    return out


def _with(program: Program, rules: Mapping[str | None, TorchRule]) -> Program:
    nodes = tuple(replace(n, rule=rules.get(n.outputs[0], n.rule) if n.outputs else n.rule) for n in program.nodes)
    return replace(program, nodes=nodes)


def _along(vector: Tensor, weight: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if k == axis else 1 for k in range(weight.dim())])
