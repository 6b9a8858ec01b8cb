"""Operators of com.microsoft for onnx's reference evaluator, where onnxruntime has no kernel for the CPU.

Written after their descriptions in the operator documentation of onnxruntime.
"""

from __future__ import annotations

from itertools import pairwise
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


def attend(q: Any, k: Any, v: Any, heads: int, scale: float = 0.0, causal: bool = False) -> Any:
    """Attention of `b s (h d)`, `b t (h d)` and `b t (h e)`; keys and values also as `b h t d`."""
    q, k, v = (a if a.ndim == 4 else apart(a, heads) for a in (q, k, v))
    scores = np.einsum("bhsd,bhtd->bhst", q, k) * (scale or q.shape[-1] ** -0.5)
    if causal:
        hidden = np.triu(np.ones(scores.shape[-2:], np.bool_), 1 + scores.shape[-1] - scores.shape[-2])
        scores = np.where(hidden, -1e4, scores)
    y = np.einsum("bhst,bhte->bshe", softmax(scores, (-1,)), v)
    return y.reshape(*y.shape[:2], -1).astype(q.dtype)


def apart(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def turn(x: Any) -> Any:
    """Turn the pairs of `b h s d` by angles that depend on position and place."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[2])[:, None] * 10000.0 ** (-np.arange(half) / half)
    c, s, a, b = np.cos(angles), np.sin(angles), x[..., :half], x[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1).astype(x.dtype)


class Attention(Own):
    def _run(self, x: Any, w: Any, bias: Any = None, *others: Any, **given: Any) -> Any:
        heads = self.get("num_heads", 1)
        sizes = self.get("qkv_hidden_sizes", None) or [w.shape[1] // 3] * 3
        y = x @ w if bias is None else x @ w + bias
        q, k, v = (apart(a, heads) for a in np.split(y, np.cumsum(sizes[:2]), axis=-1))
        if self.get("do_rotary", 0):
            q, k = turn(q), turn(k)
        return (attend(q, k, v, heads, self.get("scale", 0.0), bool(self.get("unidirectional", 0))),)


class PackedAttention(Own):
    def _run(self, x: Any, w: Any, bias: Any, places: Any, ends: Any, *others: Any, **given: Any) -> Any:
        sizes = self.get("qkv_hidden_sizes", None) or [w.shape[1] // 3] * 3
        q, k, v = np.split(x @ w + bias, np.cumsum(sizes[:2]), axis=-1)
        return (packed(q, k, v, ends, self.get("num_heads", 1), self.get("scale", 0.0)),)


def packed(q: Any, k: Any, v: Any, ends: Any, heads: int, scale: float) -> Any:
    spans = [slice(a, b) for a, b in pairwise(ends)]
    return np.concatenate([attend(q[None, s], k[None, s], v[None, s], heads, scale)[0] for s in spans])


class PackedMultiHeadAttention(Own):
    def _run(self, q: Any, k: Any, v: Any, bias: Any, places: Any, ends: Any, **given: Any) -> Any:
        if k is None:
            q, k, v = (q[:, :, i].reshape(len(q), -1) for i in range(3))
        return (packed(q, k, v, ends, self.get("num_heads", 1), self.get("scale", 0.0)),)


class MultiHeadAttention(Own):
    """Of stacked inputs only."""

    def _run(self, q: Any, kv: Any = None, **given: Any) -> Any:
        if kv is None:
            q, kv = q[:, :, :, 0].reshape(*q.shape[:2], -1), q[:, :, :, 1:]
        k, v = (kv[:, :, :, i].transpose(0, 2, 1, 3) for i in range(2))
        return (attend(q, k, v, self.get("num_heads", 1), self.get("scale", 0.0)),)


class DecoderMaskedSelfAttention(Own):
    """With a plain cache: the real one reorders the width of heads, which never changes."""

    def _run(self, x: Any, w: Any, bias: Any, mask: Any, past: Any, **given: Any) -> Any:
        heads = self.get("num_heads", 1)
        q, k, v = (apart(a, heads) for a in np.split(x @ w + bias, 3, axis=-1))
        present = np.concatenate([past, np.stack([k, v])], axis=3)
        return attend(q, present[0], present[1], heads, self.get("scale", 0.0)), present


class DecoderMaskedMultiHeadAttention(Own):
    def _run(self, x: Any, k: Any, v: Any, m: Any, r: Any, keys: Any, values: Any, **given: Any) -> Any:
        heads = self.get("num_heads", 1)
        q, k, v = (apart(a, heads) for a in np.split(x, 3, axis=-1))
        k, v = np.concatenate([keys, k], axis=2), np.concatenate([values, v], axis=2)
        return (attend(q, k, v, heads, self.get("scale", 0.0)),)


_INSIDE = {
    "relu": lambda x: np.maximum(x, 0), "gelu": gelu, "silu": silu, "identity": lambda x: x,
    "swiglu": lambda x: silu(x[..., 0::2]) * x[..., 1::2],
}


class MoE(Own):
    def _run(
        self, x: Any, router: Any, up: Any, up_bias: Any, down: Any, down_bias: Any = None, gate: Any = None,
        gate_bias: Any = None, **given: Any,
    ) -> Any:
        tokens = x.reshape(-1, x.shape[-1])
        weights = softmax(router, (-1,))
        chosen = np.argsort(-router, axis=-1, kind="stable")[:, : self.get("k", 1)]
        y = np.zeros_like(tokens)
        for t, experts in enumerate(chosen):
            total = weights[t, experts].sum() if self.get("normalize_routing_weights", 0) else 1
            for e in experts:
                inner = up[e] @ tokens[t] + (0 if up_bias is None else up_bias[e])
                inner = _INSIDE[self.get("activation_type", "relu")](self.in_pairs(inner))
                if gate is not None:
                    inner = inner * (gate[e] @ tokens[t] + (0 if gate_bias is None else gate_bias[e]))
                y[t] += weights[t, e] / total * (down[e] @ inner + (0 if down_bias is None else down_bias[e]))
        return (y.reshape(x.shape).astype(x.dtype),)

    def in_pairs(self, inner: Any) -> Any:
        """Return gate and value of each unit side by side."""
        return inner.reshape(2, -1).T.ravel() if self.get("swiglu_fusion", 0) == 2 else inner


def numbers(packed: Any, bits: int, count: int) -> Any:
    """Return so many numbers along the last axis of bytes, the lowest bits first."""
    each = 8 // bits
    places = [(packed >> (bits * k)) & (2**bits - 1) for k in range(each)]
    return np.stack(places, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count].astype(np.float32)


class QMoE(MoE):
    def _run(self, x: Any, router: Any, *given: Any, **attributes: Any) -> Any:
        at = [*given, *[None] * (13 - len(given))]
        up, down, gate = (self.matrix(i, *(at[p] for p in places)) for i, places in enumerate(
            ((0, 1, 9), (3, 4, 10), (6, 7, 11))))
        weigh = at[12]
        if weigh is None:
            return super()._run(x, router, up, at[2], down, at[5], gate, at[8])
        chosen = np.argsort(-router, axis=-1, kind="stable")[:, : self.get("k", 1)]
        y = np.zeros_like(x)
        for t, experts in enumerate(chosen):
            total = weigh[t, experts].sum() if self.get("normalize_routing_weights", 0) else 1
            for e in experts:
                inner = _INSIDE[self.get("activation_type", "relu")](self.in_pairs(up[e] @ x[t] + at[2][e]))
                y[t] += weigh[t, e] / total * (down[e] @ inner + at[5][e])
        return (y.astype(x.dtype),)

    def matrix(self, which: int, weight: Any, scale: Any, zero: Any) -> Any:
        """Return the real numbers of one matrix of all experts, row by row."""
        if weight is None:
            return None
        bits = self.get(f"fc{which + 1}_expert_weight_bits", None) or self.get("expert_weight_bits", 4)
        real = numbers(weight, bits, weight.shape[2] * 8 // bits)
        block = self.get("block_size", 0) or real.shape[2]
        scale = scale.reshape(*scale.shape[:2], -1)
        if zero is None:
            zero = np.full(scale.shape, 2 ** (bits - 1))
        else:
            zero = numbers(zero, bits, scale.shape[2] if zero.ndim == 3 else scale.shape[1]).reshape(scale.shape)
        return (real - zero.repeat(block, axis=2)) * scale.repeat(block, axis=2)


class TorchEmbedding(Own):
    def _run(self, weight: Any, indices: Any, **given: Any) -> Any:
        return (weight[indices],)


class MatMulInteger16(Own):
    def _run(self, a: Any, b: Any, **given: Any) -> Any:
        return ((a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32),)


class MulInteger(Own):
    def _run(self, a: Any, a_zero: Any, b: Any, b_zero: Any = None, **given: Any) -> Any:
        left, right = (x.astype(np.int32) - (0 if z is None else z) for x, z in ((a, a_zero), (b, b_zero)))
        return (left * right,)


class ReduceSumInteger(Own):
    def _run(self, x: Any, **given: Any) -> Any:
        axes = tuple(self.get("axes", ())) or None
        return (x.astype(np.int32).sum(axis=axes, keepdims=bool(self.get("keepdims", 1)), dtype=np.int32),)


class QLinearReduceMean(Own):
    def _run(self, x: Any, scale: Any, zero: Any, new: Any, point: Any, **given: Any) -> Any:
        axes = tuple(self.get("axes", ())) or None
        mean = ((x.astype(np.float32) - zero) * scale).mean(axis=axes, keepdims=bool(self.get("keepdims", 1)))
        low, high = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
        return (np.clip(np.rint(mean / new) + point, low, high).astype(x.dtype),)


class GroupQueryAttention(Own):
    """Of separate inputs without a past, with normalised heads."""

    def _run(self, q: Any, k: Any, v: Any, *others: Any, **given: Any) -> Any:
        heads, shared = self.get("num_heads", 1), self.get("kv_num_heads", 1)
        q, k, v = apart(q, heads), apart(k, shared), apart(v, shared)
        q, k = (self.normalised(a, gain) for a, gain in zip((q, k), others[-2:], strict=True))
        k, v = (a.repeat(heads // shared, axis=1) for a in (k, v))
        return (attend(q, k, v, heads, self.get("scale", 0.0), causal=True),)

    def normalised(self, x: Any, gain: Any) -> Any:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.get("qk_norm_epsilon", 1e-6)) * gain
