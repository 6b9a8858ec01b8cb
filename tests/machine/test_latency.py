"""Latency of real models: predicted as measured, from their own profiles, from kept times, and from a table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import FLOAT, cli, cnn, model, put, rand, record, refused, tensor

from graphprune import Looking, analyse
from graphprune.analysis import Analysis
from graphprune.errors import TargetError, UsageError
from graphprune.machine import general, known
from graphprune.machine import profile as profiling
from graphprune.machine.cache import VARIABLE
from graphprune.machine.known import Known, know
from graphprune.machine.latency import Latency
from graphprune.machine.looked import look, owned
from graphprune.machine.profile import Profile, Timed
from graphprune.machine.table import Table, Where
from graphprune.machine.variants import Matching, widths
from graphprune.ops.workloads import Seen, workload
from graphprune.runtime import Runtime


def chain(channels: int = 64, layers: int = 4, size: int = 28) -> onnx.ModelProto:
    """Return convolutions one after the other."""
    shapes = [(channels, 3, 3, 3), *[(channels, channels, 3, 3)] * layers]
    arrays = [tensor(f"w{k}", rand(*shape, seed=k) / 8) for k, shape in enumerate(shapes)]
    names = ["x", *[f"r{k}" for k in range(layers + 1)]]
    nodes = []
    for k in range(layers + 1):
        nodes.append(onnx.helper.make_node("Conv", [names[k], f"w{k}"], [f"c{k}"], name=f"conv{k}", pads=[1] * 4))
        nodes.append(onnx.helper.make_node("Relu", [f"c{k}"], [f"r{k}"], name=f"relu{k}"))
    arrays.append(tensor("head", rand(10, channels, 1, 1)))
    nodes.append(onnx.helper.make_node("Conv", [names[-1], "head"], ["y"], name="head"))
    shape = ["batch", 3, size, size]
    return model(nodes, arrays, [("x", FLOAT, shape)], [("y", FLOAT, ["batch", 10, size, size])])


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep times in a folder of the test, and measure briefly."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kept"))
    monkeypatch.setattr(known, "_MEASURED", {"low": (5, 0.5), "medium": (5, 0.5), "high": (5, 0.5)})
    monkeypatch.setattr(known, "_SECONDS", 0.1)
    return tmp_path / "kept"


def say(text: str) -> None:
    pass


def test_every_width_is_found_in_the_profiles() -> None:
    """Sizes of all nodes are functions of the groups' sizes: they are right for a pruning that was not looked at."""
    analysis = analyse(chain())
    looked = look(analysis, 16, 6, 0.0, say)
    assert looked is not None and len(looked.variants) == 6
    assert {n.owner for n in looked.nodes} >= {"relu0", "relu3", "head"}
    rng = np.random.default_rng(5)
    sizes = {g.dim: int(rng.choice([16, 32, 48])) for g in analysis.coupling.groups}
    (profile,) = known.profiled(analysis, [sizes], 2, 0.0)
    assert profile is not None
    real = {n.key: workload(n.seen) for n in profile.nodes}
    for node in looked.nodes:
        assert node.workload(sizes) == real[node.key], node.key


def test_nodes_that_the_runtime_numbers_as_they_come_are_called_after_what_they_follow() -> None:
    """A change of layout that one variant lacks moves the numbers of all that come later."""
    seen, owners = Seen("Reorder", (), ()), {"conv": "c", "relu": "r"}
    names = {
        "first": ("conv:Conv", "Reorder:Reorder", "relu_nchwc:Relu", "Reorder_token_3:Reorder", "Reorder_4:Reorder"),
        "second": ("conv:Conv", "relu:Relu", "Reorder:Reorder", "Reorder_token_5:Reorder"),
    }
    found = {
        k: owned(Profile(tuple(Timed(n, replace(seen, operator=n.rpartition(":")[2]), 1.0) for n in v)), owners)
        for k, v in names.items()
    }
    keys = {k: [n.key for n in p.nodes] for k, p in found.items()}
    assert keys["first"][1] == "Reorder after c, 0"
    assert keys["first"][3:] == keys["second"][2:] == ["Reorder after r, 0", "Reorder after r, 1"]
    assert [n.owner for n in found["second"].nodes] == ["c", "r", "r", "r"]
    alone = owned(Profile((Timed("Reorder:Reorder", seen, 1.0),)), owners).nodes[0]
    assert alone.owner == alone.key  # nothing of the model was before it


