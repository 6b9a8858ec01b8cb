"""Mixtures of experts: whole experts as a dim, where the positions that a router answers with only pick experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net, check, solved

from graphprune.allocate import Budget, allocate
from graphprune.costs import CostModel
from graphprune.errors import PlanError
from graphprune.plan import PruningPlan
from graphprune.score import score

D, E, H, K = 8, 6, 5, 2


class Router:
    """Tokens of width D, a router over E experts, and what it picks."""

    def __init__(self, opset: int = 17, k: int = K, softmax: bool = True) -> None:
        self.net = net = Net(opset)
        self.x = net.matmul(net.input("x", [None, "s", 7]), 7, D, name="in")
        logits = net("Add", net.matmul(self.x, D, E, name="router"), net.weight(E, name="router.b"))
        self.p = net("Softmax", logits) if softmax else logits
        operands, attributes = ([net.ints(k)], {}) if opset >= 10 else ([], {"k": k})
        self.values, self.indices = net("TopK", self.p, *operands, n=2, **attributes)

    def experts(self, gates: str) -> Net:
        """Evaluate all experts, `b s e d`, and add them up by gates `b s e`."""
        net = self.net
        h = net("Relu", net("Einsum", self.x, net.weight(E, H, D, name="up"), equation="bsd,ehd->bseh"))
        y = net("Add", net("Einsum", h, net.weight(E, D, H, name="down"), equation="bseh,edh->bsed"),
                net.weight(E, D, name="down.b"))
        return self.out(net("Einsum", y, gates, equation="bsed,bse->bsd"))

    def out(self, y: str) -> Net:
        return self.net.output(self.net.matmul(self.net("Add", self.x, y), D, 3, name="out"))

    def check(self, net: Net, **expected: Any) -> None:
        free = {"router:1": str(E), "up:0": str(E), "down:0": str(E)}
        got = check(net, groups=3, free={**free, "up:1": str(H), **expected.pop("free", {})}, **expected)
        assert got.group("router:1") is got.group("up:0") is got.group("down:0")
        group = got.coupling.dims[got.group("router:1")]
        assert group.least == K
        assert group.normalised


def test_dense_mixture() -> None:
    """All experts, weighted: nothing is picked."""
    r = Router()
    got = check(r.experts(r.p), groups=3, free={"router:1": "6", "up:0": "6"})
    assert got.group("router:1") is got.group("up:0")


@pytest.mark.parametrize("zeros", ["made", "constant"])
def test_gates_scattered(zeros: str) -> None:
    """Zeros with the picked gates scattered over them."""
    r = Router()
    empty = r.net("ConstantOfShape", r.net("Shape", r.p)) if zeros == "made" else None
    empty = empty or r.net("Sub", r.p, r.p)
    r.check(r.experts(r.net("ScatterElements", empty, r.indices, r.values, axis=-1)))


@pytest.mark.parametrize("depth", ["scalar", "vector", "run time"])
def test_one_hot(depth: str) -> None:
    r = Router()
    net = r.net
    number = net.const(E) if depth == "scalar" else net.ints(E)
    if depth == "run time":
        number = net("Gather", net("Shape", r.p), net.ints(2))
    hot = net("Mul", net("OneHot", r.indices, number, net.const([0.0, 1.0])), net("Unsqueeze", r.values, net.ints(-1)))
    r.check(r.experts(net("ReduceSum", hot, net.ints(2), keepdims=0)))


@pytest.mark.parametrize("places", ["constant", "node", "range", "column"])
def test_equal_to_places(places: str) -> None:
    """A one-hot row written as a comparison with 0, 1, 2 ..."""
    r = Router()
    net = r.net
    made = {
        "constant": lambda: net.const(np.arange(E)),
        "node": lambda: net.const(np.arange(E), node=True),
        "range": lambda: net("Range", net.const(0), net.const(E), net.const(1)),
        "column": lambda: net("Unsqueeze", net("Range", net.const(0), net.const(E), net.const(1)), net.ints(0)),
    }[places]()
    hot = net("Cast", net("Equal", net("Unsqueeze", r.indices, net.ints(-1)), made), to=1)
    hot = net("Mul", hot, net("Unsqueeze", r.values, net.ints(-1)))
    r.check(r.experts(net("ReduceSum", hot, net.ints(2), keepdims=0)))


def test_other_places_pin() -> None:
    """Numbers in another order are not the places."""
    r = Router()
    net = r.net
    hot = net("Equal", net("Unsqueeze", r.indices, net.ints(-1)), net.const(np.arange(E)[::-1].copy()))
    hot = net("Mul", net("Cast", hot, to=1), net("Unsqueeze", r.values, net.ints(-1)))
    gates = net("ReduceSum", hot, net.ints(2), keepdims=0)
    check(r.experts(gates), pinned={"router:1": "positions along this axis are used as numbers"})


def picked(r: Router, indices: str, by: str) -> Net:
    """Pick the experts' weights, `b s k h d`, by index."""
    net = r.net
    up, down = net.weight(E, H, D, name="up"), net.weight(E, D, H, name="down")
    if by == "Gather":
        w1, w2 = net("Gather", up, indices), net("Gather", down, indices)
    else:
        column = net("Unsqueeze", indices, net.ints(-1))
        w1, w2 = net("GatherND", up, column), net("GatherND", down, column)
    h = net("Relu", net("Einsum", r.x, w1, equation="bsd,bskhd->bskh"))
    y = net("Einsum", h, w2, equation="bskh,bskdh->bskd")
    return r.out(net("Einsum", y, r.values, equation="bskd,bsk->bsd"))


