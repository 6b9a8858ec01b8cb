"""Recurrent layers for tests of operator rules."""

from __future__ import annotations

from typing import Any

from oracles import Net

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
IN, HIDDEN, OUT, BATCH = 5, 6, 3, 2


def gates(operator: str, size: int = HIDDEN) -> str:
    return f"({GATES[operator]} {size})" if GATES[operator] > 1 else str(size)


def layer(
    net: Net, operator: str, x: str, cin: int = IN, *, h: int = HIDDEN, name: str = "r", bias: bool = True,
    lengths: str = "", states: tuple[str, ...] = (), peepholes: bool = False, n: int = 1, **attributes: Any,
) -> Any:
    """Add a layer with weights `name`.w, .r, .b and .p."""
    d, g = 1 + (attributes.get("direction") == "bidirectional"), GATES[operator]
    inputs = [x, net.weight(d, g * h, cin, name=f"{name}.w"), net.weight(d, g * h, h, name=f"{name}.r")]
    inputs += [net.weight(d, 2 * g * h, name=f"{name}.b") if bias else "", lengths, *states]
    if peepholes:
        inputs += [""] * (7 - len(inputs)) + [net.weight(d, 3 * h, name=f"{name}.p")]
    while not inputs[-1]:
        inputs.pop()
    return net(operator, *inputs, n=n, hidden_size=h, **attributes)


def flat(net: Net, y: str, width: int) -> str:
    """Bring an output `s d b h` into the form `s b (d h)`, by a reshape."""
    return str(net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, width)))
