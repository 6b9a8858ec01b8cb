"""The curve as a person sees it: a table, and a plot where matplotlib is there."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.report.tables import count, table_of
from graphprune.writing import put

if TYPE_CHECKING:
    from rich.console import Console

NO_PLOT = "no plot: matplotlib is not there (pip install graphprune[report])"


def print_pareto(console: Console, record: Mapping[str, Any]) -> None:
    """Print a line for every point; those that another one beats are marked."""
    numbers = ("MACs", "parameters", "latency", "speed-up", "divergence")
    table = table_of(None, "plan", *numbers, "", right=numbers)
    for p in record["pareto"]:
        table.add_row(
            Path(p["plan"]).name, count(p["macs"]), count(p["parameters"]),
            "-" if p["latency_ms"] is None else f"{p['latency_ms']:.3g} ms",
            "-" if p["speedup"] is None else f"{p['speedup']:.2f}x",
            "-" if p["divergence"] is None else f"{p['divergence']:.4g}", "" if p["front"] else "beaten",
        )
    console.print(table)
    console.print(f"written: {record['output']}" + (f"; {record['remark']}" if record["remark"] else ""))


def plot(record: Mapping[str, Any], file: Path) -> str:
    """Draw divergence against latency, or multiply-accumulates; return a remark where that is not possible."""
    if importlib.util.find_spec("matplotlib") is None:
        return NO_PLOT
    from matplotlib.figure import Figure

    timed = all(p["latency_ms"] is not None for p in record["pareto"])
    key, label = ("latency_ms", "latency (ms)") if timed else ("macs", "multiply-accumulates")
    points = sorted((p for p in record["pareto"] if p["divergence"] is not None), key=lambda p: p[key])
    if not points:
        return "no plot: there are no divergences (--calibration)"
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    front, beaten = ([p for p in points if p["front"] == side] for side in (True, False))
    axes.plot([p[key] for p in front], [p["divergence"] for p in front], "o-", color="tab:blue", label="front")
    if beaten:
        axes.plot([p[key] for p in beaten], [p["divergence"] for p in beaten], "x", color="tab:gray", label="beaten")
        axes.legend()
    axes.set_xlabel(label)
    axes.set_ylabel("divergence from the dense model")
    axes.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    put(file, drawn.getvalue())
    return ""
