"""What is pinned, by which operator and why: shares that add up, and a ranking over many models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from oracles import Net, solved
from small import cli, cnn, model, put, rand, record, refused, tensor

from graphprune import pins
from graphprune.groups import Coupling
from graphprune.pins import EXPECTED, PinShare, halves, plain_reason, rank, shares, survey


def coupled(net: Net) -> Coupling:
    return solved(net)[1]


def by_cause(found: list[PinShare]) -> dict[tuple[str, str], float]:
    return {(p.operator, p.reason): p.share for p in found}


def adds_up(coupling: Coupling) -> list[PinShare]:
    found = shares(coupling)
    assert sum(p.share for p in found) == pytest.approx(1 - coupling.coverage, abs=1e-12)
    assert found == sorted(found, key=lambda p: -p.share)
    return found


def test_a_weight_that_is_pinned_on_both_axes_counts_half_for_each() -> None:
    """30 of 30 elements: rows by the input, columns by the output."""
    net = Net()
    coupling = coupled(net.output(net.matmul(net.input("x", [None, 5]), 5, 6, name="w")))
    assert by_cause(adds_up(coupling)) == {("(graph)", "graph input"): 0.5, ("(graph)", "graph output"): 0.5}


def test_operators_without_a_rule_are_named() -> None:
    net = Net()
    x = net.matmul(net.input("x", [None, 4]), 4, 6, name="a")
    x = net("Mystery", x, domain="made.up")
    net.output(net.matmul(net("Relu", x), 6, 3, name="b"))
    found = adds_up(coupled(net))
    mystery = next(p for p in found if p.operator == "made.up.Mystery")
    assert mystery.reason == "no axis rule for made.up.Mystery"
    assert mystery.share == pytest.approx((24 / 2) / 42) and (mystery.weights, mystery.example) == (1, "a")


def test_parts_of_an_axis_fall_to_what_pins_each() -> None:
    """An axis (4 + 2): the last two slots leave the graph, the first four are free, so only those two count."""
    net = Net()
    y = net.matmul(net.input("x", [None, 5]), 5, 6, name="w")
    a, b = net("Split", y, net.ints(4, 2), n=2, axis=-1)
    net.output(net.matmul(a, 4, 3, name="v"), b)
    found = adds_up(coupled(net))
    assert by_cause(found) == pytest.approx(
        {("(graph)", "graph output"): (5 * 2 / 2) / 42, ("(graph)", "graph input"): (5 * 2 / 2) / 42}
    )


def test_factors_of_an_axis_share_its_slots() -> None:
    """An axis (3 2) pinned by the graph's output on one factor and by an operator on the other."""
    net = Net()
    y = net("Reshape", net.matmul(net.input("x", [None, 1]), 1, 6, name="w"), net.ints(-1, 3, 2))
    y = net("CumSum", y, net.const(np.asarray(2)))
    net.output(net("ReduceSum", y, net.ints(2), keepdims=0))
    found = by_cause(adds_up(coupled(net)))
    assert set(found) == {("(graph)", "graph output"), ("CumSum", "a running sum depends on the order")}
    assert all(share == pytest.approx(0.5) for share in found.values())


def test_single_indices_count_only_where_nothing_else_is_pinned() -> None:
    """An axis (2 5), of which one index is kept and one thrown away: all is the output's."""
    net = Net()
    y = net("Reshape", net.matmul(net.input("x", [None, 1]), 1, 10, name="w"), net.ints(-1, 2, 5))
    coupling = coupled(net.output(net("Gather", y, net.ints(0), axis=1)))
    assert by_cause(adds_up(coupling)) == {("(graph)", "graph output"): 1.0}


def test_kernel_positions_count_only_where_nothing_else_is_pinned() -> None:
    net = Net()
    coupling = coupled(net.output(net.conv(net.input("x", [None, 3, 6, 6]), 3, 4, 3, name="w", bias=False)))
    assert by_cause(adds_up(coupling)) == {("(graph)", "graph input"): 0.5, ("(graph)", "graph output"): 0.5}
    alone = Net()
    coupling = coupled(alone.output(alone.conv(alone.input("x", [None, 1, 6, 6]), 1, 1, 3, name="w", bias=False)))
    (only,) = adds_up(coupling)
    assert only.reason.startswith(EXPECTED) and only.share == 1.0


def test_single_numbers_have_nothing_to_choose() -> None:
    net = Net()
    coupling = coupled(net.output(net("Mul", net.input("x", [None, 4]), net.const(np.asarray(2.5), name="two"))))
    assert [(p.operator, p.share, p.example) for p in adds_up(coupling)] == [("(graph)", 1.0, "two")]


def test_no_weights_no_shares() -> None:
    net = Net()
    coupling = coupled(net.output(net("Relu", net.input("x", [None, 4]))))
    assert shares(coupling) == [] and halves(coupling) == [] and coupling.coverage == 0.0


def test_half_prunable_weights() -> None:
    """The first matrix has a free output axis; its input axis is the graph's: 24 of 42 elements. The second: 18."""
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 4]), 4, 6, name="a"))
    coupling = coupled(net.output(net.matmul(x, 6, 3, name="b")))
    assert shares(coupling) == [] and coupling.coverage == 1.0
    assert by_cause(halves(coupling)) == pytest.approx(
        {("(graph)", "graph input"): 24 / 42, ("(graph)", "graph output"): 18 / 42}
    )


