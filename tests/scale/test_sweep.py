"""Sweeps: results are files under keys of their content, not made twice, and the same wherever they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layered
import numpy as np
import onnx
import pytest
from cluster_of_processes import Cluster, cluster
from shared_work import compare_statistics

import graphprune
from graphprune.errors import UsageError, WorkerError
from graphprune.scale import Pool
from graphprune.scale.ranking import as_csv, rows_of
from graphprune.scale.sweep import Keeping, combinations, sweep
from graphprune.scale.task import Place, run_task, task_of

FIXED = {"align": 1, "effort": "low", "repair": "symmetric", "samples": 40, "floor": 0.1}
BUDGETS = [{"targets": {"macs": 0.6}}, {"sparsity": 0.3}]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Two small models as files."""
    return saved(tmp_path)


def saved(folder: Path) -> list[Path]:
    out = []
    for name, net in (("conv", layered.conv()), ("deep", layered.deep(3))):
        out.append(folder / f"{name}.onnx")
        onnx.save(net.model(), out[-1])
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, str]]:
    """Tasks, and the plans that this process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    tasks = tasks_of(saved(folder))
    sweep(tasks, Keeping(folder / "out"), Pool())
    made = plans(folder / "out")
    assert len(made) == len(tasks) == 8
    return tasks, made


def tasks_of(models: list[Path], *criteria: str, **more: Any) -> list[Any]:
    tasks, broken = combinations(models, {"criterion": criteria or ("obs", "l2")}, BUDGETS, {**FIXED, **more})
    assert not broken
    return tasks


def files(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def plans(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.glob("*.plan.json")}


def test_every_combination_is_a_result_with_a_plan_that_replays(models: list[Path], tmp_path: Path) -> None:
    tasks, folder = tasks_of(models), tmp_path / "out"
    records = sweep(tasks, Keeping(folder), Pool())
    assert len(records) == len(tasks) == 8 and not any(r["error"] or r["reused"] for r in records)
    assert sorted(files(folder)) == sorted(f"{t.name}{end}" for t in tasks for end in (".json", ".plan.json"))
    for task, record in zip(tasks, records, strict=True):
        assert json.loads((folder / f"{task.name}.json").read_text())["report"] == record["report"]
        plan = folder / f"{task.name}.plan.json"
        again = graphprune.prune(task.model, plan=plan, calibration="off", repair="none", time=False)
        assert again.report["after"]["macs"] == record["report"]["after"]["macs"] < record["report"]["before"]["macs"]


def test_results_are_those_of_prune_alone(models: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {**FIXED, "criterion": "obs"}
    for model in models:
        for budget in BUDGETS:
            record = run_task(Place(), task_of(model, {**options, **budget}))
            alone = graphprune.prune(model, **options, **budget, threads=1, time=False)
            assert record["plan"]["groups"] == alone.plan.to_json()["groups"]
            ours, theirs = (r["divergence"]["after"][0]["relative"] for r in (record["report"], alone.report))
            assert ours == pytest.approx(theirs, rel=1e-4), "threads of linear algebra change the rounding"


def test_what_is_there_is_not_done_again(models: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    sweep(tasks_of(models, "l2"), Keeping(folder), Pool())
    before = files(folder)
    (half,) = [n for n in before if n.startswith("conv") and n.endswith(".plan.json")][:1]
    records = sweep(tasks_of(models, "l2", "l1"), Keeping(folder), Pool())
    assert [r["reused"] for r in records] == [True, True, False, False] * 2
    assert {n: t for n, t in files(folder).items() if n in before} == before
    (folder / half.replace(".plan", "")).write_text('{"key": "tr')  # as a crash of the machine may leave it
    assert sum(not r["reused"] for r in sweep(tasks_of(models, "l2"), Keeping(folder), Pool())) == 1
    forced = sweep(tasks_of(models, "l2"), Keeping(folder, force=True), Pool())
    assert not any(r["reused"] for r in forced) and files(folder) != before


def test_keys_go_by_content(models: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((4, 6)))
    options = {"sparsity": 0.5, "calibration": str(data)}
    first = task_of(models[0], options)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / models[0].name).write_bytes(models[0].read_bytes())
    (moved / "other.npz").write_bytes(data.read_bytes())
    assert task_of(moved / models[0].name, {**options, "calibration": str(moved / "other.npz")}).key == first.key
    assert task_of(models[1], options).key != first.key
    assert task_of(models[0], {**options, "sparsity": 0.4}).key != first.key
    np.savez(data, x=np.ones((4, 6)))
    assert task_of(models[0], options).key != first.key


def test_errors_are_rows_and_are_tried_again(models: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    tasks, unread = combinations([models[0], broken], {"criterion": ["l2", "nonsense"]}, BUDGETS[:1], FIXED)
    records = sweep(tasks, Keeping(folder), Pool())
    rows = rows_of([*records, *unread])
    assert [bool(r["error"]) for r in rows] == [False, True, True]
    assert "no criterion named 'nonsense'" in rows[1]["error"] and "not an ONNX model" in rows[2]["error"]
    assert [r["reused"] for r in sweep(tasks, Keeping(folder), Pool())] == [True, False]


def test_a_model_that_changed_since_is_refused(models: list[Path]) -> None:
    task = task_of(models[0], {"sparsity": 0.5})
    models[0].write_bytes(models[1].read_bytes())
    assert "has changed since" in run_task(Place(), task)["error"]
    models[0].unlink()
    assert "is not there for this worker" in run_task(Place(), task)["error"]


def test_models_are_kept_and_timed_if_asked_for(models: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    tasks = tasks_of(models[:1], "l2")[:1]
    first = sweep(tasks, Keeping(folder, seconds=0.02), Pool())
    assert all(r["timing"]["speedup"] > 0 for r in first) and not list(folder.glob("*.onnx"))
    again = sweep(tasks, Keeping(folder, seconds=0.02), Pool())
    assert all(r["reused"] and r["timing"] == f["timing"] for r, f in zip(again, first, strict=True))
    kept = sweep(tasks, Keeping(folder, models=True), Pool())
    assert not any(r["reused"] for r in kept)
    for task in tasks:
        onnx.checker.check_model(onnx.load(folder / f"{task.name}.onnx"))


def test_ranks_count_who_is_better_in_both() -> None:
    def record(macs: int, kl: float, **more: Any) -> dict[str, Any]:
        outputs = [{"relative": kl, "kl": kl, "cosine": 1.0, "agree": 1.0}]
        report = {"before": {"macs": 100, "parameters": 1, "bytes": 1},
                  "after": {"macs": macs, "parameters": 1, "bytes": 1},
                  "divergence": {"after": outputs, "damaged": False}}
        return {"model": "m", "options": {"sparsity": macs / 100}, "report": report, "key": "k", "error": None, **more}

    rows = rows_of([record(60, 0.3), record(50, 0.2), record(40, 0.5), record(70, 0.1), record(70, 0.6)])
    assert [(r["macs"], r["loss"], r["rank"]) for r in rows] == [
        (0.4, 0.5, 1), (0.5, 0.2, 1), (0.7, 0.1, 1), (0.6, 0.3, 2), (0.7, 0.6, 5),
    ]
    timing = {"speedup": 2.0, "noise_band": 0.05}
    timed = rows_of([record(60, 0.3, timing=timing), record(50, 0.2, timing={**timing, "speedup": 1.96})])
    assert [(r["loss"], r["rank"]) for r in timed] == [(0.2, 1), (0.3, 2)], "2 % are noise"
    lines = as_csv(timed).splitlines()
    assert len(lines) == 3 and lines[0].startswith("model,budget,criterion")


def test_plans_are_the_same_on_a_cluster_that_loses_a_worker(
    alone: tuple[list[Any], dict[str, str]], tmp_path: Path
) -> None:
    tasks, expected = alone
    with cluster(tmp_path, workers=2) as dask:
        pool = Pool(scheduler=dask.address)
        assert pool.size() == 2 and not pool.alone
        compare_statistics(pool)
        records = sweep(tasks, Keeping(tmp_path / "there"), pool, _killing(dask))
        assert dask.workers[0].poll() is not None and dask.workers[1].poll() is None
        assert pool.size() == 1 and not any(r["error"] for r in records)
    assert plans(tmp_path / "there") == expected
    with pytest.raises(WorkerError, match="scheduler"):
        Pool(scheduler=dask.address).map(_same, [1])


def _killing(dask: Cluster) -> Any:
    def progress(text: str) -> None:
        if text.startswith("1 of"):
            dask.kill_one()

    return progress


def _same(shared: None, item: int) -> int:
    return item


def test_plans_are_the_same_in_processes(alone: tuple[list[Any], dict[str, str]], tmp_path: Path) -> None:
    tasks, expected = alone
    sweep(tasks, Keeping(tmp_path / "out"), Pool(2))
    assert plans(tmp_path / "out") == expected


def test_folders_that_cannot_be_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, said in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "deeper", "no such folder")):
        with pytest.raises(UsageError, match=said):
            sweep([], Keeping(folder), Pool())
