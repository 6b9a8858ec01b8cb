"""Measurements: the statistics on made-up timings, the mechanics on tiny models. No test waits for a real speed-up."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune import measure, memory
from graphprune.errors import RuntimeUnavailable, SessionError, UsageError
from graphprune.measure import (
    Comparison,
    Opening,
    Samples,
    Timing,
    compare_latency,
    interleaved,
    race,
    speedup_of,
)
from graphprune.memory import peak_memory_mb
from graphprune.runtime import Runtime, open_session

X = {"x": np.ones((1, 8), np.float32)}


def matrix_model(columns: int = 8, rows: int = 8) -> bytes:
    weight = numpy_helper.from_array(np.ones((rows, columns), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [weight],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())


def openings(rng: np.random.Generator, speedup: float, count: int = 6, session: float = 0.006) -> list[Opening]:
    """Timings of sessions that each have their own offset, `session`, and rounds that share a drift."""

    def pair(*offsets: float) -> tuple[Samples, Samples]:
        drift = 1 + 0.05 * np.sin(np.linspace(0, rng.uniform(1, 9), 60))
        one, other = (offset * drift * np.exp(rng.normal(0, 0.02, 60)) for offset in offsets)
        return one, other

    def opening() -> Opening:
        dense, again, pruned = np.exp(rng.normal(0, session, 3)) * [1.0, 1.0, 1 / speedup]
        return Opening(pair(dense, again), pair(dense, pruned))

    return [opening() for _ in range(count)]


def test_each_round_calls_everything_once_in_changing_order() -> None:
    calls: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    samples = interleaved({name: note(name) for name in "abc"}, seconds=0.0, warmup=1, min_rounds=20)
    assert {name: values.shape for name, values in samples.items()} == dict.fromkeys("abc", (20,))
    rounds = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert len(rounds) == 21
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) == 6


def test_samples_are_milliseconds_and_time_bounds_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]

    def work(milliseconds: int) -> Callable[[], None]:
        def step() -> None:
            clock[0] += milliseconds * 1_000_000

        return step

    fake = SimpleNamespace(perf_counter_ns=lambda: clock[0], perf_counter=lambda: clock[0] / 1e9)
    monkeypatch.setattr(measure, "time", fake)
    told = {"seconds": 1.0, "min_rounds": 5, "clock": fake.perf_counter_ns}
    samples = interleaved({"slow": work(30), "fast": work(10)}, **told)
    assert set(samples["slow"]) == {30.0} and set(samples["fast"]) == {10.0}
    assert len(samples["slow"]) == 25
    before = clock[0]
    interleaved({"very slow": work(10_000)}, warmup=3, **told)
    assert clock[0] - before == 6 * 10_000 * 1_000_000, "a slow model is warmed up once"


def test_nothing_to_time_and_errors_passed_on() -> None:
    assert interleaved({}) == {}
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 // 0})


def test_timing_sums_up() -> None:
    timing = Timing.from_samples(np.arange(1, 102, dtype=np.float64))
    assert timing == Timing(median_ms=51.0, p10_ms=11.0, p90_ms=91.0, p99_ms=100.0, rounds=101)
    assert Timing.from_samples(np.ones(99)).p99_ms is None
    with pytest.raises(UsageError, match="no timings to sum up"):
        Timing.from_samples(np.array([]))


def test_speedup_is_the_ratio_of_the_medians_shown() -> None:
    rng = np.random.default_rng(0)
    comparison = Comparison.from_openings(openings(rng, 1.7))
    assert comparison.before.rounds == 360 and comparison.after.rounds == 360
    assert comparison.speedup == comparison.before.median_ms / comparison.after.median_ms
    assert comparison.speedup == pytest.approx(1.7, rel=0.03)
    assert comparison.significant and comparison.noise_band < 0.05
    slower = Comparison.from_openings(openings(rng, 0.8))
    assert slower.significant and slower.speedup < 1


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("session", [0.0, 0.003, 0.02])
def test_identical_models_are_hardly_ever_called_different(count: int, session: float) -> None:
    """With one opening the offsets of the sessions have a single witness, so only rounds can be held to 95 %."""
    rng = np.random.default_rng(1)
    false_claims = sum(Comparison.from_openings(openings(rng, 1.0, count, session)).significant for _ in range(200))
    assert false_claims <= (10 if count > 1 or session == 0 else 70)


def test_a_gain_is_seen_once_it_exceeds_the_band() -> None:
    rng = np.random.default_rng(2)
    claims = sum(Comparison.from_openings(openings(rng, 1.05)).significant for _ in range(100))
    assert claims >= 95


def test_twins_that_differ_widen_the_band() -> None:
    flat = np.full(20, 10.0)
    noisy = [Opening((flat * (1 + 0.1 * (-1) ** i), flat), (flat, flat / 1.02)) for i in range(6)]
    comparison = Comparison.from_openings(noisy)
    assert comparison.noise_band > 0.05 and not comparison.significant
    exact = Comparison.from_openings([Opening((flat, flat), (flat, flat / 1.02))] * 6)
    assert exact.noise_band == pytest.approx(0, abs=1e-9) and exact.significant


def test_band_of_a_single_opening_holds_the_whole_difference_of_the_twins() -> None:
    flat = np.full(20, 10.0)
    comparison = Comparison.from_openings([Opening((flat * 1.03, flat), (flat, flat))])
    assert comparison.noise_band == pytest.approx(0.03)
    assert math.isinf(Comparison.from_openings([Opening((flat[:1], flat[:1]), (flat[:1], flat[:1] / 2))]).noise_band)
    with pytest.raises(UsageError, match="open the models at least once"):
        Comparison.from_openings([])


def test_student_is_tabled_and_bounded() -> None:
    assert measure._student(1) == 12.706 and measure._student(6) == 2.447
    assert measure._student(1000) == measure._student(10) > 1.96


def test_compare_opens_the_sessions_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned = matrix_model(8), matrix_model(4)
    opened: list[bool] = []

    def noted(source: bytes, runtime: Runtime) -> object:
        opened.append(source == pruned)
        return open_session(source, runtime)

    monkeypatch.setattr(measure, "open_session", noted)
    comparison = compare_latency(dense, pruned, X, X, Runtime(), seconds=0.3)
    assert len(opened) == 18 and sum(opened) == 6
    assert [sum(opened[position::3]) for position in range(3)] == [2, 2, 2]
    assert comparison.before.rounds == comparison.after.rounds >= 60
    assert 0 < comparison.noise_band < math.inf


def _noting(order: list[str], name: str, milliseconds: float) -> Callable[[], None]:
    def run() -> None:
        order.append(name)
        time.sleep(milliseconds / 1e3)

    return run


def test_only_two_models_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third one between them would take from the caches what only the larger misses."""
    order: list[str] = []
    monkeypatch.setattr(measure, "_opened", lambda entry, runtime: _noting(order, entry[0], entry[1]["ms"]))
    models: list[Any] = [("dense", {"ms": 2.0}), ("half", {"ms": 1.0}), ("quarter", {"ms": 0.5})]
    _, half, quarter = race(models, Runtime(), seconds=0.0)
    assert 1.5 < half.speedup < 2.5 < quarter.speedup < 5
    others = [name for name in order[4:] if name != "dense"]  # after the first look at each
    assert others == ["half"] * others.count("half") + ["quarter"] * others.count("quarter")
    assert others.count("half") == others.count("quarter") == order[-2 * others.count("quarter"):].count("dense") > 10


