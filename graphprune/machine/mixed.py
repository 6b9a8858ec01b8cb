"""Latency by two prices at once: half of it is predicted time, half multiply-accumulates.

Predicted times of single nodes are wrong by some percent, multiply-accumulates by more, but not for the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphprune.costs import CostModel, Part, Price, Sizes
from graphprune.machine.counted import Counted
from graphprune.machine.latency import Latency


@dataclass(frozen=True)
class Mixed:
    """Prices nodes by the mean of both fractions of the dense model's, in the column of latency.

    >>> CostModel(coupling, (Mixed(latency),))({}).of("latency")  # doctest: +SKIP
    1.0
    """

    latency: Latency
    columns: tuple[str, ...] = field(default=("latency",))
    by: ClassVar[str] = "latency and macs"

    def parts(self, costs: CostModel) -> Iterable[Part]:
        """Yield the parts of both."""
        for pricing in (self.latency, Counted()):
            parts = tuple(pricing.parts(costs))
            whole = sum(part.price({})["latency"] for part in parts)
            yield from (replace(part, price=_scaled(part.price, 0.5 / max(whole, 1e-9))) for part in parts)


def _scaled(price: Price, factor: float) -> Price:
    def scaled(sizes: Sizes) -> dict[str, float]:
        return {"latency": factor * price(sizes)["latency"]}

    return scaled
