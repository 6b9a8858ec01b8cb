"""The caller's sequences of tokens a second time, some of their tokens others: for text of other kinds than theirs.

A few hundred sentences hold a small part of a vocabulary, in one style, and layers that are fitted to them lose more on
other text. Random tokens among real ones bring in the rest of the vocabulary, each in a context that is nearly real.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.contents import Inputs
from graphprune.calibrate.samples import Feed, Samples, axis_of
from graphprune.calibrate.tokens_made import Vocabulary, vocabulary

Ids: TypeAlias = npt.NDArray[Any]
SHARE = 0.25  # of the tokens are replaced; half of them did as well, three quarters worse


def varied(samples: Samples, inputs: Inputs, seed: int = 0) -> Samples:
    """Return every sample and behind it the same with some of its tokens drawn from the whole vocabulary, uniformly.

    >>> varied(samples, inputs).count, varied(samples, inputs).each  # doctest: +SKIP
    (512, 2)

    Marks and padding stay: the run of one token that a sequence begins with, the next, and the same at its end.
    Samples of a model that reads no tokens by a table, or whose batch is fixed, are returned as they are.
    """
    if not inputs.tables or samples.axes == {}:
        return samples
    tables = {name: table.numpy() for name, table in inputs.tables.items()}
    words = {name: vocabulary(table, len(table), uniform=True) for name, table in tables.items()}

    def opened() -> Iterator[Feed]:
        for number, feed in enumerate(samples.open()):
            yield _doubled(feed, samples.axes, words, np.random.default_rng([seed, number]))

    said = (f"{', '.join(words)}: every sequence is used again with {SHARE:.0%} of its tokens replaced by random ones",)
    count = None if samples.count is None else 2 * samples.count
    return replace(samples, open=opened, count=count, assumed=(*samples.assumed, *said), pick=None, each=2)


def _doubled(
    feed: Feed, axes: Mapping[str, int] | None, words: Mapping[str, Vocabulary], rng: np.random.Generator
) -> Feed:
    """Return every sample of a feed twice, the second time with other tokens."""
    out = {}
    for name, array in feed.items():
        axis = axis_of(name, array, axes)
        out[name] = array if axis is None else np.repeat(array, 2, axis)
        if axis is not None and name in words and array.ndim > 1 and array.size:
            second = np.moveaxis(out[name], axis, 0)[1::2]  # a view
            second[...] = replaced(second.reshape(-1, second.shape[-1]), words[name], rng).reshape(second.shape)
    return out


def replaced(ids: Ids, words: Vocabulary, rng: np.random.Generator) -> Ids:
    """Return ids [sequences, length], some of them others.

    >>> words = vocabulary(None, 9000)
    >>> some = np.array([[1, *range(10, 50), 2, 0, 0]])
    >>> other = replaced(some, words, np.random.default_rng(0))
    >>> other[0, [0, 41, 42, 43]].tolist(), int((other != some).sum())
    ([1, 2, 0, 0], 8)
    """
    first, last = _end(ids), _end(ids[:, ::-1])[:, ::-1]
    return np.where(first | last | (rng.random(ids.shape) >= SHARE), ids, words.draw(rng, ids.shape)).astype(ids.dtype)


def _end(ids: Ids) -> npt.NDArray[np.bool_]:
    """Return where the first token of each sequence is, as often as it is repeated there, and the one behind."""
    run: npt.NDArray[np.bool_] = np.logical_and.accumulate(ids == ids[:, :1], axis=1)
    stay: npt.NDArray[np.bool_] = run.copy()
    stay[:, 1:] |= run[:, :-1]
    return stay
