"""Torch rules of attention as onnxruntime fuses it, domain com.microsoft.

Layouts are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import torch

from graphprune.converters.torch_ops.attention import Scores, attend, causal, heads, joined, turn
from graphprune.converters.torch_ops.registry import MICROSOFT, Call, Made, Tensor, TorchRule
from graphprune.ops.registry import Row, row

_FILTER = -10000.0


def _masked(mask: Tensor, keys: int, queries: int, dtype: torch.dtype, low: float) -> Tensor:
    """Return what a mask adds to scores: lengths of samples, ends and starts, or ones where keys count."""
    at = torch.arange(keys, device=mask.device)
    if mask.dim() == 1:
        allowed = at < mask.reshape(-1, 1, 1, 1)
    elif mask.dim() == 4:
        allowed = mask[:, :, keys - queries : keys, :keys] > 0
    else:
        allowed = mask.reshape(mask.shape[0], 1, -1, mask.shape[-1]) > 0
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(~allowed, low)


def _spans(mask: Tensor, batch: int, keys: int, dtype: torch.dtype, low: float) -> Tensor:
    """Return what is added where the first half of a mask are ends and the second starts."""
    at = torch.arange(keys, device=mask.device)
    end, start = mask[:batch].reshape(-1, 1, 1, 1), mask[batch:].reshape(-1, 1, 1, 1)
    allowed = (at >= start) & (at < end)
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(~allowed, low)


def _biased(call: Call, q: Tensor, keys: int, places: tuple[int, int], ordered: bool) -> Tensor | None:
    """Return the sum of what mask, scores and a causal order add."""
    low = float(call.attr("mask_filter_value", _FILTER))
    mask, scores = call.maybe(places[0]), call.maybe(places[1])
    parts = []
    if mask is not None and mask.numel() == 2 * q.shape[0] and mask.dim() == 1:
        parts.append(_spans(mask, q.shape[0], keys, q.dtype, low))
    elif mask is not None:
        parts.append(_masked(mask, keys, q.shape[2], q.dtype, low))
    if scores is not None:
        parts.append(scores)
    if ordered:
        allowed = causal(q.shape[2], keys, keys - q.shape[2], q.device)
        parts.append(torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, -torch.inf))
    return sum(parts[1:], parts[0]) if parts else None


def attention(call: Call) -> Made:
    """b s i, i (h d + h d + h e) -> b s (h e), with one cache 2 b h t d."""
    if call.attr("do_rotary", 0):
        raise call.error("rotary embedding inside Attention is not supported")
    number, w = int(call.attr("num_heads")), call.x(1)
    sizes = list(call.attr("qkv_hidden_sizes") or [w.shape[1] // 3] * 3)
    mixed = torch.matmul(call.x(0), w)
    mixed = mixed + call.x(2) if call.has(2) else mixed
    q, k, v = (heads(t, number) for t in mixed.split(sizes, -1))
    if call.has(4):
        k, v = torch.cat([call.x(4)[0], k], 2), torch.cat([call.x(4)[1], v], 2)
    bias = _biased(call, q, k.shape[2], (3, 5), bool(call.attr("unidirectional", 0)))
    y, _ = attend(q, k, v, Scores(float(call.attr("scale", 0.0)) or q.shape[-1] ** -0.5, bias))
    return joined(y), torch.stack([k, v]) if call.wanted(1) else None


def multi_head(call: Call) -> Made:
    """Queries, keys and values apart, stacked in one, or the latter two; caches b h t d."""
    number, x = int(call.attr("num_heads")), call.x(0)
    bias = call.x(3).chunk(3) if call.has(3) and call.x(3).shape[0] % 3 == 0 else None
    if call.has(3) and call.has(2) and call.x(2).dim() == 3:
        widths = [x.shape[-1], x.shape[-1], call.x(3).shape[0] - 2 * x.shape[-1]]
        bias = call.x(3).split(widths)
    parts = list(x.unbind(3)) if x.dim() == 5 else [x]
    if call.has(1) and call.x(1).dim() == 5:
        parts += call.x(1).unbind(3)
    elif call.has(1):
        parts += [call.x(1), call.x(2)]
    elif len(parts) == 1:
        parts = list(x.chunk(3, -1))
    q, k, v = (_one(p, number, None if bias is None else bias[i]) for i, p in enumerate(parts))
    if call.has(6):
        k, v = torch.cat([call.x(6), k], 2), torch.cat([call.x(7), v], 2)
    added = _biased(call, q, k.shape[2], (4, 5), bool(call.attr("unidirectional", 0)))
    y, stages = attend(q, k, v, Scores(float(call.attr("scale", 0.0)) or q.shape[-1] ** -0.5, added))
    return joined(y), k, v, stages[0]


def _one(x: Tensor, number: int, bias: Tensor | None) -> Tensor:
    """Return b s (h d), b h s d or b s h d (stacked) as b h s d, with its bias."""
    if x.dim() == 4 and x.shape[2] == number and x.shape[1] != number:
        x = x.transpose(1, 2)
    by_head = heads(x, number)
    return by_head if bias is None else by_head + bias.reshape(number, 1, -1)


def grouped(call: Call) -> Made:
    """b s (k r d), b s (k d): causal, with rotary embedding inside where asked for."""
    many, few = int(call.attr("num_heads")), int(call.attr("kv_num_heads"))
    x = call.x(0)
    if call.has(1):
        parts = [x, call.x(1), call.x(2)]
    else:
        width = x.shape[-1] // (many + 2 * few)
        parts = list(x.split([many * width, few * width, few * width], -1))
    q, k, v = (heads(p, n) for p, n in zip(parts, (many, few, few), strict=True))
    new, total = q.shape[2], int(call.number(6))
    ends = call.x(5).reshape(-1).long() + 1
    before = torch.zeros_like(ends) if new == total or not call.has(3) else ends - new
    if call.attr("do_rotary", 0):
        at = before[:, None] + torch.arange(new, device=x.device) if not call.has(9) else call.x(9).long()
        cos, sin = (call.x(i)[at.clamp(min=0)].unsqueeze(1) for i in (7, 8))
        q, k = (turn(t, cos, sin, bool(call.attr("rotary_interleaved", 0))) for t in (q, k))
    room = max(total, call.x(3).shape[2] if call.has(3) else 0)
    k, v = (_appended(call.maybe(i), t, before.tolist(), room) for i, t in ((3, k), (4, v)))
    y, _ = attend(q, k[:, :, :total], v[:, :, :total], _grouped_scores(call, q, before, ends, total))
    return joined(y), k, v


def _appended(past: Tensor | None, new: Tensor, before: list[int], room: int) -> Tensor:
    """Put new keys behind those of each sample that are there."""
    rows = []
    for n, start in enumerate(before):
        parts = [new[n]] if past is None or not start else [past[n][:, :start], new[n]]
        row_ = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        rows.append(torch.nn.functional.pad(row_, (0, 0, 0, room - row_.shape[1])))
    return torch.stack(rows)


def _grouped_scores(call: Call, q: Tensor, before: Tensor, ends: Tensor, keys: int) -> Scores:
    offset, at = before.reshape(-1, 1, 1, 1), torch.arange(keys, device=q.device)
    allowed = causal(q.shape[2], keys, offset, q.device)
    local = int(call.attr("local_window_size", -1))
    if local > 0:
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + offset
        allowed = allowed & (at > rows - local)
    bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, -torch.inf)
    if call.has(10):
        bias = bias + call.x(10)[..., :keys]
    scale = float(call.attr("scale", 0.0)) or q.shape[-1] ** -0.5
    return Scores(scale, bias, float(call.attr("softcap", 0.0)), call.maybe(11))


def rotary(call: Call) -> Made:
    """As in ai.onnx, with positions second; one number counts from there."""
    x, at, cos, sin = call.x(0), call.x(1).long(), call.x(2), call.x(3)
    number = int(call.attr("num_heads", 0)) or (x.shape[-1] // (2 * cos.shape[-1]) if x.dim() == 3 else 0)
    by_head = heads(x, number)
    if at.numel() == 1 and at.dim() <= 1:
        at = at.reshape(1, 1) + torch.arange(by_head.shape[2], device=x.device)
    y = turn(by_head, cos[at].unsqueeze(1), sin[at].unsqueeze(1), bool(call.attr("interleaved", 0)))
    return joined(y) if x.dim() == 3 else y


RULES: tuple[Row[TorchRule], ...] = (
    row(attention, "Attention", domain=MICROSOFT),
    row(multi_head, "MultiHeadAttention", domain=MICROSOFT),
    row(grouped, "GroupQueryAttention", domain=MICROSOFT),
    row(rotary, "RotaryEmbedding", domain=MICROSOFT),
)
