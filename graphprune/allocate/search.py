"""Search: the sparsity at which a cost fits, then single steps of single groups until the cost is close below.

All states are levels (see `ladder`); the load of a state is its cost over what is allowed, the largest where several
costs have a target. A state fits if its load is at most 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from graphprune.allocate.ladder import Ladder, Levels, Rule

_HALVINGS = 24
_MOST = 180
_FINEST = 24
_HELD = 4
_TRIES = 12
_ROUNDS = 3
_NEAR = 0.998
CLOSE = 0.99
"""A fitting state with this load or more is near enough to its target; below it more moves are tried."""


class Spent(Exception):
    """As many loads have been computed as one search may compute."""


class Loads:
    """Remembers the loads of states and counts how many were computed; local to one search."""

    def __init__(self, load: Callable[[Levels], float]) -> None:
        self._load = load
        self._known: dict[Levels, float] = {}

    def __call__(self, levels: Levels) -> float:
        got = self._known.get(levels)
        if got is None:
            if len(self._known) >= _MOST:
                raise Spent
            got = self._known[levels] = self._load(levels)
        return got

    def best(self) -> Levels:
        """Return the fitting state with the largest load."""
        return max((x for x, load in self._known.items() if load <= 1), key=lambda x: (self._known[x], x))


def fit(rungs: Sequence[Ladder], rule: Rule, load: Callable[[Levels], float]) -> Levels | None:
    """Return the levels whose load is at most 1 and as near to it as the groups' steps permit; None if none fit.

    At most 180 loads are computed. The sparsity is halved in on first; the groups that differ between the states on
    both sides of the target are then raised one by one, the highest scores first; then single steps and pairs of a
    step up and another up or down are tried. Where that is not close, a group with coarse steps is held one step
    higher, and the others make up for it.
    """
    loads = Loads(load)
    try:
        if loads(rule(0.0)) <= 1:
            return rule(0.0)
        if loads(rule(1.0)) > 1:
            return None
        levels = _approach(rungs, rule, loads)
        for held in _held(rungs, rule, levels):
            if loads(levels) >= CLOSE:
                break
            if loads(held(0.0)) > 1 >= loads(held(1.0)):
                levels = max(levels, _approach(rungs, held, loads), key=loads)
        return _filled(rungs, loads, levels)
    except Spent:
        return loads.best()


def _approach(rungs: Sequence[Ladder], rule: Rule, loads: Loads) -> Levels:
    """Return a fitting state near to those of a rule."""
    loose, tight = _halve(rule, loads)
    levels = _climb(rungs, loads, tight, loose)
    for _ in range(_ROUNDS):
        better = _polish(rungs, loads, levels)
        if better is None:
            break
        levels = better
    return levels


def _held(rungs: Sequence[Ladder], rule: Rule, levels: Levels) -> Iterator[Rule]:
    """Yield rules that hold one group a step above `levels`, those first whose steps are the coarsest."""

    def hold(g: int) -> Rule:
        return lambda sparsity: tuple(levels[g] + 1 if i == g else x for i, x in enumerate(rule(sparsity)))

    coarse = sorted(_movable(rungs), key=lambda g: -_step(rungs[g], levels[g]))
    yield from (hold(g) for g in coarse[:_HELD] if levels[g] < rungs[g].top)


def _halve(rule: Rule, loads: Loads) -> tuple[Levels, Levels]:
    """Return the states of a rule on both sides of load 1."""
    low, high = 0.0, 1.0
    loose, tight = rule(low), rule(high)
    for _ in range(_HALVINGS):
        if loads(tight) >= _NEAR:
            break
        middle = (low + high) / 2
        state = rule(middle)
        if loads(state) > 1:
            low, loose = middle, state
        else:
            high, tight = middle, state
    return loose, tight


def _climb(rungs: Sequence[Ladder], loads: Loads, levels: Levels, loose: Levels) -> Levels:
    """Raise single groups toward a looser state while the load fits, the most valuable steps first."""
    steps = [g for g, (a, b) in enumerate(zip(levels, loose, strict=True)) for _ in range(b - a)]
    steps.sort(key=lambda g: -_value(rungs[g], levels[g]))
    while steps and loads(levels) < _NEAR:
        fits, fails = 0, len(steps) + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if loads(_raised(levels, steps[:middle])) <= 1:
                fits = middle
            else:
                fails = middle
        levels = _raised(levels, steps[:fits])
        steps = steps[fits + 1 :]
    return levels


def _filled(rungs: Sequence[Ladder], loads: Loads, levels: Levels) -> Levels:
    """Return a state in which no single step up fits any more, unless it is close already."""
    for g in _movable(rungs):
        while levels[g] < rungs[g].top and loads(levels) < CLOSE and loads(_raised(levels, [g])) <= 1:
            levels = _raised(levels, [g])
    return levels


def _value(ladder: Ladder, level: int) -> float:
    """Return the mean score of the indices that one step up brings back."""
    back = ladder.ranking()[ladder.counts[level] : ladder.counts[level + 1]]
    return float(ladder.scores[back].mean())


def _raised(levels: Levels, groups: Sequence[int], by: int = 1) -> Levels:
    out = list(levels)
    for g in groups:
        out[g] += by
    return tuple(out)


def _polish(rungs: Sequence[Ladder], loads: Loads, levels: Levels) -> Levels | None:
    """Return a state near to a fitting one with a larger load that still fits; None where it is close or none is."""
    base = loads(levels)
    if base >= CLOSE:
        return None
    ups, downs = {}, {}
    for g in sorted(_movable(rungs), key=lambda g: _step(rungs[g], levels[g]))[:_FINEST]:
        if levels[g] < rungs[g].top:
            ups[g] = loads(_raised(levels, [g])) - base
        if levels[g] > 0:
            downs[g] = loads(_raised(levels, [g], -1)) - base
    promising = sorted(_moves(ups, downs, 1 - base), reverse=True)
    for _, up, down in promising[:_TRIES]:
        state = _raised(_raised(levels, up), down, -1)
        if base < loads(state) <= 1:
            return state
    return None


def _movable(rungs: Sequence[Ladder]) -> list[int]:
    return [g for g, x in enumerate(rungs) if x.fixed is None and x.top > 0]


def _step(ladder: Ladder, level: int) -> float:
    """Return about how many weight elements one step of a group is worth."""
    i = min(level, ladder.top - 1)
    return ladder.group.parameters * (ladder.counts[i + 1] - ladder.counts[i]) / ladder.group.size


def _moves(
    ups: dict[int, float], downs: dict[int, float], slack: float
) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Yield (expected gain, groups to raise, groups to lower) for single steps and pairs that should fit."""
    for g, gain in ups.items():
        if 0 < gain <= slack:
            yield gain, (g,), ()
        for other, more in ups.items():
            if other > g and 0 < gain + more <= slack:
                yield gain + more, (g, other), ()
        for other, less in downs.items():
            if other != g and 0 < gain + less <= slack:
                yield gain + less, (g,), (other,)
