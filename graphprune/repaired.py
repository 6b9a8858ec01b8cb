"""What repair did to a model, and what a report says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.samples import describe
from graphprune.quality import Divergence
from graphprune.reconstruct.mend import Mended


@dataclass(frozen=True)
class Look:
    """How far the outputs are from the dense model's at one stage of repair."""

    stage: str
    outputs: tuple[Divergence, ...]

    def record(self) -> dict[str, Any]:
        return {"stage": self.stage, "outputs": [d.record() for d in self.outputs]}


@dataclass(frozen=True)
class Repaired:
    """What repair did: layers, and how far the outputs are from the dense model's, first before it, last after it."""

    layers: tuple[Mended, ...]
    looks: tuple[Look, ...]
    mode: str

    @property
    def before(self) -> tuple[Divergence, ...]:
        return self.looks[0].outputs

    @property
    def after(self) -> tuple[Divergence, ...]:
        return self.looks[-1].outputs

    @property
    def damaged(self) -> bool:
        return any(d.damaged for d in self.after)


def repair_record(known: Knowledge | None, done: Repaired | None, remark: str) -> dict[str, Any]:
    """Return what a report says of calibration and repair."""
    if known is None or done is None:
        return {"calibration": None, "repair": None, "divergence": None, "remark": remark}
    return {
        "calibration": {
            **describe(known.samples), "used": known.stats.samples, "left_out": dict(known.consumers.left_out)
        },
        "repair": {**layers_record(done.mode, done.layers), "notes": _notes(known, done)},
        "divergence": {
            "before": [d.record() for d in done.before], "after": [d.record() for d in done.after],
            "stages": [look.record() for look in done.looks], "held_back": bool(known.stats.told),
            "damaged": done.damaged, "onset": None,
        },
        "remark": remark,
    }


def layers_record(mode: str, layers: Sequence[Mended]) -> dict[str, Any]:
    """Return what a report says of repaired layers."""
    return {
        "mode": mode,
        "layers": [asdict(x) for x in layers],
        "error_before": _middle([x.before for x in layers]),
        "error_after": _middle([x.after for x in layers]),
        "largest_after": max((x.after for x in layers), default=None),
    }


def _middle(numbers: Sequence[float]) -> float | None:
    """Return the median: a layer whose outputs hardly vary may be off by many times that, and matters no more."""
    return median(numbers) if numbers else None


def _notes(known: Knowledge, done: Repaired) -> list[str]:
    """Say where samples were too few, and what was done there."""
    if not done.layers:
        return []
    if not known.stats.check:
        return ["no samples were left to hold back, so that nothing is changed: give more"]
    rows = {c.node: (known.stats.fit[c.key].rows, c.width) for c in known.consumers.found if c.key in known.stats.fit}
    few = [(x.node, *rows[x.node]) for x in done.layers if x.node in rows and rows[x.node][0] < rows[x.node][1]]
    if not few:
        return []
    node, have, columns = min(few, key=lambda f: f[1] / f[2])
    return [
        f"{len(few)} of {len(done.layers)} layers: fewer rows than columns ({node}: {have} of {columns}), which keeps "
        "them closer to their old weights; more samples help"
    ]
