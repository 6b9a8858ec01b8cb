"""The command `sweep`: tables, JSON, CSV, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import cli, record, refused

FAST = ("--calibration", "off", "--align", 1)


def swept(net: Path, folder: Path, *more: Any) -> dict[str, Any]:
    return record("sweep", net, "-o", folder, "--criterion", "l1,l2", "--sparsity", "0.3,0.5", *FAST, *more)


def test_it_makes_every_combination_and_goes_on(net: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = swept(net, folder, "--csv", tmp_path / "table.csv")
    assert first["counts"] == {"computed": 4, "reused": 0, "failed": 0} and first["folder"] == str(folder)
    found = {(r["criterion"], r["budget"]) for r in first["results"]}
    assert found == {(c, f"sparsity={s}") for c in ("l1", "l2") for s in (0.3, 0.5)}
    assert all(0 < r["macs"] < 1 and r["rank"] >= 1 and r["speedup"] is None for r in first["results"])
    again = swept(net, folder, "--repair", "auto", "--seed", 0)
    assert again["counts"] == {"computed": 0, "reused": 4, "failed": 0}
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [r["key"] for r in rows] == [r["key"] for r in first["results"]]
    record_file = folder / f"{net.stem}-{rows[0]['key']}.json"
    assert json.loads(record_file.read_text())["report"]["after"]["macs"] > 0


def test_the_table_ranks_and_names_what_failed(net: Path, tmp_path: Path) -> None:
    said = cli("sweep", net, "-o", tmp_path / "out", "--criterion", "l2,nonsense", "--target", "macs=0.6", *FAST)
    assert said.code == 0 and "rank" in said.out and "1 computed, 0 reused, 1 failed" in said.out
    assert "failed: " in said.out and "no criterion named 'nonsense'" in said.out and "not timed" in said.out


def test_models_can_be_kept_and_timed(net: Path, tmp_path: Path) -> None:
    got = record("sweep", net, "-o", tmp_path / "out", "--criterion", "l2", "--target", "macs=0.6,params=0.9", *FAST,
                 "--save-models", "--time", "--seconds", 0.02)
    (row,) = got["results"]
    assert row["speedup"] > 0 and row["budget"] == "macs=0.6,params=0.9"
    assert (tmp_path / "out" / f"{net.stem}-{row['key']}.onnx").exists()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for schedulers that are not there."""
    monkeypatch.setattr("graphprune.scale.cluster._ANSWER", 0.3)


def data(folder: Path) -> Path:
    path = folder / "data.npz"
    if not path.exists():
        np.savez(path, x=np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32))
    return path


@pytest.mark.parametrize(("options", "said"), [
    ((), "say how much"),
    (("--sparsity", "half"), "'half' is not a number"),
    (("--target", "macs"), "not of the form"),
    (("--sparsity", 0.5, "--seed", "x"), "not a whole number"),
    (("--speedup", 2, "--jobs", 2), "use --jobs 1"),
    (("--target", "latency=0.5", "--jobs", 2), "use --jobs 1"),
    (("--sparsity", 0.5, "--scheduler", "tcp://127.0.0.1:9"), "no Dask scheduler answers"),
])
def test_what_is_wrong_is_told_in_one_line(net: Path, tmp_path: Path, options: tuple[Any, ...], said: str) -> None:
    refused(tmp_path, "sweep", net, "-o", tmp_path / "out", *FAST, *options, says=said)


def test_where_nothing_works_it_fails(net: Path, tmp_path: Path) -> None:
    ran = cli("sweep", net, "-o", tmp_path / "out", "--sparsity", 0.5, "--criterion", "nonsense", *FAST, "--json")
    assert ran.code == 2 and "none of 1 tasks was done; the first: no criterion" in ran.err
    assert json.loads(ran.out)["counts"] == {"computed": 0, "reused": 0, "failed": 1}


def test_prune_and_plan_ask_the_scheduler_too(net: Path, tmp_path: Path) -> None:
    for command in ("prune", "plan"):
        refused(tmp_path, command, net, "-o", tmp_path / "out", "--sparsity", 0.5, "--calibration", data(tmp_path),
                "--scheduler", "tcp://127.0.0.1:9", says="no Dask scheduler answers at tcp://127.0.0.1:9")
