"""The charts of the report as PNG files for papers, drawn by matplotlib (the extra `report`)."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError

_BEFORE, _AFTER, _ACCENT = "#b9b2a3", "#0f6e6e", "#a8480e"
_ROWS, _CURVES = 40, 24  # that a figure has at most
_LONGEST = 34


def plots(data: Mapping[str, Any]) -> dict[str, bytes]:
    """Return PNG files by name for what `report_data` returns; those without data are left out.

    >>> sorted(plots(data))  # doctest: +SKIP
    ['curves.png', 'time.png', 'widths.png']

    Raises UsageError where matplotlib is not installed.
    """
    figures = need()
    makers: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
        "widths": _widths, "time": _time, "curves": _curves, "pareto": _pareto,
    }
    out = {}
    for name, make in makers.items():
        figure = make(figures, data)
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=200, bbox_inches="tight", metadata={"Software": None})
            out[f"{name}.png"] = content.getvalue()
    return out


def need() -> Any:
    """Return matplotlib's figures; raises UsageError where it is not installed."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        said = "--plots draws with matplotlib, which is not installed: pip install graphprune[report]"
        raise UsageError(said) from None


def targets(folder: Path) -> list[Path]:
    """Return the files that may be written into a folder."""
    return [folder / f"{name}.png" for name in ("widths", "time", "curves", "pareto")]


def _axes(figures: Any, width: float, height: float) -> tuple[Any, Any]:
    figure = figures.Figure(figsize=(width, height))
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _short(name: str) -> str:
    """Return a name that fits beside a bar; a dollar would begin a formula.

    >>> _short("a$b")
    'a\\\\$b'
    """
    cut = name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
    return cut.replace("$", r"\$")


def _widths(figures: Any, data: Mapping[str, Any]) -> Any:
    groups = () if data["record"]["plans"] else data["record"]["groups"]  # a curve has no widths of its own
    rows = sorted(groups, key=lambda g: g["kept"] - g["size"])[:_ROWS]
    rows = [g for g in groups if g in rows]
    if not rows:
        return None
    figure, axes = _axes(figures, 6.5, 0.7 + 0.19 * len(rows))
    places = range(len(rows))
    axes.barh(places, [g["size"] for g in rows], 0.78, color=_BEFORE, label="before")
    axes.barh(places, [g["kept"] for g in rows], 0.42, color=_AFTER, label="after")
    axes.set_yticks(places, [_short(g["name"]) for g in rows])
    axes.invert_yaxis()
    axes.set_xlabel("indices of the group", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _time(figures: Any, data: Mapping[str, Any]) -> Any:
    rows = data["profile"]["operators"][:_ROWS] if data["profile"] else []
    if not rows:
        return None
    figure, axes = _axes(figures, 6.5, 0.9 + 0.32 * len(rows))
    for shift, key, color in ((-0.2, "before", _BEFORE), (0.2, "after", _AFTER)):
        axes.barh([k + shift for k in range(len(rows))], [r[f"{key}_ms"] for r in rows], 0.38, color=color, label=key)
    axes.set_yticks(range(len(rows)), [_short(r["operator"]) for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms in a run", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _curves(figures: Any, data: Mapping[str, Any]) -> Any:
    groups = {g["name"]: g for g in data["record"]["groups"]}
    several = data["record"]["plans"] is not None
    found = [c for c in data["record"]["curves"] or () if c["group"] in groups and len(c["widths"]) > 1][:_CURVES]
    if not found:
        return None
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure = figures.Figure(figsize=(2.1 * columns, 1.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for axes, c in zip(grid, found, strict=False):
        _plain(axes)
        axes.plot(c["widths"], c["losses"] or c["errors"], color=_AFTER)
        if not several:
            axes.axvline(groups[c["group"]]["kept"], color=_ACCENT, linestyle="--", linewidth=1)
        axes.set_title(_short(c["group"]), fontsize=7)
        axes.set_ylim(bottom=0)
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel("indices kept", fontsize=9)
    figure.supylabel("loss" if any(c["losses"] for c in found) else "error", fontsize=9)
    return figure


def _pareto(figures: Any, data: Mapping[str, Any]) -> Any:
    points = [p for p in data["record"]["pareto"] or () if p["divergence"] is not None]
    key = "speedup" if all(p["speedup"] is not None for p in points) else "macs"
    points = sorted((p for p in points if p[key] is not None), key=lambda p: p[key])
    if not points:
        return None
    figure, axes = _axes(figures, 5, 3.4)
    for front, line, color in ((True, "o-", _AFTER), (False, "o", _BEFORE)):
        some = [p for p in points if p["front"] is front]
        axes.plot([p[key] for p in some], [p["divergence"] for p in some], line, color=color, markersize=4)
    axes.set_xlabel("speed, times dense" if key == "speedup" else "MACs", fontsize=9)
    axes.set_ylabel("divergence", fontsize=9)
    axes.set_ylim(bottom=0)
    return figure