@pytest.mark.parametrize("by", ["Gather", "GatherND"])
def test_weights_picked(by: str) -> None:
    r = Router(softmax=False)
    r.check(picked(r, r.indices, by))


def test_weights_picked_through_moves() -> None:
    """Positions stay positions when they are reshaped, cast, sliced and picked from."""
    r = Router(k=3)
    net = r.net
    indices = net("Cast", net("Cast", net("Reshape", r.indices, net.ints(0, 0, 3)), to=6), to=7)
    first, second = net("Gather", indices, net.ints(0), axis=2), net("Slice", indices, *map(net.ints, (1, 2, 2)))
    indices = net("Concat", first, second, axis=2)
    r.values = r.net("Slice", r.values, r.net.ints(0), r.net.ints(2), r.net.ints(2))
    got = check(picked(r, indices, "Gather"), groups=3, free={"up:0": "6", "router:1": "6"})
    assert got.coupling.dims[got.group("up:0")].least == 3


def test_positions_beside_numbers_pin() -> None:
    r = Router()
    other = r.net("Cast", r.net("Slice", r.values, *map(r.net.ints, (0, 1, 2))), to=7)
    first = r.net("Slice", r.indices, *map(r.net.ints, (0, 1, 2)))
    net = picked(r, r.net("Concat", first, other, axis=2), "Gather")
    check(net, pinned={"router:1": "used as numbers", "up:0": "indexed by data"})


@pytest.mark.parametrize("select", ["ArgMax", "ArgMin"])
def test_one_expert_of_all(select: str) -> None:
    """The switch: one expert a token, its gate and output picked by position."""
    r = Router()
    net = r.net
    index = net(select, r.p, axis=-1, keepdims=1)
    gate = net("GatherElements", r.p, index, axis=2)
    y = net("Einsum", r.x, net.weight(E, D, D, name="up"), equation="bsd,ehd->bseh")
    shape = net("Concat", net("Shape", index), net.ints(D), axis=0)
    index = net("Expand", net("Unsqueeze", index, net.ints(-1)), shape)
    y = net("Squeeze", net("GatherElements", y, index, axis=2), net.ints(2))
    got = check(r.out(net("Mul", y, gate)), groups=2, free={"router:1": "6", "up:0": "6", "in:1": "8"})
    assert got.group("router:1") is got.group("up:0")


