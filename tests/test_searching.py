"""Search with real models: candidates lose what repaired models lose, and plans get better at no higher cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import layered
import numpy as np
import pytest
from layered import keeping, known, pruned_of
from oracles import Net

from graphprune import assembled, confirming, repair, searching, speed
from graphprune.accuracy import Deciding, deciding
from graphprune.allocate import Budget
from graphprune.analysis import silent
from graphprune.assembled import Candidates, compared, mapped, readouts
from graphprune.calibrate.samples import Feed
from graphprune.costs import CostModel
from graphprune.errors import TargetError
from graphprune.execute import session
from graphprune.machine.counted import Counted
from graphprune.machine.latency import Latency
from graphprune.machine.mixed import Mixed
from graphprune.plan import PruningPlan
from graphprune.quality import Comparison, Divergence, check_feeds, searching_feeds, together, told_feeds
from graphprune.reconstruct.mend import mend
from graphprune.repair import divergences
from graphprune.runtime import Runtime, run


def deep() -> Net:
    """A chain of convolutions and a classifier."""
    net = Net()
    x, inputs = net.input("x", [None, 3, 8, 8]), 3
    for k, width in enumerate((16, 24, 24, 16)):
        x = net("Relu", net.conv(x, inputs, width, 3, name=f"w{k}", pads=[1] * 4))
        inputs = width
    out = net.gemm(net("Flatten", net("ReduceMean", x, axes=[2, 3], keepdims=0)), inputs, 6, name="head")
    return net.output(net("Mul", out, net.const(np.float32(3e-4))))


@pytest.fixture(scope="module")
def decide() -> Deciding:
    analysis, learnt = known(deep(), 320)
    return deciding(analysis, replace(learnt, effort="high"), (2, True), silent)


def budget(share: float = 0.3) -> Budget:
    return Budget(targets={"macs": share, "params": 0.5}, allocation="error", align=2)


def test_a_candidate_loses_what_a_repaired_model_loses(decide: Deciding, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, learnt = decide.analysis, decide.known
    monkeypatch.setattr(assembled, "_WIDEST", 0)  # outputs as they are
    feeds = searching_feeds(learnt, 3)
    chosen = keeping(analysis, 0.5)
    candidates = Candidates(analysis, learnt, lambda levels: chosen, compared(analysis, feeds), 1e9)
    pruned = pruned_of(analysis, chosen)
    mend(analysis.model, pruned, analysis.coupling, chosen, learnt, mode="symmetric")
    left, right = session(analysis.model, Runtime()), session(pruned, Runtime())
    expected = Comparison()
    for feed in feeds:
        expected.add(run(left, feed), run(right, feed), feed)
    assert candidates((0,), 3) == pytest.approx(sum(d.loss for d in expected.divergences()), rel=1e-3)
    assert candidates((0,), 1) != candidates((0,), 3)


def test_an_affine_map_takes_back_what_one_can_take_back() -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((200, 5)).astype(np.float32)
    pruned = (dense - 0.3) @ np.linalg.inv(np.eye(5) + rng.uniform(-0.2, 0.2, (5, 5)))
    found = readouts([({"y": dense}, {"y": pruned.astype(np.float32)}, {})])
    assert np.abs(pruned - dense).max() > 0.3
    assert np.abs(mapped(pruned, found["y"]) - dense).max() < 0.1
    likely = np.exp(dense) / np.exp(dense).sum(1, keepdims=True)
    assert not readouts([({"y": likely}, {"y": likely[::-1]}, {})])  # probabilities stay what they are
    assert not readouts([({"y": dense[:20]}, {"y": pruned[:20]}, {})])  # too few rows
    mask = np.ones((10, 20), np.int64)
    mask[:, 15:] = 0
    wrong = np.where(mask[..., None] > 0, pruned.reshape(10, 20, 5), 1e6)
    feed: Feed = {"attention_mask": mask}
    padded = readouts([({"y": dense.reshape(10, 20, 5)}, {"y": wrong}, feed)])["y"]
    assert np.abs(padded).max() < 10


def test_large_outputs_are_thinned_to_rows_of_real_tokens(decide: Deciding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembled, "_ENTRIES", 6 * 7)
    monkeypatch.setattr(assembled, "_IN_MEMORY", 0)
    (feed, *_) = searching_feeds(decide.known, 1)
    (one,) = compared(decide.analysis, [feed])
    (name,) = one.dense
    rows = one.rows[name]
    whole = run(session(decide.analysis.model, Runtime()), feed)
    assert rows is not None and len(rows) == 7 and list(one.folder.path.glob("*.npy"))
    np.testing.assert_allclose(one.dense[name], whole[name][rows], atol=1e-5)
    np.testing.assert_array_equal(one.thinned(whole)[name], whole[name][rows])
    mask = np.zeros((10, 20), np.int64)
    mask[:, :3] = 1
    drawn = assembled._rows(np.zeros((10, 20, 6), np.float32), {"attention_mask": mask}, 0)
    assert drawn is not None and mask.ravel()[drawn].all()


def test_samples_that_results_are_told_by_are_not_searched_on(decide: Deciding) -> None:
    searched = [f["x"].tobytes() for f in searching_feeds(decide.known, 10**6)]
    told = [f["x"].tobytes() for f in told_feeds(decide.known)]
    checked = [f["x"].tobytes() for f in check_feeds(decide.known)]
    assert searched and told and not set(searched) & set(told)
    assert checked and not set(checked) & {*searched, *told}


def test_a_plan_gets_better_at_no_higher_cost(decide: Deciding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(searching.MOST, "high", 24)
    heard: list[str] = []
    plan = decide(budget())
    better = searching.searched(decide, budget(), decide.analysis.costs, heard.append)
    told = better.meta["search"]
    assert 16 <= told["evaluations"] <= 24 and told["samples"] > 0 and told["after"] < told["before"]
    assert better.keep != plan.keep and set(better.meta) - set(plan.meta) == {"search"}
    analysis = decide.analysis
    after = analysis.costs(better.sizes_of(analysis.coupling))
    assert after.macs <= 0.3 * analysis.dense.macs and after.parameters <= 0.5 * analysis.dense.parameters
    assert any("of 24 candidates" in text for text in heard)
    again = searching.searched(decide, budget(), decide.analysis.costs, silent)
    assert again.keep == better.keep and again.meta["search"] == told


def test_the_last_word_is_with_samples_that_nothing_is_fitted_to(
    decide: Deciding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That state of a path is taken that loses least once it is repaired as results are, but apart from those."""
    heard: list[str] = []
    mild, harsh = (0,), (1,)
    repaired: list[bool] = []

    def mended(*asked: Any) -> None:
        repaired.append(asked[3].apart)
        repair.mended(*asked)

    monkeypatch.setattr(confirming, "mended", mended)

    def taken(*path: tuple[int, ...], work: float = 3e13) -> int:
        models = [keeping(decide.analysis, share) for share in (0.75, 0.25)]
        heard.clear()
        repaired.clear()
        return confirming.settled(decide, path, lambda levels: models[levels[0]], (3, work), heard.append)

    assert taken(mild, harsh) == 0
    assert len(heard) == 2 and all("repairing model" in text for text in heard) and repaired == [True, True]
    assert taken(harsh, harsh, mild) == 2
    assert taken(mild) == 0 and not heard
    assert taken(mild, harsh, work=0.0) == 1 and not heard  # nothing may be repaired to see: candidates' word counts
    look = repair.look_work(decide.analysis, decide.known)
    assert taken(mild, harsh, work=5 * look) == 0 and len(heard) == 2 and not repaired  # refitted, as candidates are
    monkeypatch.setattr(repair, "_CORRECTIONS", {"high": (0, 0)})
    assert taken(mild, harsh) == 0 and taken(harsh, mild) == 1 and len(heard) == 2 and not repaired


