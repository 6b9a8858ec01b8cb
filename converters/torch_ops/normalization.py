"""Torch rules of normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule, axis_of
from graphprune.ops.registry import Row, row


def per_channel(v: Tensor, rank: int) -> Tensor:
    """Return a vector along axis 1 of a value of that rank."""
    return v.reshape(1, -1, *[1] * (rank - 2))


def batch_norm(call: Call) -> Made:
    """Batch statistics in training, and running ones that follow; the latter as they are in evaluation."""
    x, scale, bias, mean, variance = (call.x(k) for k in range(5))
    epsilon, momentum = float(call.attr("epsilon", 1e-5)), float(call.attr("momentum", 0.9))
    asked = bool(call.attr("training_mode", 0)) and call.node.version >= 14
    if asked and not call.host.training:  # the file itself asks for batch statistics
        axes = [k for k in range(x.dim()) if k != 1]
        now, spread = x.mean(axes), x.var(axes, unbiased=False)
        y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        return y, mean * momentum + now * (1 - momentum), variance * momentum + spread * (1 - momentum)
    training = call.host.training and call.host.batch_statistics
    return F.batch_norm(x, mean, variance, scale, bias, training, 1 - momentum, epsilon)


def standardised(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean) / deviation, the mean, and one over the deviation."""
    over = list(axes)
    mean = x.mean(over, True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(over, True) + epsilon)
    return centred * inverse, mean, inverse


def layer_norm(call: Call) -> Made:
    """Over all axes from the given one on."""
    x, scale, bias = call.x(0), call.x(1), call.maybe(2)
    axis = axis_of(call, x.dim(), -1)
    sizes, epsilon = x.shape[axis:], float(call.attr("epsilon", 1e-5))
    if scale.shape == sizes and (bias is None or bias.shape == sizes) and not call.wanted(1) and not call.wanted(2):
        return F.layer_norm(x, sizes, scale, bias, epsilon)
    y, mean, inverse = standardised(x.float() if x.dtype.itemsize < 4 else x, range(axis, x.dim()), epsilon)
    y = y.to(x.dtype) * scale
    return y if bias is None else y + bias, mean, inverse


def rms(x: Tensor, scale: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, times a scale, and one over that root."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    inverse = torch.rsqrt((wide * wide).mean(list(axes), True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale, inverse


def rms_norm(call: Call) -> Made:
    """Over all axes from the given one on, without a mean."""
    x = call.x(0)
    axis = axis_of(call, x.dim(), -1)
    y, inverse = rms(x, call.x(1), range(axis, x.dim()), float(call.attr("epsilon", 1e-5)))
    return (y, None, inverse) if call.wanted(2) else (y, inverse)


def group_norm(call: Call) -> Made:
    """Scales are one per channel since opset 21, one per group before."""
    x, groups = call.x(0), int(call.attr("num_groups"))
    y = F.group_norm(x, groups, None, None, float(call.attr("epsilon", 1e-5)))
    scale, bias = call.x(1), call.x(2)
    if scale.shape[0] != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return y * per_channel(scale, x.dim()) + per_channel(bias, x.dim())


def instance_norm(call: Call) -> Made:
    """Over the positions of each channel of each sample."""
    x = call.x(0)
    y, _, _ = standardised(x, range(2, x.dim()), float(call.attr("epsilon", 1e-5)))
    return y * per_channel(call.x(1), x.dim()) + per_channel(call.x(2), x.dim())


def lrn(call: Call) -> Made:
    """Each channel over a power of its neighbours' mean square."""
    x, size = call.x(0), int(call.attr("size"))
    alpha, beta, bias = (float(call.attr(k, v)) for k, v in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    before = (size - 1) // 2
    squares = F.pad((x * x).flatten(2).transpose(1, 2), (before, size - 1 - before))
    sums = F.avg_pool1d(squares, size, 1).transpose(1, 2).reshape(x.shape) * size
    return x / (bias + alpha / size * sums) ** beta


def lp_norm(call: Call) -> Made:
    """Over one axis, to length one."""
    x, axis = call.x(0), int(call.attr("axis", -1))
    length = torch.linalg.vector_norm(x, int(call.attr("p", 2)), axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / torch.where(length == 0, torch.ones_like(length), length))


def mean_variance(call: Call) -> Made:
    """To mean zero and deviation one over the given axes."""
    x, axes = call.x(0), list(call.attr("axes") or [0, 2, 3])
    mean = x.mean(axes, True)
    deviation = ((x * x).mean(axes, True) - mean * mean).sqrt()
    return (x - mean) / (deviation + 1e-9)


def skip(simplified: bool) -> TorchRule:
    """The sum of both inputs and a bias, normalised; the sum goes out, too."""

    def rule(call: Call) -> Made:
        total = call.x(0) + call.x(1)
        scale, bias = call.x(2), None if simplified else call.maybe(3)
        extra = call.maybe(3 if simplified else 4)
        total = total if extra is None else total + extra
        epsilon = float(call.attr("epsilon", 1e-12 if not simplified else 1e-6))
        if simplified:
            return rms(total, scale, [total.dim() - 1], epsilon)[0], None, None, total
        return F.layer_norm(total, scale.shape, scale, bias, epsilon), None, None, total

    return rule


def embed(call: Call) -> Made:
    """Words, positions and segments are looked up, summed and normalised."""
    words, segments, tokens = call.x(0).long(), call.maybe(1), call.x(2)
    places = call.maybe(8)
    at = torch.arange(words.shape[1], device=words.device)[None] if places is None else places.long()
    total = F.embedding(words, tokens) + F.embedding(at, call.x(3))
    if call.has(4) and segments is not None:
        total = total + F.embedding(segments.long(), call.x(4))
    y = F.layer_norm(total, total.shape[-1:], call.x(5), call.x(6), float(call.attr("epsilon", 1e-12)))
    mask = call.maybe(7)
    lengths = mask.sum(1) if mask is not None else torch.zeros(words.shape[0], dtype=torch.int64, device=y.device)
    return y, lengths.to(torch.int32), total


def channels_last_group_norm(call: Call) -> Made:
    """n y x c, in groups of channels, with SiLU where the attribute says so."""
    x = call.x(0)
    last = bool(call.attr("channels_last", 1))
    moved = x.permute(0, 3, 1, 2) if last else x
    y = F.group_norm(moved, int(call.attr("groups")), call.x(1), call.x(2), float(call.attr("epsilon", 1e-5)))
    y = F.silu(y) if int(call.attr("activation", 0)) else y
    return y.permute(0, 2, 3, 1) if last else y


RULES: tuple[Row[TorchRule], ...] = (
    row(batch_norm, "BatchNormalization"),
    row(layer_norm, "LayerNormalization"),
    row(layer_norm, "LayerNormalization", domain=MICROSOFT),
    row(rms_norm, "RMSNormalization"),
    row(rms_norm, "SimplifiedLayerNormalization"),
    row(rms_norm, "SimplifiedLayerNormalization", domain=MICROSOFT),
    row(skip(False), "SkipLayerNormalization", domain=MICROSOFT),
    row(skip(True), "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
    row(embed, "EmbedLayerNormalization", domain=MICROSOFT),
    row(channels_last_group_norm, "GroupNorm", domain=MICROSOFT),
    row(group_norm, "GroupNormalization"),
    row(instance_norm, "InstanceNormalization"),
    row(lrn, "LRN"),
    row(lp_norm, "LpNormalization"),
    row(mean_variance, "MeanVarianceNormalization"),
)
