"""State that goes in and out of a model: pinned, or free where input and output change together."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from oracles import Net, subsets
from small import FAST, cli, put, record, refused

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.axes import UNIT
from graphprune.errors import PlanError, UsageError
from graphprune.execute import evaluate, relative_error
from graphprune.lively import lively
from graphprune.options import Looking
from graphprune.prove import permutations, prove
from graphprune.rewrite import arranged, masked, rearranged
from graphprune.states import pairs

NAMES = [  # one row for each way of naming: an input, its output
    ("past_key_values.0.key", "present.0.key"), ("past_key_values.3.encoder.value", "present.3.encoder.value"),
    ("past_key_values.0.key", "present_key_values.0.key"), ("past_0_k", "present_0_k"), ("past", "present"),
    ("past_key_self_0", "present_key_self_0"), ("past_conv.0", "present_conv.0"), ("h_in", "h_out"),
    ("decoder.in", "decoder.out"), ("cache_in", "cache_out"), ("in_cache_0", "out_cache_0"),
    ("input_states_1", "output_states_1"), ("h0", "hn"), ("lstm_c0", "lstm_cn"), ("h_0", "h_n"), ("h", "hn"),
    ("state", "stateN"), ("state", "new_state"), ("state", "state_out"), ("state0", "stateN"),
    ("prev_state", "next_state"), ("hidden", "hidden_out"), ("cached_key_0", "new_cached_key_0"),
    ("cache_last_channel", "cache_last_channel_next"), ("mems_3", "new_mems_3"), ("r1i", "r1o"),
    ("state_in", "state"), ("hiddenIn", "hiddenOut"), ("init_h", "final_h"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), NAMES)
def test_the_two_ends_of_a_state_are_found_by_name(before: str, after: str) -> None:
    assert pairs(["input_ids", before, "memory"], ["logits", after]) == {before: after}


def test_whole_sets_of_names() -> None:
    caches = [f"{n}.{x}" for n in range(12) for x in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *[f"past_key_values.{c}" for c in caches]]
    outputs = ["logits", *[f"present.{c}" for c in caches]]
    assert pairs(inputs, outputs) == {f"past_key_values.{c}": f"present.{c}" for c in caches}
    assert pairs(["input", "state", "sr"], ["output", "stateN"]) == {"state": "stateN"}
    assert pairs(["x", "h", "c"], ["y", "hn", "cn"]) == {"h": "hn", "c": "cn"}


@pytest.mark.parametrize(
    ("before", "after"), [("input", "output"), ("x", "y"), ("input.1", "output.1"), ("image", "logits"), ("in", "out")]
)
def test_other_names_are_no_pairs(before: str, after: str) -> None:
    assert pairs([before], [after]) == {}


def recurrent(names: tuple[str, str] = ("past_h", "present_h"), batch: Any = None, width: int = 8) -> Net:
    """h' = tanh(x A + h B), y = h' C: the state h goes in and out."""
    net = Net()
    x, h = net.input("x", [batch, 5]), net.input(names[0], [batch, width])
    both = net("Add", net.matmul(x, 5, 8, name="a"), net.matmul(h, width, 8, name="b"))
    state = net("Tanh", both)
    y = net.matmul(state, 8, 3, name="c")
    net.nodes.append(onnx.helper.make_node("Identity", [state], [names[1]], name="carry"))
    return net.output(y, names[1])


def attention() -> Net:
    """One step of attention with 4 heads of 6 and a cache of keys and values, of open length."""
    net = Net()
    x = net.input("x", [None, 1, 10])
    parts = {}
    for n in "qkv":
        rows = net("Reshape", net.matmul(x, 10, 24, name=f"w{n}"), net.ints(0, 0, 4, 6))
        parts[n] = net("Transpose", rows, perm=[0, 2, 1, 3])
    for n in "kv":
        past = net.input(f"past.0.{n}", ["batch", 4, "past", 6])
        joined = net("Concat", past, parts[n], axis=2)
        net.nodes.append(onnx.helper.make_node("Identity", [joined], [f"present.0.{n}"], name=f"keep_{n}"))
        parts[n] = joined
    scores = net("MatMul", parts["q"], net("Transpose", parts["k"], perm=[0, 1, 3, 2]))
    mixed = net("MatMul", net("Softmax", scores, axis=-1), parts["v"])
    flat = net("Reshape", net("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, 24))
    return net.output(net.matmul(flat, 24, 7, name="wo"), "present.0.k", "present.0.v")


def looked(net: Net, *patterns: str) -> Analysis:
    return analyse(net.model(), Looking(allow_io=patterns, adapters=False))


def reasons(analysis: Analysis) -> dict[str, str]:
    return {place: reason for place, reason, _ in analysis.coupling.pins()}


def judged(analysis: Analysis) -> Analysis:
    """Judge a coupling with free inputs and outputs by both oracles."""
    coupling, reference = analysis.coupling, analysis.reference
    proof = prove(analysis.model, coupling, reference)
    assert proof.passed and proof.groups == len(coupling.groups) > 0, proof
    for thin in (False, True):
        chosen = subsets(coupling, thin)
        plain = {g.dim: chosen[g.dim] for g in coupling.groups if not g.normalised}
        zeroed, pruned = masked(analysis.model, coupling, plain), rearranged(analysis.model, coupling, plain)
        for feed in reference.feeds:
            expected = arranged(evaluate(zeroed, feed), coupling, plain)
            found = evaluate(pruned, arranged(feed, coupling, plain))
            assert relative_error(expected, found)[0] < 1e-4
    return analysis


def test_state_is_pinned_unless_it_is_allowed() -> None:
    analysis = looked(recurrent())
    assert reasons(analysis)["b:0"] == "graph input" and reasons(analysis)["b:1"] == "graph output"
    assert analysis.coupling.groups == () and analysis.coupling.graph.ports == ()


def test_allowed_state_is_one_dim_in_and_out() -> None:
    analysis = judged(looked(recurrent(), "past*", "present*"))
    (group,) = analysis.coupling.groups
    assert {(o.initializer, o.axis) for o in group.occurrences} == {("a", 1), ("b", 0), ("b", 1), ("c", 0)}
    values = analysis.coupling.graph.values
    ends = [analysis.coupling.expand(values[n].axes[1]) for n in ("past_h", "present_h")]
    assert ends == [group.dim, group.dim]


@pytest.mark.parametrize("names", [("h0", "hn"), ("state", "stateN"), ("in_s", "out_s"), ("memory", "another")])
def test_other_names(names: tuple[str, str]) -> None:
    """Names that do not pair are two states for all that is known: the two ends may differ."""
    analysis = judged(looked(recurrent(names), *names))
    paired = names[0] != "memory"
    assert len(analysis.coupling.groups) == (1 if paired else 2)
    assert [p.counterpart for p in analysis.coupling.graph.ports] == ([names[1], names[0]] if paired else [None, None])


@pytest.mark.parametrize(("pattern", "other"), [("past*", "present_h"), ("present*", "past_h")])
def test_one_end_alone_stays_pinned(pattern: str, other: str) -> None:
    analysis = looked(recurrent(), pattern)
    assert analysis.coupling.groups == ()
    assert f"its counterpart {other!r} is not allowed to change" in " ".join(reasons(analysis).values())


def test_ends_of_other_sizes_stay_pinned() -> None:
    analysis = looked(recurrent(width=6), "past*", "present*")
    assert reasons(analysis)["b:0"] == "graph input: its counterpart 'present_h' has another size there"
    assert analysis.coupling.groups == ()


def test_ends_of_other_ranks_stay_pinned() -> None:
    net = Net()
    h = net.input("past_h", [2, 8])
    z = net.matmul(h, 8, 6, name="w")
    net.nodes.append(onnx.helper.make_node("Unsqueeze", [z, net.ints(0)], ["present_h"], name="up"))
    analysis = looked(net.output("present_h"), "*")
    assert "no such axis" in reasons(analysis)["w:0"] and "no such axis" in reasons(analysis)["w:1"]


def test_open_sizes_stay_pinned() -> None:
    coupling = looked(recurrent(), "*").coupling
    for name in ("past_h", "present_h", "x"):
        axis = coupling.expand(coupling.graph.values[name].axes[0])
        assert "an open size" in coupling.solution.pins[axis][0]  # type: ignore[index]
    assert coupling.group("a:0") is not None


def test_any_input_or_output_can_be_allowed() -> None:
    """An input without a counterpart and an output without one: a colour less, a class less."""
    net = Net()
    h = net("Relu", net.conv(net.input("image", [None, 4, 6, 6]), 4, 8, name="a"))
    net.output(net.conv(h, 8, 6, name="b"))
    analysis = judged(looked(net, "image", net.outputs[0].name))
    assert {g.name: g.size for g in analysis.coupling.groups} == {"a:0": 8, "a:1": 4, "b:0": 6}


def test_heads_of_a_cache() -> None:
    free, pinned = judged(looked(attention(), "past*", "present*")).coupling, looked(attention()).coupling
    sizes = {g.name: g.size for g in free.groups}
    assert sizes == {"wq:1.0": 4, "wq:1.1": 6, "wv:1.1": 6}
    assert pinned.groups == () and pinned.coverage < free.coverage == 1.0
    axes = [free.expand(a) for a in free.graph.values["past.0.k"].axes]
    assert axes[1] is free.dims[axes[1]].dim and free.dims[axes[1]].name == "wq:1.0"  # type: ignore[index]
    assert axes[0] is not UNIT and axes[0] not in free.dims and axes[2] not in free.dims


def test_sizes_that_are_read_from_the_state_at_run_time() -> None:
    """The number of heads and their width come from the cache's shape, not from constants."""
    net = Net()
    x = net.input("x", [None, 1, 10])
    past = net.input("past_v", ["batch", 4, "past", 6])
    sizes = net("Shape", past)
    head, width = (net("Gather", sizes, net.ints(k), axis=0) for k in (1, 3))
    rows = net("Reshape", net.matmul(x, 10, 24, name="w"), net("Concat", net.ints(0), head, net.ints(1), width, axis=0))
    joined = net("Concat", past, rows, axis=2)
    net.nodes.append(onnx.helper.make_node("Identity", [joined], ["present_v"], name="keep"))
    total = net("ReduceSum", joined, net.ints(2), keepdims=0)
    flat = net("Reshape", total, net("Concat", net.ints(0), net("Mul", head, width), axis=0))
    net.output(net.matmul(flat, 24, 3, name="v"), "present_v")
    coupling = judged(looked(net, "past_v", "present_v")).coupling
    assert {g.name: g.size for g in coupling.groups} == {"w:1.0": 4, "w:1.1": 6}


