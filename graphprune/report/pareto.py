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
    judged = list((record["evaluation"] or {"before": {}})["before"])
    numbers = ("MACs", "parameters", "latency", "speed-up", "divergence", *judged)
    table = table_of(None, "plan", *numbers, "", right=numbers)
    for p in record["pareto"]:
        table.add_row(
            Path(p["plan"]).name, count(p["macs"]), count(p["parameters"]),
            "-" if p["latency_ms"] is None else f"{p['latency_ms']:.3g} ms",
            "-" if p["speedup"] is None else f"{p['speedup']:.2f}x",
            "-" if p["divergence"] is None else f"{p['divergence']:.4g}",
            *(f"{(p['metric'] or {}).get(name, float('nan')):.4g}" for name in judged), "" if p["front"] else "beaten",
        )
    console.print(table)
    if judged:
        dense = ", ".join(f"{name} {value:.4g}" for name, value in record["evaluation"]["before"].items())
        console.print(f"the dense model: {dense}")
    console.print(f"written: {record['output']}" + (f"; {record['remark']}" if record["remark"] else ""))


def plot(record: Mapping[str, Any], file: Path) -> str:
    """Draw divergence against latency, or multiply-accumulates; return a remark where that is not possible.

    Where the user's own metric was asked for, its first number is drawn below.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return NO_PLOT
    from matplotlib.figure import Figure

    timed = all(p["latency_ms"] is not None for p in record["pareto"])
    key, label = ("latency_ms", "latency (ms)") if timed else ("macs", "multiply-accumulates")
    judged = list((record["evaluation"] or {"before": {}})["before"])[:1]
    points = sorted(record["pareto"], key=lambda p: p[key])
    series: dict[str, list[Any]] = {"divergence from the dense model": [p["divergence"] for p in points]}
    series |= {name: [(p["metric"] or {}).get(name) for p in points] for name in judged}
    drawn = {said: values for said, values in series.items() if any(v is not None for v in values)}
    if not drawn:
        return "no plot: there are no divergences (--calibration)"
    figure = Figure(figsize=(5, 3.5 * len(drawn)), layout="constrained")
    for axes, (said, values) in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn.items(), strict=True):
        known = [(p[key], v, p["front"]) for p, v in zip(points, values, strict=True) if v is not None]
        for front, style, colour, name in ((True, "o-", "tab:blue", "front"), (False, "x", "tab:gray", "beaten")):
            part = [(x, y) for x, y, on in known if on == front]
            axes.plot([x for x, _ in part], [y for _, y in part], style, color=colour, label=name)
        axes.legend()
        axes.set_xlabel(label)
        axes.set_ylabel(said)
        axes.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    put(file, content.getvalue())
    return ""
