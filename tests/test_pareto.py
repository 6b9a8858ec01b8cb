"""The whole curve: plans, models and tables in a folder; what is there is kept, what another point beats is marked."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from small import cli, cnn, put, record, refused

import graphprune.report.pareto as drawing
from graphprune.errors import UsageError
from graphprune.options import Choosing
from graphprune.pareto import Along, Point, deepest, eased, fronted
from graphprune.plan import PruningPlan

FAST = ("--samples", 64, "--effort", "low", "--seconds", 0.1, "--align", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("curve")
    model = put(folder / "net.onnx", cnn())
    return folder, record("prune", model, "--pareto", folder / "curve", "--points", 3, "--target", "macs=0.4", *FAST)


def test_every_point_is_a_plan_and_a_model_that_costs_less(made: tuple[Path, dict[str, Any]]) -> None:
    folder, got = made
    points = got["pareto"]
    assert [Path(p["plan"]).name for p in points] == [f"macs_{s}.plan.json" for s in ("0.800", "0.600", "0.400")]
    assert [p["macs"] for p in points] == sorted((p["macs"] for p in points), reverse=True)
    for p, share in zip(points, (0.8, 0.6, 0.4), strict=True):
        assert p["macs"] <= share * got["before"]["macs"] + 1
        onnx.checker.check_model(onnx.load(p["model"]))
        plan = PruningPlan.load(p["plan"])
        assert plan.meta["costs"]["macs"] == p["macs"] and plan.meta["costs"]["parameters"] == p["parameters"]
        assert p["latency_ms"] > 0 and p["speedup"] > 0 and p["divergence"] >= 0
    assert points[0]["divergence"] <= points[-1]["divergence"]
    assert got["before"]["latency_ms"] > 0 and got["output"] == str(folder / "curve")
    saved = json.loads((folder / "curve" / "pareto.json").read_text())
    assert saved["pareto"] == points
    with (folder / "curve" / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["plan"] for r in rows] == [p["plan"] for p in points] and float(rows[0]["macs"]) == points[0]["macs"]


def test_what_is_there_is_kept(made: tuple[Path, dict[str, Any]]) -> None:
    folder, got = made
    curve = folder / "curve"
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in curve.iterdir()}
    (curve / "macs_0.600.onnx").unlink()
    again = record(
        "prune", folder / "net.onnx", "--pareto", curve, "--points", 3, "--target", "macs=0.4", "--no-time", *FAST
    )
    after = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in curve.iterdir()}
    kept = {"macs_0.800.onnx", "macs_0.400.onnx", *(n for n in before if n.endswith(".plan.json"))}
    assert all(after[n] == before[n] for n in kept) and "macs_0.600.onnx" in after
    assert [p["divergence"] for p in again["pareto"]] == pytest.approx([p["divergence"] for p in got["pareto"]])
    assert all(p["latency_ms"] is None for p in again["pareto"])


def test_a_plan_of_another_model_is_in_the_way(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    other = tmp_path / "macs_0.700.plan.json"
    other.write_text((folder / "curve" / "macs_0.600.plan.json").read_text().replace("w2", "w9"))
    model = put(tmp_path / "net.onnx", cnn())
    options = ("--pareto", tmp_path, "--points", 2, "--target", "macs=0.4", *FAST)
    refused(tmp_path, "prune", model, *options, says="is in the way")


def test_plans_alone(tmp_path: Path) -> None:
    model = put(tmp_path / "net.onnx", cnn())
    options = ("--pareto", tmp_path / "curve", "--points", 2, "--sparsity", 0.5, *FAST)
    got = record("plan", model, *options)
    files = sorted(f.name for f in (tmp_path / "curve").iterdir())
    assert [f for f in files if f.startswith("sparsity")] == ["sparsity_0.250.plan.json", "sparsity_0.500.plan.json"]
    assert all(p["model"] is None and p["latency_ms"] > 0 and p["divergence"] >= 0 for p in got["pareto"])


def test_a_table_for_people_and_a_remark_without_matplotlib(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, got = made
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in drawing.plot(got, tmp_path / "p.png") and not list(tmp_path.iterdir())
    ran = cli("prune", folder / "net.onnx", "--pareto", folder / "curve", "--points", 3, "--target", "macs=0.4", *FAST)
    assert ran.code == 0 and "macs_0.600.plan.json" in ran.out and "pip install" in ran.out


def test_the_plot_is_drawn(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert drawing.plot(made[1], tmp_path / "p.png") == ""
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG" and len(list(tmp_path.iterdir())) == 1


def test_points_that_another_one_beats_are_off_the_front() -> None:
    def point(ms: float, divergence: float | None) -> Point:
        return Point("p", None, round(ms * 100), 1, divergence, ms, 1 / ms)

    points = [point(4, 0.1), point(3, 0.3), point(2, 0.2), point(1, 0.9), point(1.5, 0.2), point(9, None)]
    assert [p.front for p in fronted(points)] == [True, False, False, True, True, True]
    untimed = [Point("p", None, macs, 1, d) for macs, d in ((400, 0.1), (300, 0.3), (200, 0.2))]
    assert [p.front for p in fronted(untimed)] == [True, False, True]


def test_what_is_asked_for_on_the_way() -> None:
    assert deepest(Choosing()).targets == {"macs": 0.25} and deepest(Choosing(0.5)).targets == {}
    assert eased(Choosing(targets={"macs": 0.2, "params": 0.5}), 0.5) == (
        "macs_0.600_params_0.750", Choosing(targets={"macs": 0.6, "params": 0.75})
    )  # fmt: skip
    assert eased(Choosing(speedup=3), 0.5) == ("speedup_2.000", Choosing(speedup=2.0))
    assert eased(Choosing(targets={"latency": 0.5, "macs": 0.4}), 0.5) == (
        "speedup_1.500_macs_0.700", Choosing(targets={"macs": 0.7}, speedup=1.5)
    )
    assert eased(Choosing(0.6), 1 / 3) == ("sparsity_0.200", Choosing(0.2))
    with pytest.raises(UsageError, match="2 or more"):
        Along(Path("x"), 1)


def test_the_metric_of_the_user_is_asked_about_every_point(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    words = ("--pareto", folder / "curve", "--points", 3, "--target", "macs=0.4", "--evaluate", "os.path:getsize")
    got = record("prune", folder / "net.onnx", *words, "--no-time", *FAST)
    assert got["evaluation"]["before"] == {"getsize": (folder / "net.onnx").stat().st_size}
    assert [p["metric"] for p in got["pareto"]] == [{"getsize": Path(p["model"]).stat().st_size} for p in got["pareto"]]
    with (folder / "curve" / "pareto.csv").open(newline="") as file:
        assert [float(r["getsize"]) for r in csv.DictReader(file)] == [p["metric"]["getsize"] for p in got["pareto"]]
    ran = cli("prune", folder / "net.onnx", *words, "--no-time", *FAST)
    assert ran.code == 0 and "getsize" in ran.out and "the dense model: getsize" in ran.out
    if importlib.util.find_spec("matplotlib") is not None:
        one, two = tmp_path / "1.png", tmp_path / "2.png"
        assert drawing.plot(got, one) == drawing.plot({**got, "evaluation": None}, two) == ""
        assert _height(one) == pytest.approx(2 * _height(two), rel=0.01)


def _height(png: Path) -> int:
    return int.from_bytes(png.read_bytes()[20:24], "big")


@pytest.mark.parametrize("more", [("-o", "x.onnx"), ("--plan", "p.json")])
def test_what_makes_no_sense_with_a_curve_is_refused(tmp_path: Path, more: tuple[str, str]) -> None:
    model = put(tmp_path / "net.onnx", cnn())
    refused(tmp_path, "prune", model, "--pareto", tmp_path / "curve", *more, says=more[0].replace("-o", "--output"))
    (tmp_path / "file").write_text("")
    refused(tmp_path, "prune", model, "--pareto", tmp_path / "file", *FAST, says="is no folder")
