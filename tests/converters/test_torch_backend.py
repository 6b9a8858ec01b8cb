"""ONNX's own operator tests in torch: what is computed, and that gradients are the numerical ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from graphprune.converters.pytorch import to_module  # noqa: E402
from graphprune.converters.torch_ops.roles import FIXED, STATISTICS  # noqa: E402
from graphprune.errors import GraphPruneError, ModelError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
CHUNKS = 4
KINDS = ("node", "pytorch-converted", "pytorch-operator", "simple")
LEAST_RIGHT, LEAST_GRADIENTS = 360, 150
"""Of about 500 cases in a chunk: how many must be right, and how many gradients must be compared."""

APART = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": "the expected numbers are written with four digits",
    "test_bernoulli": "random", "test_training_dropout": "random: the file asks for it, evaluation mode does not",
    "test_resize_downsample_scales_linear_align_corners": "sizes are rounded first, as onnxruntime does",
    "test_resize_downsample_scales_cubic_align_corners": "sizes are rounded first, as onnxruntime does",
    "test_resize_downsample_scales_linear_antialias": "weights over an edge do not count, as in onnxruntime",
    "test_resize_downsample_sizes_linear_antialias": "weights over an edge do not count, as in onnxruntime",
    "test_resize_downsample_scales_cubic_antialias": "weights over an edge do not count, as in onnxruntime",
    "test_resize_downsample_sizes_cubic_antialias": "weights over an edge do not count, as in onnxruntime",
}  # fmt: skip
CANNOT = ("not implemented for 'UInt", "It is expected output_size equals to 2", "torch has no type for")
"""What torch itself does not do: arithmetic of wide unsigned numbers, folding in three dimensions, narrow types."""


@lru_cache(maxsize=1)
def cases() -> tuple[Any, ...]:
    from onnx.backend.test.loader import load_model_tests

    found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return tuple(sorted(found, key=lambda case: (zlib.crc32(case.name.encode()), case.name)))


def loaded(case: Any) -> tuple[onnx.ModelProto, list[Any], list[Any]]:
    """Return a case's model, its inputs and its outputs."""
    if case.model is not None:
        return case.model, list(case.data_sets[0][0]), list(case.data_sets[0][1])
    folder = Path(case.model_dir)
    sides = []
    for side in ("input", "output"):
        files = sorted((folder / "test_data_set_0").glob(f"{side}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
        sides.append([numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes())) for p in files])
    return onnx.load(folder / "model.onnx"), sides[0], sides[1]


def plain(values: list[Any]) -> bool:
    """Return whether all values are arrays of numbers, or lists of them."""
    kinds = [np.asarray(v).dtype for v in values if v is not None and not isinstance(v, list)]
    return all(k.kind in "fiub" or k.name == "bfloat16" for k in kinds)


def difference(got: Any, expected: Any) -> str:
    """Return what is wrong with an output; nothing if it is right."""
    if isinstance(expected, (list, tuple)) or expected is None or got is None:
        pairs = zip(got or [], expected or [], strict=True)
        return next((d for a, b in pairs if (d := difference(a, b))), "")
    wide = np.asarray(expected)
    narrow = wide.dtype.itemsize == 2 and wide.dtype.kind not in "iu"
    wide = wide.astype(np.float32) if narrow else wide
    array = (got.detach().float() if narrow else got.detach()).numpy()
    if array.shape != wide.shape or array.dtype != wide.dtype:
        return f"{array.dtype}{array.shape} instead of {wide.dtype}{wide.shape}"
    if wide.dtype.kind != "f":
        return "" if bool((array == wide).all()) else "other numbers"
    real = np.isfinite(wide)
    if not bool((np.isfinite(array) == real).all()):
        return "infinite elsewhere"
    apart = np.abs(array[real] - wide[real]).max(initial=0) / max(np.abs(wide[real]).max(initial=0), 1e-3)
    return "" if apart < (2e-2 if narrow else 1e-4) else f"{apart:.1e} apart"


def chunk(number: int) -> Iterator[tuple[str, Any, list[Any], list[Any]]]:
    """Yield name, module, inputs and outputs of the cases that have a torch rule."""
    for case in cases()[number::CHUNKS]:
        model, inputs, outputs = loaded(case)
        if not plain([*inputs, *outputs]) or any(case.name.startswith(name) for name in APART):
            continue
        try:
            yield case.name, to_module(model).eval(), inputs, outputs
        except ModelError as error:
            assert "no torch rule" in str(error) or "is not valid" in str(error), (case.name, error)


