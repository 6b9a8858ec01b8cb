"""The user's own metric: a function that is given the path of an ONNX file, and returns a number or several by name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from graphprune.errors import UsageError
from graphprune.model import EMBED_LIMIT, has_external_data, tensor_bytes, write_into

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.analysis import Analysis, Progress
    from graphprune.repair import Repairing
    from graphprune.rewrite import Chosen

Metric: TypeAlias = Callable[[str], Any]
"""Takes the path of an ONNX file; returns a number, or numbers by name."""

_CHEAP = 20.0  # seconds: a metric that takes longer is not run before repair
_SHOWN = 60


def find_metric(given: str | Metric | None) -> Metric | None:
    """Return the function that `module:function` names, imported from the current folder or what is installed.

    >>> find_metric("os.path:getsize")("README.md") > 0
    True

    A function is returned as it is. Raises UsageError where there is no such module or function.
    """
    if given is None or (callable(given) and not isinstance(given, str)):
        return given
    if not isinstance(given, str):
        raise UsageError(f"evaluate is {given!r}: give a function, or the name of one as module:function")
    module, _, name = given.partition(":")
    if not module or not name:
        raise UsageError(f"--evaluate {given!r} is not of the form module:function")
    if module.endswith(".py"):
        raise UsageError(f"--evaluate {given!r}: give the name to import, not a file: {module[:-3]}:{name}")
    found = _imported(module)
    try:
        metric = reduce(getattr, name.split("."), found)
    except AttributeError:
        near = difflib.get_close_matches(name, [k for k, v in vars(found).items() if callable(v)], 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"--evaluate {given!r}: module {module!r} has no function {name!r}{hint}") from None
    if not callable(metric):
        raise UsageError(f"--evaluate {given!r}: {name!r} is no function")
    return metric  # type: ignore[no-any-return]


def _imported(module: str) -> Any:
    if os.getcwd() not in sys.path:  # where people keep the file; it stays, for what is imported later
        sys.path.insert(0, os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module, module.split(".")[0]):
            raise UsageError(
                f"--evaluate: no module {module!r}, neither in the current folder nor installed"
            ) from None
        raise UsageError(f"--evaluate: importing {module!r} failed: {_told(error)}") from error


def judge(metric: Metric, path: str | os.PathLike[str], which: str) -> dict[str, float]:
    """Call a metric with the path of a model and return its numbers by name; a single one has the function's name.

    What the function prints goes to standard error, so that results stay readable for scripts. Raises UsageError
    where it raises or returns no number; `which` says in that message which model it was given.
    """
    name = name_of(metric)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = metric(os.fspath(path))
    except (Exception, SystemExit) as error:
        raise UsageError(f"--evaluate: {name} failed for {which}: {_told(error)}") from error
    numbers = {str(k): _number(v) for k, v in (found if isinstance(found, Mapping) else {name: found}).items()}
    known = {k: v for k, v in numbers.items() if v is not None}
    if len(known) < len(numbers) or not known:
        shown = " ".join(repr(found).split())[:_SHOWN]
        raise UsageError(f"--evaluate: {name} returned {shown} for {which}: neither a number nor numbers by name")
    return known


def name_of(metric: Metric) -> str:
    """Return what a metric is called.

    >>> name_of(os.path.getsize)
    'getsize'
    """
    return str(getattr(metric, "__name__", type(metric).__name__))


def _number(value: Any) -> float | None:
    """Return a number as float: Python's, numpy's, or what holds a single one (an array, a tensor); else None."""
    if isinstance(value, (str, bytes, bool)):
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Evaluator:
    """A metric with what it says of the dense model, and the seconds that took."""

    metric: Metric
    dense: Mapping[str, float]
    seconds: float

    @staticmethod
    def of(analysis: Analysis, metric: Metric, progress: Progress) -> Evaluator:
        """Evaluate the dense model: a metric that does not work is told before there is work to lose."""
        progress("evaluating the dense model")
        begun = time.perf_counter()
        if analysis.source is not None:
            found = judge(metric, analysis.source, "the dense model")
        else:
            found = _of_model(metric, analysis.original, "the dense model")
        return Evaluator(metric, found, time.perf_counter() - begun)

    def unrepaired(self, pruned: ir.Model) -> dict[str, Any]:
        """Return the record with what the metric says of a pruned model before repair, if it is quick to ask."""
        before, error = None, ""
        if self.seconds <= _CHEAP:
            try:
                before = _of_model(self.metric, pruned, "the pruned model before repair")
            except UsageError as failure:
                error = str(failure)
        return {**self.record(), "before_repair": before, "error": error}

    def finished(self, record: Mapping[str, Any] | None, written: Path) -> dict[str, Any]:
        """Return the record with what the metric says of the result; raises nothing, so that no model is lost."""
        record = record or self.record()
        try:
            return {**record, "after": judge(self.metric, written, "the pruned model")}
        except UsageError as failure:
            return {**record, "error": str(failure)}

    def record(self) -> dict[str, Any]:
        """Return what a report says before any pruned model has been looked at."""
        name, dense = name_of(self.metric), dict(self.dense)
        return {"metric": name, "before": dense, "before_repair": None, "after": None, "error": ""}


def _of_model(metric: Metric, model: ir.Model, which: str) -> dict[str, float]:
    external = has_external_data(model) or tensor_bytes(model) > EMBED_LIMIT
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        return judge(metric, write_into(model, Path(folder), "model.onnx", external=external), which)


def telling_unrepaired(repairing: Repairing, evaluator: Evaluator) -> Repairing:
    """Return a repair that also asks the metric about the model as pruning left it."""

    def told(analysis: Analysis, pruned: ir.Model, chosen: Chosen, progress: Progress) -> dict[str, Any]:
        progress("evaluating before repair")
        record = evaluator.unrepaired(pruned)
        done = repairing(analysis, pruned, chosen, progress)
        changed = bool(done["repair"] and done["repair"]["layers"])  # else it is the same model again
        return {**done, "evaluation": record if changed else evaluator.record()}

    return told
