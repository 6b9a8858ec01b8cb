"""Torch rules of Fourier transforms and window functions."""

from __future__ import annotations

import math

import torch

from graphprune.converters.torch_ops.registry import Call, Made, TorchRule, axis_of
from graphprune.ops.registry import Row, row

_FLOAT = 1


def dft(call: Call) -> Made:
    """A discrete Fourier transform along one axis; the last axis holds real and imaginary parts."""
    x = call.x(0)
    axis = int(call.number(2, default=-2)) if call.node.version >= 20 else axis_of(call, x.dim(), 1)
    axis = axis + x.dim() if axis < 0 else axis
    length = int(call.number(1)) if call.has(1) else None
    inverse, onesided = bool(call.attr("inverse", 0)), bool(call.attr("onesided", 0))
    z = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    if inverse and onesided:
        return torch.fft.irfft(z, length, axis).unsqueeze(-1)
    y = torch.fft.ifft(z, length, axis) if inverse else torch.fft.fft(z, length, axis)
    if onesided:
        y = y.narrow(axis, 0, y.shape[axis] // 2 + 1)
    return torch.view_as_real(y)


def stft(call: Call) -> Made:
    """Transforms of frames that slide over a signal."""
    signal, step, window = call.x(0), int(call.number(1)), call.maybe(2)
    length = int(call.number(3)) if call.has(3) else (window.shape[0] if window is not None else signal.shape[1])
    z = torch.complex(signal[..., 0], signal[..., 1]) if signal.dim() == 3 and signal.shape[-1] == 2 else signal
    frames = (z.squeeze(-1) if z.dim() == 3 else z).unfold(1, length, step)
    frames = frames if window is None else frames * window
    y = torch.fft.fft(frames, dim=-1)
    y = y[..., : length // 2 + 1] if call.attr("onesided", 1) else y
    return torch.view_as_real(y)


def window(*terms: float) -> TorchRule:
    """A sum of cosines."""

    def rule(call: Call) -> Made:
        size = int(call.number(0))
        count = size if call.attr("periodic", 1) else size - 1
        at = torch.arange(size, dtype=torch.float64) * 2 * math.pi / count
        made = sum(((-1) ** k * a * torch.cos(k * at) for k, a in enumerate(terms)), torch.zeros(size))
        return made.to(call.host.device, call.host.dtype(int(call.attr("output_datatype", _FLOAT))))

    return rule


RULES: tuple[Row[TorchRule], ...] = (
    row(dft, "DFT"),
    row(stft, "STFT"),
    row(window(0.5, 0.5), "HannWindow"),
    row(window(25 / 46, 21 / 46), "HammingWindow"),
    row(window(0.42, 0.5, 0.08), "BlackmanWindow"),
)
