"""What all printed tables share: their form, and numbers of three digits."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def count(n: float) -> str:
    """Return a number with three digits and a unit.

    >>> count(25557032)
    '25.6 M'
    """
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(n) >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def table_of(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table without lines; the columns in `right` are flush right."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for c in columns:
        table.add_column(c, justify="right" if c in right else "left", overflow="fold")
    return table
