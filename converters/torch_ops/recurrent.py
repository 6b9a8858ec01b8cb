"""Torch rules of recurrent layers, step by step as the operators are defined; torch's own kernels where they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from graphprune.converters.torch_ops.registry import Call, Made, Tensor, TorchRule
from graphprune.ops.registry import Row, row

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """Return an activation by its name in any case, with its own defaults."""
    a, b = alpha, beta
    known: dict[str, Activation] = {
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "softsign": F.softsign,
        "softplus": F.softplus, "affine": lambda x: (1.0 if a is None else a) * x + (0.0 if b is None else b),
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01 if a is None else a),
        "thresholdedrelu": lambda x: torch.where(x > (1.0 if a is None else a), x, torch.zeros_like(x)),
        "scaledtanh": lambda x: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x),
        "hardsigmoid": lambda x: torch.clamp((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1),
        "elu": lambda x: F.elu(x, 1.0 if a is None else a),
    }  # fmt: skip
    return known[name.lower()]


@dataclass(frozen=True)
class Cell:
    """One direction of a layer: its weights and what its attributes say."""

    w: Tensor
    r: Tensor
    wb: Tensor | None
    rb: Tensor | None
    peep: Tensor | None
    functions: tuple[Activation, ...]
    clip: float | None
    flag: bool
    """Coupled input and forget gates (LSTM), or the reset after the product (GRU)."""

    def bounded(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


Step = Callable[[Cell, Tensor, States], States]


def lstm_step(cell: Cell, gates: Tensor, states: States) -> States:
    """Gates i, o, f, c; equations of the operator LSTM."""
    h, c = states
    f, g, out = cell.functions
    i, o, forget, new = (gates + F.linear(h, cell.r, cell.rb)).chunk(4, -1)
    if cell.peep is not None:
        pi, po, pf = cell.peep.chunk(3)
        i, forget = i + pi * c, forget + pf * c
    i = f(cell.bounded(i))
    forget = 1 - i if cell.flag else f(cell.bounded(forget))
    c = forget * c + i * g(cell.bounded(new))
    o = o if cell.peep is None else o + po * c
    return f(cell.bounded(o)) * out(c), c


def gru_step(cell: Cell, gates: Tensor, states: States) -> States:
    """Gates z, r, h; equations of the operator GRU."""
    (h,) = states
    f, g = cell.functions
    rz, rr, rh = cell.r.chunk(3)
    bz, br, bh = cell.rb.chunk(3) if cell.rb is not None else (None, None, None)
    xz, xr, xh = gates.chunk(3, -1)
    z = f(cell.bounded(xz + F.linear(h, rz, bz)))
    r = f(cell.bounded(xr + F.linear(h, rr, br)))
    inner = r * F.linear(h, rh, bh) if cell.flag else F.linear(r * h, rh, bh)
    return ((1 - z) * g(cell.bounded(xh + inner)) + z * h,)


def rnn_step(cell: Cell, gates: Tensor, states: States) -> States:
    """h = f(x W + h R + b)."""
    return (cell.functions[0](cell.bounded(gates + F.linear(states[0], cell.r, cell.rb))),)


@dataclass(frozen=True)
class Kind:
    """What the three operators differ in."""

    gates: int
    states: int
    step: Step
    activations: tuple[str, ...]
    flag: str


_LSTM = Kind(4, 2, lstm_step, ("Sigmoid", "Tanh", "Tanh"), "input_forget")
_GRU = Kind(3, 1, gru_step, ("Sigmoid", "Tanh"), "linear_before_reset")
_RNN = Kind(1, 1, rnn_step, ("Tanh",), "")


def _cells(call: Call, kind: Kind) -> list[Cell]:
    w, r, b = call.x(1), call.x(2), call.maybe(3)
    peep = call.maybe(7) if kind is _LSTM else None
    names = list(call.attr("activations") or kind.activations * w.shape[0])
    alphas, betas = list(call.attr("activation_alpha") or []), list(call.attr("activation_beta") or [])
    functions = [
        _activation(n, alphas[k] if k < len(alphas) else None, betas[k] if k < len(betas) else None)
        for k, n in enumerate(names)
    ]
    each = len(kind.activations)
    cells = []
    for d in range(w.shape[0]):
        wb, rb = b[d].chunk(2) if b is not None else (None, None)
        cells.append(
            Cell(
                w[d], r[d], wb, rb, None if peep is None else peep[d], tuple(functions[d * each : (d + 1) * each]),
                call.attr("clip"), bool(kind.flag and call.attr(kind.flag, 0)),
            )
        )
    return cells


def _run(cell: Cell, kind: Kind, x: Tensor, states: States, lengths: Tensor | None) -> tuple[Tensor, States]:
    """Run one direction over x [time, batch, inputs]; after a sample's own end states stay and outputs are zero."""
    gates = F.linear(x, cell.w, cell.wb)
    outs = []
    for t in range(x.shape[0]):
        new = kind.step(cell, gates[t], states)
        if lengths is None:
            states = new
            outs.append(new[0])
        else:
            alive = (t < lengths)[:, None]
            states = tuple(torch.where(alive, n, s) for n, s in zip(new, states, strict=True))
            outs.append(torch.where(alive, new[0], torch.zeros_like(new[0])))
    return (torch.stack(outs) if outs else x.new_zeros(0, *states[0].shape)), states


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn time round, of each sample its own part only."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device)[:, None]
    at = torch.where(t < lengths, lengths - 1 - t, t)
    return torch.gather(x, 0, at[:, :, None].expand(x.shape))


def layer(kind: Kind) -> TorchRule:
    """One or two directions; [time, batch, *] or, where the attribute says so, [batch, time, *]."""

    def rule(call: Call) -> Made:
        x, cells = call.x(0), _cells(call, kind)
        first = bool(call.attr("layout", 0))
        x = x.transpose(0, 1) if first else x
        lengths = call.maybe(4)
        given = [call.maybe(5 + k) for k in range(kind.states)]
        lengths = None if lengths is not None and bool((lengths == x.shape[0]).all()) else lengths
        backward = [d == 1 or call.attr("direction", "forward") == "reverse" for d in range(len(cells))]
        outs, ends = [], []
        for d, cell in enumerate(cells):
            zero = x.new_zeros(x.shape[1], cell.r.shape[-1])
            start = tuple(zero if s is None else (s[:, d] if first else s[d]) for s in given)
            y, last = _run(cell, kind, _reversed(x, lengths) if backward[d] else x, start, lengths)
            outs.append(_reversed(y, lengths) if backward[d] else y)
            ends.append(last)
        return _arranged(outs, ends, first)

    return rule


def _arranged(outs: Sequence[Tensor], ends: Sequence[States], first: bool) -> tuple[Any, ...]:
    y = torch.stack(list(outs), 1)
    final = [torch.stack(list(s)) for s in zip(*ends, strict=True)]
    if first:
        return (y.permute(2, 0, 1, 3), *[f.transpose(0, 1) for f in final])
    return (y, *final)


RULES: tuple[Row[TorchRule], ...] = (
    row(layer(_LSTM), "LSTM"),
    row(layer(_GRU), "GRU"),
    row(layer(_RNN), "RNN"),
)
