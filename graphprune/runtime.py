"""Onnxruntime, behind one door: the only place that opens sessions and runs them.

Nothing here imports onnxruntime before it is needed. What it throws leaves as a `SessionError` of one line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.errors import RuntimeUnavailable, SessionError, UsageError
from graphprune.exotic import EXOTIC, array_of, pack

if TYPE_CHECKING:
    import onnxruntime

Feeds: TypeAlias = Mapping[str, npt.NDArray[Any]]
ModelSource: TypeAlias = "str | os.PathLike[str] | bytes"

_T = TypeVar("_T")
_SUFFIX = "ExecutionProvider"
_CPU = "CPU" + _SUFFIX
_CUDA = "CUDA" + _SUFFIX
# Providers that compute in CUDA memory, and so are timed through an IOBinding.
_ON_CUDA = frozenset({_CUDA, "Tensorrt" + _SUFFIX, "NvTensorRTRTX" + _SUFFIX})
_GPU = "onnxruntime-gpu"
_PACKAGES = {"cuda": _GPU, "tensorrt": _GPU, "openvino": "onnxruntime-openvino", "dml": "onnxruntime-directml"}
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Runtime:
    """Say how models are run.

    >>> Runtime(provider="cuda", threads=4).threads
    4

    `provider` is a short name ("cpu", "cuda", "tensorrt", "openvino") or onnxruntime's own
    ("CUDAExecutionProvider"). `threads` is the number of threads inside one operator, 0 for as many as there are
    cores. `optimise` turns onnxruntime's graph optimisation fully on or off; blocked convolution layouts, and with
    them most of what pruning gains on a CPU, exist only when it is on. The names of files with profiles begin with
    `profile`; without it there are none. `folded` is where onnxruntime writes the model with its constants folded, and
    no operators but standard ones: so optimisation is basic then. Raises `UsageError` for negative threads.
    """

    provider: str = "cpu"
    threads: int = 1
    optimise: bool = True
    profile: str = ""
    folded: str = ""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}: give 1 or more, or 0 for as many as there are cores")


def resolve_provider(provider: str) -> str:
    """Return onnxruntime's own name of a provider.

    >>> resolve_provider("cpu")
    'CPUExecutionProvider'

    Raises `RuntimeUnavailable` if the installed onnxruntime lacks it, naming those it has and what to install.
    """
    library = _library()
    available: list[str] = library.get_available_providers()
    wanted = provider.lower().removesuffix(_SUFFIX.lower())
    short = {name.removesuffix(_SUFFIX).lower(): name for name in available}
    if wanted in short:
        return short[wanted]
    advice = "check the name, or install the build of onnxruntime that has it"
    if wanted in _PACKAGES:
        advice = f"install {_PACKAGES[wanted]} in place of onnxruntime, not beside it (pip uninstall onnxruntime first)"
    raise RuntimeUnavailable(
        f"provider {provider!r} is not available: onnxruntime {library.__version__} here has "
        f"{', '.join(sorted(short))}; {advice}"
    )


def open_session(model: ModelSource, runtime: Runtime) -> onnxruntime.InferenceSession:
    """Open a model in onnxruntime.

    >>> session = open_session("resnet50.onnx", Runtime(threads=2))  # doctest: +SKIP

    `model` is a path, or the bytes of a file; above 2 GB only a path works. Raises `RuntimeUnavailable` if the
    provider is missing or does not start, `SessionError` if onnxruntime refuses the model.
    """
    library = _library()
    provider = resolve_provider(runtime.provider)
    if provider in _ON_CUDA and hasattr(library, "preload_dlls"):
        # Finds CUDA and cuDNN installed by pip. What it prints would land in output that others parse; if it
        # fails, the provider does not start and is reported below.
        with contextlib.redirect_stdout(io.StringIO()):
            library.preload_dlls()
    # TensorRT leaves what it cannot compile to plain CUDA, and every provider leaves the rest to the CPU.
    wanted = [provider, _CUDA, _CPU] if provider in _ON_CUDA else [provider, _CPU]
    label = f"the model ({len(model)} bytes)" if isinstance(model, bytes) else os.fspath(model)
    try:
        session: onnxruntime.InferenceSession = library.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model),
            sess_options=_options(library, runtime),
            providers=list(dict.fromkeys(wanted)),
            # Otherwise onnxruntime prints a banner and silently retries on the CPU.
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise SessionError(f"onnxruntime cannot open {label}: {_said(error)}") from error
    if session.get_providers()[0] != provider:
        raise RuntimeUnavailable(
            f"provider {runtime.provider!r} is installed but does not start here: its libraries (CUDA and cuDNN of "
            f"the version that onnxruntime {library.__version__} was built for) or its device are missing"
        )
    return session


def run(
    session: onnxruntime.InferenceSession, feeds: Feeds, outputs: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Run a session once and return its outputs, in the order asked for.

    >>> run(session, {"x": x})["logits"].shape  # doctest: +SKIP
    (1, 1000)

    `feeds` maps input names to arrays; bfloat16, float8 and 4-bit arrays are those of ml_dtypes, in and out, and
    cannot stand beside string inputs, which onnxruntime does not bind.
    `outputs` defaults to all of the model's. An output that is a sequence or a map becomes one entry per element,
    `name[0]` or `name[key]`; an optional one that is absent has no entry. Raises `SessionError`.
    """
    names = [value.name for value in session.get_outputs()] if outputs is None else list(outputs)
    if not names:
        return {}  # onnxruntime would take an empty list for "all"
    if _is_exotic(session, feeds):
        values = _call(lambda: _run_bound(session, feeds, names))
    else:
        values = _call(lambda: list(session.run(names, dict(feeds))))
    return dict(pair for name, value in zip(names, values, strict=True) for pair in _flat(name, value))


