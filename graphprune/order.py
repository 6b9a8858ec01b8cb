"""What is to be done with a model, as one value: how it is calibrated, planned, repaired and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from graphprune.options import Calibrating, Checking, Choosing
from graphprune.plan import PruningPlan

if TYPE_CHECKING:
    from graphprune.calibrate.knowledge import Knowledge

Learned: TypeAlias = "Callable[[], tuple[Knowledge | None, str]]"
"""What `calibrate` did for the same model, inputs and options at another time, or will do."""


@dataclass(frozen=True)
class Order:
    """What is to be done: by what a plan is made, or the plan; how the result is checked and repaired.

    `learned`: see `prepare`; `onset`: where outputs are damaged, look for the most that could go without.
    """

    choosing: Choosing
    checking: Checking
    calibrating: Calibrating
    plan: PruningPlan | None = None
    learned: Learned | None = None
    onset: bool = True
