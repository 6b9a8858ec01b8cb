"""The graph's border, and state that crosses it: which output is the next run's input, and what that says about axes.

Inputs and outputs are pinned, unless a caller allows to change them. A caller that feeds an output back (a cache, a
recurrent state) must still be able to: then input and output keep the same indices, so their axes are the same axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphprune.axes import UNIT, Equation, Origin, Pin, Same
from graphprune.inputs import plain
from graphprune.ops import Operand

BEFORE, AFTER = "input", "output"
_STATE = "state"


@dataclass(frozen=True)
class Port:
    """An input or output whose sizes may change, and the output or input that carries the same state on."""

    name: str
    side: str
    counterpart: str | None = None


@dataclass(frozen=True)
class Adapter:
    """A matrix between an input or output and the `inside`, the value that the rest of the model knows; see `adapters`.

    `port` is the input's or output's name, `axis` the one that may be narrower inside.
    """

    port: str
    side: str
    axis: int
    inside: str
    matrix: str
    nodes: tuple[str, ...]

    @property
    def inner(self) -> int:
        """Which axis of the matrix is the inside: an input's adapter gives it, an output's reads it."""
        return 1 if self.side == BEFORE else 0


# How exporters name the two ends of a state; the words are taken away, and what is left of the two names must agree.
# Names are in lower case with underscores at both ends and between words: `_past_key_values_0_key_`. First rows win.
_ENDS: tuple[tuple[str, str], ...] = (
    (r"_past_key_values(?=_)", r"_present(_key_values)?(?=_)"),
    (r"_past(?=_)", r"_(present|new|next|updated)(?=_)"),
    (r"_(in|input)(?=_.*[a-z])|(?<=[a-z]_)(in|input)_", r"_(out|output)(?=_.*[a-z])|(?<=[a-z]_)(out|output)_"),
    (r"_(prev|previous|old|last|init|initial)(?=_)", r"_(present|new|next|updated|cur|current|final|last)(?=_)"),
    (r"", r"_(new|next|updated|out|output|final|n|o)(?=_)"),
    (r"_(past|prev|previous|old|last|in|input|init|initial|i)(?=_)", r""),
    (r"(?<=[a-z])_?0(?=_)", r"(?<=[a-z])_?n(?=_)"),
    (r"", r"(?<=_[hc])n(?=_)"),
    (r"(?<=\d)i(?=_)", r"(?<=\d)o(?=_)"),
)


def pairs(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return which output carries on which input, by their names.

    >>> pairs(["ids", "past_key_values.0.key", "h0"], ["logits", "present.0.key", "hn"])
    {'past_key_values.0.key': 'present.0.key', 'h0': 'hn'}
    """
    found: dict[str, str] = {}
    for before, after in _ENDS:
        left = _stems([n for n in inputs if n not in found], before)
        right = _stems([n for n in outputs if n not in found.values()], after)
        found.update({name: right[stem] for stem, name in left.items() if stem in right})
    return found


def _stems(names: Sequence[str], pattern: str) -> dict[str, str]:
    """Return the name for each stem that just one name has."""
    out: dict[str, list[str]] = {}
    for name in names:
        stem, hits = re.subn(pattern, "", plain(name), count=1)
        if hits:
            out.setdefault(stem.strip("_"), []).append(name)
    return {stem: found[0] for stem, found in out.items() if len(found) == 1}


def ports(inputs: Sequence[str], outputs: Sequence[str], allowed: Callable[[str], bool]) -> tuple[Port, ...]:
    """Return the inputs and outputs that may change, each with its counterpart.

    >>> ports(["x", "state"], ["y", "stateN"], lambda name: name.startswith("state"))[1]
    Port(name='stateN', side='output', counterpart='state')
    """
    found = pairs(inputs, outputs)
    back = {after: before for before, after in found.items()}
    return (
        *[Port(n, BEFORE, found.get(n)) for n in inputs if allowed(n)],
        *[Port(n, AFTER, back.get(n)) for n in outputs if allowed(n)],
    )


def border(
    inputs: Sequence[Operand], outputs: Sequence[Operand], open_: Sequence[Port]
) -> Iterator[tuple[Equation, Origin]]:
    """Say of every input and output: pinned, or (for those in `open_`) free and the same as its counterpart.

    Axes of open size (batch, length) stay pinned, and so do axes that a counterpart has in another size.
    """
    sides: dict[str, Mapping[str, Operand]] = {
        BEFORE: {o.name: o for o in inputs}, AFTER: {o.name: o for o in outputs}
    }
    free = {(p.side, p.name): p for p in open_}
    for side, others in ((BEFORE, AFTER), (AFTER, BEFORE)):
        for operand in sides[side].values():
            port = free.get((side, operand.name))
            other = sides[others][port.counterpart] if port is not None and port.counterpart is not None else None
            known = other is None or (others, other.name) in free
            for k, axis in enumerate(operand.axes):
                reason = "" if port is None else _obstacle(operand, k, other, known)
                if port is None or reason:
                    yield Pin(axis, f"graph {side}{reason}"), Origin(operand.name, "")
                elif other is not None and side == BEFORE and axis is not UNIT:
                    yield Same(axis, other.axes[k]), Origin(f"{operand.name} -> {other.name}", _STATE)


def carried(adapters: Sequence[Adapter], matrix: Callable[[str], Operand]) -> Iterator[tuple[Equation, Origin]]:
    """Say that the two ends of a state are one width inside, so that what is removed from it is not read again.

    `matrix` gives the matrix of an adapter by its name.
    """
    ends = {(a.side, a.port, a.axis): a for a in adapters}
    found = pairs([a.port for a in adapters if a.side == BEFORE], [a.port for a in adapters if a.side == AFTER])
    for (side, name, k), one in ends.items():
        other = ends.get((AFTER, found.get(name, ""), k))
        if side == BEFORE and other is not None:
            left, right = matrix(one.matrix).axes[one.inner], matrix(other.matrix).axes[other.inner]
            if left.size == right.size:
                yield Same(left, right), Origin(f"{one.port} -> {other.port}", _STATE)


def _obstacle(operand: Operand, k: int, other: Operand | None, allowed: bool) -> str:
    """Return why an axis of an input or output that may change must not, or nothing."""
    if operand.dynamic[k]:
        return ", an open size"
    if other is None:
        return ""
    if not allowed:
        return f": its counterpart {other.name!r} is not allowed to change"
    if len(other.axes) != len(operand.axes):
        return f": its counterpart {other.name!r} has no such axis"
    if other.dynamic[k] or other.shape[k] != operand.shape[k]:
        return f": its counterpart {other.name!r} has another size there"
    return ""
