"""Torch rules of operators that speak of sizes, make tensors from nothing, or draw numbers."""

from __future__ import annotations

import numpy as np
import torch

from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule
from graphprune.ops.registry import Row, row

_FLOAT = 1


def shape(call: Call) -> Made:
    """Sizes are known without waiting for a device."""
    x = call.raw(0)
    sizes = [int(s) for s in x.shape]
    end = call.attr("end")
    return torch.tensor(sizes[int(call.attr("start", 0)) : None if end is None else int(end)], dtype=torch.int64)


def size(call: Call) -> Made:
    """The number of elements."""
    return torch.tensor(call.raw(0).numel(), dtype=torch.int64)


def constant_of_shape(call: Call) -> Made:
    """One value everywhere, zero by default."""
    sizes, value = call.ints(0) or [], call.attr("value")
    count = int(np.prod(sizes, dtype=np.int64))
    if value is None:
        return torch.zeros(sizes, dtype=call.host.dtype(_FLOAT), device=call.place(count))
    made = value.reshape(-1)[0]
    made = made.to(call.host.dtype(_FLOAT)) if made.dtype == torch.float32 else made
    return made.to(call.place(count)).expand(sizes)


def count(call: Call) -> Made:
    """From start to limit in steps."""
    start, limit, delta = (v.reshape(-1)[0].cpu() for v in (call.x(0), call.x(1), call.raw(2)) if v is not None)
    return _counted(start, limit, delta, call)


def count_two(call: Call) -> Made:
    """As of ai.onnx; the step may be left out."""
    start, limit = call.x(0).reshape(-1)[0].cpu(), call.x(1).reshape(-1)[0].cpu()
    delta = call.x(2).reshape(-1)[0].cpu() if call.has(2) else torch.ones_like(start)
    return _counted(start, limit, delta, call)


def _counted(start: Tensor, limit: Tensor, delta: Tensor, call: Call) -> Tensor:
    n = max(int(np.ceil((limit.item() - start.item()) / delta.item())), 0)
    place = call.place(n)
    return start.to(place) + torch.arange(n, device=place).to(start.dtype) * delta.to(place)


def eye(call: Call) -> Made:
    """Ones on a diagonal."""
    x, k = call.x(0), int(call.attr("k", 0))
    dtype = call.host.dtype(int(call.attr("dtype"))) if call.attr("dtype") is not None else x.dtype
    ones = torch.ones(x.shape, dtype=dtype, device=x.device)
    return torch.triu(torch.tril(ones, k), k)


def _drawn(call: Call, like: bool) -> tuple[list[int], torch.dtype, torch.device]:
    x = call.raw(0) if like else None
    sizes = list(x.shape) if x is not None else [int(s) for s in call.attr("shape")]
    element = call.attr("dtype")
    dtype = x.dtype if x is not None and element is None else call.host.dtype(int(element or _FLOAT))
    return sizes, dtype, call.host.device


def normal(like: bool) -> TorchRule:
    """Numbers drawn from a normal distribution."""

    def rule(call: Call) -> Made:
        sizes, dtype, device = _drawn(call, like)
        drawn = torch.randn(sizes, dtype=dtype, device=device)
        return drawn * float(call.attr("scale", 1.0)) + float(call.attr("mean", 0.0))

    return rule


def uniform(like: bool) -> TorchRule:
    """Numbers drawn evenly between two bounds."""

    def rule(call: Call) -> Made:
        sizes, dtype, device = _drawn(call, like)
        low, high = float(call.attr("low", 0.0)), float(call.attr("high", 1.0))
        return torch.rand(sizes, dtype=dtype, device=device) * (high - low) + low

    return rule


def bernoulli(call: Call) -> Made:
    """Ones with the probability of each element."""
    x = call.x(0)
    dtype = call.host.dtype(int(call.attr("dtype"))) if call.attr("dtype") is not None else x.dtype
    return torch.bernoulli(x).to(dtype)


def multinomial(call: Call) -> Made:
    """Classes drawn by their log-probabilities."""
    x = call.x(0)
    drawn = torch.multinomial(torch.softmax(x, -1), int(call.attr("sample_size", 1)), replacement=True)
    return drawn.to(call.host.dtype(int(call.attr("dtype", 6))))


RULES: tuple[Row[TorchRule], ...] = (
    row(shape, "Shape"),
    row(size, "Size"),
    row(constant_of_shape, "ConstantOfShape"),
    row(count, "Range"),
    row(count_two, "Range", domain=MICROSOFT),
    row(eye, "EyeLike"),
    row(normal(False), "RandomNormal"),
    row(normal(True), "RandomNormalLike"),
    row(uniform(False), "RandomUniform"),
    row(uniform(True), "RandomUniformLike"),
    row(bernoulli, "Bernoulli"),
    row(multinomial, "Multinomial"),
)