def test_a_missed_pair_is_caught() -> None:
    """The proof is one: where only the input is shuffled, not what reads it, outputs differ."""
    analysis = looked(recurrent(), "past*", "present*")
    coupling = analysis.coupling
    orders = permutations(coupling.groups, 0)
    (feed, *_), (dense, *_) = analysis.reference.feeds, analysis.reference.plain
    permuted = rearranged(analysis.model, coupling, orders)
    right = evaluate(permuted, arranged(feed, coupling, orders))
    assert relative_error(arranged(dense, coupling, orders), right)[0] < 1e-5
    assert relative_error(dense, right)[0] > 0.1  # the state comes out in another order
    assert relative_error(arranged(dense, coupling, orders), evaluate(permuted, feed))[0] > 0.01


def test_the_copy_with_random_weights_has_the_same_ends() -> None:
    analysis = looked(recurrent(), "past*", "present*")
    made = lively(analysis.model, analysis.coupling, 1.0)
    assert made is not None and [g.size for g in made[1].groups] == [8]
    assert made[1].graph.ports == analysis.coupling.graph.ports


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    return put(tmp_path / "cached.onnx", attention().model())


ALLOW = ("--allow-io", "past*", "--allow-io", "present.0.*")


def test_what_the_border_keeps_is_told(cached: Path) -> None:
    before, after = record("inspect", cached), record("inspect", cached, *ALLOW)
    assert before["coverage"] == 0 and before["border"]["coverage"] == after["border"]["coverage"] > 0.9
    assert {"past.0.k", "present.0.k"} <= set(before["border"]["names"])
    assert not {"past.0.k", "present.0.k"} & set(after["border"]["names"])
    line = next(x for x in cli("inspect", cached).out.splitlines() if "may change" in x)
    command = before["border"]["command"]
    assert line.endswith(command) and "--allow-io past.0.k" in command
    found = record(*shlex.split(command)[1:])
    assert found["coverage"] == pytest.approx(before["border"]["coverage"], abs=0.01)
    assert found["border"]["command"] is None and found["border"]["options"] == ""


