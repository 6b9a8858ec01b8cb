"""Energy as a kind of cost, by a proxy: what multiplying takes, and what moving bytes takes.

picojoules = 4.6 for each multiply-accumulate + 162.5 for each byte of weights + 12.5 for each byte that a node reads
or gives. These are the energies of a 32-bit multiplication and addition (3.7 and 0.9 pJ), of DRAM (1.3 nJ for 64 bits),
from which weights are read once, and of a cache of 1 MB (100 pJ for 64 bits), through which values go.

Source: Horowitz, Computing's energy problem and what we can do about it (ISSCC 2014), figure 1.1.9: 45 nm, 0.9 V. On
other processes the numbers are smaller and their ratios about the same: use it to compare, not to predict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from graphprune.costs import CostModel, Part, Price, Sizes
from graphprune.ops import Op
from graphprune.ops.workloads import VIEWS

PER_MAC = 3.7 + 0.9
PER_STORED_BYTE = 1300 / 8
PER_MOVED_BYTE = 100 / 8
_KIND = "energy-proxy"


@dataclass(frozen=True)
class Energy:
    """Prices nodes in picojoules."""

    columns: tuple[str, ...] = field(default=(_KIND,))

    def parts(self, costs: CostModel) -> Iterable[Part]:
        """Yield a part for each node that computes or moves anything."""
        for op in costs.coupling.graph.ops:
            if op.type not in VIEWS and all(o is None or o.rank_known for o in (*op.inputs, *op.outputs)):
                yield costs.part(op, _price(costs, op))


def energy() -> Energy:
    """Return the energy of models at their natural sizes.

    >>> CostModel(coupling, (energy(),))({}).of("energy-proxy")  # doctest: +SKIP
    28000000000.0
    """
    return Energy()


def _price(costs: CostModel, op: Op) -> Price:
    graph = costs.coupling.graph
    macs, times = costs.macs_price(op), graph.worlds.natural.times.get(op.name, 1)
    operands = [o for o in (*op.inputs, *op.outputs) if o is not None]
    moved = [o for o in operands if o.name not in graph.constants and o.name not in graph.weights]
    stored = [o for o in operands if o.name in graph.weights]

    def price(sizes: Sizes) -> dict[str, float]:
        counted = macs(sizes)["macs"] if macs is not None else 0.0
        through = sum(costs.bytes_of(o, sizes) for o in moved) * times
        weights = sum(costs.bytes_of(o, sizes) for o in stored)
        return {_KIND: PER_MAC * counted + PER_MOVED_BYTE * through + PER_STORED_BYTE * weights}

    return price
