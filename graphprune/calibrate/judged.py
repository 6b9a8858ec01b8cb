"""Made-up images fitted to a classifier by its own answers: first their brightness and contrast, then what they show.

A network tells apart what looks like the images it learned. On networks for Fashion-MNIST the information of the
answers about drawn things has one sharp maximum over the level of black, within 0.05 deviations of the true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphprune.calibrate.answers import Judge, information
from graphprune.calibrate.contents import Content
from graphprune.calibrate.evolved import ANCESTORS, ROUNDS, evolve, founders
from graphprune.calibrate.images_made import level, measures, things
from graphprune.calibrate.maker import LIKE, Maker
from graphprune.calibrate.ranges import Range
from graphprune.errors import SessionError

_LOOKED = 128  # images for every range that is tried
_BLACKS = np.arange(-2.4, 0.45, 0.1)
_CONTRASTS = (0.32, 0.65, 1.3)  # those of pixels in 0..1, -1..1, and beyond
_FIRST_CONTRAST = 0.9
_NEAR = (-0.06, -0.03, 0.03, 0.06)
_NEAR_CONTRASTS = (0.7, 1.4)
_SHIFTS = tuple(k / 10 for k in range(-8, 9) if k)
_CLEARLY = 1.15
_LEAST = 0.05  # nats: below, the answers say nothing about images (no classes, or nothing learned)
_ROUNDS = ANCESTORS + ROUNDS
_FEW = 512  # images that are worth more rounds than more of them would be
_MOST = 48_000_000  # pixels that are held at once


def judged(model: ir.Model, maker: Maker, count: int, answers: int, known: bool) -> tuple[Maker, str] | None:
    """Return a maker of evolved images and what is said of them; None where the answers do not help.

    There may be fewer images than `count`. The model is asked about at most `answers` images. `known`: the range is
    fitted to stored moments already.
    """
    contents = maker.inputs.contents
    if len(contents) != 1 or contents[0].what != "image" or answers < 3 * count:
        return None
    c = contents[0]
    samples, channels, size = measures(maker.sizes[c.name], c.channel)
    frames = len(maker.sizes[c.name]) > 4
    if frames or (not maker.inputs.axes and samples != 1) or count * channels * size[0] * size[1] > _MOST:
        return None
    judge = Judge.of(model)
    if judge is None:
        return None
    single = maker if maker.inputs.axes else replace(maker, batch=1)
    try:
        return _judged(judge, single, c, (count, answers), known)
    except SessionError:
        return None


def _judged(judge: Judge, maker: Maker, c: Content, numbers: tuple[int, int], known: bool) -> tuple[Maker, str] | None:
    count, answers = numbers
    _, channels, size = measures(maker.sizes[c.name], c.channel)
    drawn = founders if channels > 1 else things  # on black, by which the level shows best
    shown = drawn(np.random.default_rng(maker.seed), _LOOKED, channels, size)

    def told(candidate: Range) -> float:
        return information(judge.shares(replace(maker, ranges={c.name: candidate}).showing(shown)))

    best, start = told(maker.ranges[c.name]), maker.ranges[c.name]
    fitted, tried = start, 0
    if start.low is None and not c.normalised and answers - 4 * count > _LOOKED * (len(_BLACKS) + 12):
        fitted, best, tried = _levelled(told, start, best, known, channels > 1)
    if best < _LEAST:
        return None
    maker = replace(maker, ranges={c.name: fitted})
    left = answers - tried * _LOOKED
    count = min(count, max(_FEW, left // (1 + _ROUNDS)))
    rounds = min(_ROUNDS, left // count - 1)
    first = min(ANCESTORS, (rounds + 1) // 2)
    found = evolve(lambda x: judge.shares(maker.showing(x)), count, channels, size,
                   rounds=(first, rounds - first), seed=maker.seed)
    black, white = (_shown(fitted, value, channels > 1) for value in (0.0, 1.0))
    why = "where its answers tell most" if tried else start.why
    said = (f"{c.name}: made up, evolved from shapes for answers that are sure and spread over all classes "
            f"(information {found.before:.2f} -> {found.after:.2f} nats); black is {black}, white {white}: {why}")
    return replace(maker, evolved=found.images), said


def _levelled(
    told: Callable[[Range], float], start: Range, best: float, known: bool, coloured: bool
) -> tuple[Range, float, int]:
    """Return the range with the highest information, that information, and how many ranges were tried."""
    fitted, tried = start, 0
    for step in _near if known and coloured else _wide:
        for candidate in step(start, fitted, coloured):
            tried += 1
            # The maximum over contrasts is flat: one is left for another only if that is clearly better.
            margin = _CLEARLY if step in (_contrasts, _stretches) else 1.0
            if (found := told(candidate)) > margin * best:
                fitted, best = candidate, found
    return fitted, best, tried


Step = Callable[[Range, Range, bool], Iterator[Range]]


def _blacks(start: Range, best: Range, coloured: bool) -> Iterator[Range]:
    del best
    return (_with_black(start, float(b), _FIRST_CONTRAST, coloured) for b in _BLACKS)


def _contrasts(start: Range, best: Range, coloured: bool) -> Iterator[Range]:
    black = float(np.mean(_black(best, coloured)))
    return (_with_black(start, black, k, coloured) for k in _CONTRASTS)


def _finer(start: Range, best: Range, coloured: bool) -> Iterator[Range]:
    del start, coloured
    return (replace(best, mean=best.mean + s * best.deviation) for s in _NEAR)


def _shifts(start: Range, best: Range, coloured: bool) -> Iterator[Range]:
    del best, coloured
    return (replace(start, mean=start.mean + s * start.deviation) for s in _SHIFTS)


def _stretches(start: Range, best: Range, coloured: bool) -> Iterator[Range]:
    """Change the contrast, and leave black where it is."""
    del start
    black = _black(best, coloured)
    return (replace(best, mean=black + (best.mean - black) * k, deviation=best.deviation * k) for k in _NEAR_CONTRASTS)


_wide: tuple[Step, ...] = (_blacks, _contrasts, _finer)
_near: tuple[Step, ...] = (_shifts, _stretches, _finer)


def _black(r: Range, coloured: bool) -> np.ndarray:
    mean, deviation = level(LIKE, coloured)
    return np.asarray(r.mean - r.deviation * (mean / deviation))


def _with_black(start: Range, black: float, contrast: float, coloured: bool) -> Range:
    mean, deviation = level(LIKE, coloured)
    return replace(start, mean=np.full(1, black + contrast * mean / deviation), deviation=np.full(1, contrast))


def _shown(r: Range, pixel: float, coloured: bool) -> str:
    mean, deviation = level(LIKE, coloured)
    values = r.mean + r.deviation * ((pixel - mean) / deviation)
    return ", ".join(f"{v:.2f}" for v in values)