def test_names_that_look_like_patterns_are_quoted(tmp_path: Path) -> None:
    net = attention()
    for proto in (*net.inputs, *net.outputs):
        proto.name = proto.name.replace("past.0.k", "past[0] k")
    for node in net.nodes:
        node.input[:] = [n.replace("past.0.k", "past[0] k") for n in node.input]
    path = put(tmp_path / "a model.onnx", net.model())
    border = record("inspect", path)["border"]
    assert "past[0] k" in border["names"]
    found = record(*shlex.split(border["command"])[1:])
    assert found["coverage"] == pytest.approx(border["coverage"], abs=0.01)


def test_pruning_tells_of_the_border(tmp_path: Path) -> None:
    """An embedding is put out as wide as it is; only the layer before it is free."""
    net = Net()
    x = net("Relu", net.matmul(net.input("x", [None, 6]), 6, 8, name="a"))
    y = net.matmul(x, 8, 64, name="b")
    z = net.matmul(y, 64, 40)
    path = put(tmp_path / "m.onnx", net.output(y, z).model())
    given = (path, "--sparsity", "0.05", "--align", "1", "--allow-io", "x")
    told = record("plan", *given)["border"]
    assert told["options"] == f"--allow-io x --allow-io {y} --allow-io {z}"
    line = next(x for x in cli("plan", *given).out.splitlines() if "may change" in x)
    assert line.endswith(told["options"]) and line.startswith("17.9% of the weights lie on a group, 100.0%")
    assert record("plan", *given, "--allow-io", y, "--allow-io", z)["border"] is None


