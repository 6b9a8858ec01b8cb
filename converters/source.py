"""Where models come from: whose a source is, what it needs to be read, and the one way to turn it into ONNX."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphPruneError, ModelError, UsageError

if TYPE_CHECKING:
    import onnx

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""Runs the source in its framework: arrays in the order of the ONNX inputs, to arrays in that of the outputs."""


@dataclass(frozen=True)
class Asked:
    """How a source is converted: the opset (None: what the exporter does best), sizes of inputs, what may be run.

    The first size of every input is the batch and stays open, unless `fixed`. `trust` allows to unpickle, which runs
    code that is in the file. `norms`: batch normalisations stay nodes of their own, for training.
    """

    opset: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: bool = False
    trust: bool = False
    norms: bool = False


@dataclass(frozen=True)
class Converted:
    """A converted model; `run` runs the source, None where its framework cannot; `notes` are for people."""

    model: onnx.ModelProto
    run: Run | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Framework:
    """One framework: the module here, the extra to install, the packages it needs, and what its sources look like.

    `suffixes` are those of files, `holds` a file that a folder has, `roots` the packages that objects' classes are of.
    """

    name: str
    module: str
    extra: str
    packages: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    holds: str | None = None
    roots: tuple[str, ...] = ()
    norms: bool = False


FRAMEWORKS = (
    Framework("PyTorch", "pytorch_export", "torch", ("torch", "onnxscript"), (".pt2", ".pt", ".pth", ".ts"), None,
              ("torch",), True),
    Framework("Keras", "keras", "keras", ("keras", "tensorflow", "tf2onnx"), (".keras", ".h5", ".hdf5"), None,
              ("keras",)),
    Framework("TensorFlow", "tensorflow", "keras", ("tensorflow", "tf2onnx"), (), "saved_model.pb"),
    Framework("TensorFlow Lite", "tflite", "keras", ("tensorflow", "tf2onnx"), (".tflite",)),
    Framework("JAX", "jax", "jax", ("jax", "jax2onnx"), (), None, ("flax", "jax", "jaxlib", "equinox"),
              True),
    Framework("scikit-learn", "sklearn", "sklearn", ("sklearn", "skl2onnx"), (".pkl", ".pickle", ".joblib"), None,
              ("sklearn",)),
    Framework("PaddlePaddle", "paddle", "paddle", ("paddle", "paddle2onnx"), (".pdmodel", ".pdiparams")),
    Framework("Hugging Face", "huggingface", "hf", ("transformers", "torch", "onnxscript"), (), "config.json", (),
              True),
)


def is_source(source: str | os.PathLike[str]) -> bool:
    """Return whether this is a model of some framework rather than an ONNX file.

    >>> is_source("net.keras"), is_source("models:net"), is_source("model.onnx")
    (True, True, False)
    """
    text = os.fspath(source)
    path = Path(text)
    if path.is_dir():
        return any(f.holds and (path / f.holds).is_file() for f in FRAMEWORKS)
    if path.exists() and not path.suffix:
        return False
    return path.suffix.lower() in _suffixes() or (not path.exists() and _names_object(text))


def framework_of(source: str | os.PathLike[str]) -> Framework:
    """Return whose a file or folder is, or an object named `module:attribute`; raises UsageError or ModelError."""
    text = os.fspath(source)
    path = Path(text)
    if not path.exists() and _names_object(text):
        return _framework_of_object(load_object(text), text)
    if not path.exists():
        raise ModelError(f"{text}: no such file or folder")
    for framework in FRAMEWORKS:
        if path.is_dir() and framework.holds and (path / framework.holds).is_file():
            return framework
        if path.is_file() and path.suffix.lower() in framework.suffixes:
            return framework
    what = "a folder with saved_model.pb or config.json" if path.is_dir() else f"a file that ends in {_listed()}"
    raise UsageError(f"{text}: is no model that can be converted: give {what}, or module:attribute")


def to_onnx(source: str | os.PathLike[str], asked: Asked | None = None) -> Converted:
    """Convert a model by the exporter of its framework.

    >>> to_onnx("net.keras").model.graph.output[0].name  # doctest: +SKIP
    'dense'

    Raises UsageError where a package is missing (it says which extra to install), ModelError where the source cannot be
    read or its exporter fails.
    """
    text = os.fspath(source)
    framework = framework_of(text)
    missing = [p for p in framework.packages if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(
            f"{text}: converting from {framework.name} needs {' and '.join(missing)}: "
            f"pip install 'graphprune[{framework.extra}]'"
        )
    asked = asked or Asked()
    if asked.norms and not framework.norms:
        raise UsageError(f"{text}: --keep-norms: the exporter of {framework.name} always folds them: leave it out")
    module = importlib.import_module(f"graphprune.converters.{framework.module}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # exporters talk; standard output is for JSON
            converted: Converted = module.to_onnx(text, asked)
    except GraphPruneError:
        raise
    except Exception as error:  # exporters raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"{text}: cannot be converted from {framework.name}: {said}") from error
    return converted


def load_object(source: str) -> Any:
    """Return the object that `module:attribute` names; a function or class that needs no arguments is called.

    Raises UsageError where there is none. Importing a module runs it.
    """
    module, _, name = source.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module)
            found = reduce(getattr, name.split("."), found)
            return found() if _is_factory(found) else found
    except ModuleNotFoundError as error:
        raise UsageError(f"{source}: no module {error.name!r}, neither in the current folder nor installed") from None
    except AttributeError as error:
        raise UsageError(f"{source}: {error}") from None
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(f"{source}: making the model failed: {said}") from error


def one_shape(source: str, asked: Asked, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the sizes of all inputs, in the order of `names`; raises UsageError where some were not given."""
    unknown = [name for name in asked.shapes if name not in names]
    missing = [name for name in names if name not in asked.shapes]
    if unknown or missing:
        options = " ".join(f"--input-shape {name}:1,..." for name in missing or names)
        raise UsageError(f"{source}: its inputs are {', '.join(names)}: give their sizes by {options}")
    return {name: tuple(asked.shapes[name]) for name in names}


def _is_factory(found: Any) -> bool:
    if not (inspect.isfunction(found) or inspect.isclass(found)):
        return False
    try:
        wanted = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in loose for p in wanted)


def _framework_of_object(found: Any, source: str) -> Framework:
    classes = {c.__module__.split(".")[0] for c in type(found).__mro__}
    for framework in FRAMEWORKS:
        if classes & set(framework.roots):
            return framework
    if callable(found):
        return next(f for f in FRAMEWORKS if "jax" in f.roots)
    raise UsageError(f"{source}: is a {type(found).__name__}, which is no model that can be converted")


def _names_object(text: str) -> bool:
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def _suffixes() -> set[str]:
    return {suffix for f in FRAMEWORKS for suffix in f.suffixes}


def _listed() -> str:
    return ", ".join(suffix for f in FRAMEWORKS for suffix in f.suffixes)
