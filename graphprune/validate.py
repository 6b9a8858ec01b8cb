"""Checks of a pruned model before anybody gets it: the standard's checker, and runs beside the dense model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphprune.errors import SessionError
from graphprune.execute import Outputs, relative_error
from graphprune.reference import Reference
from graphprune.runtime import run

_APART = 0.05
_APART_FROM_NOISE = 100.0  # how much less exact than the dense model a pruned one may be


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of one model."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)

    @property
    def failures(self) -> str:
        return "; ".join(f"{c.name}: {c.detail}" for c in self.checks if not c.passed)


def check_file(path: str | os.PathLike[str]) -> Check:
    """Run onnx's checker on a file."""
    import onnx

    try:
        onnx.checker.check_model(os.fspath(path))
    except Exception as error:
        return Check("onnx checker", False, str(error).splitlines()[0][:200])
    return Check("onnx checker", True)


def validate(
    path: str | os.PathLike[str],
    reference: Reference,
    *,
    sizes_may_differ: bool = False,
    dense_passes_checker: Callable[[], bool] = lambda: True,
    arrange: Callable[[Outputs], Outputs] = lambda arrays: arrays,
    progress: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Check a written model: valid, loads and runs at both optimisation levels, answers in the dense model's form.

    `sizes_may_differ` says that the model has sizes that depend on the content of inputs (boxes found, say); `arrange`
    returns the dense model's inputs or outputs in the sizes that the pruned one must have.
    """
    progress("checking the pruned model")
    checked = check_file(path)
    if not checked.passed and not dense_passes_checker():
        checked = Check("onnx checker", True, "the dense model does not pass it either")
    checks = [checked, *([Check("run as float32", True, reference.as_float32)] if reference.converted else ())]
    found: dict[bool, list[Outputs]] = {}
    for optimise, name in ((True, "runs at full optimisation"), (False, "runs without optimisation")):
        progress(name)
        try:
            opened = reference.open(Path(path), optimise)
            found[optimise] = [run(opened, arrange(f)) for f in reference.feeds]
        except SessionError as error:
            checks.append(Check(name, False, str(error)))
            continue
        checks.append(Check(name, True))
        checks.append(_same_form([arrange(o) for o in reference.plain], found[optimise], sizes_may_differ))
    if len(found) == 2:
        checks.append(_levels_agree(found, reference))
    return Verdict(tuple(checks))


def _same_form(dense: list[Outputs], pruned: list[Outputs], sizes_may_differ: bool) -> Check:
    """Outputs have the dense model's names, types and shapes; sizes that depend on data may differ."""
    for before, after in zip(dense, pruned, strict=True):
        if list(before) != list(after):
            return Check("same outputs", False, f"{list(after)} instead of {list(before)}")
        for name, a in before.items():
            b = after[name]
            if a.dtype != b.dtype or a.ndim != b.ndim:
                return Check("same outputs", False, f"{name} is {b.dtype}{list(b.shape)}, was {a.dtype}{list(a.shape)}")
    moving = {
        name for before, after in zip(dense, pruned, strict=True) for name in before
        if before[name].shape != after[name].shape
    }
    if moving and not sizes_may_differ:
        return Check("same outputs", False, f"sizes differ from the dense model's: {', '.join(sorted(moving))}")
    detail = f"sizes that depend on data differ: {', '.join(sorted(moving))}" if moving else ""
    return Check("same outputs", True, detail)


def _levels_agree(found: dict[bool, list[Outputs]], reference: Reference) -> Check:
    pairs = zip(found[False], found[True], strict=True)
    error = max((relative_error(a, b)[0] for a, b in pairs), default=0.0)
    finite = all(
        np.isfinite(a).all()
        for dense, outs in zip(reference.plain, found[True], strict=True)
        for name, a in outs.items()
        if a.dtype.kind == "f" and name in dense and np.isfinite(dense[name]).all()
    )
    if not finite:
        return Check("finite outputs", False, "the pruned model gives NaN or infinity where the dense one does not")
    wrong = np.isfinite(error) and error > _APART and error > _APART_FROM_NOISE * reference.noise
    blame = ": onnxruntime's optimiser changes what it computes" if wrong else ""
    return Check("both levels agree", not wrong, f"relative difference {error:.1e}{blame}")
