"""Latency that is nothing but multiply-accumulates: for a plan that goes by them and is held to a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from graphprune.costs import CostModel, Part, Price, Sizes


@dataclass(frozen=True)
class Counted:
    """Prices nodes by their multiply-accumulates, in the column of latency.

    >>> CostModel(coupling, (Counted(),))({}).of("latency")  # doctest: +SKIP
    4089184256.0
    """

    columns: tuple[str, ...] = field(default=("latency",))
    by: ClassVar[str] = "macs"

    def parts(self, costs: CostModel) -> Iterable[Part]:
        """Yield a part for each node that has any."""
        for op in costs.coupling.graph.ops:
            price = costs.macs_price(op)
            if price is not None:
                yield costs.part(op, _renamed(price))


def _renamed(price: Price) -> Price:
    def renamed(sizes: Sizes) -> dict[str, float]:
        return {"latency": price(sizes)["macs"]}

    return renamed
