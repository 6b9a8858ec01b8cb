"""Pruning plans: text form, refusals, and how they meet a model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import PlanError, UsageError
from graphprune.groups import Coupling, couple
from graphprune.model import load
from graphprune.normalize import normalize
from graphprune.plan import PruningPlan, ranges
from graphprune.sizes import choose
from graphprune.trace import trace


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    """Two convolutions and a classifier: groups a:0 of size 8 and b:0 of size 6."""
    rng = np.random.default_rng(0)
    weights = {"a": (8, 3, 3, 3), "b": (6, 8, 1, 1), "c": (5, 6)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="conv_a"),
        helper.make_node("Conv", ["h", "b"], ["i"], name="conv_b"),
        helper.make_node("GlobalAveragePool", ["i"], ["j"], name="pool"),
        helper.make_node("Flatten", ["j"], ["k"], name="flatten"),
        helper.make_node("Gemm", ["k", "c"], ["y"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = normalize(load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])))
    return couple(trace(model, choose(model, {})))


def plan_of(**keep: tuple[int, ...]) -> PruningPlan:
    sizes = {"a": 8, "b": 6}
    return PruningPlan({}, {f"{k}:0": v for k, v in keep.items()}, {f"{k}:0": sizes[k] for k in keep})


groups = st.dictionaries(
    st.text(max_size=12),
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))),
    max_size=6,
)


@given(groups)
def test_text_and_back_is_the_same_plan(tmp_path_factory: pytest.TempPathFactory, found: dict) -> None:
    plan = PruningPlan(
        {"name": "n", "macs": 12},
        {name: tuple(sorted(kept)) for name, (_, kept) in found.items()},
        {name: size for name, (size, _) in found.items()},
        {"criterion": "l2", "budget": {"targets": {"macs": 0.5}}},
    )
    assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    path = tmp_path_factory.mktemp("plan") / "p.json"
    plan.save(path)
    assert PruningPlan.load(path) == plan
    assert list(PruningPlan.load(path).keep) == list(plan.keep)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_are_shortest(kept: set[int]) -> None:
    text = ranges(sorted(kept))
    runs = sum(i - 1 not in kept for i in kept)
    assert text.count(",") + 1 == runs
    assert "-" not in text or len(kept) > runs


def test_text_has_one_group_a_line_and_is_plain_json() -> None:
    text = plan_of(a=(0, 1, 2, 5), b=(4,)).text()
    lines = [line.strip() for line in text.splitlines()]
    assert '"a:0": {"size": 8, "keep": "0-2,5"},' in lines
    assert '"b:0": {"size": 6, "keep": "4"}' in lines
    assert json.loads(text) == plan_of(a=(0, 1, 2, 5), b=(4,)).to_json()


def test_bypassed_branches_are_a_field_that_may_be_absent(tmp_path: Path) -> None:
    plan = PruningPlan({}, {"a:0": (0, 1)}, {"a:0": 8}, {}, ("/add/1", "/add/2"))
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert json.loads(plan.text())["bypass"] == ["/add/1", "/add/2"]
    assert "bypass" not in plan_of(a=(0, 1)).to_json() and PruningPlan.from_json(plan_of().to_json()).bypass == ()


@pytest.mark.parametrize("names", ["conv", [1], ["a", "a"], {}], ids=str)
def test_bypass_is_a_list_of_names(names: object) -> None:
    with pytest.raises(PlanError, match="'bypass' is not a list of names"):
        PruningPlan.from_json({**plan_of().to_json(), "bypass": names})


def test_a_branch_that_is_not_there_is_refused(coupling: Coupling) -> None:
    with pytest.raises(PlanError, match=r"branch '/add' is not in the model: it was made for another model"):
        PruningPlan({}, {}, {}, {}, ("/add",)).chosen(coupling)


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    plan_of(a=(1,)).save(path)
    assert PruningPlan.load(path) == plan_of(a=(1,))
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_saving_into_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        plan_of(a=(1,)).save(tmp_path / "none" / "plan.json")


def test_named_changes_the_header_only() -> None:
    plan = plan_of(a=(1,))
    assert plan.named("net").model["name"] == "net"
    assert plan.named("net").keep == plan.keep


def broken(**changes: object) -> str:
    data = {**plan_of(a=(0, 1)).to_json(), **changes}
    return json.dumps({k: v for k, v in data.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (broken(groups=None), "no field 'groups'"),
        (broken(extra=1), "unknown field 'extra'"),
        (broken(format="graphprune plan 9"), "'graphprune plan 9'"),
        (broken(meta=[]), "'meta' is not an object"),
        (broken(groups={"a:0": {"size": 8}}), "'a:0' is not an object with the fields"),
        (broken(groups={"a:0": {"size": True, "keep": "0"}}), "size True"),
        (broken(groups={"a:0": {"size": 10**12, "keep": "0-99"}}), "size 1000000000000"),
        (broken(groups={"a:0": {"size": 8, "keep": [0]}}), "must be text"),
        (broken(groups={"a:0": {"size": 8, "keep": ""}}), "keeps nothing"),
        (broken(groups={"a:0": {"size": 8, "keep": "0-8"}}), "out of range"),
        (broken(groups={"a:0": {"size": 8, "keep": "5-3"}}), "out of range"),
        (broken(groups={"a:0": {"size": 8, "keep": "1,1"}}), "index 1 twice"),
        (broken(groups={"a:0": {"size": 8, "keep": "3,1"}}), "out of order"),
        (broken(groups={"a:0": {"size": 8, "keep": "0-3,2-5"}}), "out of order"),
        (broken(groups={"a:0": {"size": 8, "keep": "-1"}}), "neither an index nor a range"),
        (broken(groups={"a:0": {"size": 8, "keep": "0,,1"}}), "neither an index nor a range"),
        (broken(groups={}).replace('"groups"', '"meta": {}, "groups"'), "'meta' is there twice"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        PruningPlan.load(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        PruningPlan.load(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="not text"):
        PruningPlan.load(tmp_path / "b.json")


def test_chosen_maps_names_to_dims(coupling: Coupling) -> None:
    plan = plan_of(a=(0, 3, 7), b=(2,))
    chosen = plan.chosen(coupling)
    found = {coupling.dims[d].name: kept for d, kept in chosen.items()}
    assert {name: kept.tolist() for name, kept in found.items()} == {"a:0": [0, 3, 7], "b:0": [2]}
    assert all(kept.dtype == np.int64 for kept in found.values())
    assert {coupling.dims[d].name: n for d, n in plan.sizes_of(coupling).items()} == {"a:0": 3, "b:0": 1}


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (PruningPlan({}, {"a:1": (0,)}, {"a:1": 8}), "'a:1' is not in the model: did you mean 'a:0'"),
        (PruningPlan({}, {"backbone": (0,)}, {"backbone": 8}), "another model"),
        (PruningPlan({}, {"a:0": (0,)}, {"a:0": 16}), "'a:0' has size 16, in the model 8"),
        (PruningPlan({}, {"a:0": (0,)}, {}), "'a:0' has size None"),
        (PruningPlan({}, {"a:0": (0, 8)}, {"a:0": 8}), "index 8, which is out of range"),
        (PruningPlan({}, {"a:0": (-1,)}, {"a:0": 8}), "out of range"),
        (PruningPlan({}, {"a:0": (2, 2)}, {"a:0": 8}), "index 2 twice"),
        (PruningPlan({}, {"b:0": (1,), "a:0": ()}, {"a:0": 8, "b:0": 6}), "'a:0' keeps nothing"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(coupling: Coupling, plan: PruningPlan, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan.chosen(coupling)
    assert says in str(caught.value)
