"""Token sequences that nobody wrote: drawn from the embedding's rows, or written by the model itself.

Trained embeddings have short rows for frequent tokens, so ranks by length stand in for frequencies, and Zipf's law
gives these. A model that answers with logits over the same vocabulary can do better: it writes its own sequences. All
positions are sampled at once and sampled again from what stands before them now, with the same random numbers each
time (Jacobi iteration of the sampling, Song et al. 2021, arXiv:2002.03629): after k passes at least k tokens are exact
samples, and the others nearly, for k runs instead of one per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]
Logits: TypeAlias = npt.NDArray[np.float32]

_UNUSUAL = 6.0  # robust deviations from the median at which a row is no ordinary token's
_TOPIC = 0.5  # of a sequence's tokens come from a few that recur, as words do in a text
_TOPICS = 24
_BLOCK = 4096


@dataclass(frozen=True)
class Vocabulary:
    """Token ids by rank, the presumably most frequent first, and the cumulative weights to draw them with."""

    ids: Ids
    cumulative: npt.NDArray[np.float64]
    left_out: int

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Ids:
        """Return ids drawn independently."""
        at = np.searchsorted(self.cumulative, rng.random(shape) * self.cumulative[-1], side="right")
        drawn: Ids = self.ids[np.minimum(at, len(self.ids) - 1)]
        return drawn

    def sequences(self, rng: np.random.Generator, shape: tuple[int, int]) -> Ids:
        """Return [count, length] of ids of which some recur within each sequence."""
        count, _ = shape
        every = self.draw(rng, shape)
        topic = self.draw(rng, (count, _TOPICS))
        recurring = np.take_along_axis(topic, rng.integers(0, _TOPICS, shape), 1)
        drawn: Ids = np.where(rng.random(shape) < _TOPIC, recurring, every)
        return drawn


def vocabulary(table: npt.NDArray[Any] | None, size: int, *, uniform: bool = False) -> Vocabulary:
    """Return the ids to draw, by an embedding table [tokens, width] or, without one, all below `size` alike.

    >>> vocabulary(None, 10).ids.tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 9]

    Left out are id 0, often padding, and rows whose length or direction no ordinary token has: all zero, six robust
    deviations longer or shorter than the median, or equal to other rows (never trained).
    """
    if table is None or len(table) < 3:
        ids = np.arange(min(1, size - 1), max(size, 1))
        return Vocabulary(ids, np.arange(1, len(ids) + 1, dtype=np.float64), size - len(ids))
    norms = np.concatenate(
        [np.linalg.norm(table[k : k + _BLOCK].astype(np.float32), axis=1) for k in range(0, len(table), _BLOCK)]
    )
    median = np.median(norms)
    spread = 1.4826 * np.median(np.abs(norms - median)) + 1e-6 * median + 1e-12
    usual = (norms > 0) & (np.abs(norms - median) <= _UNUSUAL * spread)
    usual[0] = False
    # Rows that were never trained are often copies of one.
    _, inverse, times = np.unique(np.round(norms, 6), return_inverse=True, return_counts=True)
    usual &= times[inverse] <= max(len(norms) // 1000, 3)
    if not usual.any():
        return vocabulary(None, len(table))
    ids = np.flatnonzero(usual)
    ids = ids[np.argsort(norms[ids], kind="stable")]
    weights = np.ones(len(ids)) if uniform else 1 / (np.arange(len(ids)) + 2.7)  # Zipf-Mandelbrot
    return Vocabulary(ids, np.cumsum(weights), len(table) - len(ids))


def written(
    run: Callable[[Ids], Logits], first: Ids, rng: np.random.Generator, passes: int, temperature: float = 1.0,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Ids:
    """Return sequences [count, length] that a causal model samples itself, begun from `first` of the same shape.

    `run` maps ids to logits [count, length, tokens], of which position t tells token t + 1; the first token of every
    sequence stays. `allowed` says which tokens may be written. The random numbers are fixed by position, so more
    passes give the same text, further settled.
    """
    ids: Ids = first.copy()
    seed = int(rng.integers(2**31))
    for _ in range(max(passes, 0)):
        logits = run(ids)[:, :-1]
        chosen = np.empty((len(ids), ids.shape[1] - 1), np.int64)
        for k, row in enumerate(logits):
            # The largest of logit / T + Gumbel noise is a sample of softmax(logit / T).
            gumbel = -np.log(-np.log(_uniform(seed + k, row.shape)))
            score = row / np.float32(temperature) + gumbel
            if allowed is not None:
                score[:, ~allowed[: score.shape[1]]] = -np.inf
            chosen[k] = score.argmax(-1)
        if np.array_equal(ids[:, 1:], chosen):
            break
        ids[:, 1:] = chosen
    return ids


def _uniform(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return numbers strictly between 0 and 1, the same for the same seed."""
    drawn: Logits = np.random.default_rng(seed).random(shape, np.float32)
    inside: Logits = np.clip(drawn, np.float32(1e-7), np.float32(1 - 1e-7))
    return inside


def packed(texts: Ids, rng: np.random.Generator, shape: tuple[int, int]) -> Ids:
    """Return [count, length] cut from texts put end to end in random order.

    >>> packed(np.arange(6).reshape(2, 3), np.random.default_rng(0), (1, 5)).shape
    (1, 5)
    """
    count, length = shape
    needed = -(-count * (length + texts.shape[1]) // texts.shape[1])
    stream = texts[rng.integers(0, len(texts), needed)].ravel()
    starts = np.arange(count) * length + rng.integers(0, texts.shape[1])
    cut: Ids = stream[np.minimum(starts[:, None] + np.arange(length), len(stream) - 1)]
    return cut