def test_widths_of_variants_are_allowed_and_tell_groups_apart() -> None:
    coupling = analyse(chain()).coupling
    found = widths(coupling, 6, 16)
    assert found[0] == {} and all(n % 4 == 0 for v in found[1:] for n in v.values())
    columns = [tuple(v[g.dim] for v in found[1:]) for g in coupling.groups]
    assert len(set(columns)) == len(columns)
    matching = Matching(coupling, found)
    for g, column in zip(coupling.groups, columns, strict=True):
        sized = matching.sized([g.size, *column])
        assert sized is not None and sized.dims == (g.dim,) and sized({g.dim: 20}) == 20
        doubled = matching.sized([2 * n for n in (g.size, *column)])
        assert doubled is not None and doubled({g.dim: 20}) == 40
    assert matching.sized([7] * 6)({}) == 7 and matching.sized([1, 2, 3, 4, 5, 6]) is None  # type: ignore[misc]


def test_the_prediction_is_near_to_the_truth_and_is_kept(kept: Path) -> None:
    analysis = analyse(chain())
    first = know(analysis, 16, None, "low", say)
    assert first.latency.ns({}) == pytest.approx(known._dense_ns(analysis), rel=0.5)
    half = {g.dim: g.size // 2 for g in analysis.coupling.groups}
    assert 0.15 < first.latency.ns(half) / first.latency.ns({}) < 0.6  # a quarter of the work, and what is fixed
    costs = analysis.pricing(first.latency).costs
    assert costs(half).of("latency") == pytest.approx(first.latency.ns(half))
    (file,) = kept.iterdir()
    loaded = Table.load(file).records
    assert [r.loads for r in loaded] == [r.loads for r in first.table.records]
    assert [r.ns for r in loaded] == pytest.approx([r.ns for r in first.table.records], abs=0.1)
    again = know(analysis, 16, None, "low", say)
    assert again.table.where == first.table.where and not again.remarks


def test_kept_times_that_tell_all_are_taken(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analyse(chain())
    know(analysis, 16, None, "low", say)
    calls: list[float] = []

    def counted(*arguments: object) -> object:
        calls.append(arguments[3])  # type: ignore[arg-type]
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(known, "look", counted)
    know(analysis, 16, None, "low", say)
    assert calls == [0.0]


def test_a_spoilt_file_of_kept_times_is_told_and_replaced(kept: Path) -> None:
    analysis = analyse(chain(32, 2))
    know(analysis, 16, None, "low", say)
    (file,) = kept.iterdir()
    file.write_text("{")
    found = know(analysis, 16, None, "low", say)
    assert "ignored" in found.remarks[0] and Table.load(file).records


def test_another_machine_is_taken_at_its_word(tmp_path: Path) -> None:
    analysis = analyse(chain(32, 2))
    mine = know(analysis, 16, None, "low", say)
    slow = replace(mine.table.where, cpu="a slow one")
    table = Table(slow, tuple(replace(r, ns=10 * r.ns) for r in mine.table.records))
    table.save(tmp_path / "slow.json")
    found = know(analysis, 16, str(tmp_path / "slow.json"), "low", say)
    assert found.foreign and "a slow one" in found.remarks[0]
    assert 4 < found.latency.ns({}) / mine.latency.ns({}) < 25


def test_a_model_that_does_not_run_has_no_latency() -> None:
    def not_run(*_: object) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "look", not_run)
        with pytest.raises(UsageError, match="the model does not run"):
            know(analyse(cnn()), 16, None, "low", say)


def test_a_machine_is_profiled_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "_ROUNDS", 2)
    told = record("profile-machine", "-o", tmp_path / "m.json", "--seconds", "1")
    table = Table.load(tmp_path / "m.json")
    families = {r.family.split("/")[0] for r in table.records}
    assert told["records"] == len(table.records) > 50 and families >= {"Conv", "product of 4 bytes", "Softmax"}
    assert table.where == Where.here(Looking().runtime)
    refused(tmp_path, "profile-machine", "-o", tmp_path / "m.json", says="exists")
    refused(tmp_path, "profile-machine", "-o", tmp_path / "no" / "m.json", says="no such folder")


def test_a_target_of_latency_from_the_command_line(tmp_path: Path) -> None:
    net = put(tmp_path / "net.onnx", chain())
    options = ("--target", "latency=0.5", "--calibration", "off", "--align", "16")
    told = record("plan", net, *options)["plan"]["meta"]["speed"]
    assert told["asked"] == 2 and 1.94 <= told["measured"] < 2.5 and told["trials"]
    assert told["measured"] in [t["measured"] for t in told["trials"]]
    whole = record("plan", net, "--target", "latency=1", *options[2:])["plan"]
    assert not whole["groups"] and "speed" not in whole["meta"]
    refused(tmp_path, "plan", net, *options, "--machine", net, says="is not a table of a machine")
    refused(tmp_path, "plan", net, *options, "--machine", tmp_path / "no.json", says="cannot be read")


