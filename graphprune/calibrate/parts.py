"""What batches of samples are for: most to fit to, some to check fits by, few to tell results by."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

from graphprune.calibrate.samples import Samples

Part: TypeAlias = Literal["fit", "check", "told"]
CHECK = 5  # every fifth batch checks fits, the last of them where there are fewer
_TOLD, _PLACE = 10, 7  # of ten batches the eighth is to tell results by


@dataclass(frozen=True)
class Parts:
    """Says of the number of a batch what it is for: to fit to, to check fits by, or to tell results by.

    What is confirmed is then fitted to both of the former; to the last, nothing is fitted ever. Of less than
    eight batches none is kept for it; of a lone one, nothing can be confirmed.

    >>> [Parts.of(Samples(lambda: iter(()), 20, "noise"), 2)(n) for n in (0, 4, 7, 9)]
    ['fit', 'check', 'told', 'check']
    """

    every: int
    telling: bool

    @classmethod
    def of(cls, samples: Samples, batch: int) -> Parts:
        """Return the parts of samples in such batches; of a stream whose end is not known, as of a long one."""
        batches = _TOLD if samples.count is None else ceil(samples.count / batch)
        return cls(min(CHECK, batches), batches > _PLACE)

    def __call__(self, number: int) -> Part:
        if self.every > 1 and number % self.every == self.every - 1:
            return "check"
        return "told" if self.telling and number % _TOLD == _PLACE else "fit"