@pytest.mark.parametrize("order", [False, True])
def test_samples_that_check_fits_are_kept_apart_where_that_is_asked_for(order: bool) -> None:
    """A layer with more columns than there are samples loses nothing of those that it is fitted to."""
    net = Net()
    hidden = net("Relu", net.gemm(net.input("x", [None, 48]), 48, 64, name="w"))
    head = net("Mul", net.gemm(hidden, 64, 6, name="head"), net.const(np.float32(1e-2)))
    analysis, learnt = known(net.output(head), 40)
    chosen = keeping(analysis, 0.5)

    feeds = list(check_feeds(learnt))

    def lost(apart: bool) -> float:
        """Return what is lost of the samples that check fits."""
        asked = replace(learnt, apart=apart)
        if not order:
            return Candidates(analysis, asked, lambda levels: chosen, compared(analysis, feeds), 1e9)((0,), len(feeds))
        pruned = pruned_of(analysis, chosen)
        repair.mended(analysis, pruned, chosen, asked, "high")
        return together(divergences(analysis, pruned, chosen, feeds))

    assert 0 < lost(apart=False) < 0.8 * lost(apart=True)


@pytest.mark.parametrize("effort", ["low", "medium"])
def test_only_high_effort_searches(effort: str, decide: Deciding) -> None:
    quick = replace(decide, known=replace(decide.known, effort=effort))
    assert "search" not in searching.searched(quick, budget(), decide.analysis.costs, silent).meta


def test_what_is_not_decided_by_error_is_not_searched(decide: Deciding) -> None:
    same = Budget(sparsity=0.5, align=2)
    assert "search" not in searching.searched(decide, same, decide.analysis.costs, silent).meta


