"""What a classifier's answers say of inputs that nobody took: images like those it learned are told apart by it.

Answers are sure where an input looks like one of the classes, and differ between inputs where all classes are there.
Both together are the information that the answer has about the input, H(mean p) - mean H(p) in nats: the inception
score's logarithm (Salimans et al., Improved techniques for training GANs, NeurIPS 2016), and the two losses on answers
of Chen et al., Data-free learning of student networks (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.samples import Feed
from graphprune.errors import GraphPruneError
from graphprune.execute import session
from graphprune.runtime import Runtime, run

Shares: TypeAlias = npt.NDArray[np.float64]
"""[n, classes]: how likely each class is for each input, by the model; rows sum to 1."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_TINY = 1e-12
_SUM = 1e-3


class Judge:
    """A classifier, opened once and asked as often as is liked."""

    def __init__(self, model: ir.Model, threads: int = 0) -> None:
        self._output = str(model.graph.outputs[0].name)
        self._session = session(model, Runtime(threads=threads))

    @staticmethod
    def of(model: ir.Model, threads: int = 0) -> Judge | None:
        """Return a judge where the model's one output is [samples, classes], or None."""
        outputs = model.graph.outputs
        if len(outputs) != 1 or outputs[0].dtype not in _FLOATS:
            return None
        shape = outputs[0].shape
        if shape is None or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] < 2):
            return None
        try:
            return Judge(model, threads)
        except GraphPruneError:
            return None

    def shares(self, feeds: Iterable[Feed]) -> Shares:
        """Return what the model says of some inputs; raises SessionError where it does not run on them."""
        return np.concatenate([as_shares(run(self._session, feed, [self._output])[self._output]) for feed in feeds])


def as_shares(answers: npt.NDArray[np.floating]) -> Shares:
    """Return answers [n, classes] as shares: as they are if they are shares, else by a softmax.

    >>> as_shares(np.array([[0.0, np.log(3.0)]])).round(2).tolist()
    [[0.25, 0.75]]
    """
    x = np.nan_to_num(np.asarray(answers, np.float64), posinf=1e9, neginf=-1e9)
    if (x >= 0).all() and (np.abs(x.sum(1) - 1) < _SUM).all():
        return x
    return softmax(x)


def softmax(rows: npt.NDArray[np.floating]) -> Shares:
    """Return the softmax of each row [n, classes].

    >>> softmax(np.array([[1e4, 1e4]])).tolist()
    [[0.5, 0.5]]
    """
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def log_softmax(rows: npt.NDArray[np.floating]) -> Shares:
    """Return the logarithm of the softmax of each row [n, classes].

    >>> np.exp(log_softmax(np.array([[1e4, 1e4]]))).round(6).tolist()
    [[0.5, 0.5]]
    """
    raised = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(raised - np.log(np.exp(raised).sum(axis=1, keepdims=True)))


def information(shares: Shares) -> float:
    """Return how much an answer tells of the input, in nats; at most the logarithm of the number of classes.

    >>> round(information(np.eye(2)), 3), information(np.full((4, 2), 0.5))
    (0.693, 0.0)
    """
    mean = shares.mean(axis=0)
    return float(_entropy(mean) - _entropy(shares).mean())


def _entropy(shares: Shares) -> Shares:
    return np.asarray(-(shares * np.log(shares + _TINY)).sum(axis=-1))


def balanced(shares: Shares, count: int) -> npt.NDArray[np.int64]:
    """Return the numbers of `count` inputs: for every class in turn the surest one that is not taken yet.

    >>> balanced(np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]), 2).tolist()
    [0, 2]
    """
    order = np.argsort(-shares, axis=0, kind="stable")
    taken = np.zeros(len(shares), bool)
    at = np.zeros(shares.shape[1], np.int64)
    out: list[int] = []
    while len(out) < min(count, len(shares)):
        for k in range(min(shares.shape[1], count - len(out), len(shares) - len(out))):
            while taken[order[at[k], k]]:
                at[k] += 1
            taken[order[at[k], k]] = True
            out.append(int(order[at[k], k]))
    return np.array(out, np.int64)
