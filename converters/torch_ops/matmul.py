"""Torch rules of matrix products."""

from __future__ import annotations

import string

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import Call, Made, TorchRule, plain
from graphprune.ops.registry import Row, row


def gemm(call: Call) -> Made:
    """a A B + b C, either matrix transposed."""
    a = call.x(0).t() if call.attr("transA", 0) else call.x(0)
    b, c = call.x(1), call.maybe(2)
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    one = alpha == 1 and beta == 1
    if one and call.attr("transB", 0) and (c is None or c.dim() == 1) and a.is_floating_point():
        return F.linear(a, b, c)
    y = torch.matmul(a, b.t() if call.attr("transB", 0) else b)
    y = y if alpha == 1 else (alpha * y).to(y.dtype)
    return y if c is None else y + (c if beta == 1 else (beta * c).to(c.dtype))


def einsum(call: Call) -> Made:
    """Any product; letters are made ones that torch knows, the dots stay."""
    equation = str(call.attr("equation")).replace(" ", "")
    letters = dict.fromkeys(c for c in equation if c not in ".,->")
    known = dict(zip(letters, string.ascii_letters, strict=False))
    return torch.einsum("".join(known.get(c, c) for c in equation), *call.tensors())


def determinant(call: Call) -> Made:
    """The determinant of the last two axes."""
    return torch.linalg.det(call.x(0))


RULES: tuple[Row[TorchRule], ...] = (
    row(plain(torch.matmul), "MatMul"),
    row(gemm, "Gemm"),
    row(einsum, "Einsum"),
    row(determinant, "Det"),
)
