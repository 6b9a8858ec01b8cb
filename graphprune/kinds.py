"""Kinds of cost: what targets can be of, and which of them are counted in whole numbers."""

from __future__ import annotations

KINDS = ("macs", "params", "bytes", "latency", "memory", "energy-proxy")
"""What a target can be of."""

COUNTED = frozenset({"macs", "params", "bytes", "memory"})
"""Kinds that are whole numbers; others are real: a latency in nanoseconds, energy in picojoules."""

UNITS = {"latency": "ns", "memory": "bytes", "energy-proxy": "pJ"}
"""In what kinds are counted that are no plain numbers."""

SPELLED = {"params": "parameters"}
"""Kinds that plans and reports spell out."""


def kind_of(column: str) -> str:
    """Return the kind that a column of costs belongs to: a kind may have one column for each place, `kind@place`.

    >>> kind_of("macs"), kind_of("memory@conv1")
    ('macs', 'memory')
    """
    return column.partition("@")[0]
