"""One way to map work over items: here, in processes, on a cluster; what happens when workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import GraphPruneError, UsageError, WorkerError
from graphprune.scale import Lost, Pool

ROOT = Path(__file__).resolve().parents[2]


def add(shared: int, item: int) -> tuple[int, int]:
    return shared + item, os.getpid()


def held_up(folder: str, item: int) -> int:
    """Do item 0 at once, and the others when the gate is open: what is taken until then cannot depend on speed."""
    while item and not (Path(folder) / "open").exists():
        time.sleep(0.01)
    return item


def refuse(shared: Any, item: int) -> int:
    if item == 2:
        raise UsageError("two is refused")
    return item


def die_once(folder: str, item: int) -> int:
    """Kill the process that is given item 3 for the first time."""
    mark = Path(folder) / "died"
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def die_always(shared: Any, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_one_job_is_this_process() -> None:
    assert Pool().alone and Pool().size() == 1
    assert Pool().map(add, [1, 2], shared=5) == [(6, os.getpid()), (7, os.getpid())]


def test_several_jobs_are_other_processes_and_results_come_in_order() -> None:
    pool = Pool(2)
    assert not pool.alone and pool.size() == 2
    found = pool.map(add, range(6), shared=10)
    assert [value for value, _ in found] == [10, 11, 12, 13, 14, 15]
    assert os.getpid() not in {process for _, process in found}


def test_items_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Any:
        for k in range(40):
            taken.append(k)
            yield k

    results = Pool(2).run(held_up, items(), shared=str(tmp_path))
    next(results)
    assert len(taken) < 20
    (tmp_path / "open").touch()
    assert len(list(results)) == 39


def test_what_work_raises_is_raised_here() -> None:
    for pool in (Pool(), Pool(2)):
        with pytest.raises(UsageError, match="two is refused"):
            pool.map(refuse, range(4))


def test_a_killed_process_loses_no_result(tmp_path: Path) -> None:
    assert Pool(2).map(die_once, range(8), shared=str(tmp_path)) == [k * k for k in range(8)]
    assert (tmp_path / "died").exists()


def test_an_item_that_kills_its_worker_is_lost_alone() -> None:
    found = dict(Pool(2).run(die_always, range(5)))
    assert {k: v for k, v in found.items() if k != 1} == {0: 0, 2: 2, 3: 3, 4: 4}
    assert isinstance(found[1], Lost) and "memory" in found[1].why
    with pytest.raises(WorkerError, match="memory"):
        Pool(2).map(die_always, [1])


@pytest.mark.parametrize(("package", "options"), [("joblib", {"jobs": 2}), ("distributed", {"scheduler": "tcp://x:1"})])
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, package: str, options: dict[str, Any]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"needs the package {package}: pip install 'graphprune\[scale\]'"):
        Pool(**options)
    assert Pool(1).alone
    with pytest.raises(UsageError, match="give 1 or more"):
        Pool(-1)


def test_a_silent_scheduler_is_told_soon() -> None:
    with pytest.raises(GraphPruneError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        Pool(scheduler="tcp://127.0.0.1:9").map(add, [1], shared=1)


def test_nothing_is_imported_unless_asked_for() -> None:
    code = (
        "import sys; from graphprune.scale import Pool; Pool().map(print, []); "
        "print({'joblib', 'dask', 'distributed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr
