"""Torch rules of attention and rotary embedding as ai.onnx defines them, and what fused operators share with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphprune.converters.torch_ops.registry import Call, Made, Tensor, TorchRule
from graphprune.ops.registry import Row, row


@dataclass(frozen=True)
class Scores:
    """How products of queries and keys become weights: a scale, what is added, a soft bound."""

    scale: float
    bias: Tensor | None = None
    softcap: float = 0.0
    sink: Tensor | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> tuple[Tensor, list[Tensor]]:
    """Return softmax(q k + bias) v of heads [b, h, s, d], and the scores after each stage; empty rows give zero."""
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    raw = torch.matmul(q * scores.scale**0.5, k.transpose(-1, -2) * scores.scale**0.5)
    capped = scores.softcap * torch.tanh(raw / scores.softcap) if scores.softcap else raw
    biased = capped if scores.bias is None else capped + scores.bias.to(capped.dtype)
    weights = _softmax(biased, scores.sink)
    return torch.matmul(weights.to(v.dtype), v), [raw, capped, biased, weights]


def _softmax(x: Tensor, sink: Tensor | None) -> Tensor:
    """Softmax with one more entry per head where there is a sink; rows of -inf become zero."""
    if sink is not None:
        extra = sink.reshape(1, -1, 1, 1).to(x.dtype).expand(*x.shape[:-1], 1)
        return torch.softmax(torch.cat([x, extra], -1), -1)[..., :-1]
    dead = torch.isneginf(x).all(-1, True)
    return torch.where(dead, torch.zeros_like(x), torch.softmax(torch.where(dead, torch.zeros_like(x), x), -1))


def heads(x: Tensor, number: int) -> Tensor:
    """Return b s (h d) as b h s d; what has four axes has its heads already."""
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], number, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """Return b h s d as b s (h d)."""
    return x.transpose(1, 2).flatten(2)


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask that is added: 0 where it is true, -inf elsewhere; numbers stay as they are."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)


def causal(queries: int, keys: int, offset: Tensor | int, device: torch.device) -> Tensor:
    """Return which keys come no later than each query; the offset is the number of keys before the first query."""
    at = torch.arange(queries, device=device)[:, None] + offset
    return torch.arange(keys, device=device) <= at


def attention(call: Call) -> Made:
    """b (s) (h d) or b h s d; masks, caches, shared key heads, a causal order."""
    three = call.x(0).dim() == 3
    many, few = int(call.attr("q_num_heads", 0)), int(call.attr("kv_num_heads", 0))
    q, k, v = heads(call.x(0), many), heads(call.x(1), few), heads(call.x(2), few)
    past = call.x(4).shape[2] if call.has(4) else 0
    if past or call.has(4):
        k, v = torch.cat([call.x(4), k], 2), torch.cat([call.x(5), v], 2)
    bias = _bias(call, q, k.shape[2], past)
    scale = call.attr("scale")
    scores = Scores(float(scale) if scale else q.shape[-1] ** -0.5, bias, float(call.attr("softcap", 0.0)))
    y, stages = attend(q, k, v, scores)
    mode = int(call.attr("qk_matmul_output_mode", 0))
    return joined(y) if three else y, k, v, stages[mode].to(q.dtype)


def _bias(call: Call, q: Tensor, keys: int, past: int) -> Tensor | None:
    mask, lengths = call.maybe(3), call.maybe(6)
    bias = None
    if mask is not None:
        bias = additive(mask, q)
        if mask.shape[-1] < keys:
            bias = torch.nn.functional.pad(bias, (0, keys - mask.shape[-1]), value=-torch.inf)
    offset: Tensor | int = past if lengths is None else (lengths - q.shape[2]).reshape(-1, 1, 1, 1)
    for allowed in _allowed(call, q, keys, offset):
        more = additive(allowed, q)
        bias = more if bias is None else bias + more
    return bias


def _allowed(call: Call, q: Tensor, keys: int, offset: Tensor | int) -> list[Tensor]:
    """Return masks by order, by a window, and by the lengths of samples."""
    found = []
    if call.attr("is_causal", 0):
        found.append(causal(q.shape[2], keys, offset, q.device))
    left, right = int(call.attr("left_window_size", -1)), int(call.attr("right_window_size", -1))
    if left >= 0 or right >= 0:
        apart = torch.arange(q.shape[2], device=q.device)[:, None] + offset - torch.arange(keys, device=q.device)
        found += [apart <= left] if left >= 0 else []
        found += [-apart <= right] if right >= 0 else []
    if call.has(6):
        found.append(torch.arange(keys, device=q.device) < call.x(6).reshape(-1, 1, 1, 1))
    return found


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of b h s d by angles b|1 1 s (d / 2); what is wider than the angles stays as it is."""
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    y = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([y, rest], -1) if rest.shape[-1] else y


def rotary(call: Call) -> Made:
    """Pairs of positions of a head turn together."""
    x, cos, sin, at = call.x(0), call.x(1), call.x(2), call.maybe(3)
    if at is not None:
        cos, sin = cos[at.long()], sin[at.long()]
    by_head = heads(x, int(call.attr("num_heads", 0)))
    width = int(call.attr("rotary_embedding_dim", 0)) or by_head.shape[-1]
    cos, sin = (t[..., : width // 2].unsqueeze(1) for t in (cos, sin))
    y = turn(by_head, cos, sin, bool(call.attr("interleaved", 0)))
    return joined(y) if x.dim() == 3 else y


RULES: tuple[Row[TorchRule], ...] = (
    row(attention, "Attention"),
    row(rotary, "RotaryEmbedding"),
)