def test_another_machine_is_told_of_and_nothing_is_timed_for_it(tmp_path: Path) -> None:
    net = put(tmp_path / "net.onnx", chain(layers=8))
    here = know(analyse(net), 16, None, "low", say).table
    Table(replace(here.where, cpu="an edge device"), here.records).save(tmp_path / "edge.json")
    machine = ("--machine", tmp_path / "edge.json", "--calibration", "off", "--align", "4")
    text = cli("plan", net, "--target", "latency=0.7", *machine)
    assert text.code == 0 and "not timed there" in text.out, text.err
    assert "latency is that of another machine, as predicted: an edge device" in text.out
    speed = record("plan", net, "--speedup", "1.5", "--target", "memory=0.9", *machine)["plan"]["meta"]["speed"]
    assert speed["measured"] is None and not speed["trials"] and 1.5 <= speed["predicted"] < 1.7
    assert "not timed there" in cli("plan", net, "--speedup", "1.5", *machine).out
    refused(tmp_path, "plan", net, "--speedup", "2", "--target", "latency=0.5", says="say the same thing")


# ---- what profiles tell


@pytest.mark.parametrize(
    ("seen", "family", "loads"),
    [
        (Seen("Conv", ((4, (1, 8, 6, 6)), (4, (16, 1, 3, 3))), ((4, (1, 16, 3, 3)),)), "Conv/3x3/2/depthwise",
         (9 * 16 * 9, 4 * (288 + 144), 576)),
        (Seen("MatMul", ((4, (2, 5, 8)),), ((4, (2, 5, 3)),)), "product of 4 bytes/many", (240, 4 * 110, 96)),
        (Seen("MatMul", ((4, (5, 8)), (4, (8, 3))), ((4, (5, 3)),)), "product of 4 bytes/two", (120, 4 * 79, 0)),
        (Seen("Relu", ((4, (2, 3)),), ((4, (2, 3)),)), "Relu/2", (0, 48, 0)),
        (Seen("Unheard", (), ()), "Unheard/0", (0, 0, 0)),
        (Seen("Conv", ((4, ()),), ()), "Conv/0", (0, 4, 0)),
    ],
)  # fmt: skip
def test_workloads(seen: Seen, family: str, loads: tuple[float, float, float]) -> None:
    assert workload(seen).family == family and workload(seen).loads == loads


# ---- reaching a speed-up


class Fake:
    """A machine that is as fast as predicted, raised to a power: what trials measure."""

    def __init__(self, analysis: Analysis, latency: Latency, power: float) -> None:
        self.analysis, self.latency, self.power, self.timed = analysis, latency, power, 0

    def __call__(self, analysis: Analysis, plan: object) -> float:
        self.timed += 1
        sizes = plan.sizes_of(self.analysis.coupling)  # type: ignore[attr-defined]
        return float((self.latency.ns({}) / self.latency.ns(sizes)) ** self.power)


@pytest.mark.parametrize(("asked", "power"), [(1.5, 1.0), (2.0, 1.0), (2.0, 0.7), (1.5, 1.4), (2.5, 0.85)])
def test_a_speedup_is_reached_in_few_trials(asked: float, power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune import speed
    from graphprune.pipeline import Choosing, decider

    analysis = analyse(chain(layers=8))
    machine = know(analysis, 4, None, "low", say)
    monkeypatch.setattr(Known, "refined", lambda self, *_: self)
    fake = Fake(analysis, machine.latency, power)
    monkeypatch.setattr(speed, "measured", fake)
    choosing = Choosing(speedup=asked, align=4, allocation="global")
    decide = decider(analysis, choosing, None, say)
    budget = speed.Budget(targets={"latency": 1.0}, align=4, allocation="global")
    plan = speed.allocate_for_speed(analysis, decide, budget, asked, machine, say)
    assert 0.985 * asked <= fake(analysis, plan) <= 1.06 * asked
    assert fake.timed <= 7 and plan.meta["speed"]["trials"][0]["measured"] > 1
    with pytest.raises(TargetError, match="out of reach"):
        speed.allocate_for_speed(analysis, decide, budget, 500.0, machine, say)


def test_quick_models_are_run_in_a_row_and_slow_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a row find the weights of other models in the caches; a slow model empties its own."""
    order: list[str] = []

    def bound(name: str, feeds: dict[str, float]) -> Callable[[], None]:
        def once() -> None:
            order.append(name)
            time.sleep(feeds["seconds"])

        return once

    monkeypatch.setattr(profiling, "open_session", lambda name, runtime: name)
    monkeypatch.setattr(profiling, "bind", bound)
    monkeypatch.setattr(profiling._Opened, "profile", lambda self: Profile(()))
    models: list[Any] = [("quick", {"seconds": 1e-4}), ("slow", {"seconds": 0.03})]
    profiling.profiles(models, Runtime(), 100, 0.0)
    rows = [(name, len(list(found))) for name, found in groupby(order[4:])]
    assert order[4:].count("slow") == 5 and order[4:].count("quick") == 5 * 32
    assert all(n % 32 == 0 for name, n in rows if name == "quick")
