"""Timings of a grid as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from graphprune.report.tables import count, table_of

_UNSTEADY = 2.0


def print_bench(console: Console, record: Mapping[str, Any]) -> None:
    """Print timings of models, one table for each provider; columns that say the same in every row are left out."""
    providers = list(dict.fromkeys(r["provider"] for r in record["models"]))
    varying = [k for k in ("threads", "batch") if len({r[k] for r in record["models"]}) > 1]
    models = list(dict.fromkeys(r["model"] for r in record["models"]))
    short = {m: Path(m).name for m in models}
    labels = short if len(set(short.values())) == len(models) else dict(zip(models, models, strict=True))
    several = len(models) > 1
    for provider in providers:
        numbers = ("median ms", "p10", "p90", "p99", "rounds", "items/s", *(["speed"] if several else []), "noise",
                   "peak MB")
        title = provider if len(providers) > 1 else None
        table = table_of(title, *varying, "model", *numbers, right=(*varying, *numbers))
        for r in record["models"]:
            if r["provider"] == provider:
                table.add_row(*(_size(k, r[k]) for k in varying), labels[r["model"]], *_bench_cells(r, several))
        console.print(table)
    busy = [r for r in record["models"] if r["p90_ms"] > _UNSTEADY * r["p10_ms"]]
    if busy:
        console.print(
            f"unsteady: in {len(busy)} of {len(record['models'])} rows p90 is more than {_UNSTEADY:g} times p10, "
            "as if other work ran on this machine; medians and speeds are of that, too"
        )
    reasons: dict[tuple[str, str], list[str]] = {}
    for s in record["skipped"]:
        where = ", ".join(f"{k} {_size(k, s[k])}" for k in ("threads", "batch") if s[k] is not None)
        reasons.setdefault((s["provider"], s["skipped"]), []).append(where)
    for (provider, reason), places in reasons.items():
        console.print(f"skipped: {provider} ({'; '.join(places)}): {reason}")


def _size(kind: str, number: int) -> str:
    return "all" if kind == "threads" and number == 0 else str(number)


def _bench_cells(r: Mapping[str, Any], several: bool) -> list[str]:
    """Return the numbers of a row; a speed inside the noise is marked by ~."""
    mark = "" if abs(r["speedup"] - 1) > r["noise_band"] else "~"
    return [
        f"{r['median_ms']:.4g}", f"{r['p10_ms']:.4g}", f"{r['p90_ms']:.4g}", _optional(r["p99_ms"], ".3g"),
        str(r["rounds"]), count(r["items_per_second"] or 0), *([f"{mark}{r['speedup']:.2f}x"] if several else []),
        f"±{r['noise_band']:.1%}", _optional(r["peak_memory_mb"], ".1f"),
    ]


def _optional(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)
