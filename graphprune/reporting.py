"""What is written about a pruning beside the model: a page, and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.analysis import Analysis, silent
from graphprune.errors import GraphPruneError, SessionError, UsageError
from graphprune.execute import runnable
from graphprune.output import check_folder, guard_new
from graphprune.profiled import profile_both, profile_record
from graphprune.result import Result
from graphprune.rewrite import arranged
from graphprune.writing import put

CURVE = "pareto.json"
"""The file with the points of a curve, beside its plans."""


_CURVES_OWN = (".onnx", ".data", ".json", ".csv", ".png")


@dataclass(frozen=True)
class Reporting:
    """Where a page and a folder of plots go, if anywhere; `run`: models may be run for them, for about `seconds`.

    `plan` is the file of the plan that was replayed: a curve of plans may lie beside it. `curve` is the folder of the
    curve that is made, where all is about a curve; it need not be there yet.
    """

    page: Path | None = None
    plots: Path | None = None
    force: bool = False
    run: bool = True
    seconds: float = 2.0
    plan: Path | None = None
    curve: Path | None = None

    def guarded(self, files: Sequence[Path]) -> Reporting:
        """Return itself; raises UsageError, before any work, for what cannot be written or would replace `files`."""
        if self.plan is not None and (self.page is not None or self.plots is not None):
            read_curve(self.plan.parent / CURVE)
        if self.page is not None and not self._in_curve(self.page):
            guard_new(self.page, files, self.force)
        if self.plots is not None:
            from graphprune.report.plots import need, targets

            need()
            if self.plots.exists() and not self.plots.is_dir():
                raise UsageError(f"{self.plots}: is no folder: give another name for the plots")
            if not self._in_curve(self.plots):
                check_folder(self.plots if self.plots.exists() else self.plots.parent)
            if self.plots.exists():
                for file in targets(self.plots):
                    guard_new(file, files, self.force)
        return self

    def _in_curve(self, wanted: Path) -> bool:
        """Return whether a file lies in the curve's folder, which is still to be made; raises UsageError.

        What the curve itself writes there must not be replaced.
        """
        if self.curve is None:
            return False
        if wanted.resolve() == self.curve.resolve():
            raise UsageError(f"{wanted}: is the folder of the curve (--pareto): give another name for report and plots")
        inside = wanted.parent.resolve() == self.curve.resolve()
        if inside and wanted.suffix in _CURVES_OWN:
            raise UsageError(f"{wanted}: might be a file of the curve's own: give a name that ends in .html")
        return inside and not self.curve.exists()

    def attempt(
        self, analysis: Analysis, result: Result, output: Path, progress: Callable[[str], None] = silent
    ) -> str:
        """Do as `write`, where the model is written already: return what went wrong, or nothing."""
        return _tried(lambda: self.write(analysis, result, output, progress))

    def attempt_curve(
        self, analysis: Analysis, record: Mapping[str, Any], progress: Callable[[str], None] = silent
    ) -> str:
        """Write what is asked for about a curve that is made: return what went wrong, or nothing."""
        return _tried(lambda: self._write_curve(analysis, record, progress))

    def _write_curve(self, analysis: Analysis, record: Mapping[str, Any], progress: Callable[[str], None]) -> None:
        if self.page is None and self.plots is None:
            return
        from graphprune.report.curve import curve_data

        progress("writing the report")
        folder = Path(record["output"])
        self._put(curve_data(analysis, record, read_curve(folder / CURVE), (_name(analysis), folder.name)))

    def write(
        self, analysis: Analysis, result: Result, output: Path, progress: Callable[[str], None] = silent
    ) -> None:
        """Profile both models and write what is asked for; raises UsageError."""
        if self.page is None and self.plots is None:
            return
        from graphprune.report.data import report_data

        profile, said = None, "The models were not run: there is no profile."
        if self.run and analysis.reference.converted:
            types = ", ".join(analysis.reference.converted)
            said = f"There is no profile: onnxruntime does not compute with {types} here, and runs a copy in float32."
        elif self.run:
            progress("profiling")
            try:
                profile, said = self._profile(analysis, result), ""
            except SessionError as error:
                said = f"There is no profile: {error}"
        progress("writing the report")
        record = {**result.report, "pareto": read_curve(self.plan.parent / CURVE) if self.plan is not None else []}
        self._put(report_data(analysis.coupling, record, (_name(analysis), output.name), profile, said))

    def _put(self, data: Mapping[str, Any]) -> None:
        """Write a page and plots of what `report_data` returned; no folder where there is nothing to draw."""
        if self.page is not None:
            from graphprune.report.page import page

            put(self.page, page(data))
        if self.plots is not None:
            from graphprune.report.plots import plots

            drawn = plots(data)
            if drawn:
                self.plots.mkdir(exist_ok=True)
            for name, content in drawn.items():
                put(self.plots / name, content)

    def _profile(self, analysis: Analysis, result: Result) -> dict[str, Any]:
        from graphprune.report.data import node_names

        feed = analysis.reference.feeds[0]
        other = arranged(feed, analysis.coupling, result.plan.chosen(analysis.coupling))
        with runnable(analysis.original, analysis.source) as dense, runnable(result.ir_model) as pruned:
            both = profile_both((dense, feed), (pruned, other), analysis.looking.runtime, self.seconds)
        return profile_record(*both, node_names(analysis.coupling))


def _tried(write: Callable[[], None]) -> str:
    try:
        write()
    except GraphPruneError as error:
        return f"no report: {error}"
    return ""


def _name(analysis: Analysis) -> str:
    return analysis.source.name if analysis.source else analysis.original.graph.name or "model"


def read_curve(file: Path) -> list[dict[str, Any]]:
    """Return the points of a curve; none where there is no such file.

    A point has `speedup`, `macs`, `latency_ms`, `divergence` (each a number or None), `plan` (the name of a file),
    `metric` (the user's own numbers by name) and `front` (whether no other point beats it). Raises UsageError where
    the file is of another form.
    """
    if not file.is_file():
        return []
    try:
        points = json.loads(file.read_text(encoding="utf-8"))["pareto"]
        found = [{**{key: _number(p[key]) for key in _NUMBERS}, "plan": Path(p["plan"]).name} for p in points]
        own = [{str(k): _number(v) for k, v in (p.get("metric") or {}).items()} for p in points]
        return [
            {**f, "metric": m, "front": bool(p.get("front", True))}
            for f, m, p in zip(found, own, points, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: is no curve of plans ({error}): move it away, or make it anew") from error


_NUMBERS = ("speedup", "macs", "latency_ms", "divergence")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
