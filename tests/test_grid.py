"""`bench` over providers, threads and batch sizes: what is timed with what, what is skipped, what is written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console
from small import cli, cnn, record, refused

from graphprune import grid
from graphprune.errors import RuntimeUnavailable, SessionError, UsageError
from graphprune.grid import COLUMNS, Grid, bench_models
from graphprune.measure import Comparison, Opening
from graphprune.options import Looking
from graphprune.report.timings import print_bench
from graphprune.runtime import Runtime


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Runtime, list[tuple[int, ...]]]]:
    """Play all providers: a run on more threads is as many times faster, on cuda ten times; the second model takes
    half the time of the first."""
    seen: list[tuple[Runtime, list[tuple[int, ...]]]] = []

    def race(models: Any, runtime: Runtime, seconds: float) -> list[Comparison]:
        if runtime.provider == "openvino":
            raise RuntimeUnavailable("provider 'openvino' is installed but does not start here")
        shapes = [feeds["x"].shape for _, feeds in models]
        if shapes[0][0] == 64:
            raise SessionError("onnxruntime cannot run the model: out of memory")
        seen.append((runtime, shapes))
        base = np.full(120, 8.0 * shapes[0][0] / runtime.threads / (10 if runtime.provider == "cuda" else 1))
        first = Comparison.from_openings([Opening((base, base), (base, base))] * 6)
        return [first, *[Comparison.from_openings([Opening((base, base), (base, base / 2))] * 6) for _ in models[1:]]]

    def resolve(provider: str) -> str:
        if provider == "npu9":
            raise RuntimeUnavailable("provider 'npu9' is not available")
        return provider

    monkeypatch.setattr(grid, "race", race)
    monkeypatch.setattr(grid, "resolve_provider", resolve)
    monkeypatch.setattr(grid, "peak_memory_mb", lambda path, feeds, runtime: 10.0 * feeds["x"].shape[0])
    return seen


def test_every_cell_is_timed_with_its_own_runtime_and_inputs(net: Path, timed: list[Any]) -> None:
    asked = Grid(("cpu", "cuda"), (1, 2), (1, 4))
    got = bench_models([net, net], Looking(), asked, 0.1, lambda text: None)
    assert [(r.provider, r.threads, s) for r, s in timed] == [
        (p, t, [(b, 3, 8, 8)] * 2) for p in ("cpu", "cuda") for t in (1, 2) for b in (1, 4)
    ]
    rows = {(r["provider"], r["threads"], r["batch"], r["model"]): r for r in got["models"]}
    assert len(rows) == len(got["models"]) == 16 and not got["skipped"]
    fast = rows["cuda", 2, 4, f"{net} (2)"]
    assert fast["median_ms"] == pytest.approx(0.8) and fast["items_per_second"] == pytest.approx(5000)
    assert fast["speedup"] == pytest.approx(2) and fast["faster_beyond_noise"] and fast["peak_memory_mb"] == 40
    assert fast["p10_ms"] == fast["p90_ms"] == fast["p99_ms"] == fast["median_ms"] and fast["rounds"] == 720
    first = rows["cpu", 1, 1, str(net)]
    assert first["speedup"] == 1 and not first["faster_beyond_noise"] and got["inputs"] == {"x": (1, 3, 8, 8)}


def test_unsteady_times_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "model": "a", "provider": "cpu", "threads": 1, "batch": 1, "median_ms": 2.0, "p10_ms": 1.0, "p90_ms": 1.9,
        "p99_ms": None, "rounds": 9, "items_per_second": 500.0, "speedup": 1.0, "noise_band": 0.01,
        "peak_memory_mb": None,
    }
    for p90, told in ((1.9, False), (2.1, True)):
        print_bench(Console(width=200), {"models": [{**row, "p90_ms": p90}], "skipped": []})
        assert ("unsteady: in 1 of 1 rows" in capsys.readouterr().out) is told


def test_what_cannot_run_is_a_row_with_a_reason(net: Path, timed: list[Any]) -> None:
    got = bench_models([net], Looking(), Grid(("npu9", "openvino", "cpu"), (1,), (1, 64)), 0.1, lambda text: None)
    assert [(r["provider"], r["batch"]) for r in got["models"]] == [("cpu", 1)]
    reasons = {(s["provider"], s["batch"]): s["skipped"] for s in got["skipped"]}
    assert "not available" in reasons["npu9", 1] and "does not start" in reasons["openvino", 64]
    assert "out of memory" in reasons["cpu", 64] and len(reasons) == 5


def test_where_nothing_runs_the_first_reason_is_raised(net: Path, timed: list[Any]) -> None:
    with pytest.raises(RuntimeUnavailable, match="npu9"):
        bench_models([net], Looking(), Grid(("npu9", "openvino")), 0.1, lambda text: None)
    with pytest.raises(SessionError, match="out of memory"):
        bench_models([net], Looking(), Grid(batches=(64,)), 0.1, lambda text: None)
    with pytest.raises(UsageError, match="at least one provider"):
        Grid(())


def test_a_fixed_batch_is_told(tmp_path: Path, timed: list[Any]) -> None:
    fixed = tmp_path / "fixed.onnx"
    onnx.save(cnn(batch=2), fixed)
    got = bench_models([fixed], Looking(), Grid(batches=(2, 4)), 0.1, lambda text: None)
    assert [r["batch"] for r in got["models"]] == [2]
    assert [s["skipped"] for s in got["skipped"]] == ["fixed.onnx takes a batch of 2, not 4"]
    alone = bench_models([fixed], Looking(), Grid(batches=(4,)), 0.1, lambda text: None)
    assert [r["batch"] for r in alone["models"]] == [2], "where one is asked for, it is for what is open"


def test_the_command_line_times_a_grid_for_real(net: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    options = ("--threads", "1,2", "--batch", "1", "--batch", "3", "--provider", "cpu,npu9", "--seconds", 0.01)
    got = record("bench", net, *options, "--csv", table)
    assert [(r["threads"], r["batch"]) for r in got["models"]] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert {s["provider"] for s in got["skipped"]} == {"npu9"} and len(got["skipped"]) == 4
    assert all(r["median_ms"] > 0 and r["noise_band"] > 0 for r in got["models"])
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 8
    assert float(rows[0]["median_ms"]) == got["models"][0]["median_ms"] and "npu9" in rows[-1]["skipped"]
    refused(tmp_path, "bench", net, "--csv", table, says="exists: give another name, or --force")
    refused(tmp_path, "bench", net, "--csv", net, "--force", says="is a model that is read")
    text = cli("bench", net, net, *options, "--csv", table, "--force").out
    assert "threads  batch  model" in text and "items/s" in text and "skipped: npu9 (threads 1, batch 1; " in text


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--threads", "1,x"), "--threads x: give whole numbers"), (("--batch", "0"), "--batch 0: give whole numbers"),
     (("--threads", "-1"), "--threads -1"), (("--csv", "no/where.csv"), "no such folder")],
)
def test_options_out_of_range(net: Path, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    refused(tmp_path, "bench", net, *options, says=says)


def test_given_inputs_are_one_batch(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((5, 3, 8, 8), np.float32))
    refused(tmp_path, "bench", net, "--inputs", tmp_path / "in.npz", "--batch", "1,2", says="gives one batch")
