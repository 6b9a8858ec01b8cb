"""Gradients as a stage of the pipeline: what a criterion reads of them, computed in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.analysis import Analysis
from graphprune.calibrate.knowledge import Knowledge
from graphprune.errors import UsageError
from graphprune.score import GRADIENT_CRITERIA, Gradients


def gradients_for(
    analysis: Analysis, criterion: str, known: Knowledge | None, progress: Callable[[str], None]
) -> Gradients | None:
    """Return the statistics that a criterion reads, None for those that go by something else.

    >>> gradients_for(analysis, "snip", known, print).of["gradient"].keys()  # doctest: +SKIP
    dict_keys(['conv1.weight', 'fc.weight'])

    The samples are those of calibration; SynFlow needs none. Raises UsageError without torch and without samples, and
    whatever `converters.gradients` raises.
    """
    if criterion not in GRADIENT_CRITERIA:
        return None
    wanted = GRADIENT_CRITERIA[criterion]
    if wanted.data and known is None:
        raise UsageError(
            f"--criterion {criterion} goes by gradients of a loss on samples, and there are none: give --calibration "
            "DATA or none (made up), and --run"
        )
    from graphprune.converters.pytorch import need_torch

    need_torch(f"--criterion {criterion}")
    from graphprune.converters.gradients import Asked, gradients

    if known is None or not wanted.data:
        made = analysis.feeds[0]
        ones = {name: np.ones_like(a) if a.dtype.kind == "f" else a for name, a in made.items()}
        flow: Gradients = gradients(analysis.model, None, Asked(wanted.needs), ones, progress)
        return flow
    samples = known.samples if known.labelled is None else known.labelled
    asked = Asked(wanted.needs, known.batch, known.labelled is not None, analysis.looking.seed)
    key = ("gradients", *wanted.needs)
    found: Gradients = known.once(key, lambda: gradients(analysis.model, samples, asked, progress=progress))
    return found