@pytest.mark.parametrize("number", range(CHUNKS))
def test_operators_compute_what_onnx_says(number: int) -> None:
    right, wrong = 0, {}
    for name, module, inputs, outputs in chunk(number):
        try:
            got = list(module(*inputs[: len(module.inputs)]).values())
        except GraphPruneError as error:
            if not any(text in str(error) for text in CANNOT):
                wrong[name] = str(error)
            continue
        found = next((d for a, b in zip(got, outputs, strict=True) if (d := difference(a, b))), "")
        if found:
            wrong[name] = found
        right += not found
    assert not wrong, wrong
    assert right >= LEAST_RIGHT, right


BITS = ("test_bitcast_", "test_pow_types_float32_uint")
"""Cases that read numbers as bits, or unsigned ones that torch does not compute with."""


@pytest.mark.parametrize("number", range(CHUNKS))
def test_gradients_are_the_numerical_ones(number: int) -> None:
    compared, wrong = 0, {}
    for name, module, inputs, _ in chunk(number):
        if name.endswith("_expanded") or name.startswith(BITS) or any(isinstance(v, list) or v is None for v in inputs):
            continue
        try:
            pair = derivatives(module.double(), inputs[: len(module.inputs)])
        except GraphPruneError as error:
            if not any(text in str(error) for text in CANNOT):
                wrong[name] = str(error)
            continue
        if pair is not None:
            compared += 1
            if abs(pair[0] - pair[1]) > 1e-4 * max(1, abs(pair[1])):
                wrong[name] = pair
    assert not wrong, wrong
    assert compared >= LEAST_GRADIENTS, compared


def held(module: Any) -> set[str]:
    """Return the inputs that are sizes, bounds, steps, statistics: what has no derivative."""
    found: set[str] = set()
    for node in module.program.nodes:
        for table in (FIXED, STATISTICS):
            places = table.get(node.domain, node.type, node.version) or ()
            found |= {name for k, name in enumerate(node.inputs) if name and k in places}
    return found


def derivatives(module: Any, inputs: list[Any]) -> tuple[float, float] | None:
    """Return the derivative along a random direction by autograd, and by two values of the function.

    The inputs are moved a little first: at 0, where many of them are, some functions have a kink.
    """
    torch.manual_seed(0)
    tensors = [torch.as_tensor(np.asarray(v).astype(np.float64) if real(v) else np.array(v)) for v in inputs]
    names, still = list(module.inputs), held(module)
    moved = [k for k, v in enumerate(tensors) if v.is_floating_point() and names[k] not in still]
    if not moved or any(not bool((tensors[k].abs() < 1e6).all()) for k in moved):
        return None
    for k in moved:
        tensors[k] = tensors[k] + (0.003 + 0.01 * tensors[k].abs()) * torch.rand_like(tensors[k])
    directions = {k: torch.randn_like(tensors[k]) for k in moved}
    weights: list[Any] = []

    def value(step: float, follow: bool = False) -> Any:
        given = [v + step * directions[k] if k in directions else v for k, v in enumerate(tensors)]
        for k in moved if follow else ():
            given[k] = given[k].detach().requires_grad_()
        outputs = [v for v in module(*given).values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
        if not weights:
            weights.extend(torch.where(torch.isfinite(v), torch.rand_like(v) + 0.1, 0).detach() for v in outputs)
        pairs = zip(weights, outputs, strict=True)
        return sum((torch.where(w != 0, w * v, 0).sum() for w, v in pairs), torch.zeros(())), given

    total, given = value(0.0, follow=True)
    if not total.requires_grad or not all(bool(w.all()) for w in weights):
        return None  # sizes, positions, steps; roots of negative numbers
    found = torch.autograd.grad(total, [given[k] for k in moved], allow_unused=True)
    slope = sum(float((g * directions[k]).sum()) for k, g in zip(moved, found, strict=True) if g is not None)
    with torch.no_grad():
        numerical = float(value(1e-6)[0] - value(-1e-6)[0]) / 2e-6
    return slope, numerical


def real(value: Any) -> bool:
    return np.asarray(value).dtype.kind == "f" or np.asarray(value).dtype.name == "bfloat16"
