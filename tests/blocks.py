"""Blocks of real networks on a `Builder`: each takes a value and returns one; sizes are arguments."""

from __future__ import annotations

import numpy as np
from building import Builder


def residual(b: Builder, x: str, width: int) -> str:
    """ResNet's basic block with `width` channels inside."""
    c = b.shapes[x][1]
    y = b.op("Relu", b.batch_norm(b.conv(x, width, bias=False)))
    return b.op("Relu", b.op("Add", b.batch_norm(b.conv(y, c, bias=False)), x))


def inverted(b: Builder, x: str, width: int) -> str:
    """MobileNetV2's block: 1x1 out, depthwise, 1x1 back, shortcut."""
    c = b.shapes[x][1]
    y = b.op("Clip", b.conv(x, width, 1), b.constant(np.float32(0)), b.constant(np.float32(6)))
    y = b.op("Relu", b.conv(y, width, 3, group=width))
    return b.op("Add", x, b.conv(y, c, 1))


def dense(b: Builder, x: str, growth: int, layers: int = 2) -> str:
    """DenseNet's block: every layer sees all before it."""
    for _ in range(layers):
        x = b.op("Concat", x, b.op("Relu", b.batch_norm(b.conv(x, growth))), axis=1)
    return x


def shuffle(b: Builder, x: str, groups: int = 2) -> str:
    """ShuffleNetV2's unit: one half is carried, the other convolved, channels shuffled."""
    _, c, h, w = b.shapes[x]
    left, right = b.split(x, 1, [c // 2, c - c // 2])
    right = b.op("Relu", b.conv(right, c - c // 2, 1))
    right = b.conv(right, c - c // 2, 3, group=c - c // 2)
    y = b.op("Concat", left, right, axis=1)
    y = b.op("Transpose", b.shape(y, groups, c // groups, h, w), perm=[0, 2, 1, 3, 4])
    return b.shape(y, c, h, w)


def squeeze_excite(b: Builder, x: str, width: int) -> str:
    """Gates of channels computed from their means."""
    c = b.shapes[x][1]
    s = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), width, 1))
    return b.op("Mul", x, b.op("Sigmoid", b.conv(s, c, 1)))


def mlp(b: Builder, x: str, width: int) -> str:
    y = b.linear(x, width)
    y = b.op("Mul", y, b.op("Add", b.op("Erf", y), b.constant(np.float32(1))))
    return b.op("Add", x, b.linear(y, b.shapes[x][-1]))


def gated(b: Builder, x: str, width: int) -> str:
    """A gated MLP whose two projections are one matrix."""
    gate, up = b.halves(b.linear(x, 2 * width, bias=False), -1)
    return b.op("Add", x, b.linear(b.op("Mul", b.swish(gate), up), b.shapes[x][-1], bias=False))


def mixer(b: Builder, x: str, tokens: int, channels: int) -> str:
    """MLP-Mixer: an MLP over positions, then one over channels."""
    y = mlp(b, b.op("Transpose", b.layer_norm(x), perm=[0, 2, 1]), tokens)
    x = b.op("Add", x, b.op("Transpose", y, perm=[0, 2, 1]))
    return mlp(b, b.layer_norm(x), channels)


def rope_half(b: Builder, x: str) -> str:
    """Rotate `n h t d` by halves: `x * cos + concat(-x[d/2:], x[:d/2]) * sin`."""
    t, d = b.shapes[x][2:]
    first, second = b.slice(x, 3, 0, d // 2), b.slice(x, 3, d // 2, d)
    turned = b.op("Concat", b.op("Neg", second), first, axis=3)
    angle = b.rng.random((t, d // 2)).astype(np.float32)
    cos, sin = (np.concatenate([f(angle)] * 2, axis=1) for f in (np.cos, np.sin))
    return b.op("Add", b.op("Mul", x, b.constant(cos, "w")), b.op("Mul", turned, b.constant(sin, "w")))


def rope_pairs(b: Builder, x: str) -> str:
    """Rotate `n h t d` by neighbouring pairs: reshape to `(d 2)`, rotate, stack."""
    h, t, d = b.shapes[x][1:]
    pairs = b.shape(x, h, t, d // 2, 2)
    even, odd = (b.op("Gather", pairs, b.constant(np.int64(i)), axis=4) for i in (0, 1))
    angle = b.rng.random((t, d // 2)).astype(np.float32)
    cos, sin = b.constant(np.cos(angle), "w"), b.constant(np.sin(angle), "w")
    a = b.op("Sub", b.op("Mul", even, cos), b.op("Mul", odd, sin))
    c = b.op("Add", b.op("Mul", even, sin), b.op("Mul", odd, cos))
    both = b.op("Concat", b.squeeze(a, [4], "Unsqueeze"), b.squeeze(c, [4], "Unsqueeze"), axis=4)
    return b.shape(both, h, t, d)


ROPE = {"half": rope_half, "pairs": rope_pairs}


def heads_of(b: Builder, x: str, heads: int, d: int) -> str:
    """`n t (h d) -> n h t d`."""
    return b.op("Transpose", b.shape(x, b.shapes[x][1], heads, d), perm=[0, 2, 1, 3])


def attend(b: Builder, q: str, k: str, v: str) -> str:
    """Attention of `n h t d`, heads merged again and projected."""
    _, h, t, d = b.shapes[q]
    scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), b.constant(np.float32(d**-0.5)))
    y = b.op("Transpose", b.op("MatMul", b.softmax(scores), v), perm=[0, 2, 1, 3])
    return b.shape(y, t, h * b.shapes[v][3])


def attention(b: Builder, x: str, heads: int, d: int, rope: str = "") -> str:
    """Self-attention with three projections."""
    q, k, v = (heads_of(b, b.linear(x, heads * d), heads, d) for _ in range(3))
    if rope:
        q, k = ROPE[rope](b, q), ROPE[rope](b, k)
    return b.op("Add", x, b.linear(attend(b, q, k, v), b.shapes[x][-1]))


def fused_attention(b: Builder, x: str, heads: int, d: int) -> str:
    """Self-attention with one projection to `(3 h d)`, as timm writes it."""
    t = b.shapes[x][1]
    y = b.shape(b.linear(x, 3 * heads * d), t, 3, heads, d)
    y = b.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", y, b.constant(np.int64(i)), axis=0) for i in range(3))
    return b.op("Add", x, b.linear(attend(b, q, k, v), b.shapes[x][-1]))


def split_attention(b: Builder, x: str, heads: int, d: int) -> str:
    """Self-attention with one projection that is split in three, as GPT-2 writes it."""
    q, k, v = (heads_of(b, y, heads, d) for y in b.split(b.linear(x, 3 * heads * d), 2, [heads * d] * 3))
    return b.op("Add", x, b.linear(attend(b, q, k, v), b.shapes[x][-1]))


def grouped_attention(b: Builder, x: str, heads: int, shared: int, d: int, rope: str = "half") -> str:
    """Self-attention in which `heads / shared` query heads use one key head, repeated by Expand."""
    t = b.shapes[x][1]
    q = heads_of(b, b.linear(x, heads * d, bias=False), heads, d)
    k, v = (heads_of(b, b.linear(x, shared * d, bias=False), shared, d) for _ in range(2))
    if rope:
        q, k = ROPE[rope](b, q), ROPE[rope](b, k)

    def repeat(y: str) -> str:
        wide = b.squeeze(y, [2], "Unsqueeze")
        wide = b.op("Expand", wide, b.ints(1, shared, heads // shared, t, d))
        return b.shape(wide, heads, t, d)

    return b.op("Add", x, b.linear(attend(b, q, repeat(k), repeat(v)), b.shapes[x][-1], bias=False))


def unet(b: Builder, x: str, width: int) -> str:
    """One level down and up again, joined with what was there."""
    y = b.op("Relu", b.conv(x, width))
    down = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    down = b.op("Relu", b.conv(down, 2 * width))
    w = b.weight(2 * width, width, 2, 2, fan=8 * width)
    up = b.op("ConvTranspose", down, w, b.weight(width), strides=[2, 2])
    return b.op("Relu", b.conv(b.op("Concat", y, up, axis=1), width))


def detector_head(b: Builder, x: str, width: int, anchors: int, classes: int) -> tuple[str, str]:
    """Boxes and classes of each position, as YOLO's heads: two branches, flattened and transposed."""
    h, w = b.shapes[x][2:]
    outs = []
    for values in (4, classes):
        y = b.conv(b.swish(b.batch_norm(b.conv(x, width))), anchors * values, 1)
        y = b.op("Transpose", b.shape(y, anchors, values, h * w), perm=[0, 1, 3, 2])
        outs.append(b.shape(y, anchors * h * w, values))
    return outs[0], b.op("Sigmoid", outs[1])
