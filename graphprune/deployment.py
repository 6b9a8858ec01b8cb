"""At what sizes and with how many threads a model will be run: what costs, predictions and times are given for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from graphprune.errors import UsageError
from graphprune.options import Looking


@dataclass(frozen=True)
class Deployment:
    """Samples in a run, threads, and open sizes by their names; None and absent: as without it."""

    batch: int | None = None
    threads: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    def looking(self, looking: Looking) -> Looking:
        """Return how a model is looked at that is run so; raises UsageError where that was said in another way, too."""
        if self.batch is not None and looking.batch not in (None, self.batch):
            raise UsageError(f"the batch is {looking.batch} by --batch and {self.batch} by --at")
        threads = looking.runtime.threads if self.threads is None else self.threads
        return replace(
            looking,
            batch=looking.batch if self.batch is None else self.batch,
            runtime=replace(looking.runtime, threads=threads),
            sizes={**looking.sizes, **self.sizes},
        )


def parse_at(texts: Iterable[str]) -> Deployment:
    """Read `batch=8,threads=4,sequence=128`; raises UsageError.

    >>> parse_at(["batch=8,threads=4", "height=320"])
    Deployment(batch=8, threads=4, sizes={'height': 320})
    """
    found: dict[str, int] = {}
    for text in (part for given in texts for part in given.split(",")):
        name, _, number = text.strip().rpartition("=")
        if not name or not number.isdigit() or (not int(number) and name != "threads"):
            raise UsageError(f"--at {text!r} is not of the form batch=8, threads=4 or NAME=SIZE")
        if name in found:
            raise UsageError(f"--at says {name} twice")
        found[name] = int(number)
    return Deployment(found.pop("batch", None), found.pop("threads", None), found)
