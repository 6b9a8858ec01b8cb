"""Axes as text, in the notation of einops: `(h (r + r))`, `(g o)`; read patterns, print expressions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from graphprune.axes.expr import Axis, Dim, Sum


def show(axis: Axis, name: Callable[[Dim], str] | None = None) -> str:
    """Return an expression as text; `name` gives each dim's text (default: its size).

    >>> from graphprune.axes.expr import product, concat
    >>> h, r = Dim(12), Dim(32)
    >>> show(product(h, concat(r, r)))
    '(12 (32 + 32))'
    """
    if isinstance(axis, Dim):
        return name(axis) if name else str(axis.size)
    if not axis.parts:
        return "1" if axis.size else "0"
    inner = _sum_texts(axis, name) if isinstance(axis, Sum) else [show(p, name) for p in axis.parts]
    if len(inner) == 1:
        return inner[0]
    return "(" + (" + " if isinstance(axis, Sum) else " ").join(inner) + ")"


def _sum_texts(axis: Sum, name: Callable[[Dim], str] | None) -> list[str]:
    """Runs of fixed single slots are written as their number, other runs are kept."""
    texts: list[str] = []
    run = 0
    for p in [*axis.parts, None]:
        if p is not None and not isinstance(p, Dim) and not p.parts and p.size == 1:
            run += 1
            continue
        if run:
            texts.append(str(run))
            run = 0
        if p is not None:
            texts.append(show(p, name))
    return texts


@dataclass(frozen=True)
class Term:
    """One axis of a pattern: letters of a product (one letter: the axis itself), or `*s`: any number of axes."""

    letters: tuple[str, ...]
    variadic: bool = False


@dataclass(frozen=True)
class Operand:
    """One value of a pattern and whether it may be absent (`?`)."""

    terms: tuple[Term, ...]
    optional: bool


@dataclass(frozen=True)
class Pattern:
    """A line such as `n (g i) *s, (g o) i *k, (g o)? -> n (g o) *t`."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    text: str


_TERM = re.compile(r"\(([^()]*)\)|(\*?)(\w+)")


@cache
def parse(text: str) -> Pattern:
    """Read a pattern.

    >>> parse("n c *s, c? -> n c *s").inputs[1].optional
    True
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"no '->' in the pattern {text!r}")
    return Pattern(_operands(left), _operands(right), text)


def _operands(text: str) -> tuple[Operand, ...]:
    out = []
    for part in text.split(","):
        body = part.strip()
        optional = body.endswith("?")
        terms = []
        for m in _TERM.finditer(body.rstrip("?")):
            group, star, letter = m.groups()
            terms.append(Term(tuple(group.split())) if group is not None else Term((letter,), bool(star)))
        out.append(Operand(tuple(terms), optional))
    return tuple(out)
