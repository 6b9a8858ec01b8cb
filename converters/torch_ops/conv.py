"""Torch rules of convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import Call, Made, Tensor, TorchRule, plain
from graphprune.ops.registry import Row, row

_CONV: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@dataclass(frozen=True)
class Window:
    """A window that slides over positions: per axis its size, step, dilation and padding in front and behind."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    front: list[int]
    behind: list[int]

    @property
    def reach(self) -> list[int]:
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def window(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """Read a window from attributes; automatic padding is worked out for the sizes that are there."""
    n = len(kernel)
    strides = list(call.attr("strides") or [1] * n)
    dilations = list(call.attr("dilations") or [1] * n)
    pads = list(call.attr("pads") or [0] * 2 * n)
    plan = Window(list(kernel), strides, dilations, pads[:n], pads[n:])
    auto = call.attr("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return plan
    if auto == "VALID":
        return Window(plan.kernel, strides, dilations, [0] * n, [0] * n)
    total = [
        max((-(-size // s) - 1) * s + r - size, 0) for size, s, r in zip(sizes, strides, plan.reach, strict=True)
    ]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    front, behind = (less, more) if auto == "SAME_UPPER" else (more, less)
    return Window(plan.kernel, strides, dilations, front, behind)


def torch_pads(front: Sequence[int], behind: Sequence[int]) -> list[int]:
    """Return pads in torch's order, the last axis first."""
    return [p for pair in reversed(list(zip(front, behind, strict=True))) for p in pair]


def convolve(call: Call, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """A convolution in one to three dimensions; uneven padding is done before."""
    plan = window(call, x.shape[2:], w.shape[2:])
    pads: list[int] = plan.front
    if plan.front != plan.behind or min(plan.front, default=0) < 0:
        x, pads = F.pad(x, torch_pads(plan.front, plan.behind)), [0] * len(plan.front)
    result: Tensor = _CONV[len(plan.kernel) - 1](
        x, w, b, plan.strides, pads, plan.dilations, int(call.attr("group", 1))
    )
    return result


def conv(call: Call) -> Made:
    """n (g i) *s, (g o) i *k -> n (g o) *t."""
    return convolve(call, call.x(0), call.x(1), call.maybe(2))


def conv_transpose(call: Call) -> Made:
    """The full result is computed, then cut to what padding or the asked-for sizes leave."""
    x, w = call.x(0), call.x(1)
    n = w.dim() - 2
    plan = window(call, x.shape[2:], w.shape[2:]) if not _asks_same(call) else _unpadded(call, w.shape[2:])
    extra = list(call.attr("output_padding") or [0] * n)
    whole = [
        (s - 1) * step + r + e
        for s, step, r, e in zip(x.shape[2:], plan.strides, plan.reach, extra, strict=True)
    ]
    front, behind = _cut(call, x, plan, whole)
    grown = [min(e, max(s, d) - 1) for e, s, d in zip(extra, plan.strides, plan.dilations, strict=True)]
    y = _TRANSPOSED[n - 1](
        x, w, call.maybe(2), plan.strides, 0, grown, int(call.attr("group", 1)), plan.dilations
    )
    rest = [e - g for e, g in zip(extra, grown, strict=True)]
    return F.pad(y, torch_pads([-f for f in front], [r - b for r, b in zip(rest, behind, strict=True)]))


def _asks_same(call: Call) -> bool:
    return str(call.attr("auto_pad", "")).startswith("SAME")


def _unpadded(call: Call, kernel: Sequence[int]) -> Window:
    n = len(kernel)
    ones = [1] * n
    return Window(
        list(kernel), list(call.attr("strides") or ones), list(call.attr("dilations") or ones), [0] * n, [0] * n
    )


def _cut(call: Call, x: Tensor, plan: Window, whole: list[int]) -> tuple[list[int], list[int]]:
    """Return what is taken off in front and behind."""
    sizes = call.attr("output_shape")
    if sizes is None and not _asks_same(call):
        return plan.front, plan.behind
    wanted = list(sizes) if sizes else [s * step for s, step in zip(x.shape[2:], plan.strides, strict=True)]
    total = [w - o for w, o in zip(whole, wanted[-len(whole) :], strict=True)]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return (less, more) if call.attr("auto_pad", "NOTSET") == "SAME_UPPER" else (more, less)


def _fitted(call: Call, x: Tensor) -> tuple[Window, list[int], list[int]]:
    """Return the window, output sizes, and the padding behind that makes the last window whole."""
    kernel = list(call.attr("kernel_shape"))
    plan = window(call, x.shape[2:], kernel)
    outs, behind = [], []
    for k, size in enumerate(x.shape[2:]):
        room = size + plan.front[k] + plan.behind[k] - plan.reach[k]
        step = plan.strides[k]
        out = (-(-room // step) if call.attr("ceil_mode", 0) else room // step) + 1
        if call.attr("ceil_mode", 0) and (out - 1) * step >= size + plan.front[k]:
            out -= 1
        outs.append(out)
        behind.append((out - 1) * step + plan.reach[k] - size - plan.front[k])
    return plan, outs, behind


def max_pool(call: Call) -> Made:
    """Padding never wins; positions count through the input as it is without padding."""
    x = call.x(0)
    plan, _, behind = _fitted(call, x)
    dtype = x.dtype
    work = x if dtype.is_floating_point else x.to(torch.float32)
    padded = F.pad(work, torch_pads(plan.front, behind), value=-torch.inf) if any(plan.front + behind) else work
    arguments = (padded, plan.kernel, plan.strides, 0, plan.dilations)
    if not call.wanted(1):
        return _MAX[len(plan.kernel) - 1](*arguments).to(dtype)
    y, at = _MAX[len(plan.kernel) - 1](*arguments, return_indices=True)
    return y.to(dtype), _positions(call, at, list(padded.shape[2:]), plan, x)


def _positions(call: Call, at: Tensor, padded: list[int], plan: Window, x: Tensor) -> Tensor:
    coordinates: list[Tensor] = []
    for size, front in zip(reversed(padded), reversed(plan.front), strict=True):
        coordinates.insert(0, at % size - front)
        at = at // size
    sizes = list(x.shape[2:])
    order = list(range(len(sizes)))
    flat = torch.zeros_like(at)
    for k in reversed(order) if call.attr("storage_order", 0) else order:
        flat = flat * sizes[k] + coordinates[k]
    samples = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    return flat + samples * prod(sizes)


def _sums(x: Tensor, plan: Window) -> Tensor:
    """Sum every window of an input that is padded already."""
    n = len(plan.kernel)
    if all(d == 1 for d in plan.dilations):
        result: Tensor = _AVERAGE[n - 1](x, plan.kernel, plan.strides) * prod(plan.kernel)
        return result
    ones = torch.ones(1, 1, *plan.kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    y: Tensor = _CONV[n - 1](flat, ones, None, plan.strides, 0, plan.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def average_pool(call: Call) -> Made:
    """Each window's sum over the number of elements that count."""
    x = call.x(0)
    plan, _, behind = _fitted(call, x)
    sums = _sums(F.pad(x, torch_pads(plan.front, behind)), plan)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    front, rest = plan.front, behind
    if call.attr("count_include_pad", 0):
        inner = [min(a, b) for a, b in zip(plan.behind, behind, strict=True)]
        counted = F.pad(counted, torch_pads(plan.front, inner), value=1.0)
        front, rest = [0] * len(inner), [b - i for b, i in zip(behind, inner, strict=True)]
    return sums / torch.round(_sums(F.pad(counted, torch_pads(front, rest)), plan))


def lp_pool(call: Call) -> Made:
    """The p-norm of each window."""
    x, p = call.x(0), float(call.attr("p", 2))
    plan, _, behind = _fitted(call, x)
    return _sums(F.pad(x.abs() ** p, torch_pads(plan.front, behind)), plan).clamp(min=0) ** (1 / p)


def over_positions(function: Callable[..., Tensor]) -> TorchRule:
    """All positions of a feature map become one."""

    def rule(call: Call) -> Made:
        x = call.x(0)
        return function(x, dim=tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x

    return rule


def global_lp(call: Call) -> Made:
    """The p-norm over all positions."""
    x = call.x(0)
    return torch.linalg.vector_norm(x, float(call.attr("p", 2)), tuple(range(2, x.dim())), keepdim=True)


def unpool(call: Call) -> Made:
    """Values go back to where their maxima were."""
    x, at = call.x(0), call.x(1)
    plan = window(call, x.shape[2:], call.attr("kernel_shape"))
    natural = [
        (s - 1) * step + k - f - b
        for s, step, k, f, b in zip(x.shape[2:], plan.strides, plan.kernel, plan.front, plan.behind, strict=True)
    ]
    sizes = [*x.shape[:2], *natural]
    flat = torch.zeros(prod(sizes), dtype=x.dtype, device=x.device)
    y = flat.index_put((at.reshape(-1),), x.reshape(-1)).reshape(sizes)
    asked = call.ints(2)
    if asked is None or asked == sizes:
        return y
    return F.pad(y, torch_pads([0] * len(natural), [a - n for a, n in zip(asked[2:], natural, strict=True)]))


def col2im(call: Call) -> Made:
    """Columns of patches are added up to an image."""
    x, size, block = call.x(0), call.ints(1) or [], call.ints(2) or []
    n = len(size)
    pads = list(call.attr("pads") or [0] * 2 * n)
    whole = [s + a + b for s, a, b in zip(size, pads[:n], pads[n:], strict=True)]
    if n == 1:  # torch folds in two dimensions
        whole, block = [1, *whole], [1, *block]
    dilations, strides = list(call.attr("dilations") or [1] * n), list(call.attr("strides") or [1] * n)
    missing = len(whole) - n
    spread, steps = (1,) * missing + tuple(dilations), (1,) * missing + tuple(strides)
    y = F.fold(x, tuple(whole), tuple(block), spread, 0, steps)
    y = y.reshape(*y.shape[:2], *whole[missing:])
    return F.pad(y, torch_pads([-p for p in pads[:n]], [-p for p in pads[n:]]))


RULES: tuple[Row[TorchRule], ...] = (
    row(conv, "Conv"),
    row(conv_transpose, "ConvTranspose"),
    row(max_pool, "MaxPool"),
    row(average_pool, "AveragePool"),
    row(lp_pool, "LpPool"),
    row(over_positions(torch.mean), "GlobalAveragePool"),
    row(over_positions(torch.amax), "GlobalMaxPool"),
    row(global_lp, "GlobalLpPool"),
    row(unpool, "MaxUnpool"),
    row(col2im, "Col2Im"),
    row(plain(torch.linalg.inv), "Inverse", domain="com.microsoft"),
)
