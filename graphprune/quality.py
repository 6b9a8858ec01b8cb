"""How far a pruned model's outputs are from the dense model's, on samples that nothing was fitted to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.answers import log_softmax
from graphprune.calibrate.knowledge import Knowledge
from graphprune.calibrate.padding import Real, real_tokens
from graphprune.calibrate.parts import Part, Parts
from graphprune.calibrate.samples import Feed, rows_of, taken
from graphprune.execute import session
from graphprune.runtime import Runtime, run

Array = npt.NDArray[Any]
Arrange = Callable[[Mapping[str, Array]], Mapping[str, Array]]
_MOST = 16
_TINY = 1e-12
_LEAST = math.log(_TINY)
_HUGE = 1e30
_SLACK = 1e-6
_AT_ONCE = 1_000_000
_AXES = 3  # an output with more axes is a map of features
_EVEN = 0.9
_FEWEST = 2  # samples, below which nothing is known of the spread
_NO_LOGITS = re.compile(r"embed|hidden|feature|pool|norm|state|box|mask")
DAMAGED_COSINE, DAMAGED_KL = 0.9, 0.5


@dataclass(frozen=True)
class Divergence:
    """One output of the pruned model against the dense model's.

    `relative` is the root of the mean square of the difference over that of the output, `cosine` the mean over rows
    (the last axis). For rows that are logits or probabilities, `kl` is the mean of KL(dense || pruned) in nats, and
    `agree` the fraction of rows whose largest entry is the same; else None. Rows of padding do not count.

    Rows are probabilities where they are positive and add up to 1. They are taken for logits where some entries are
    negative, the output has at most three axes and no name of something else, and their softmax is uneven: its mean
    entropy is below 0.9 of the largest possible. Embeddings and normalised features are nearly even.

    `each` is what is lost of each sample, or of each token where some are padding.
    """

    output: str
    relative: float
    cosine: float
    kl: float | None
    agree: float | None
    each: Array = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)

    @property
    def damaged(self) -> bool:
        """Whether so little of the output is left that more than accuracy at the margin is lost."""
        return self.cosine < DAMAGED_COSINE if self.kl is None else self.kl > DAMAGED_KL

    @property
    def loss(self) -> float:
        """What is lost of the output, for comparing ways to prune: nats where there are, else a fraction of energy."""
        return self.relative**2 if self.kl is None else self.kl

    def record(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "each"}


def measure(
    dense: ir.Model, pruned: ir.Model, feeds: Iterable[Feed], arrange: Arrange = lambda arrays: arrays,
    threads: int = 0,
) -> list[Divergence]:
    """Run both models on batches (`told_feeds` where results are told by them), the first 16.

    `arrange` gives inputs and outputs of the dense model as the pruned one takes and gives them. Outputs whose sizes
    depend on data and differ are left out, and entries of the dense model's that are not finite.

    >>> measure(dense, pruned, told_feeds(known))[0].kl  # doctest: +SKIP
    0.03
    """
    left, right = (session(m, Runtime(threads=threads)) for m in (dense, pruned))
    found = Comparison()
    for feed in islice(feeds, _MOST):
        found.add(arrange(run(left, feed)), run(right, arrange(feed)), feed)
    return found.divergences()


def searching_feeds(known: Knowledge, count: int) -> list[Feed]:
    """Return at most so many batches that are there to fit to: results are told by others.

    Where there is one batch only, it is that.
    """
    return list(islice(_feeds(known, ("fit",)), count))


def check_feeds(known: Knowledge) -> Iterator[Feed]:
    """Yield the batches that fits are checked by, to decide with; all where there are none."""
    return _feeds(known, ("check", "fit"))


def told_feeds(known: Knowledge) -> Iterator[Feed]:
    """Yield the batches that nothing is fitted to.

    Where there are none, those that fits are checked by; where there are not even these, all.
    """
    return _feeds(known, ("told", "check", "fit"))


def _feeds(known: Knowledge, parts: Sequence[Part]) -> Iterator[Feed]:
    """Yield the batches of the first of these parts that there is, of each the caller's own samples.

    Samples made of others are there to fit to. On random tokens the worse of two models can look better.
    """
    samples, part_of, some = known.samples, Parts.of(known.samples, known.batch), False
    for part in parts:
        start = 0
        for k, feed in enumerate(samples.batches(known.batch)):
            rows = rows_of(feed, samples.axes)
            kept = range(-start % samples.each, rows, samples.each)
            if part_of(k) == part and kept:
                some = True
                yield feed if len(kept) == rows else taken(feed, kept, samples.axes)
            start += rows
        if some:
            return


class Comparison:
    """Outputs of two models, summed up batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, dense: Mapping[str, Array], pruned: Mapping[str, Array], feed: Feed) -> None:
        """Add the outputs for one feed; its attention mask, if it has one, says which rows are padding."""
        real = real_tokens(feed)
        for name, before in dense.items():
            after = pruned.get(name)
            if after is not None and _comparable(before, after):
                sums = self._sums.setdefault(name, _Sums(axes=before.ndim))
                sums.add(_told(before, real), _told(after, real))

    def divergences(self) -> list[Divergence]:
        """Return what was found, output by output."""
        return [found.divergence(name) for name, found in self._sums.items()]

    @property
    def loss(self) -> float | None:
        """What all outputs together lose, infinite where that is no number; None where none can be compared."""
        found = self.divergences()
        return together(found) if found else None


