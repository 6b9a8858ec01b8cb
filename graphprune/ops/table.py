"""The operator tables as Markdown: `python -m graphprune.ops.table` prints them, `... README.md` puts them in there.

One row per axis rule: its operators, the opsets it is for, what it says (a line of notation, or in words), and which
of its operators have a refit rule (attributes and shape constants that follow a size) and a cost rule
(multiply-accumulates).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import graphprune.ops as ops
from graphprune.ops.registry import Row, Table

_OPEN = 10**6
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"


def families() -> Iterator[tuple[str, tuple[Row[Any], ...]]]:
    """Yield the name and the axis rules of each family of operators, by name.

    >>> [name for name, _ in families()][:2]
    ['attention', 'conv']
    """
    modules = {m.__name__.rpartition(".")[2]: m for m in vars(ops).values() if isinstance(m, ModuleType)}
    for name, module in sorted(modules.items()):
        rows: tuple[Row[Any], ...] = getattr(module, "AXES", ())
        if rows:
            yield name, rows


def opsets(since: int, until: int) -> str:
    """Say a range of opsets.

    >>> opsets(1, 12), opsets(13, 10**6), opsets(1, 10**6), opsets(18, 20)
    ('to 12', 'from 13', 'all', '18 to 20')
    """
    if until >= _OPEN:
        return "all" if since <= 1 else f"from {since}"
    return f"to {until}" if since <= 1 else f"{since} to {until}"


def says(rule: Any) -> str:
    """Return a rule's line of notation as code, or the first sentence of its docstring.

    >>> says(lambda op: ())
    ''
    """
    text = " ".join((rule.__doc__ or "").split())
    if "->" in text and "`" not in text:
        return f"`{text}`"
    return text.partition(". ")[0].rstrip(".").replace("|", "\\|")


def _who(row: Row[Any], table: Table[Any]) -> str:
    """Return which operators of a row have a row in another table, too."""
    last = min(row.until, _OPEN - 1)
    having = [o for o in row.operators if table.get(row.domain, o, last) is not None]
    if not having:
        return ""
    return "yes" if len(having) == len(row.operators) else ", ".join(having)


def markdown() -> str:
    """Return one table for each family of operators.

    >>> "| Conv |" in markdown()
    True
    """
    parts = []
    for family, rows in families():
        lines = [f"**{family}**", "", "| operators | opsets | axes | refit | cost |", "|---|---|---|---|---|"]
        for r in rows:
            names = ", ".join(f"{r.domain}.{o}" if r.domain else o for o in r.operators)
            cells = (names, opsets(r.since, r.until), says(r.rule), _who(r, ops.REFITS), _who(r, ops.COSTS))
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def updated(text: str) -> str:
    """Return a text with the tables between its two markers.

    >>> updated(f"{BEGIN}old{END}") == f"{BEGIN}\\n{markdown()}{END}"
    True
    """
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        file = Path(sys.argv[1])
        file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(markdown(), end="")
