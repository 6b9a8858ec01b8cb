"""Which state of a search's path to take: those on it are repaired and compared where nothing was fitted or searched.

A search looks at samples that its candidates are fitted to, for there are most of them; where layers have more columns
than these have rows, it finds what is fitted to them best. So the last word is with samples that check fits, of models
that are fitted without them (`Knowledge.apart`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

from graphprune.accuracy import Deciding
from graphprune.allocate.knapsack import Levels
from graphprune.analysis import Analysis
from graphprune.assembled import MEMORY, Candidates, compared
from graphprune.calibrate.knowledge import Knowledge
from graphprune.errors import SessionError
from graphprune.quality import check_feeds, together
from graphprune.reconstruct.mend import evenly
from graphprune.repair import divergences, look_work, mended, mending_work
from graphprune.rewrite import Chosen, rearranged

Progress = Callable[[str], None]
Lost: TypeAlias = Callable[[Levels], float]
_FINALISTS = 6  # that are repaired, besides the first
_SHARE = 0.5  # of the work of all candidates, what repairs may take


def settled(
    deciding: Deciding, path: Sequence[Levels], chosen: Callable[[Levels], Chosen], asked: tuple[int, float],
    progress: Progress,
) -> int:
    """Return which state of a path to take, the last one being the best as candidates are refitted.

    Corrections in order, which no candidate has, take back more of one model's loss than of another's. So the first
    and some others are repaired as results are by default, and the one is taken that loses least of samples that were
    neither searched on nor fitted to (they choose how strong refits are, and no more). Where nothing will be corrected,
    or that is too much work, they are refitted as candidates are. `asked` is how many batches candidates are compared
    on, and the work that all of them may take.

    >>> settled(deciding, [start, better, best], chosen, (8, 3e13), print)  # doctest: +SKIP
    2
    """
    analysis, known = deciding.analysis, replace(deciding.known, apart=True)
    feeds, work = asked[0], asked[1] * _SHARE
    corrections = mending_work(analysis, known, known.effort)
    whole = corrections > 0 and corrections + look_work(analysis, known) <= work / 2
    each = look_work(analysis, known) + (corrections if whole else 0)
    others = evenly(range(1, len(path)), min(int(work / each) - 1, _FINALISTS))
    if not others:
        return len(path) - 1
    lost = _corrected(analysis, known, chosen) if whole else _refitted(analysis, known, chosen, feeds)

    def told(k: int) -> float:
        progress(f"search: repairing model {k} of {len(path) - 1} on the way")
        return lost(path[k])

    return min((0, *others), key=told)


def _corrected(analysis: Analysis, known: Knowledge, chosen: Callable[[Levels], Chosen]) -> Lost:
    """Return what says how much a state loses that is repaired as results are."""

    def lost(levels: Levels) -> float:
        kept = chosen(levels)
        pruned = rearranged(analysis.model, analysis.coupling, kept)
        try:
            mended(analysis, pruned, kept, known, known.effort)
            return together(divergences(analysis, pruned, kept, check_feeds(known)))
        except SessionError:  # as of candidates: the loss of what does not run is infinite
            return together(())

    return lost


def _refitted(analysis: Analysis, known: Knowledge, chosen: Callable[[Levels], Chosen], feeds: int) -> Lost:
    """Return what says how much a state loses that is refitted as candidates are, of so many batches."""
    held = compared(analysis, list(islice(check_feeds(known), feeds)))
    candidates = Candidates(analysis, known, chosen, held, MEMORY)
    return lambda levels: candidates(levels, len(held))
