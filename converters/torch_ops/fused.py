"""Torch rules of what onnxruntime fuses besides attention and norms, domain com.microsoft.

Formulas are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.conv import convolve
from graphprune.converters.torch_ops.matmul import gemm
from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule
from graphprune.ops.registry import Row, row


def bias_gelu(call: Call) -> Made:
    """Gelu of x + b."""
    return F.gelu(call.x(0) + call.x(1))


def fast_gelu(call: Call) -> Made:
    """Gelu by tanh, of x + b where there is a bias."""
    return F.gelu(sum(call.tensors()[1:], call.x(0)), approximate="tanh")


def quick_gelu(call: Call) -> Made:
    """x sigmoid(a x)."""
    return call.x(0) * torch.sigmoid(float(call.attr("alpha", 1.702)) * call.x(0))


def bias_split_gelu(call: Call) -> Made:
    """The left half of x + b times gelu of the right half."""
    left, right = (call.x(0) + call.x(1)).chunk(2, -1)
    return left * F.gelu(right)


def bias_softmax(call: Call) -> Made:
    """Softmax of the sum over all axes from the given one on."""
    x, bias = call.x(0), call.x(1)
    axis = int(call.attr("axis", 1)) % x.dim()
    if not call.attr("is_inner_broadcast", 0):
        bias = bias.reshape(*bias.shape[:1], *[1] * (x.dim() - bias.dim()), *bias.shape[1:])
    total = x + bias
    return torch.softmax(total.flatten(axis), -1).reshape(total.shape)


def bias_dropout(call: Call) -> Made:
    """Dropout of x + b, and a residual."""
    x = call.x(0) + call.x(1)
    ratio = float(call.number(3, "", 0.5))
    x = F.dropout(x, ratio, call.host.training)
    return (x + call.x(2) if call.has(2) else x), None


def _factor(x: Tensor, call: Call, side: str) -> Tensor:
    """Return a factor as it is multiplied: its samples inside, or its last two axes turned."""
    if call.attr(f"transBatch{side}", 0):
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if call.attr(f"trans{side}", 0) and x.dim() > 1 else x


def fused_matmul(call: Call) -> Made:
    """a A B, either turned."""
    return float(call.attr("alpha", 1.0)) * torch.matmul(_factor(call.x(0), call, "A"), _factor(call.x(1), call, "B"))


_ACTIVATIONS: Mapping[str, Callable[[Tensor, list[float]], Tensor]] = {
    "": lambda x, p: x,
    "relu": lambda x, p: torch.relu(x),
    "sigmoid": lambda x, p: torch.sigmoid(x),
    "tanh": lambda x, p: torch.tanh(x),
    "leakyrelu": lambda x, p: F.leaky_relu(x, p[0] if p else 0.01),
    "clip": lambda x, p: torch.clamp(x, p[0], p[1]),
    "hardsigmoid": lambda x, p: torch.clamp(p[0] * x + p[1], 0, 1),
    "hardswish": lambda x, p: F.hardswish(x),
    "softplus": lambda x, p: F.softplus(x),
    "softsign": lambda x, p: F.softsign(x),
    "elu": lambda x, p: F.elu(x, p[0] if p else 1.0),
    "gelu": lambda x, p: F.gelu(x),
    "swish": lambda x, p: F.silu(x),
}


def _activated(call: Call, x: Tensor) -> Tensor:
    name = str(call.attr("activation", ""))
    function = _ACTIVATIONS.get(name.lower())
    if function is None:
        raise call.error(f"the activation {name!r} is not supported")
    names = ("activation_alpha", "activation_beta")
    numbers = list(call.attr("activation_params") or [call.attr(k) for k in names if call.attr(k) is not None])
    return function(x, [float(v) for v in numbers])


def fused_matmul_activation(call: Call) -> Made:
    """An activation behind the product."""
    return _activated(call, fused_matmul(call))


def fused_gemm(call: Call) -> Made:
    """An activation behind a Gemm."""
    return _activated(call, gemm(call))


def fused_conv(call: Call) -> Made:
    """A sum is added to a convolution before its activation."""
    y = convolve(call, call.x(0), call.x(1), call.maybe(2))
    return _activated(call, y + call.x(3) if call.has(3) else y)


def nhwc_conv(last: bool) -> TorchRule:
    """Channels last; the weight's too, or not."""

    def rule(call: Call) -> Made:
        w = call.x(1).movedim(-1, 1) if last else call.x(1)
        y = convolve(call, call.x(0).movedim(-1, 1), w, call.maybe(2)).movedim(1, -1)
        return _activated(call, y + call.x(3) if call.has(3) else y)

    return rule


def gemm_gelu(call: Call) -> Made:
    """Gelu by tanh of X W + b."""
    y = torch.matmul(call.x(0), call.x(1))
    return F.gelu(y + call.x(2) if call.has(2) else y, approximate="tanh")


def distances(call: Call) -> Made:
    """Euclidean distances of all pairs of rows, or their squares."""
    apart = call.x(0)[:, None] - call.x(1)[None]
    squares = (apart * apart).sum(-1)
    return squares.clamp(min=1e-30).sqrt() if call.attr("metric", "sqeuclidean") == "euclidean" else squares


def complex_product(conjugate: bool) -> TorchRule:
    """Numbers whose real and imaginary parts lie side by side."""

    def rule(call: Call) -> Made:
        a, b = torch.view_as_complex(call.x(0).contiguous()), torch.view_as_complex(call.x(1).contiguous())
        return torch.view_as_real(a * (b.conj() if conjugate else b))

    return rule


def added(call: Call) -> Made:
    """The sum of all inputs."""
    return sum(call.tensors()[1:], call.x(0))


RULES: tuple[Row[TorchRule], ...] = (
    row(lambda call: F.gelu(call.x(0)), "Gelu", domain=MICROSOFT),
    row(bias_gelu, "BiasGelu", domain=MICROSOFT),
    row(fast_gelu, "FastGelu", domain=MICROSOFT),
    row(quick_gelu, "QuickGelu", domain=MICROSOFT),
    row(bias_split_gelu, "BiasSplitGelu", domain=MICROSOFT),
    row(bias_softmax, "BiasSoftmax", domain=MICROSOFT),
    row(bias_dropout, "BiasDropout", domain=MICROSOFT),
    row(added, "BiasAdd", domain=MICROSOFT),
    row(fused_matmul, "FusedMatMul", "TransposeMatMul", domain=MICROSOFT),
    row(fused_matmul_activation, "FusedMatMulActivation", domain=MICROSOFT),
    row(fused_gemm, "FusedGemm", domain=MICROSOFT),
    row(fused_conv, "FusedConv", domain=MICROSOFT),
    row(nhwc_conv(True), "NhwcConv", domain=MICROSOFT),
    row(nhwc_conv(False), "NhwcFusedConv", domain=MICROSOFT),
    row(gemm_gelu, "GemmFastGelu", domain=MICROSOFT),
    row(distances, "CDist", domain=MICROSOFT),
    row(complex_product(False), "ComplexMul", domain=MICROSOFT),
    row(complex_product(True), "ComplexMulConj", domain=MICROSOFT),
)
