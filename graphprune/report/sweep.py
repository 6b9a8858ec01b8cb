"""The table at the end of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from graphprune.report.tables import table_of
from graphprune.scale.ranking import varying


def print_sweep(console: Console, record: Mapping[str, Any]) -> None:
    """Print a table for each model, best results first, then what failed and where the results are."""
    rows = record["results"]
    good, failed = [r for r in rows if not r["error"]], [r for r in rows if r["error"]]
    columns = varying(rows)
    for model in dict.fromkeys(r["model"] for r in good):
        _print_model(console, model, [r for r in good if r["model"] == model], columns)
        console.print()
    for row in failed:
        said = ", ".join(str(row[name]) for name in ("budget", *columns) if row[name])
        console.print(f"failed: {Path(row['model']).name}{f' ({said})' if said else ''}: {row['error']}")
    if good and not all(r["speedup"] for r in good):
        console.print("not timed (--time does it, one model at a time): ranked by MACs and loss")
    counts = record["counts"]
    told = ", ".join(f"{counts[k]} {k}" for k in ("computed", "reused", "failed"))
    console.print(f"{told}; in {record['folder']}")


def _print_model(console: Console, model: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    timed = any(r["speedup"] for r in rows)
    numbers = ["MACs", "parameters", *(["speed-up"] if timed else []), "loss", "agree", "cosine", "rank"]
    table = table_of(Path(model).name, "budget", *columns, *numbers, "result", right=numbers)
    for r in rows:
        speed = [f"{r['speedup']:.2f}x" if r["speedup"] else "-"] if timed else []
        table.add_row(
            r["budget"], *[str(r[name]) for name in columns], _share(r["macs"]), _share(r["parameters"]), *speed,
            _number(r["loss"]) + ("!" if r["damaged"] else ""), _share(r["agree"]),
            "-" if r["cosine"] is None else f"{r['cosine']:.4f}", str(r["rank"]), r["key"][:8],
        )
    console.print(table)


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"