def together(outputs: Sequence[Divergence]) -> float:
    """Return what outputs lose together; infinite where there are none, or where that is no number."""
    return float(np.nan_to_num(sum(d.loss for d in outputs), nan=np.inf)) if outputs else math.inf


def nearer(outputs: Sequence[Divergence], than: Sequence[Divergence]) -> bool:
    """Return whether less is lost of the outputs than of those of another model, by more than chance gives.

    That is, by more than a standard error of the mean difference over samples: the rule by which the simplest of
    models that are as good is taken (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).
    Outputs count that could be compared of both; where there are none, nothing speaks against these.
    """
    gain, error = gained(outputs, than)
    return gain > error or not {d.output for d in outputs} & {d.output for d in than}


def gained(outputs: Sequence[Divergence], than: Sequence[Divergence]) -> tuple[float, float]:
    """Return how much less is lost of the outputs than of another model's, and the standard error of that.

    The error is of the mean difference over samples, 0 where there are fewer than two, or others.

    >>> gained(measure(dense, pruned, batches), measure(dense, other, batches))  # doctest: +SKIP
    (0.02, 0.005)
    """
    then = {d.output: d for d in than}
    pairs = [(then[d.output], d) for d in outputs if d.output in then]
    if any(len(a.each) != len(b.each) or len(a.each) < _FEWEST for a, b in pairs):
        return sum(a.loss - b.loss for a, b in pairs), 0.0
    gains = [a.each - b.each for a, b in pairs]
    return sum(float(g.mean()) for g in gains), math.sqrt(sum(float(g.var(ddof=1)) / len(g) for g in gains))


def _told(array: Array, real: Real | None) -> Array:
    """Return the rows that are of real tokens."""
    return array if real is None or array.ndim < 3 or array.shape[:2] != real.shape else array[real]


def _comparable(one: Array, other: Array) -> bool:
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):  # sequences and maps
        return False
    return one.dtype.kind == "f" and one.shape == other.shape and one.size > 0


