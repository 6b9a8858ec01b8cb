"""Torch rules of operators that act on each element by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import Call, Made, Tensor, TorchRule, given, plain
from graphprune.ops.registry import Row, row


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> TorchRule:
    """Two inputs that broadcast; before opset 7 an attribute said along which axis."""

    def rule(call: Call) -> Made:
        a, b = call.x(0), call.x(1)
        if call.attr("broadcast", 0) and call.attr("axis") is not None:
            axis = int(call.attr("axis"))
            b = b.reshape(*b.shape, *[1] * (a.dim() - (axis + a.dim() if axis < 0 else axis) - b.dim()))
        return function(a, b)

    return rule


def folded(function: Callable[[Tensor, Tensor], Tensor]) -> TorchRule:
    """Any number of inputs, taken two at a time."""

    def rule(call: Call) -> Made:
        return reduce(function, call.tensors())

    return rule


def mean(call: Call) -> Made:
    """The sum of all inputs over their number."""
    inputs = call.tensors()
    return reduce(torch.add, inputs) / len(inputs)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided as in C, towards zero."""
    return a / b if a.is_floating_point() or a.is_complex() else torch.div(a, b, rounding_mode="trunc")


def power(a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(a, b).to(a.dtype)


def modulo(call: Call) -> Made:
    """The sign is the divisor's, or with fmod the dividend's."""
    return torch.fmod(call.x(0), call.x(1)) if call.attr("fmod", 0) else torch.remainder(call.x(0), call.x(1))


def shift(call: Call) -> Made:
    """Bits go left or right."""
    if call.attr("direction", "LEFT") == "LEFT":
        return torch.bitwise_left_shift(call.x(0), call.x(1))
    return torch.bitwise_right_shift(call.x(0), call.x(1))


def clip(call: Call) -> Made:
    """Bounds are inputs since opset 11, attributes before."""
    x = call.x(0)
    low = call.maybe(1) if call.has(1) else call.attr("min")
    high = call.maybe(2) if call.has(2) else call.attr("max")
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))
    return x if low is None and high is None else torch.clamp(x, low, high)


def cast(call: Call) -> Made:
    """Real numbers become whole ones towards zero."""
    return call.x(0).to(call.host.dtype(int(call.attr("to"))))


def cast_like(call: Call) -> Made:
    """The second input is asked for its type only."""
    return call.x(0).to(call.x(1).dtype)


def bit_cast(call: Call) -> Made:
    """The same bits are read as another type."""
    return call.x(0).view(call.host.dtype(int(call.attr("to"))))


def dropout(call: Call) -> Made:
    """In training elements are dropped; otherwise nothing happens, whatever the file's own flag says."""
    x = call.x(0)
    ratio = float(call.number(1, "ratio", 0.5))
    if not call.host.training or ratio == 0:
        return x, torch.ones_like(x, dtype=torch.bool) if call.wanted(1) else None
    kept = torch.rand_like(x.float()) >= ratio
    return torch.where(kept, x / (1 - ratio), torch.zeros_like(x)) if ratio < 1 else torch.zeros_like(x), kept


def gelu(call: Call) -> Made:
    """By the error function, or by tanh where the attribute says so."""
    return F.gelu(call.x(0), approximate=call.attr("approximate", "none"))


def is_inf(call: Call) -> Made:
    """Attributes say whether both signs count."""
    x = call.x(0)
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.attr("detect_positive", 1):
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if call.attr("detect_negative", 1) else found


def celu(x: Tensor, alpha: float) -> Tensor:
    """max(0, x) + min(0, a (exp(x / a) - 1))."""
    return F.celu(x, alpha)


def elu(x: Tensor, alpha: float) -> Tensor:
    """x above zero, a (exp(x) - 1) below."""
    return torch.where(x > 0, x, alpha * torch.expm1(torch.minimum(x, torch.zeros_like(x))))


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """a x + b between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


def leaky(x: Tensor, alpha: float) -> Tensor:
    """x above zero, a x below."""
    return F.leaky_relu(x, alpha)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """g x above zero, g a (exp(x) - 1) below."""
    return gamma * elu(x, alpha)


def shrink(x: Tensor, bias: float, lambd: float) -> Tensor:
    """Zero between -l and l, shifted by the bias outside."""
    moved = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, moved).to(x.dtype)


def swish(x: Tensor, alpha: float) -> Tensor:
    """x sigmoid(a x)."""
    return x * torch.sigmoid(alpha * x)


def thresholded(x: Tensor, alpha: float) -> Tensor:
    """x above the threshold, else zero."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x above zero, s x below; one slope per channel may stand without axes of its own."""
    if slope.dim() == 1 and x.dim() > 2 and slope.shape[0] == x.shape[1] and slope.shape[0] != x.shape[-1]:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x < 0, slope * x, x)


def swiglu(call: Call) -> Made:
    """The first half, through x sigmoid(a x), times the second half."""
    a, b = (call.x(0), call.x(1)) if call.has(1) else call.x(0).chunk(2, int(call.attr("axis", -1)))
    return swish(a, float(call.attr("alpha", 1.0))) * b


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements of the second input where the first is true, else of the third."""
    return torch.where(condition, a, b)


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return torch.sign(x)


def softplus(x: Tensor) -> Tensor:
    """ln(1 + exp(x)), without the shortcut for large x."""
    return torch.logaddexp(x, torch.zeros_like(x)) if x.dtype in (torch.float32, torch.float64) else F.softplus(x)


def quick_erf(x: Tensor) -> Tensor:
    """The error function, of whole numbers too."""
    return torch.erf(x) if x.is_floating_point() else torch.erf(x.float()).to(x.dtype)


_ONE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Erf": quick_erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish,
    "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "PRelu": prelu, "Where": where,
}  # fmt: skip
_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divide, "Pow": power, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le,
}  # fmt: skip

RULES: tuple[Row[TorchRule], ...] = (
    *[row(plain(f), o) for o, f in _ONE.items()],
    *[row(binary(f), o) for o, f in _TWO.items()],
    row(folded(torch.maximum), "Max"),
    row(folded(torch.minimum), "Min"),
    row(folded(torch.add), "Sum"),
    row(mean, "Mean"),
    row(modulo, "Mod"),
    row(shift, "BitShift"),
    row(clip, "Clip"),
    row(cast, "Cast"),
    row(cast_like, "CastLike"),
    row(bit_cast, "BitCast"),
    row(dropout, "Dropout"),
    row(gelu, "Gelu"),
    row(is_inf, "IsInf"),
    row(swiglu, "SwiGLU"),
    row(given(celu, alpha=1.0), "Celu"),
    row(given(elu, alpha=1.0), "Elu"),
    row(given(hard_sigmoid, alpha=0.2, beta=0.5), "HardSigmoid"),
    row(given(leaky, alpha=0.01), "LeakyRelu"),
    row(given(selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875), "Selu"),
    row(given(shrink, bias=0.0, lambd=0.5), "Shrink"),
    row(given(swish, alpha=1.0), "Swish"),
    row(given(thresholded, alpha=1.0), "ThresholdedRelu"),
    row(lambda call: call.raw(0), "Identity"),
)
