"""A real Dask cluster for tests: a scheduler and workers, each a process, over TCP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30.0


@dataclass
class Cluster:
    """Addresses and processes of a cluster."""

    address: str
    workers: list[subprocess.Popen[bytes]]

    def kill_one(self) -> None:
        """Kill a worker as the system does when memory runs out: at once, nothing is said to the scheduler."""
        self.workers[0].send_signal(signal.SIGKILL)
        self.workers[0].wait()


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """Yield a running cluster; its processes are gone afterwards."""
    where = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = open(folder / f"{program}.log", "ab")  # noqa: SIM115
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--scheduler-file", str(where), *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)

    def ready() -> bool:
        return where.exists() and (folder / "dask_scheduler.log").read_text().count("Register worker") >= workers

    started = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")]
    try:
        # Without a nanny nobody starts a killed worker again, and what is killed is the worker itself.
        for _ in range(workers):
            started.append(start("dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard",
                                 "--local-directory", str(folder)))
        until = time.monotonic() + PATIENCE
        while not ready() and time.monotonic() < until:
            time.sleep(0.05)
        yield Cluster(json.loads(where.read_text())["address"], started[1:])
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