def bind(session: onnxruntime.InferenceSession, feeds: Feeds) -> Callable[[], object]:
    """Return a function that runs the session once on these inputs, for timing.

    >>> once = bind(session, {"x": x}); once()  # doctest: +SKIP

    On CUDA the inputs are copied to the device here and the outputs stay there, so that a call times the model and
    not the bus; it returns when the device has finished. On a CPU, or with strings, which onnxruntime cannot bind,
    it is a plain run. Raises `SessionError`: here for inputs that cannot be bound, in the call for all else.
    """
    device = "cuda" if session.get_providers()[0] in _ON_CUDA else "cpu"
    strings = any(np.asarray(array).dtype.kind in "OUST" for array in feeds.values())
    if strings or (device == "cpu" and not _is_exotic(session, feeds)):
        return partial(_call, partial(session.run, None, dict(feeds)))
    return _bound(session, feeds, device)


def _bound(session: onnxruntime.InferenceSession, feeds: Feeds, device: str) -> Callable[[], object]:
    """Return a function that runs through an IOBinding whose tensors live on `device`."""
    names = [value.name for value in session.get_outputs()]
    binding, held = _call(lambda: _binding(session, feeds, names, device))

    def step(_held: object = held) -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return partial(_call, step)


def _run_bound(session: onnxruntime.InferenceSession, feeds: Feeds, names: Sequence[str]) -> list[Any]:
    """Run once through an IOBinding in host memory, which carries the element types that run() cannot."""
    binding, _held = _binding(session, feeds, names, "cpu")
    session.run_with_iobinding(binding)
    return [array_of(value) for value in binding.get_outputs()]


def _binding(
    session: onnxruntime.InferenceSession, feeds: Feeds, names: Sequence[str], device: str
) -> tuple[Any, list[Any]]:
    """Bind inputs and outputs; the second value must live as long as the binding, which does not own the arrays.

    Inputs are given in host memory: binding copies each to wherever the operator that reads it computes, which for
    a shape operand is not the device.
    """
    library = _library()
    binding, held = session.io_binding(), list[Any]()
    for name, array in feeds.items():
        data = np.asarray(array, order="C")
        if data.dtype.isbuiltin == 1:
            binding.bind_cpu_input(name, data)
        else:
            kind = ir.DataType.from_numpy(data.dtype)
            data = pack(data) if kind.bitwidth == 4 else data
            value = library.OrtValue.ortvalue_from_numpy_with_onnx_type(data, kind.value)
            binding.bind_ortvalue_input(name, value)
        held.append(data)
    types = {value.name: value.type for value in session.get_outputs()}
    for name in names:
        # Strings, sequences and maps exist in host memory only.
        on_device = types.get(name, "").startswith("tensor(") and types[name] != "tensor(string)"
        binding.bind_output(name, device if on_device else "cpu")
    return binding, held


def _is_exotic(session: onnxruntime.InferenceSession, feeds: Feeds) -> bool:
    """Tell whether an input or output has an element type that plain run() cannot carry."""
    return any(np.asarray(array).dtype.isbuiltin != 1 for array in feeds.values()) or any(
        EXOTIC.fullmatch(value.type) for value in session.get_outputs()
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the arrays in one output, which may be a sequence or a map of them."""
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _flat(f"{name}[{key}]", element)
    elif isinstance(value, (list, tuple)):
        for index, element in enumerate(value):
            yield from _flat(f"{name}[{index}]", element)
    elif value is not None:
        yield name, np.asarray(value)


def _options(library: Any, runtime: Runtime) -> Any:
    """Translate a Runtime into onnxruntime's session options."""
    options = library.SessionOptions()
    level = library.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if runtime.optimise else level.ORT_DISABLE_ALL
    if runtime.folded:
        options.graph_optimization_level, options.optimized_model_filepath = level.ORT_ENABLE_BASIC, runtime.folded
    options.log_severity_level = 4  # what goes wrong is raised, and told in one line
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = bool(runtime.profile), runtime.profile
    # Idle workers spin by default and take the cores of the next session: of three equal sessions with two threads
    # each, run in turn on two cores, one took 9.6 ms and the others 1.7. Asleep between operators, all took 1.5.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _library() -> Any:
    """Import onnxruntime, or say what is wrong with its installation."""
    try:
        library = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    if not hasattr(library, "InferenceSession"):
        # Removing one of two packages that share the module deletes the files of both.
        raise RuntimeUnavailable("onnxruntime is installed but empty: pip install --force-reinstall onnxruntime")
    return library


def _call(step: Callable[[], _T]) -> _T:
    """Run a step, turning whatever onnxruntime raises in it into a SessionError."""
    try:
        return step()
    except Exception as error:
        raise SessionError(f"onnxruntime cannot run the model: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Shorten an onnxruntime message to one line: no status code, no C++ source position, no signature."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ (?:.*?\) (?:const )?(?:\[with [^\]]*\] )?)?", "", text)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
