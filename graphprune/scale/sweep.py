"""Sweeps: every combination of models, criteria and budgets is a task, whose result is a file under the task's key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from graphprune.errors import GraphPruneError, UsageError
from graphprune.options import Looking
from graphprune.output import check_folder
from graphprune.plan import PruningPlan
from graphprune.scale.pool import Lost, Pool
from graphprune.scale.task import FORMAT, Place, Task, read_options, run_task, task_of
from graphprune.writing import put

Progress = Callable[[str], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Keeping:
    """What is kept of a sweep, and where: the folder; `models`: pruned models, too; `force`: old results are redone.

    `seconds` is how long each model is timed after all work is done, 0 for not at all.
    """

    folder: Path
    models: bool = False
    force: bool = False
    seconds: float = 0.0


def combinations(
    models: Iterable[Path], varied: Mapping[str, Sequence[Any]], budgets: Sequence[Mapping[str, Any]],
    fixed: Mapping[str, Any],
) -> tuple[list[Task], list[Record]]:
    """Return the tasks, those of one model behind each other, and records of models that cannot be read.

    `varied` has the values that an option takes, `budgets` sets of options that belong together.
    """
    tasks: dict[str, Task] = {}
    broken: list[Record] = []
    for model in models:
        try:
            first = task_of(model, {})
            for values in product(*varied.values()):
                for budget in budgets:
                    options = {**fixed, **dict(zip(varied, values, strict=True)), **budget}
                    task = replace(task_of(model, options), digest=first.digest)
                    tasks.setdefault(task.name, task)
        except GraphPruneError as error:
            broken.append({"format": FORMAT, "key": None, "model": str(model), "options": {}, "error": str(error)})
    return list(tasks.values()), broken


def sweep(tasks: Sequence[Task], keeping: Keeping, pool: Pool, progress: Progress = lambda text: None) -> list[Record]:
    """Do all tasks whose results are not in the folder, and return the records of all, in order.

    Each result is written as soon as it comes, so that what was done is not done again after an interruption. Records
    have `reused`: whether it was there before. Errors of a task are in its record, and it is tried again the next time.
    """
    folder = keeping.folder
    _prepared(folder)
    found: dict[str, Record] = {}
    for task in tasks:
        record = None if keeping.force else _read(task, keeping)
        if record is not None:
            found[task.name] = {**record, "model": task.model, "reused": True}
    todo = [t for t in tasks if t.name not in found]
    progress(f"{len(todo)} tasks to do, {len(found)} done before")
    place = Place(str(folder.resolve()) if keeping.models or keeping.seconds else None)
    for done, (number, record) in enumerate(pool.run(run_task, [_absolute(t) for t in todo], place)):
        task = todo[number]
        if isinstance(record, Lost):
            record = {"format": FORMAT, "key": task.key, "options": dict(task.options), "error": record.why}
        record = {**record, "model": task.model}
        _write(record, folder, task.name)
        progress(f"{done + 1} of {len(todo)} done: {task.name}")
        found[task.name] = {**record, "reused": False}
    if keeping.seconds:
        _time([t for t in tasks if not found[t.name]["error"]], found, keeping, progress)
    return [found[t.name] for t in tasks]


def _absolute(task: Task) -> Task:
    return replace(task, model=str(Path(task.model).resolve()))


def _prepared(folder: Path) -> None:
    if not folder.exists():
        check_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file: give a folder for results")
    check_folder(folder)


def _read(task: Task, keeping: Keeping) -> Record | None:
    """Return the record of a task that was done before, None where there is none that will do."""
    try:
        record = json.loads((keeping.folder / f"{task.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("key") != task.key or record.get("error"):
        return None
    needed = keeping.models or (keeping.seconds and not record.get("timing"))
    return record if not needed or (keeping.folder / f"{task.name}.onnx").exists() else None


def _write(record: Record, folder: Path, name: str) -> None:
    """Write a record, and the plan into a file of its own: beside, then renamed."""
    plan = record.get("plan")
    if plan is not None:
        PruningPlan.from_json(plan).save(folder / f"{name}.plan.json")
    put(folder / f"{name}.json", json.dumps(record))


def _time(tasks: Sequence[Task], found: dict[str, Record], keeping: Keeping, progress: Progress) -> None:
    """Time each pruned model against its dense one, one after the other in this process, and note it in the records."""
    from graphprune.bench import compare_models

    for task in tasks:
        pruned, record = keeping.folder / f"{task.name}.onnx", found[task.name]
        if not record.get("timing"):
            progress(f"timing {task.name}")
            looking = read_options(task.options)[1]
            asked = Looking(looking.input_shapes, batch=looking.batch, runtime=looking.runtime, seed=looking.seed)
            timed = compare_models(Path(task.model), pruned, asked, keeping.seconds, lambda text: None)
            timing = {
                **{k: timed[k] for k in ("speedup", "noise_band", "faster_beyond_noise")},
                **{f"{side}_ms": timed[side]["latency_ms"] for side in ("before", "after")},
            }
            record["timing"] = timing
            _write({k: v for k, v in record.items() if k != "reused"}, keeping.folder, task.name)
        if not keeping.models:
            for path in (pruned, pruned.with_name(pruned.name + ".data")):
                path.unlink(missing_ok=True)
