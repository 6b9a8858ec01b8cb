"""Work on a Dask cluster that is running already: its scheduler gives the items of lost workers to others."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, cast

from graphprune.errors import WorkerError
from graphprune.scale.pool import Lost

_ANSWER = 5.0  # seconds that a scheduler has to answer
_WORKERS = 15.0  # seconds until there is a worker
_PATIENCE = 60.0  # seconds without any worker, while work waits
_AHEAD = 2  # items for each thread of the cluster that are handed out
_SILENT = "no Dask scheduler answers at {}: check the address (tcp://HOST:PORT), or start one: dask scheduler"


def capacity(address: str) -> int:
    """Return how many items a cluster works on at once; raises WorkerError where it does not answer."""
    try:
        return max(sum(int(w["nthreads"]) for w in _workers(_client(address)).values()), 1)
    except OSError as error:
        raise WorkerError(_SILENT.format(address)) from error


def run_on_cluster(
    address: str, work: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the item, result) as results come; raises WorkerError where the cluster goes."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm.core import CommClosedError

    room = _AHEAD * capacity(address)
    client = _client(address)
    held = client.scatter(shared, broadcast=True, hash=False) if shared is not None else None
    pairs = iter(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while True:
            for number, item in islice(pairs, max(room - len(running), 0)):
                running[client.submit(work, held, item, pure=False, retries=0)] = number
            if not running:
                return
            for future in _finished(client, list(running)):
                number = running.pop(future)
                try:
                    result = future.result()
                except ModuleNotFoundError as error:
                    lacking = f"workers of {address} lack the package {error.name}: install it there"
                    raise WorkerError(lacking) from error
                except KilledWorker:
                    result = Lost("every worker of the cluster that tried died of it: not enough memory?")
                yield number, result
                future.release()
    except (CancelledError, CommClosedError, OSError) as error:
        raise WorkerError(f"the scheduler {address} was lost while work was under way: start it again") from error
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(running))


def _finished(client: Any, futures: list[Any]) -> list[Any]:
    """Wait until some futures are done, and return them; raises WorkerError where all workers stay away."""
    import distributed

    wait: Any = distributed.wait
    since = time.monotonic()
    while True:
        try:
            with client.as_current():
                return list(wait(futures, timeout=_ANSWER, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            if _workers(client):
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise WorkerError(f"all workers of {client.scheduler.address} are lost: start some") from None


def _workers(client: Any) -> dict[str, Any]:
    return dict(client.scheduler_info(n_workers=-1)["workers"])


def _client(address: str) -> Any:
    """Return a client of a cluster, the same one as long as it is connected; raises WorkerError."""
    client = _connected(address)
    if client.status != "running":
        _connected.cache_clear()
        client.close(timeout=_ANSWER)
        client = _connected(address)
    return client


@lru_cache(maxsize=1)
def _connected(address: str) -> Any:
    """Return a new client of a cluster that has workers."""
    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is raised, and told in one line
    try:
        client: Any = cast(Any, distributed.Client)(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(_SILENT.format(address)) from error
    try:
        client.wait_for_workers(1, timeout=_WORKERS)
    except TimeoutError:
        client.close()
        raise WorkerError(f"the scheduler {address} has no workers: start some by dask worker {address}") from None
    return client
