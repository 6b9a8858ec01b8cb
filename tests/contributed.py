"""Operators of com.microsoft for onnx's reference evaluator, where onnxruntime has no kernel for the CPU.

Written after their descriptions in the operator documentation of onnxruntime.
"""

from __future__ import annotations

from math import erf, sqrt
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

_erf = np.vectorize(erf, otypes=[np.float64])


def gelu(x: Any) -> Any:
    return (x * 0.5 * (1 + _erf(x / sqrt(2)))).astype(x.dtype)


def fast_gelu(x: Any) -> Any:
    return (0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x**3))).astype(x.dtype)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def softmax(x: Any, axes: tuple[int, ...]) -> Any:
    e = np.exp(x - x.max(axis=axes, keepdims=True))
    return e / e.sum(axis=axes, keepdims=True)


class Own(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def get(self, name: str, default: Any) -> Any:
        return getattr(self, name, default)


class BiasAdd(Own):
    def _run(self, x: Any, bias: Any, skip: Any, **given: Any) -> Any:
        return (x + bias + skip,)


class BiasSplitGelu(Own):
    def _run(self, x: Any, bias: Any, **given: Any) -> Any:
        left, right = np.split(x + bias, 2, axis=-1)
        return (left * gelu(right),)


class BiasDropout(Own):
    def _run(self, x: Any, bias: Any, residual: Any = None, **given: Any) -> Any:
        y = x + bias if residual is None else x + bias + residual
        return y, np.ones(y.shape, np.bool_)


class BitmaskDropout(Own):
    def _run(self, x: Any, **given: Any) -> Any:
        return (x,)


class BitmaskBiasDropout(Own):
    def _run(self, x: Any, bias: Any, **given: Any) -> Any:
        return (x + bias,)


class ComplexMul(Own):
    sign = 1

    def _run(self, a: Any, b: Any, **given: Any) -> Any:
        p, q = (v[..., 0::2] + 1j * v[..., 1::2] for v in (a, b))
        y = p * (q if self.sign > 0 else q.conj())
        return (np.stack([y.real, y.imag], axis=-1).reshape(*y.shape[:-1], -1).astype(a.dtype),)


class ComplexMulConj(ComplexMul):
    sign = -1


class SimplifiedLayerNormalization(Own):
    def _run(self, x: Any, scale: Any, **given: Any) -> Any:
        return (x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.get("epsilon", 1e-5)) * scale,)


class LayerNormalization(Own):
    def _run(self, x: Any, scale: Any, bias: Any, **given: Any) -> Any:
        d = x - x.mean(axis=-1, keepdims=True)
        return (d / np.sqrt((d**2).mean(axis=-1, keepdims=True) + self.get("epsilon", 1e-5)) * scale + bias,)


class BiasSoftmax(Own):
    def _run(self, x: Any, bias: Any, **given: Any) -> Any:
        return (softmax(x + bias, tuple(range(self.get("axis", 1), x.ndim))),)


class GroupNorm(Own):
    def _run(self, x: Any, gamma: Any, beta: Any, **given: Any) -> Any:
        return (self.normalised(x, gamma, beta),)

    def normalised(self, x: Any, gamma: Any, beta: Any) -> Any:
        last = self.get("channels_last", 1)
        x = np.moveaxis(x, -1, 1) if last else x
        parts = x.reshape(x.shape[0], self.get("groups", 1), -1)
        d = parts - parts.mean(axis=-1, keepdims=True)
        y = (d / np.sqrt((d**2).mean(axis=-1, keepdims=True) + self.get("epsilon", 1e-5))).reshape(x.shape)
        y = y * gamma.reshape(1, -1, 1, 1) + beta.reshape(1, -1, 1, 1)
        y = silu(y) if self.get("activation", 0) else y
        return np.moveaxis(y, 1, -1) if last else y


class SkipGroupNorm(GroupNorm):
    def _run(self, x: Any, gamma: Any, beta: Any, skip: Any, bias: Any = None, **given: Any) -> Any:
        last = self.get("channels_last", 1)
        if skip.ndim == 2:
            skip = skip[:, None, None, :] if last else skip[:, :, None, None]
        total = x + skip
        if bias is not None:
            total = total + (bias if last else bias.reshape(1, -1, 1, 1))
        return self.normalised(total, gamma, beta), total


_ACTIVATIONS = {"Relu": lambda x: np.maximum(x, 0), "LeakyRelu": lambda x: np.where(x < 0, 0.01 * x, x)}


class FusedMatMulActivation(Own):
    def _run(self, a: Any, b: Any, **given: Any) -> Any:
        return (_ACTIVATIONS[self.get("activation", "")](a @ b).astype(a.dtype),)


class GemmFastGelu(Own):
    def _run(self, x: Any, w: Any, bias: Any = None, **given: Any) -> Any:
        return (fast_gelu(x @ w if bias is None else x @ w + bias),)


def convolve(x: Any, w: Any, group: int, strides: list[int]) -> Any:
    """Channels last in data; the weight as `o i h w`."""
    up, across = strides
    height, width = w.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))[:, ::up, ::across]
    parts = np.split(windows, group, axis=3)
    kernels = np.split(w, group, axis=0)
    out = [np.einsum("nhwcyx,ocyx->nhwo", p, k) for p, k in zip(parts, kernels, strict=True)]
    return np.concatenate(out, axis=-1).astype(x.dtype)


class NhwcConv(Own):
    def _run(self, x: Any, w: Any, bias: Any = None, **given: Any) -> Any:
        y = convolve(x, w.transpose(0, 3, 1, 2), self.get("group", 1), self.get("strides", [1, 1]))
        return (y if bias is None else y + bias,)


class NhwcFusedConv(Own):
    def _run(self, x: Any, w: Any, bias: Any = None, total: Any = None, **given: Any) -> Any:
        y = convolve(x, w, self.get("group", 1), self.get("strides", [1, 1]))
        y = y if bias is None else y + bias
        y = y if total is None else y + total
        return (_ACTIVATIONS[self.get("activation", "")](y).astype(x.dtype),)


class NhwcMaxPool(Own):
    def _run(self, x: Any, **given: Any) -> Any:
        up, across = self.get("strides", [1, 1])
        windows = np.lib.stride_tricks.sliding_window_view(x, tuple(self.get("kernel_shape", ())), axis=(1, 2))
        return (windows[:, ::up, ::across].max(axis=(-2, -1)),)
