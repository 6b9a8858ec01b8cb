"""Run models: open them in whatever form they fit, compare their outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.model import has_external_data, tensor_bytes, write_into
from graphprune.runtime import Runtime, open_session, run

if TYPE_CHECKING:
    import onnxruntime

Outputs = Mapping[str, npt.NDArray[Any]]
_EMBED_LIMIT = 1_500_000_000
_SMALLEST = 1e-3


@contextmanager
def runnable(model: ir.Model, source: Path | None = None) -> Iterator[str | bytes]:
    """Yield a model in the form onnxruntime opens: the file it is in, bytes, or a temporary file where it is large."""
    if source is not None:
        yield str(source)
    elif tensor_bytes(model) < _EMBED_LIMIT and not has_external_data(model):
        yield ir.to_proto(model).SerializeToString()
    else:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            yield str(write_into(model, Path(folder), "model.onnx", external=True))


def session(model: ir.Model, runtime: Runtime) -> onnxruntime.InferenceSession:
    """Open a model; raises SessionError if onnxruntime refuses it."""
    with runnable(model) as source:
        return open_session(source, runtime)


def evaluate(model: ir.Model, feeds: Outputs, *, optimise: bool = False, threads: int = 0) -> Outputs:
    """Run a model once on the CPU and return its outputs by name."""
    return run(session(model, Runtime(threads=threads, optimise=optimise)), feeds)


def observe_shapes(
    model: ir.Model, names: Sequence[str], feeds: Outputs
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Run a model with inner values as outputs; return the element type and the sizes of those that are tensors."""
    if tensor_bytes(model) >= _EMBED_LIMIT or not names:
        return {}
    widened = model.clone()
    values = {o.name: o for node in widened.graph for o in node.outputs}
    have = {o.name for o in widened.graph.outputs}
    asked = [n for n in names if n not in have]
    widened.graph.outputs.extend(values[n] for n in asked)
    for n in asked:
        values[n].shape = None
    opened = session(widened, Runtime(optimise=False))
    got = run(opened, feeds, list(names))
    return {
        n: (int(ir.DataType.from_numpy(a.dtype)), tuple(a.shape)) for n, a in got.items() if isinstance(a, np.ndarray)
    }


def relative_error(reference: Outputs, other: Outputs) -> tuple[float, str]:
    """Return the largest difference of any output in units of that output's largest magnitude, and which it is.

    Magnitudes below 1e-3 count as 1e-3: saturated outputs (a sigmoid near 0) are exact only to the rounding of 1.

    >>> relative_error({"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 2.2])})[0] < 0.11
    True
    """
    worst, name = 0.0, ""
    for key, a in reference.items():
        error = _error(a, other[key]) if key in other else float("inf")
        if error > worst or not name:
            worst, name = error, key
    return worst, name


def _error(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.size or a.dtype.kind in "OSU":
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if same.all():
        return 0.0
    if not (np.isfinite(x[~same]).all() and np.isfinite(y[~same]).all()):
        return float("inf")
    scale = np.abs(x[np.isfinite(x)]).max(initial=_SMALLEST)
    return float(np.abs(x - y)[~same].max() / scale)