def test_all_kinds_of_layers_are_candidates() -> None:
    for kind in ("heads", "lstm", "joined", "grouped"):
        analysis, learnt = known(layered.KINDS[kind](), 80)
        made: dict[str, Any] = {"analysis": analysis, "known": learnt}
        feeds = searching_feeds(made["known"], 2)
        chosen = keeping(analysis, 0.5)
        found = Candidates(analysis, learnt, lambda levels, c=chosen: c, compared(analysis, feeds), 0)  # type: ignore[misc]
        assert np.isfinite(found((1,), 2)) and found((1,), 2) > 0, kind


@dataclass(frozen=True)
class Known:
    """What is known of a machine, as far as the search asks."""

    latency: Any
    foreign: bool
    remarks: tuple[str, ...] = ()
    table: Any = field(default_factory=lambda: SimpleNamespace(where="here"))

    def refined(self, analysis: Any, sizes: Any) -> Known:
        return self


@pytest.fixture
def sped(decide: Deciding, monkeypatch: pytest.MonkeyPatch) -> tuple[Deciding, PruningPlan, Budget]:
    """Return what decides, a plan made for a latency, and the budget that is searched within."""
    monkeypatch.setitem(searching.MOST, "high", 24)
    asked = Budget(targets={"latency": 1.0}, allocation="error", align=2)
    costs = CostModel(decide.analysis.coupling, (Counted(),))
    return decide, decide.counting(costs)(replace(asked, targets={"latency": 0.3})), asked


def latency_of(decide: Deciding, plan: PruningPlan) -> float:
    costs = CostModel(decide.analysis.coupling, (Counted(),))
    return costs(plan.sizes_of(decide.analysis.coupling)).of("latency") / costs({}).of("latency")