def test_each_expert_with_weights_of_its_own() -> None:
    """Experts that are spelled out are chosen by number: all stay, and each keeps what it likes of its own width."""
    r = Router()
    net, y = r.net, ""
    for e in range(3):
        chosen = net("Where", net("Equal", r.indices, net.const(e)), r.values, net.const(0.0))
        h = net("Relu", net.matmul(r.x, D, H, name=f"up{e}"))
        out = net("Mul", net.matmul(h, H, D, name=f"down{e}"), net("ReduceSum", chosen, net.ints(2)))
        y = net("Add", y, out) if y else out
    free = {f"up{e}:1": str(H) for e in range(3)}
    check(r.out(y), groups=4, free=free, pinned={"router:1": "used as numbers"})


def test_positions_that_leave_the_graph_pin() -> None:
    r = Router()
    net = r.experts(r.net("ScatterElements", r.net("Sub", r.p, r.p), r.indices, r.values, axis=-1))
    net.output(r.indices, dtype=np.int64)
    check(net, pinned={"router:1": "leave the graph", "up:0": "leave the graph"})


def test_tokens_sorted_by_expert_pin() -> None:
    """The positions are sorted by size: numbers."""
    r = Router()
    order, _ = r.net("TopK", r.net("Cast", r.indices, to=1), r.net.ints(1), n=2)
    check(r.out(r.net("Mul", r.x, order)), pinned={"router:1": "used as numbers"})


@pytest.mark.parametrize(
    ("k", "sorted_", "reason"), [(E, 1, "must stay"), (2, 0, "in no order"), (None, 1, "run time")]
)
def test_what_is_asked_for_pins(k: int | None, sorted_: int, reason: str) -> None:
    """All of them, some in no order, or a number that is computed."""
    net = Net()
    x = net.matmul(net.input("x", [None, "s", 7]), 7, E, name="router")
    number = net.ints(k) if k is not None else net.input("k", [1], np.int64, between=(1, 2))
    values, _ = net("TopK", x, number, n=2, sorted=sorted_)
    y = net("ReduceSum", values, net.ints(2))
    check(net.output(net("Mul", y, net.const(2.0))), groups=0, pinned={"router:1": reason})


def test_places_of_a_compound_axis_pin() -> None:
    """The k largest of (g e) cannot be promised to stay when groups and members go on their own."""
    net = Net()
    x = net.matmul(net.input("x", [None, "s", 7]), 7, 12, name="router")
    grid = net("Softmax", net("Reshape", x, net.ints(0, 0, 3, 4)))
    values, _ = net("TopK", net("Reshape", grid, net.ints(0, 0, 12)), net.ints(2), n=2)
    net.output(net("ReduceSum", values, net.ints(2)), net("ReduceSum", grid, net.ints(3)), net("ReduceSum", grid,
               net.ints(2)))
    check(net, groups=0, pinned={"router:1": ""})


def mixture() -> tuple[ir.Model, Any]:
    r = Router()
    return solved(r.experts(r.net("ScatterElements", r.net("Sub", r.p, r.p), r.indices, r.values, axis=-1)))


def test_a_plan_keeps_what_is_picked() -> None:
    """However little is asked for, as many experts stay as the router picks."""
    _, coupling = mixture()
    costs = CostModel(coupling)
    plan = allocate(coupling, score(coupling), costs, Budget(sparsity=0.95, floor=0.0, align=1))
    assert len(plan.keep["router:1"]) == K
    wrong = PruningPlan(plan.model, {**plan.keep, "router:1": (3,)}, plan.sizes)
    with pytest.raises(PlanError, match="keeps 1: at least 2 are needed"):
        wrong.chosen(coupling)