def test_commands_free_the_state_and_say_so(cached: Path, tmp_path: Path) -> None:
    assert record("inspect", cached)["state"] == [] and record("inspect", cached)["groups"] == []
    found = record("inspect", cached, *ALLOW)
    assert [s["name"] for s in found["state"]] == ["past.0.k", "past.0.v", "present.0.k", "present.0.v"]
    first = found["state"][0]
    assert first["shape"] == [None, 4, None, 6] and first["counterpart"] == "present.0.k" and first["side"] == "input"
    assert first["groups"] == {"1": ["wq:1.0"], "3": ["wq:1.1"]} and set(first["pinned"]) == {"0", "2"}
    assert "?x4x?x6" in cli("inspect", cached, *ALLOW).out
    assert "coupled" not in cli("explain", cached, "wk:1", "past.0.k:3", *ALLOW).out
    proof = record("prove", cached, *ALLOW)
    assert proof["passed"] and proof["groups"] == 3 and proof["max_relative_error"] > 0
    planned = record("plan", cached, "--sparsity", 0.5, "--align", 1, *ALLOW)
    out = tmp_path / "out.onnx"
    pruned = record("prune", cached, "--sparsity", 0.5, "--align", 1, "-o", out, "--seconds", 0.1, *ALLOW)
    assert planned["state"] == pruned["state"] and pruned["proof"]["passed"] and pruned["speedup"]
    changed = {s["name"]: (s["before"], s["after"]) for s in pruned["state"]}
    assert changed["past.0.k"] == changed["present.0.v"] == ([None, 4, None, 6], [None, 2, None, 3])
    stated = {v.name: v.type.tensor_type.shape for v in onnx.load(out).graph.input}
    assert [d.dim_value or d.dim_param for d in stated["past.0.k"].dim] == ["batch", 2, "past", 3]
    text = cli("prune", cached, "--sparsity", 0.5, "--align", 1, "-o", out, *ALLOW, *FAST).out
    assert "inputs and outputs of other sizes" in text and "?x2x?x3" in text
    assert "?x2x?x3" in cli("plan", cached, "--sparsity", 0.5, "--align", 1, *ALLOW).out


