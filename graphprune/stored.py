"""Quantised weights: constants of narrow types that an operator turns into, or uses as, real numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.ops import PICKERS, STORED, Op
from graphprune.ops.stored import Around, Stored

Array = npt.NDArray[Any]
Read = Callable[[], Array]


def find(ops: Sequence[Op], reads: Mapping[str, Read], scales: Mapping[str, Read]) -> Iterator[tuple[str, Read]]:
    """Yield each constant that is a quantised weight, and what reads the real numbers that it stands for.

    `reads` has the content of narrow constants by name, `scales` that of real ones. A constant may reach the operator
    that knows its scale through others that only move elements; then the scale is used where it is one number. Real
    numbers have the sizes of the constant.
    """
    around = Around({o.name: op for op in ops for o in op.outputs if o is not None}, _readers(ops))
    origins = _origins(ops, reads)
    known = {**scales, **reads}
    done: set[str] = set()
    for op in ops:
        rule = STORED.get(op.domain, op.type, op.version)
        for stored in rule(op, around) if rule is not None else ():
            operand = op.input(stored.weight)
            name = origins.get(operand.name) if operand is not None else None
            if name is not None and operand is not None and name not in done:
                done.add(name)
                yield name, _reader(stored, name, known, direct=name == operand.name)


def _readers(ops: Sequence[Op]) -> dict[str, list[Op]]:
    out: dict[str, list[Op]] = {}
    for op in ops:
        for o in op.inputs:
            if o is not None:
                out.setdefault(o.name, []).append(op)
    return out


def _origins(ops: Sequence[Op], reads: Mapping[str, Read]) -> dict[str, str]:
    """Return for each value that holds elements of one constant which one that is."""
    out = {name: name for name in reads}
    for op in ops:
        first = op.input(0)
        if op.type in PICKERS and first is not None and first.name in out:
            out.update((o.name, out[first.name]) for o in op.outputs if o is not None and o.name not in out)
    return out


def _reader(stored: Stored, name: str, reads: Mapping[str, Read], direct: bool) -> Read:
    def read() -> Array:
        weight = reads[name]()
        others = [reads[o.name]() if o is not None and o.name in reads else None for o in stored.operands[1:]]
        if not direct and any(o is not None and o.size > 1 for o in others):
            return np.asarray(weight).astype(np.float32)
        return stored.real([weight, *others])

    return read