def test_faster_is_the_ratio_without_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(measure, "_opened", lambda entry, runtime: _noting(order, entry[0], entry[1]["ms"]))
    models: list[Any] = [("dense", {"ms": 2.0}), ("half", {"ms": 1.0})]
    assert 1.5 < speedup_of(*models, Runtime(), 0.0, time.perf_counter_ns) < 2.5
    assert order.count("dense") == order.count("half") > 10


def test_compare_opens_once_what_is_slow_to_open() -> None:
    assert compare_latency(matrix_model(), matrix_model(), X, X, Runtime(), seconds=0.0).after.rounds == 10


def test_compare_takes_feeds_of_their_own() -> None:
    narrow = {"x": np.ones((1, 4), np.float32)}
    assert compare_latency(matrix_model(), matrix_model(8, rows=4), X, narrow, Runtime(), seconds=0.0).speedup > 0
    with pytest.raises(SessionError, match="Got: 8 Expected: 4"):
        compare_latency(matrix_model(), matrix_model(8, rows=4), X, X, Runtime(), seconds=0.0)


def test_a_race_compares_all_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bytes] = []

    def noted(source: bytes, runtime: Runtime) -> object:
        opened.append(source)
        return open_session(source, runtime)

    monkeypatch.setattr(measure, "open_session", noted)
    models = [matrix_model(8), matrix_model(4), matrix_model(2)]
    first, *others = race([(m, X) for m in models], Runtime(), seconds=0.3)
    assert len(opened) == 32 and [opened.count(m) for m in models] == [16, 8, 8]
    assert {opened[k::4].count(models[2]) for k in range(4)} == {2}
    assert first.speedup == 1 and not first.significant and 0 < first.noise_band < math.inf
    assert first.before == first.after and all(c.before.rounds == c.after.rounds >= 60 for c in others)
    (alone,) = race([(models[0], X)], Runtime(), seconds=0.0)
    assert alone.after.rounds == 10 and alone.noise_band > 0
    with pytest.raises(UsageError, match="nothing to time"):
        race([], Runtime())


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_orders_are_fair(count: int) -> None:
    orders = measure._orders(count)
    assert len(orders) >= 6
    for place in range(count):
        assert {sum(o[place] == k for o in orders) for k in range(count)} == {len(orders) // count}


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@LINUX
def test_peak_memory_sees_the_model_and_not_the_parent(tmp_path: Path) -> None:
    ballast = np.ones(40_000_000, np.float64)  # a peak that the child must not inherit
    path = tmp_path / "large.onnx"
    path.write_bytes(matrix_model(columns=2048, rows=2048))
    megabytes = peak_memory_mb(path, {"x": np.ones((1, 2048), np.float32)}, Runtime())
    assert ballast.size and megabytes is not None
    assert 16 < megabytes < 150, "the weight alone takes 16.8 MB"


@LINUX
def test_peak_memory_takes_bytes_and_types_numpy_lacks() -> None:
    x, y = (helper.make_tensor_value_info(n, k, [2]) for n, k in (("x", TensorProto.BFLOAT16), ("y", 1)))
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=1)], "g", [x], [y])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    assert peak_memory_mb(model, {"x": np.ones(2, ml_dtypes.bfloat16)}, Runtime()) is not None


@LINUX
def test_peak_memory_passes_on_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SessionError, match=r"^onnxruntime cannot open .*nowhere\.onnx"):
        peak_memory_mb(tmp_path / "nowhere.onnx", X, Runtime())
    with pytest.raises(RuntimeUnavailable, match="'npu9' is not available"):
        peak_memory_mb(matrix_model(), X, Runtime(provider="npu9"))
    monkeypatch.setattr(memory, "_CHILD", "raise SystemExit('out of luck')")
    with pytest.raises(SessionError, match="ended with status 1: out of luck"):
        peak_memory_mb(matrix_model(), X, Runtime())


def test_peak_memory_is_unknown_where_the_platform_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_peak_bytes", lambda: None)
    assert peak_memory_mb(matrix_model(), X, Runtime()) is None