def test_the_state_of_the_pruned_model_can_be_fed_back(cached: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert cli("prune", cached, "--sparsity", 0.5, "--align", 1, "-o", out, *ALLOW, *FAST).code == 0
    model = ir.load(out)
    feed: dict[str, Any] = {n: np.zeros((1, 2, 0, 3), np.float32) for n in ("past.0.k", "past.0.v")}
    for length in (1, 2, 3):
        got = evaluate(model, {"x": np.ones((1, 1, 10), np.float32), **feed})
        feed = {f"past.0.{n}": got[f"present.0.{n}"] for n in "kv"}
        assert feed["past.0.k"].shape == (1, 2, length, 3)


def test_a_plan_says_what_it_frees_and_is_replayed(cached: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    how = ("--sparsity", 0.5, "--align", 1)
    assert cli("plan", cached, "-o", plan, *how, *ALLOW, "--calibration", "off").code == 0
    assert json.loads(plan.read_text())["meta"]["allow_io"] == ["past*", "present.0.*"]
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert cli("prune", cached, "--plan", plan, "-o", a, *FAST).code == 0
    assert cli("prune", cached, "-o", b, *how, *ALLOW, *FAST).code == 0
    assert a.read_bytes() == b.read_bytes()
    again = graphprune.prune(cached, plan=plan, time=False)
    assert again.report["state"] and again.plan.allow_io == ("past*", "present.0.*")
    data = json.loads(plan.read_text())
    data["meta"]["allow_io"] = "past*"
    plan.write_text(json.dumps(data))
    refused(tmp_path, "prune", cached, "--plan", plan, "-o", a, "--force", *FAST, says="allow_io")
    with pytest.raises(PlanError, match="allow_io"):
        graphprune.prune(cached, plan=plan, time=False)
    data["meta"]["allow_io"] = []
    plan.write_text(json.dumps(data))
    refused(tmp_path, "prune", cached, "--plan", plan, "-o", a, "--force", *FAST, says="is not in the model")


def test_in_python(cached: Path) -> None:
    result = graphprune.prune(cached, 0.5, align=1, allow_io=["past*", "present*"], time=False)
    assert len(result.report["state"]) == 4 and result.report["proof"]["passed"]
    with pytest.raises(graphprune.GraphPruneError):
        graphprune.prune(cached, 0.5, align=1, time=False)
    with pytest.raises(UsageError, match="fits no input or output"):
        graphprune.analyse(cached, Looking(allow_io=("pst*",)))


def test_a_pattern_that_fits_nothing_is_refused(cached: Path, tmp_path: Path) -> None:
    for command in ("inspect", "prove", "plan"):
        more = ("--sparsity", 0.5) if command == "plan" else ()
        refused(tmp_path, command, cached, "--allow-io", "state*", *more, says="'past.0.k'")


def test_an_output_of_a_wrong_size_is_refused(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes may differ just where they are allowed, and only to what the plan says."""
    from graphprune import validated
    from graphprune.errors import ValidationError

    def unsliced(arrays: Any, coupling: Any, chosen: Any) -> Any:
        return arrays if "present.0.k" in arrays else arranged(arrays, coupling, chosen)

    monkeypatch.setattr(validated, "arranged", unsliced)
    with pytest.raises(ValidationError, match=r"sizes differ from the dense model's: present\.0\.k, present\.0\.v"):
        graphprune.prune(cached, 0.5, align=1, allow_io="*.0.*", time=False)


def test_models_of_other_state_sizes_are_compared(cached: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert cli("prune", cached, "--sparsity", 0.5, "--align", 1, "-o", out, *ALLOW, *FAST).code == 0
    got = record("compare", cached, out, "--seconds", 0.1)
    assert got["other_sizes"] == {"inputs": ["past.0.k", "past.0.v"], "outputs": ["present.0.k", "present.0.v"]}
    assert 0 < got["max_relative_difference"] < 10 and got["after"]["macs"] < got["before"]["macs"]
    text = cli("compare", cached, out, "--seconds", 0.1).out
    assert "smaller inputs get the leading part: past.0.k" in text and "not compared: present.0.k" in text
    assert len(record("bench", cached, out, "--seconds", 0.1)["models"]) == 2
    refused(tmp_path, "compare", out, cached, "--seconds", 0.1, says="give the larger model first")
    shape = ("--input-shape", "past.0.k:1,4,5,6", "--input-shape", "past.0.v:1,4,5,6")
    assert record("compare", cached, out, "--seconds", 0.1, *shape)["other_sizes"]["inputs"]


def test_a_speedup_with_state(cached: Path, tmp_path: Path) -> None:
    """Trials are run on sliced inputs; whether the speed is reached does not matter here."""
    ran = cli("prune", cached, "--speedup", 1.01, "--align", 1, "-o", tmp_path / "o.onnx", *ALLOW, *FAST)
    assert ran.code == 0 or "out of reach" in ran.err, ran.err


def test_state_that_is_not_allowed_stays_pinned_beside_one_that_is() -> None:
    """The keys' width may change, the values' may not; the heads are shared, so they may not either."""
    analysis = looked(attention(), "past.0.k", "present.0.k")
    coupling = analysis.coupling
    assert {p.name for p in coupling.graph.ports} == {"past.0.k", "present.0.k"}
    for name in ("past.0.v", "present.0.v", "x"):
        for axis in coupling.graph.values[name].axes:
            assert coupling.expand(axis) not in coupling.dims
    assert {g.name: g.size for g in judged(analysis).coupling.groups} == {"wq:1.1": 6}
