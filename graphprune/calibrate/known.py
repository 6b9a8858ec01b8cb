"""What a model knows of its own activations: means and variances that normalisations have stored from training.

`moments` collects them, `moment_distance` says how far activations on made-up inputs are from them. Where a model has
none (most exporters fold them into convolutions) nothing can be said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.contents import attributes, rule_of
from graphprune.calibrate.samples import Feed, Samples
from graphprune.errors import SessionError
from graphprune.execute import session
from graphprune.model import constant_of, values_of
from graphprune.ops import MOMENTS
from graphprune.runtime import Runtime, run

Vector: TypeAlias = npt.NDArray[np.float64]
Known: TypeAlias = "dict[str, tuple[Vector, Vector]]"
"""Mean and variance per channel (axis 1) by value."""

_WORST = 10.0
_TINY = 1e-12
_BATCH = 16


def moments(model: ir.Model) -> Known:
    """Return the stored mean and variance of every value that a BatchNormalization reads, in the graph's order.

    >>> {name: mean.shape for name, (mean, _) in moments(model).items()}  # doctest: +SKIP
    {'conv1': (64,), ...}

    Those that were never trained (all means 0, all variances 1) are left out, and those inside of bodies.
    """
    known: Known = {}
    for node in model.graph:
        rule = rule_of(MOMENTS, model, node)
        found = rule(attributes(node)) if rule is not None else None
        if found is None or len(node.inputs) <= max(found.mean, found.variance):
            continue
        data = node.inputs[found.data]
        stored = [constant_of(node.inputs[k]) for k in (found.mean, found.variance)]
        if data is None or not data.name or stored[0] is None or stored[1] is None:
            continue
        mean, variance = (s.numpy().astype(np.float64).ravel() for s in stored if s is not None)
        if (mean == 0).all() and (variance == 1).all():
            continue
        known[data.name] = (mean, np.maximum(variance, _TINY))
    return known


class Probe:
    """Runs a model up to the values whose moments are known, once opened as often as is liked."""

    def __init__(self, model: ir.Model, known: Known, threads: int = 0) -> None:
        self.known = known
        cut = model.clone()
        values = {v.name: v for v in values_of(cut.graph)}
        cut.graph.outputs.clear()
        cut.graph.outputs.extend(values[name] for name in known)
        for name in known:
            values[name].shape = None
        _drop_unused(cut)
        self._kept = {v.name for v in cut.graph.inputs}
        self._session = session(cut, Runtime(threads=threads, optimise=False))

    def measure(self, feeds: Iterable[Feed]) -> Known:
        """Return mean and variance per channel of the values on some inputs."""
        sums: dict[str, list[Any]] = {}
        for feed in feeds:
            got = run(self._session, {k: a for k, a in feed.items() if k in self._kept}, list(self.known))
            for name, array in got.items():
                x = array.astype(np.float64).reshape(*array.shape[:2], -1)
                total = sums.setdefault(name, [0, 0.0, 0.0])
                total[0] += x.size // x.shape[1]
                total[1] = total[1] + x.sum((0, 2))
                total[2] = total[2] + np.einsum("ncs,ncs->c", x, x)
        out: Known = {}
        for name, (n, first, second) in sums.items():
            mean = first / n
            out[name] = (mean, np.maximum(second / n - mean**2, _TINY))
        return out

    def distance(self, feeds: Iterable[Feed]) -> float:
        """Return how far the measured moments are from the stored ones, see `distance`."""
        return distance(self.known, self.measure(feeds))


def _drop_unused(model: ir.Model) -> None:
    """Remove the nodes that no output needs, from the last one up."""
    outputs = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if not any(o in outputs or o.uses() for o in node.outputs):
            model.graph.remove(node, safe=True)


def distance(known: Known, measured: Known) -> float:
    """Return the mean over values of the mean over channels of KL(measured || known), as if both were Gaussian.

    >>> distance({"x": (np.zeros(1), np.ones(1))}, {"x": (np.ones(1), np.ones(1))})
    0.5

    A channel counts 10 at most, so that dead channels do not decide alone.
    """
    layers = []
    for name, (mean, variance) in measured.items():
        true_mean, true_variance = known[name]
        ratio = variance / true_variance
        kl = 0.5 * (ratio + (mean - true_mean) ** 2 / true_variance - 1 - np.log(ratio))
        layers.append(float(np.minimum(kl, _WORST).mean()))
    return float(np.mean(layers)) if layers else float("nan")


def moment_distance(model: ir.Model, samples: Samples, *, batch: int = _BATCH) -> float:
    """Return how far a model's activations on some inputs are from what it knows of them; nan where it knows nothing.

    >>> moment_distance(model, synthetic(model, sizes, kind="noise"))  # doctest: +SKIP
    3.1

    One onnxruntime pass. Raises SessionError if the model does not run on the samples.
    """
    known = moments(model)
    return Probe(model, known).distance(samples.batches(batch)) if known else float("nan")


def first_response(
    probe: Probe, name: str, made: Feed, planes: Sequence[npt.NDArray[Any]]
) -> tuple[Vector, Vector, Vector, Vector] | None:
    """Return how the first value with known moments answers an input: (offset, gains, mean, variance) per channel.

    `planes` are inputs of one channel 1 and the others 0; gains have shape [channel of the value, planes]. None where
    the value is no affine function of the input.
    """
    first = next(iter(probe.known))

    def mean(array: npt.NDArray[Any]) -> Vector:
        return probe.measure([{**made, name: array}])[first][0]

    try:
        offset = mean(np.zeros_like(planes[0]))
        gains = np.stack([mean(p) - offset for p in planes], 1)
        twice = mean((sum(planes[1:], planes[0]) * 2).astype(planes[0].dtype)) - offset
    except SessionError:
        return None
    if not np.allclose(twice, 2 * gains.sum(1), rtol=1e-3, atol=1e-4 * float(np.abs(twice).max(initial=1e-6))):
        return None
    seen = probe.measure([made])[first]
    return offset, gains, seen[0], seen[1]
