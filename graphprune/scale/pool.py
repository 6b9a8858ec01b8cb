"""Where independent pieces of work are done: in this process, in processes beside it, or on a Dask cluster."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from graphprune.errors import UsageError, WorkerError

Work = Callable[[Any, Any], Any]
"""A pure function of what all items share and of one item."""


@dataclass(frozen=True)
class Lost:
    """What stands in place of a result where every worker that tried died of it."""

    why: str


@dataclass(frozen=True)
class Pool:
    """Where work is done.

    >>> Pool().map(lambda shared, item: shared + item, [1, 2, 3], shared=10)
    [11, 12, 13]

    `jobs` is how many processes there are: 1 is this one, 0 one for each core; several need the package joblib.
    `scheduler` is the address of a running Dask cluster ("tcp://host:8786"); then `jobs` does not count. `threads` are
    those of numpy's linear algebra in each of several local processes. Nothing is started before work comes. Raises
    UsageError where a package is missing.
    """

    jobs: int = 1
    scheduler: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise UsageError(f"jobs is {self.jobs}: give 1 or more, or 0 for one on each core")
        for package, asked in (("joblib", self._processes and f"--jobs {self.jobs}"), ("distributed", self.scheduler)):
            if asked and importlib.util.find_spec(package) is None:
                raise UsageError(f"{asked} needs the package {package}: pip install 'graphprune[scale]'")

    @property
    def alone(self) -> bool:
        """Whether all is done in this process."""
        return self.scheduler is None and not self._processes

    @property
    def _processes(self) -> bool:
        return self.scheduler is None and self.count != 1

    @property
    def count(self) -> int:
        """How many local processes there are."""
        return self.jobs or os.cpu_count() or 1

    def size(self) -> int:
        """Return how many items are worked on at once; asks the scheduler, and raises WorkerError if it is silent."""
        if self.scheduler is None:
            return self.count
        from graphprune.scale.cluster import capacity

        return capacity(self.scheduler)

    def run(self, work: Work, items: Iterable[Any], shared: Any = None) -> Iterator[tuple[int, Any]]:
        """Yield (number of the item, result) as results come; what is `shared` goes to each worker once.

        Items are taken a few ahead of the workers. What `work` raises is raised here. An item whose worker died is
        given to another one; `Lost` is its result where that happens again and again. Raises WorkerError where a
        cluster does not answer.
        """
        if self.scheduler is not None:
            from graphprune.scale.cluster import run_on_cluster

            yield from run_on_cluster(self.scheduler, work, items, shared)
        elif self._processes:
            from graphprune.scale.processes import run_in_processes

            yield from run_in_processes(self.count, self.threads, work, items, shared)
        else:
            yield from ((number, work(shared, item)) for number, item in enumerate(items))

    def in_order(self, work: Work, items: Iterable[Any], shared: Any = None) -> Iterator[Any]:
        """Yield results in the order of the items, each as soon as it can be; raises WorkerError for a lost one."""
        waiting: dict[int, Any] = {}
        turn = 0
        for number, result in self.run(work, items, shared):
            if isinstance(result, Lost):
                raise WorkerError(result.why)
            waiting[number] = result
            while turn in waiting:
                yield waiting.pop(turn)
                turn += 1

    def map(self, work: Work, items: Iterable[Any], shared: Any = None) -> list[Any]:
        """Return the results in the order of the items; raises WorkerError where one is lost for good."""
        return list(self.in_order(work, items, shared))