@dataclass
class _Sums:
    """What is summed up over rows of one output.

    `lost` has the squared difference, the KL divergence of rows as logits and that of rows as probabilities; `each`
    has their means over the rows of every sample.
    """

    rows: int = 0
    entries: int = 0
    lost: Array = field(default_factory=lambda: np.zeros(3))
    each: list[Array] = field(default_factory=list)
    energy: float = 0.0
    cosine: float = 0.0
    directions: int = 0
    agree: int = 0
    positive: bool = True
    whole: bool = True
    width: int = 1
    axes: int = 2
    entropy: float = 0.0

    def add(self, dense: Array, pruned: Array) -> None:
        self.width = dense.shape[-1] if dense.ndim > 1 else 1
        a, b = dense.reshape(-1, self.width), pruned.reshape(-1, self.width)
        step = max(1, _AT_ONCE // self.width)
        starts = range(0, len(a), step)
        lost = np.hstack([self._add(*(x[k : k + step].astype(np.float64) for x in (a, b))) for k in starts])
        self.lost += lost.sum(axis=1)
        self.each.append(lost.reshape(len(lost), dense.shape[0] if dense.ndim else 1, -1).mean(axis=2))

    def _add(self, dense: Array, pruned: Array) -> Array:
        """Add rows; return what each of them loses, in the order of `lost`."""
        finite = np.isfinite(dense)
        whole = bool(finite.all() and np.isfinite(pruned).all())
        x = dense if whole else np.where(finite, dense, 0.0)
        y = pruned if whole else np.where(finite & np.isfinite(pruned), pruned, 0.0)
        self.rows += len(x)
        self.entries += x.size
        self.energy += float(np.vdot(x, x))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        some = np.linalg.norm(x, axis=1) > _TINY
        self.cosine += float((np.einsum("ij,ij->i", x, y)[some] / np.maximum(norms[some], _TINY)).sum())
        self.directions += int(some.sum())
        lost = np.zeros((3, len(x)))
        lost[0] = np.square(x - y).sum(axis=1)
        if self.width > 1:
            rows = (z if whole else np.nan_to_num(z, nan=0.0, posinf=_HUGE, neginf=-_HUGE) for z in (dense, pruned))
            lost[1:] = self._add_rows(*rows)
        return lost

    def _add_rows(self, dense: Array, pruned: Array) -> tuple[Array, Array]:
        """Add rows that may be logits or probabilities; return what they lose as the one and as the other."""
        self.agree += int((dense.argmax(1) == pruned.argmax(1)).sum())
        log_dense, log_pruned = (log_softmax(z) for z in (dense, pruned))
        likely = np.exp(log_dense)
        for logs in (log_dense, log_pruned):
            np.maximum(logs, _LEAST, out=logs)
        as_logits = np.einsum("ij,ij->i", likely, log_dense - log_pruned)
        self.entropy -= float(np.vdot(likely, log_dense))
        self.positive &= bool((dense >= -_SLACK).all())
        self.whole &= all(np.allclose(z.sum(axis=1), 1, atol=1e-2) for z in (dense, pruned))
        certain = self.positive and self.whole
        return as_logits, _kl(*(np.maximum(z, 0.0) for z in (dense, pruned))) if certain else np.zeros(len(dense))

    def divergence(self, name: str) -> Divergence:
        certain = self.positive and self.whole
        known = self.width > 1 and (certain or self._logits(name))
        kind = (2 if certain else 1) if known else 0
        energy = max(self.energy, _TINY * self.entries)
        return Divergence(
            name,
            relative=float(np.sqrt(self.lost[0] / energy)),
            cosine=self.cosine / self.directions if self.directions else 1.0,
            kl=float(self.lost[kind]) / self.rows if known else None,
            agree=self.agree / self.rows if known else None,
            each=np.concatenate([e[kind] for e in self.each]) * (1.0 if known else self.rows / energy),
        )

    def _logits(self, name: str) -> bool:
        """Return whether rows may be logits; rows of positive numbers may be anything."""
        uneven = self.entropy < _EVEN * self.rows * np.log(self.width)
        return uneven and not self.positive and self.axes <= _AXES and not _NO_LOGITS.search(name.lower())


def _kl(p: Array, q: Array) -> Array:
    return np.asarray((p * (np.log(p + _TINY) - np.log(q + _TINY))).sum(axis=1))
