"""What the command line does around a curve of plans, and what it says at last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import UsageError

if TYPE_CHECKING:
    from graphprune.analysis import Analysis
    from graphprune.pareto import Along
    from graphprune.pipeline import Order
    from graphprune.reporting import Reporting
    from graphprune.result import Result
    from graphprune.terminal import Talk


def along(folder: Path | None, points: int, others: Mapping[str, object], models: bool = True) -> Along | None:
    """Read the options of a curve; raises UsageError where `others` are given with it. None: there is to be none."""
    from graphprune.pareto import Along

    if folder is None:
        return None
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(f"--pareto makes many plans in a folder of its own: give no {given[0]} with it")
    return Along(folder, points, models)


def show_curve(
    talk: Talk, analysis: Analysis, order: Order, wanted: Along, progress: Callable[[str], None],
    reporting: Reporting | None = None,
) -> None:
    """Make a curve, draw it, write what is asked for about it, and print it; raises UsageError where that fails."""
    from graphprune.pareto import curve
    from graphprune.report.pareto import plot, print_pareto

    record = curve(analysis, order, wanted, progress)
    record["remark"] = plot(record, wanted.folder / "pareto.png")
    wrong = reporting.attempt_curve(analysis, record, progress) if reporting is not None else ""
    talk.show(record, print_pareto)
    if wrong:
        raise UsageError(f"{wrong}; the curve was written: {wanted.folder}")


def told(talk: Talk, result: Result, speedup: float | None, written: tuple[Path, str]) -> None:
    """Say what is not as it was asked for; raises UsageError where something went wrong after the model was written.

    `written` has the model's path, and what went wrong with the report.
    """
    talk.warn_if_whole(result.plan.keep)
    measured, evaluation = result.report["speedup"], result.report["evaluation"]
    if speedup is not None and measured is not None and measured < speedup * 0.95:
        talk.warn(f"asked for {speedup:g}x, but the written model measured {measured:.2f}x: is the machine busy?")
    if wrong := (evaluation["error"] if evaluation is not None else "") or written[1]:
        raise UsageError(f"{wrong}; the pruned model was written: {written[0]}")
