"""ONNX's own operator tests, judged by both oracles: every operator that onnx describes, in all ways it is called.

Each case is a model of one or a few operators with its inputs. As it is, everything in it lies on inputs and outputs
and is pinned. With its inputs made constants and its outputs allowed to change, every axis that a rule leaves free is a
channel group, and what the rule says of it is permuted and masked. onnxruntime does not run all of the cases.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracles import subsets

from graphprune.analysis import Analysis, analyse
from graphprune.errors import GraphPruneError, ModelError, SessionError
from graphprune.execute import relative_error
from graphprune.options import Looking
from graphprune.prove import prove
from graphprune.rewrite import arranged, masked, rearranged
from graphprune.runtime import run

pytestmark = pytest.mark.filterwarnings("ignore")
CHUNKS = 12
KINDS = ("node", "pytorch-converted", "pytorch-operator", "simple")
PROVED, PINNED, CANNOT_RUN, REFUSED = "proved", "pinned", "cannot run", "refused"
LEAST_PROVED, MOST_NOT_RUN = 75, 30
"""Of about 170 cases in a chunk: how many are proven at least, and how many models onnxruntime cannot run at most."""


@lru_cache(maxsize=1)
def cases() -> tuple[Any, ...]:
    """Return onnx's test cases, in the same order everywhere."""
    from onnx.backend.test.loader import load_model_tests

    found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return tuple(sorted(found, key=lambda case: (zlib.crc32(case.name.encode()), case.name)))


def loaded(case: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """Return a case's model and its inputs, arrays or lists or none."""
    if case.model is not None:
        return case.model, list(case.data_sets[0][0])
    folder = Path(case.model_dir)
    files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
    tensors = [onnx.TensorProto.FromString(p.read_bytes()) for p in files]
    return onnx.load(folder / "model.onnx"), [numpy_helper.to_array(t) for t in tensors]


def constant(model: onnx.ModelProto, inputs: list[Any]) -> onnx.ModelProto:
    """Return a model whose tensor inputs are constants; sequences and strings stay inputs."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    named = {t.name for t in out.graph.initializer}
    rest = [v for v in out.graph.input if v.name in named]
    for value, given in zip([v for v in out.graph.input if v.name not in named], inputs, strict=False):
        array = np.asarray(given) if isinstance(given, (np.ndarray, np.generic, float, int)) else None
        if array is None or array.dtype == object or not value.type.HasField("tensor_type"):
            rest.append(value)
            continue
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), value.name)
        tensor.data_type = value.type.tensor_type.elem_type
        out.graph.initializer.append(tensor)
    del out.graph.input[:]
    out.graph.input.extend(rest)
    out.ir_version = min(max(out.ir_version, 7), 13)  # what onnxruntime reads
    try:
        return onnx.shape_inference.infer_shapes(out)
    except Exception:  # onnx's own test models that onnx's own inference refuses
        return out


def masks(analysis: Analysis) -> float:
    """Return by how much pruned and masked models differ, for parts of all groups and for one index of each."""
    coupling, reference = analysis.coupling, analysis.reference
    worst = 0.0
    for thin in (False, True):
        chosen = subsets(coupling, thin)
        small = reference.open(rearranged(analysis.model, coupling, chosen), optimise=False)
        run(small, arranged(reference.feeds[0], coupling, chosen))
        plain = {g.dim: chosen[g.dim] for g in coupling.groups if not g.normalised}
        if plain:
            whole = run(reference.open(masked(analysis.model, coupling, plain), optimise=False), reference.feeds[0])
            small = reference.open(rearranged(analysis.model, coupling, plain), optimise=False)
            parts = run(small, arranged(reference.feeds[0], coupling, plain))
            worst = max(worst, relative_error(arranged(whole, coupling, plain), parts)[0])
    return worst


def pinned(analysis: Analysis) -> bool:
    """Return whether nothing is free, and every weight says why."""
    return not analysis.coupling.groups and all(reason for _, reason, _ in analysis.coupling.pins())


def outcome(model: onnx.ModelProto, inputs: list[Any], name: str) -> str:
    """Return what became of a case; fail where an oracle or an assumption does."""
    as_it_is = analyse(model)
    assert pinned(as_it_is) or as_it_is.coupling.graph.weights, name
    analysis = analyse(constant(model, inputs), Looking(allow_io=("*",)))
    if pinned(analysis):
        return PINNED
    try:
        reference = analysis.calmest
        finite = all(np.isfinite(a).all() for o in reference.plain for a in o.values() if a.dtype.kind == "f")
    except SessionError:
        return CANNOT_RUN
    proof = prove(analysis.model, analysis.coupling, reference)
    assert proof.passed, f"{name}: {proof.failure}"
    if finite and analysis.model.graph.opset_imports[""] >= 7:  # onnxruntime multiplies since opset 7
        assert masks(analysis) <= proof.tolerance, f"{name}: masked is not pruned"
    return PROVED


def judged(part: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Yield (case, outcome); what graphprune raises on purpose counts as an outcome by its one line."""
    for case in part:
        model, inputs = loaded(case)
        try:
            yield case.name, outcome(model, inputs, case.name)
        except ModelError as error:
            assert "\n" not in str(error), case.name
            yield case.name, REFUSED
        except GraphPruneError as error:
            yield case.name, f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_operators(chunk: int) -> None:
    found = dict(judged(cases()[chunk::CHUNKS]))
    count = Counter(found.values())
    assert not {k: v for k, v in found.items() if v not in (PROVED, PINNED, CANNOT_RUN, REFUSED)}
    assert count[PROVED] >= LEAST_PROVED, count
    assert count[CANNOT_RUN] <= MOST_NOT_RUN, count
    assert count[REFUSED] <= 3, count


def test_there_are_as_many_as_expected() -> None:
    assert len(cases()) > 2000
