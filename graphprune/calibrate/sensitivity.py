"""How much an error in what one layer puts out changes a model's outputs: noise is added, the model is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.calibrate.padding import real_tokens
from graphprune.calibrate.samples import Feed, Samples
from graphprune.consumers import Consumer
from graphprune.execute import session
from graphprune.model import all_nodes
from graphprune.runtime import Runtime, run

Array = npt.NDArray[Any]
Progress = Callable[[str], None]
_SHARE = 0.01  # energy of the noise, as a fraction of that of the layer's output without its mean
_SAMPLES = 8
_LEAST = 1e-2  # of the mean: noise that happens to do nothing does not make a layer free


def sensitivities(
    model: ir.Model, consumers: Sequence[Consumer], samples: Samples, *, batch: int = 1, seed: int = 0,
    threads: int = 0, progress: Progress = lambda text: None,
) -> dict[str, float]:
    """Return by node the squared relative error of the outputs per relative error of the node's, mean 1.

    The model is run once for each node on a few samples. Nodes whose output is no plain product are left out.

    >>> sensitivities(model, consumers, samples)  # doctest: +SKIP
    {'conv1': 2.1, 'conv2': 0.7, 'fc': 0.2}
    """
    wanted = [c for c in consumers if c.design.answers is not None]
    tapped, taps = _tapped(model, [c.node for c in wanted])
    outputs = [v.name for v in model.graph.outputs if v.name]
    opened = session(tapped, Runtime(threads=threads))
    silent = {t: np.zeros((), np.float32) for t, _ in taps.values()}
    sums = dict.fromkeys(taps, 0.0)
    rng = np.random.default_rng(seed)
    for feed in islice(samples.batches(batch), max(1, -(-_SAMPLES // batch))):
        dense = run(opened, {**feed, **silent}, [*outputs, *(o for _, o in taps.values())])
        for k, (node, (tap, inner)) in enumerate(taps.items()):
            progress(f"sensitivity of layer {k + 1} of {len(taps)}")
            spread = float(np.std(dense[inner])) * _SHARE**0.5
            noise = rng.standard_normal(dense[inner].shape, np.float32) * np.float32(spread)
            sums[node] += _change(dense, run(opened, {**feed, **silent, tap: noise}, outputs), feed)
    mean = float(np.mean(list(sums.values()))) if sums else 0.0
    if not (np.isfinite(mean) and mean > 0):
        return {}
    return {node: max(found / mean, _LEAST) for node, found in sums.items()}


def _tapped(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, tuple[str, str]]]:
    """Return a copy whose nodes have something added to their outputs: for each the input that is, and the output."""
    copy = model.clone()
    nodes = all_nodes(copy)
    taps: dict[str, tuple[str, str]] = {}
    for name in names:
        node = nodes.get(name)
        if node is None or node.graph is not copy.graph or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        output = node.outputs[0]
        if output.is_graph_output() or output.name is None:
            continue
        tap = ir.Value(name=f"{output.name}/noise", type=ir.TensorType(ir.DataType.FLOAT))
        uses = list(output.uses())
        added = ir.node("Add", [output, tap])
        added.outputs[0].name, added.outputs[0].type = f"{output.name}/noisy", output.type
        copy.graph.insert_after(node, added)
        for reader, index in uses:
            reader.replace_input_with(index, added.outputs[0])
        copy.graph.inputs.append(tap)
        taps[name] = (str(tap.name), str(added.outputs[0].name))
    copy.graph.outputs.extend(v for v in _values(copy, {o for _, o in taps.values()}))
    return copy, taps


def _values(model: ir.Model, names: set[str]) -> list[ir.Value]:
    return [o for node in model.graph for o in node.outputs if o.name in names]


def _change(dense: dict[str, Array], noisy: dict[str, Array], feed: Feed) -> float:
    """Return the squared relative error of the outputs, summed over them; of real tokens where a mask tells."""
    real, total = real_tokens(feed), 0.0
    for name, b in noisy.items():
        a = dense[name]
        if not (isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.shape == b.shape):
            continue
        if real is not None and a.shape[:2] == real.shape:
            a, b = a[real], b[real]
        x, y = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
        total += float(np.square(x - y).sum() / max(float(np.square(x - x.mean()).sum()), 1e-30))
    return total
