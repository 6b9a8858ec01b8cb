"""One task of a sweep: a model pruned in one way. What it is known by, and what a worker does for it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune import __version__
from graphprune.errors import GraphPruneError, UsageError
from graphprune.options import Calibrating, Checking, Choosing, Looking
from graphprune.runtime import Runtime

if TYPE_CHECKING:
    from graphprune.calibrate.knowledge import Knowledge

FORMAT = 1
_KEY = 16
_FILES = ("calibration", "tokenizer")  # options that are paths, whose content counts


@dataclass(frozen=True)
class Task:
    """A model and how it is pruned, as plain values, so that it can be sent anywhere.

    `options` are the keyword arguments of `prune` with values that JSON has; `digest` is that of the model's content.

    >>> Task("a/net.onnx", "12ab", {"sparsity": 0.5}).key == Task("b/net.onnx", "12ab", {"sparsity": 0.5}).key
    True
    """

    model: str
    digest: str
    options: Mapping[str, Any]
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the task's results are found by: a hash of the model's content, the options and graphprune's version."""
        told = {name: self.digests.get(name, value) for name, value in self.options.items()}
        text = json.dumps([FORMAT, __version__, self.digest, told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY]

    @property
    def name(self) -> str:
        """The name of the task's files, without their endings."""
        return f"{Path(self.model).stem}-{self.key}"


@dataclass(frozen=True)
class Place:
    """What all tasks of a sweep share: the folder that models are written into, None where they are not."""

    models: str | None = None


def task_of(model: str | os.PathLike[str], options: Mapping[str, Any]) -> Task:
    """Return the task of pruning a model with such options; raises UsageError where a file is missing."""
    told = {name: value for name, value in options.items() if value is not None}
    digests = {}
    for name in _FILES:
        prefix, path = _path_of(told.get(name))
        if path is not None:
            told[name] = prefix + str(path.resolve())
            digests[name] = prefix + digest_of(path)
    return Task(str(model), model_digest(Path(model)), told, digests)


def _path_of(value: object) -> tuple[str, Path | None]:
    if not isinstance(value, str):
        return "", None
    prefix = "ood:" if value.startswith("ood:") else ""
    path = Path(value.removeprefix(prefix))
    return prefix, path if path.exists() else None


def model_digest(path: Path) -> str:
    """Return a hash of a model's file and of the files its weights are in; raises ModelError."""
    from graphprune.model import external_files, load

    parts = [path, *sorted(external_files(load(path)))]
    return hashlib.sha256("".join(digest_of(p) for p in parts).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """Return a hash of a file's content; of a folder: of the names, sizes and times of what is in it."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        text = "\n".join(f"{p.relative_to(path)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)
        return hashlib.sha256(text.encode()).hexdigest()
    there = path.stat()
    return _file_digest(path, there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def run_task(place: Place, task: Task) -> dict[str, Any]:
    """Prune, and return the record of a task: its options, the report, the plan; or the error, in one line."""
    began = time.perf_counter()
    record: dict[str, Any] = {
        "format": FORMAT, "key": task.key, "model": task.model, "digest": task.digest, "options": dict(task.options),
        "error": None, "report": None, "plan": None,
    }
    try:
        record.update(_carried_out(place, task))
    except GraphPruneError as error:
        record["error"] = str(error)
    except Exception as error:  # a mistake of ours in one task must not hide the others
        record["error"] = f"internal error: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
    return {**record, "seconds": time.perf_counter() - began}


def _carried_out(place: Place, task: Task) -> dict[str, Any]:
    from graphprune.pipeline import Order, carry_out

    path = Path(task.model)
    if not path.exists():
        raise UsageError(f"{path}: is not there for this worker: workers need the same files under the same paths")
    if model_digest(path) != task.digest:
        raise UsageError(f"{path}: has changed since the sweep was begun, or is another file for this worker")
    choosing, looking, asked, checking = read_options(task.options)
    with _few_threads(looking.runtime.threads):
        known = _known(task.model, task.digest, _learned_by(task.options))
        order = Order(choosing, checking, asked, learned=known.learned, onset=False)
        result = carry_out(known.analysis, order)
        if place.models is not None:
            result.save(Path(place.models) / f"{task.name}.onnx")
    report = dict(result.report)
    return {"plan": report.pop("plan"), "report": report}


def read_options(options: Mapping[str, Any]) -> tuple[Choosing, Looking, Calibrating, Checking]:
    """Read a task's options: fields of these classes, and `threads`; raises UsageError.

    >>> read_options({"sparsity": 0.5, "exclude": ["*/Add"], "threads": 2})[1].runtime.threads
    2
    """
    told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    told["input_shapes"] = {name: tuple(shape) for name, shape in told.get("input_shapes", {}).items()}
    told["runtime"] = Runtime(threads=told.get("threads", 1))
    told["time"] = False  # beside other workers it would be noise
    unknown = told.keys() - {f.name for kind in _KINDS for f in fields(kind)}
    if unknown:
        raise UsageError(f"a task has no option {min(unknown)!r}")

    def made(kind: type[Any]) -> Any:
        return kind(**{f.name: told[f.name] for f in fields(kind) if f.name in told})

    return made(Choosing), made(Looking), made(Calibrating), made(Checking)


_KINDS: tuple[type[Any], ...] = (Choosing, Looking, Calibrating, Checking)
_NOT_LEARNED = {"repair", *(f.name for kind in (Choosing, Checking) for f in fields(kind))}


def _learned_by(options: Mapping[str, Any]) -> str:
    """Return the options that decide what is learned of a model, as text: not what is chosen with it."""
    return json.dumps({k: v for k, v in options.items() if k not in _NOT_LEARNED}, sort_keys=True)


class _Known:
    """A model that was looked at, and what calibration tells of it once somebody asks."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        from graphprune.pipeline import analyse

        _, looking, self._asked, _ = read_options(options)
        self.analysis = analyse(model, looking)

    @cached_property
    def _learned(self) -> tuple[Knowledge | None, str]:
        from graphprune.accuracy import calibrate

        return calibrate(self.analysis, self._asked, lambda text: None)

    def learned(self) -> tuple[Knowledge | None, str]:
        """Return what `accuracy.calibrate` does."""
        return self._learned


@lru_cache(maxsize=1)  # tasks of one model follow each other
def _known(model: str, digest: str, text: str) -> _Known:
    return _Known(model, json.loads(text))


def _few_threads(threads: int) -> AbstractContextManager[Any]:
    """Keep numpy's linear algebra to so many threads, as far as that can be told to it."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(threads)  # type: ignore[no-any-return]
