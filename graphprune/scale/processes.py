"""Work in local processes, by joblib: started on demand, used again, replaced where they die."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from graphprune.scale.pool import Lost

_DEATHS = 2  # of workers while an item was under way, after which it is tried once more, alone


def run_in_processes(
    jobs: int, threads: int, work: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the item, result) as results come.

    When a worker dies (killed, out of memory), nobody knows which item it was: all that were under way are done again.
    One that was there twice is tried alone, and is lost if its worker dies of that, too.
    """
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        bound = _Bound(work, _stored(shared, Path(folder)))
        todo: Iterator[tuple[int, Any]] = enumerate(items)
        deaths: dict[int, int] = {}
        alone: list[tuple[int, Any]] = []
        while True:
            under_way: dict[int, Any] = {}
            try:
                for number, result in _parallel(jobs, threads, bound, _noted(todo, under_way)):
                    del under_way[number]
                    yield number, result
                break
            except TerminatedWorkerError:
                for number in under_way:
                    deaths[number] = deaths.get(number, 0) + 1
                alone += [pair for pair in under_way.items() if deaths[pair[0]] >= _DEATHS]
                todo = chain([pair for pair in under_way.items() if deaths[pair[0]] < _DEATHS], todo)
        for pair in alone:
            try:
                yield from _parallel(2, threads, bound, iter([pair]))  # one job alone would be this process
            except TerminatedWorkerError:
                yield pair[0], Lost("the worker process died of it again and again: not enough memory?")


def _noted(pairs: Iterator[tuple[int, Any]], under_way: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    for number, item in pairs:
        under_way[number] = item
        yield number, item


def _parallel(jobs: int, threads: int, bound: _Bound, pairs: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
        run = Parallel(return_as="generator_unordered", batch_size=1, max_nbytes=None)
    yield from run(delayed(bound)(number, item) for number, item in pairs)


class _Bound:
    """What a worker is sent for each item: the function, and where to find what all items share."""

    def __init__(self, work: Callable[[Any, Any], Any], path: Path | None) -> None:
        self._work, self._path = work, path

    def __call__(self, number: int, item: Any) -> tuple[int, Any]:
        return number, self._work(_read(self._path) if self._path is not None else None, item)


def _stored(shared: Any, folder: Path) -> Path | None:
    if shared is None:
        return None
    path = folder / "shared"
    with open(path, "wb") as file:
        _pickler().dump(shared, file, protocol=5)
    return path


@lru_cache(maxsize=1)
def _read(path: Path) -> Any:
    """Return what all items share, read once by each worker."""
    with open(path, "rb") as file:
        return _pickler().load(file)


def _pickler() -> Any:
    """Return cloudpickle, which older versions of joblib bring inside of them."""
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return importlib.import_module("joblib.externals.cloudpickle")