def test_reasons_lose_names_and_numbers() -> None:
    assert plain_reason("graph input: its counterpart 'h' has another size there") == "graph input"
    assert plain_reason("the rule does not fit this node (KeyError)") == "the rule does not fit this node (KeyError)"


def test_inspect_shows_shares(net: Path) -> None:
    plain, told = record("inspect", net), record("inspect", net, "--pin")
    assert "pin_shares" not in plain
    assert sum(p["share"] for p in told["pin_shares"]) == pytest.approx(1 - told["coverage"])
    assert told["half_prunable"][0]["reason"] in ("graph input", "graph output")
    assert told == {**record("inspect", net, "--pins"), "seconds": told["seconds"]}
    text = cli("inspect", net, "--pin").out
    assert "pinned weights" in text and "prunable by another axis only" in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model that is free, one that is pinned, one without weights, and one that is broken."""
    place = tmp_path / "models"
    (place / "deep").mkdir(parents=True)
    put(place / "free.onnx", cnn())
    put(place / "none.onnx", model([helper.make_node("Relu", ["x"], ["y"])], [], [("x", 1, [2])], [("y", 1, [2])]))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Odd", ["h"], ["y"], domain="made.up")]
    odd = model(
        nodes, [tensor("w", rand(8, 4))], [("x", 1, ["n", 8])], [("y", 1, ["n", 4])],
        opsets=[helper.make_opsetid("made.up", 1)],
    )
    put(place / "deep" / "odd.onnx", odd)
    (place / "broken.onnx").write_bytes(b"nonsense")
    return place


def test_a_folder_is_ranked(folder: Path) -> None:
    got = record("pins", folder)
    models = {Path(m["path"]).name: m for m in got["models"]}
    assert set(models) == {"free.onnx", "none.onnx", "odd.onnx", "broken.onnx"}
    assert models["free.onnx"]["coverage"] > 0.9 and models["odd.onnx"]["coverage"] == 0.0
    assert models["none.onnx"]["coverage"] is None and not models["none.onnx"]["error"]
    assert models["broken.onnx"]["error"] and "\n" not in models["broken.onnx"]["error"]
    ranked = {o["operator"]: o for o in got["operators"]}
    assert ranked["made.up.Odd"]["models"] == 1 and ranked["made.up.Odd"]["worst"].endswith("odd.onnx")
    assert ranked["made.up.Odd"]["mean_share"] == pytest.approx(0.25)  # half of one of the two models with weights
    means = [o["mean_share"] for o in got["operators"]]
    assert means == sorted(means, reverse=True)
    assert got["median_coverage"] == got["mean_coverage"] == pytest.approx(models["free.onnx"]["coverage"] / 2)
    assert len(record("pins", folder, "--top", 1)["operators"]) == 1


def test_a_folder_in_words(folder: Path) -> None:
    ran = cli("pins", folder)
    assert ran.code == 0 and "operators that pin weights" in ran.out and "made.up.Odd" in ran.out
    assert ran.out.count("not read: ") == 1 and "no weights" in ran.out and "coverage: median" in ran.out
    assert cli("pins", folder, "-q").out == ""
    assert "made.up.Odd" not in cli("pins", folder / "free.onnx", "--top", 1).out


def test_files_and_folders_may_be_mixed(folder: Path) -> None:
    got = record("pins", folder / "free.onnx", folder, folder / "deep" / "odd.onnx")
    assert len(got["models"]) == 4 and got["models"][0]["path"].endswith("free.onnx")
    assert record("pins", folder / "none.onnx")["median_coverage"] is None
    assert cli("pins", folder / "none.onnx").code == 0
    assert record("pins", folder / "broken.onnx")["models"][0]["error"]


def test_no_models_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "pins", tmp_path / "empty", says="no .onnx files")
    refused(tmp_path, "pins", tmp_path / "nowhere", says="no such file")
    assert cli("pins").code == 2


def test_a_mistake_of_ours_does_not_hide_the_other_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = pins._look

    def broken(path: Path) -> pins.ModelPins:
        if path.name == "odd.onnx":
            raise RuntimeError("a\nmistake")
        return look(path)

    monkeypatch.setattr(pins, "_look", broken)
    seen: list[str] = []
    found = survey([folder / "deep" / "odd.onnx", folder / "free.onnx"], seen.append)
    assert found[0].error == "internal error: RuntimeError: a mistake" and found[1].coverage
    assert seen == ["odd.onnx", "free.onnx"]


def test_ranks_count_models_in_which_an_operator_pins_nothing() -> None:
    def one(name: str, *parts: tuple[str, float]) -> pins.ModelPins:
        found = tuple(PinShare(operator, "why", 1, share, "w") for operator, share in parts)
        return pins.ModelPins(Path(name), 1 - sum(s for _, s in parts), 10, found)

    models = [one("a", ("X", 0.5)), one("b", ("Y", 0.3), ("X", 0.1)), one("c"), pins.ModelPins(Path("d"), error="no")]
    (x, y) = rank(models)
    assert (x.operator, x.models, x.worst, x.worst_share) == ("X", 2, "a", 0.5) and x.mean_share == pytest.approx(0.2)
    assert (y.operator, y.models) == ("Y", 1) and y.mean_share == pytest.approx(0.1)
    assert rank([]) == [] and pins.middle([]) is None