def test_a_better_plan_that_is_as_fast_is_taken(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, plan, asked = sped
    timed: list[PruningPlan] = []
    monkeypatch.setattr(speed, "measured", lambda analysis, made: timed.append(made) or 3.4)
    better = searching.faster(decide, plan, asked, (3.3, Known(Counted(), False)), silent)
    assert len(timed) == 1 and better.keep == timed[0].keep != plan.keep
    assert better.meta["search"]["after"] < better.meta["search"]["before"]
    assert latency_of(decide, better) <= latency_of(decide, plan) * (1 + 1e-5)


def test_a_better_plan_that_is_too_slow_is_made_for_less_time_and_then_given_up(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, plan, asked = sped
    timed: list[PruningPlan] = []
    monkeypatch.setattr(speed, "measured", lambda analysis, made: timed.append(made) or 2.8)
    assert searching.faster(decide, plan, asked, (3.3, Known(Counted(), False)), silent) is plan
    first, second = (latency_of(decide, made) for made in timed)
    assert second <= latency_of(decide, plan) * 2.8 / 3.3 * (1 + 1e-5) < first


def test_for_another_machine_nothing_is_timed(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, plan, asked = sped
    monkeypatch.setattr(speed, "measured", lambda analysis, made: pytest.fail("timed"))
    assert "search" in searching.faster(decide, plan, asked, (3.3, Known(Counted(), True)), silent).meta
    quick = replace(decide, known=replace(decide.known, effort="low"))
    assert searching.faster(quick, plan, asked, (3.3, Known(Counted(), True)), silent) is plan


def test_the_dense_model_runs_once_for_all_comparisons(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, plan, asked = sped
    decide = replace(decide, known=replace(decide.known))  # that remembers nothing yet
    monkeypatch.setattr(speed, "measured", lambda analysis, made: 0.99 / latency_of(decide, made))
    ran: list[int] = []
    monkeypatch.setattr(searching, "compared", lambda a, feeds: ran.append(len(feeds)) or compared(a, feeds))
    machine = Known(Counted(), False)
    worse = replace(plan, keep={**plan.keep, **{name: kept[: len(kept) // 2] for name, kept in plan.keep.items()}})
    better = searching.less_lost(decide, worse, asked, (3.3, machine), silent)
    found = searching.faster(decide, better, asked, (3.3, machine), silent)
    assert better.keep != worse.keep and "search" in found.meta, "both have compared"
    assert len(ran) == 1 and ran[0] > 1


def test_half_of_a_mixed_price_is_time_and_half_multiply_accumulates(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, plan, asked = sped
    latency = Latency((), {}, fixed=100.0)  # time that no width changes
    costs = CostModel(decide.analysis.coupling, (Mixed(latency),))
    fraction = latency_of(decide, plan)
    assert costs({}).of("latency") == pytest.approx(1.0)
    assert costs(plan.sizes_of(decide.analysis.coupling)).of("latency") == pytest.approx(0.5 + 0.5 * fraction)

    asked_for: list[str] = []

    def made(*args: Any) -> PruningPlan:
        asked_for.append(args[4].latency.by)
        if asked_for[-1] == "macs":
            raise TargetError("out of reach")
        return plan

    monkeypatch.setattr(speed, "allocate_for_speed", made)
    worse = replace(plan, keep={**plan.keep, **{name: kept[: len(kept) // 2] for name, kept in plan.keep.items()}})
    assert searching.less_lost(decide, worse, asked, (3.3, Known(latency, False)), silent) is plan
    assert asked_for == ["macs", "latency and macs"]


def test_of_two_plans_as_fast_the_one_that_loses_less_is_taken(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, plan, asked = sped
    monkeypatch.setattr(speed, "measured", lambda analysis, made: 0.99 / latency_of(decide, made))
    machine = Known(Counted(), False)
    worse = replace(plan, keep={**plan.keep, **{name: kept[: len(kept) // 2] for name, kept in plan.keep.items()}})
    better = searching.less_lost(decide, worse, asked, (3.3, machine), silent)
    assert better.keep != worse.keep and better.meta["speed"]["by"] == "macs"
    assert 3.2 <= better.meta["speed"]["trials"][-1]["measured"] <= 3.5
    whole = replace(plan, keep={}, sizes={})
    assert searching.less_lost(decide, whole, asked, (3.3, machine), silent) is whole
    assert searching.less_lost(decide, worse, asked, (1e6, machine), silent) is worse  # out of reach
    monkeypatch.setattr(speed, "measured", lambda analysis, made: pytest.fail("timed"))
    for known_ in (replace(decide.known, effort="low"), decide.known):
        foreign = known_ is decide.known
        quick = replace(decide, known=known_)
        assert searching.less_lost(quick, worse, asked, (3.3, Known(Counted(), foreign)), silent) is worse


@pytest.mark.parametrize(("gain", "taken"), [(0.5, True), (0.05, False)])
def test_a_gain_that_may_be_chance_changes_no_plan(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch, gain: float, taken: bool
) -> None:
    """Of 16 samples that lose about 1 more or less, by turns, the standard error is a quarter."""
    decide, plan, asked = sped
    monkeypatch.setattr(speed, "measured", lambda analysis, made: 0.99 / latency_of(decide, made))

    def outputs(self: Candidates, levels: tuple[int, ...], samples: int) -> list[Divergence]:
        each = 3 + levels[0] * (np.tile([-1.0, 1.0], 8) - gain)
        return [Divergence("y", 1.0, 0.0, float(each.mean()), 0.0, each)]

    monkeypatch.setattr(Candidates, "outputs", outputs)
    worse = replace(plan, keep={**plan.keep, **{name: kept[: len(kept) // 2] for name, kept in plan.keep.items()}})
    better = searching.less_lost(decide, worse, asked, (3.3, Known(Counted(), False)), silent)
    assert (better is worse) is not taken


@pytest.mark.parametrize(("limits", "samples"), [
    ({}, 256), ({"_PLANS": 0.0}, 32), ({"_KEPT": 96 * 6}, 96), ({"_PLANS": 64.0}, 64),
])  # fmt: skip
def test_a_few_plans_are_compared_on_more_samples_than_many_candidates(
    sped: tuple[Deciding, PruningPlan, Budget], monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], samples: int
) -> None:
    """Of outputs with many rows, as far as work and memory permit; the work is in runs of the dense model here."""
    decide, plan, asked = sped
    decide = replace(decide, known=replace(decide.known))
    monkeypatch.setattr(searching, "_TOKENS", 32)
    monkeypatch.setattr(searching, "macs_of_sample", lambda analysis, known: 1.0)
    for name, limit in limits.items():
        monkeypatch.setattr(searching, name, limit)
    monkeypatch.setattr(speed, "measured", lambda analysis, made: 0.99 / latency_of(decide, made))
    ran: list[int] = []
    monkeypatch.setattr(searching, "compared", lambda a, feeds: ran.append(len(feeds)) or compared(a, feeds))
    worse = replace(plan, keep={**plan.keep, **{name: kept[: len(kept) // 2] for name, kept in plan.keep.items()}})
    searching.less_lost(decide, worse, asked, (3.3, Known(Counted(), False)), silent)
    assert ran == [min(samples, 224) // decide.known.batch]  # 320 samples, seven of ten of which are fitted to


@pytest.mark.parametrize("feeds", [lambda known: searching_feeds(known, 3), check_feeds, told_feeds])
def test_decisions_and_figures_are_of_the_callers_own_samples(decide: Deciding, feeds: Any) -> None:
    """Every second sample is made from the one before it: another distribution, which nobody asks about."""
    made = replace(decide.known.samples, each=2)
    halves, whole = list(feeds(replace(decide.known, samples=made))), list(feeds(decide.known))
    assert halves and len(halves) == len(whole)
    for half, both in zip(halves, whole, strict=True):
        np.testing.assert_array_equal(half["x"], both["x"][::2])
