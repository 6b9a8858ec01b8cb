"""Branches into residual sums: which are found, which may not go and why, and that bypassing equals masking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blocks
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from building import Builder
from oracles import Net, solved

import graphprune
from graphprune.execute import evaluate, relative_error
from graphprune.groups import Coupling
from graphprune.rewrite import masked, rearranged
from graphprune.transform.branches import Branch

NONE = np.zeros(0, np.int64)
Array = np.ndarray[Any, Any]


def closing(branches: list[Branch] | tuple[Branch, ...]) -> dict[Any, Array]:
    return {b.gate: NONE for b in branches}


def same_as_masked(model: ir.Model, coupling: Coupling, chosen: dict[Any, Array], feeds: dict[str, Array]) -> ir.Model:
    """Hold a rewritten model against the dense one with zeros for what went."""
    small = rearranged(model, coupling, chosen)
    left, right = evaluate(masked(model, coupling, chosen), feeds), evaluate(small, feeds)
    assert {k: v.shape for k, v in left.items()} == {k: v.shape for k, v in right.items()}
    error, name = relative_error(left, right)
    assert error <= 1e-5, (name, error)
    if all(v.shape is not None for v in small.graph.outputs):
        onnx.checker.check_model(ir.to_proto(small))
    return small


def residual(form: Callable[[Net, str, str], str], blocks: int = 2) -> Net:
    """Hidden values of 8, to which each block adds a branch of width 12, put together by `form(net, x, branch)`."""
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8, name="stem")
    for k in range(blocks):
        x = form(net, x, net.gemm(net("Relu", net.gemm(x, 8, 12, name=f"up{k}")), 12, 8, name=f"down{k}"))
    return net.output(net.gemm(x, 8, 3, name="head"))


X = {"x": np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)}


@pytest.mark.parametrize(
    "form",
    [
        lambda net, x, y: net("Add", x, y),
        lambda net, x, y: net("Add", y, x),
        lambda net, x, y: net("Sum", y, x),
        lambda net, x, y: net("Add", x, net("Mul", y, net.const(np.float32(0.3)))),
        lambda net, x, y: net("Add", net("Mul", x, net.const(np.float32(0.9))), y),
        lambda net, x, y: net("Add", net("Add", x, net.weight(8)), y),
        lambda net, x, y: net("Relu", net("Add", net("Identity", x), y)),
    ],
    ids=["x + y", "y + x", "Sum", "scaled branch", "scaled stream", "shifted stream", "Identity beside"],
)
def test_branches_are_found_and_bypassed(form: Callable[[Net, str, str], str]) -> None:
    model, coupling = solved(residual(form))
    one, two = coupling.branches.free
    assert coupling.branches.all == coupling.branches.free
    weights = coupling.branches.unread(one.nodes)
    assert {"up0", "up0.b", "down0", "down0.b"} <= weights and not any("1" in w for w in weights)
    for closed in ([one], [two], [one, two]):
        small = same_as_masked(model, coupling, closing(closed), X)
        left = {n.name for n in small.graph}
        assert not left & coupling.branches.gone(closed)
        assert {v.name for v in small.graph.initializers.values()} >= {"stem", "head"}
        assert "up0" in small.graph.initializers or one in closed
    chosen = {**closing([one]), coupling.group("up1:0").dim: np.array([1, 4, 5])}  # type: ignore[union-attr]
    same_as_masked(model, coupling, chosen, X)


def test_values_keep_their_names_and_outputs_their_place() -> None:
    net = residual(lambda net, x, y: net("Add", x, y), blocks=1)
    net.output(net.nodes[-2].output[0])  # the sum itself
    model, coupling = solved(net)
    (branch,) = coupling.branches.free
    small = same_as_masked(model, coupling, closing([branch]), X)
    assert [o.name for o in small.graph.outputs] == [o.name for o in model.graph.outputs]


def three() -> Net:
    """A sum of what goes past and two branches."""
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    parts = [net.gemm(net("Relu", net.gemm(x, 8, 12)), 12, 8) for _ in range(2)]
    return net.output(net.gemm(net("Sum", parts[0], x, parts[1]), 8, 3))


def test_a_sum_of_many_has_a_branch_for_each() -> None:
    model, coupling = solved(three())
    one, two = coupling.branches.free
    assert [b.name.split(":")[1] for b in (one, two)] == ["0", "2"]
    for closed in ([one], [two], [one, two]):
        same_as_masked(model, coupling, closing(closed), X)


def test_branches_side_by_side_that_share_what_they_read() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    shared = net("Tanh", x)
    for name in ("left", "right"):
        x = net("Add", x, net.gemm(net("Relu", net.gemm(shared, 8, 12, name=name)), 12, 8))
    model, coupling = solved(net.output(net.gemm(x, 8, 3)))
    one, two = coupling.branches.free
    for closed in ([one], [two], [one, two]):
        same_as_masked(model, coupling, closing(closed), X)
    assert any("Tanh" in n for n in coupling.branches.gone([one, two]))
    assert not any("Tanh" in n for n in coupling.branches.gone([one]) | coupling.branches.gone([two]))


def test_inner_branches_go_with_what_is_around_them() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    inside = net.gemm(x, 8, 6, name="into")
    inside = net("Add", inside, net.gemm(net("Relu", net.gemm(inside, 6, 7, name="inner")), 7, 6))
    x = net("Add", x, net.gemm(net("Relu", inside), 6, 8))
    model, coupling = solved(net.output(net.gemm(x, 8, 3)))
    inner, outer = coupling.branches.free
    assert inner.nodes < outer.nodes and inner.join.name in outer.nodes
    for closed in ([inner], [outer], [inner, outer]):
        same_as_masked(model, coupling, closing(closed), X)


def test_of_two_sums_that_are_added_one_stays() -> None:
    """Each of them goes past the other."""
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    sides = [net("Add", x, net.gemm(net("Relu", net.gemm(x, 8, 12)), 12, 8)) for _ in range(2)]
    model, coupling = solved(net.output(net.gemm(net("Add", *sides), 8, 3)))
    found = coupling.branches.free
    assert len(found) == 3 and len({b.join.name for b in found}) == 3
    same_as_masked(model, coupling, closing(found), X)


def beside(build: Callable[[Net, str], str], *more: str) -> Coupling:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    y = build(net, x)
    return solved(net.output(net.gemm(y, 8, 3), *[n for n in more if n]))[1]


@pytest.mark.parametrize(
    "build",
    [
        lambda net, x: net("Add", net.gemm(x, 8, 8), net.gemm(net("Relu", net.gemm(x, 8, 12)), 12, 8)),
        lambda net, x: net("Add", x, net("Tanh", x)),
        lambda net, x: net("Add", net.gemm(x, 8, 8), net.weight(8)),
        lambda net, x: net("Mul", x, net.gemm(x, 8, 8)),
        lambda net, x: net("Add", x, net("ReduceMean", net.gemm(x, 8, 8), axes=[1])),
    ],
    ids=["a layer beside", "nothing to save", "a bias", "a product", "other sizes"],
)
def test_what_is_no_branch(build: Callable[[Net, str], str]) -> None:
    assert not beside(build).branches.all


def test_what_is_needed_elsewhere_keeps_a_branch() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    hidden = net("Relu", net.gemm(x, 8, 12))
    other = net("Sigmoid", net.gemm(x, 8, 12))
    x = net("Add", x, net.gemm(net("Mul", hidden, other), 12, 8))
    net.output(net.gemm(x, 8, 3), net.gemm(hidden, 12, 2))
    (branch,) = solved(net)[1].branches.all
    assert "needed elsewhere" in branch.reason and hidden in branch.reason


def test_a_cache_that_leaves_the_model_keeps_a_branch() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    key, value = (net.gemm(x, 8, 12) for _ in range(2))
    x = net("Add", x, net.gemm(net("Mul", net("Sigmoid", key), value), 12, 8))
    (branch,) = solved(net.output(net.gemm(x, 8, 3), key, value))[1].branches.all
    assert "is an output of the model" in branch.reason
    with pytest.raises(graphprune.GraphPruneError, match="cannot be bypassed"):
        plan = graphprune.PruningPlan({}, {}, {}, {}, (branch.name,))
        plan.chosen(solved(net)[1])


BLOCKS: dict[str, tuple[tuple[int, ...], Callable[[Builder, str], str]]] = {
    "residual": ((3, 8, 8), lambda b, x: blocks.residual(b, blocks.residual(b, b.conv(x, 8), 6), 5)),
    "inverted": ((3, 8, 8), lambda b, x: blocks.inverted(b, blocks.inverted(b, b.conv(x, 8), 6), 5)),
    "gated": ((4, 6), lambda b, x: blocks.gated(b, blocks.mlp(b, b.linear(x, 8), 6), 5)),
    "mixer": ((4, 6), lambda b, x: blocks.mixer(b, blocks.mixer(b, b.linear(x, 8), 3, 5), 3, 5)),
    "excited": ((3, 8, 8), lambda b, x: b.op("Add", y := b.conv(x, 8), blocks.squeeze_excite(b, b.conv(y, 8), 3))),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_networks(name: str, seed: int) -> None:
    """Random widths and random branches at once; and the costs are those of what is left."""
    shape, build = BLOCKS[name]
    b = Builder(17, seed)
    b.output(b.readout(build(b, b.input(*shape))))
    rng = np.random.default_rng(seed)
    analysis = graphprune.analyse(b.model())
    coupling, found = analysis.coupling, analysis.coupling.branches.free
    assert found
    some = [x for k, x in enumerate(found) if k == seed % len(found) or rng.random() < 0.5]
    gone = coupling.branches.unread(coupling.branches.gone(some))
    chosen = closing(some)
    for g in coupling.groups:
        if not g.normalised and not all(o.initializer in gone for o in g.occurrences):
            chosen[g.dim] = np.sort(rng.permutation(g.size)[: max(g.least, g.size - 2)])
    small = same_as_masked(analysis.model, coupling, chosen, b.feeds(seed))
    again = graphprune.analyse(ir.to_proto(small)).dense
    told = analysis.costs({dim: len(kept) for dim, kept in chosen.items()})
    assert (told.macs, told.parameters) == (again.macs, again.parameters)


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("carried", [False, True], ids=["normalised", "sum carried on"])
def test_fused_sums(simplified: bool, bias: bool, carried: bool) -> None:
    """The other summand counts twice, and a fourfold epsilon makes that exact; the sum itself goes on without it."""
    net = Net()
    x = net.matmul(net.input("x", [None, 4, 5]), 5, 8)
    y = net.matmul(net("Relu", net.matmul(x, 8, 12, name="up")), 12, 8)
    scales = [net.weight(8, positive=True), *([] if simplified else [net.weight(8)])]
    kind = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    operands = [y, x, *scales, *([net.weight(8)] if bias else [])]
    made = net(kind, *operands, n=4 if carried else 1, domain="com.microsoft", epsilon=0.5)
    out = made[0] if carried else made
    if carried:
        for k in (1, 2):
            net.nodes[-1].output[k] = ""
        out = net("Add", out, made[3])
    model, coupling = solved(net.output(net.matmul(out, 8, 3)))
    (branch,) = coupling.branches.free
    x3 = {"x": np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)}
    small = same_as_masked(model, coupling, closing([branch]), x3)
    assert "up" not in small.graph.initializers


def test_all_costs_of_a_tied_weight_go_with_its_last_branch() -> None:
    net = Net()
    x = net.gemm(net.input("x", [None, 5]), 5, 8)
    up, down = net.weight(8, 12, name="up"), net.weight(12, 8, name="down")
    for _ in range(2):
        x = net("Add", x, net("MatMul", net("Relu", net("MatMul", x, up)), down))
    analysis = graphprune.analyse(net.output(net.gemm(x, 8, 3)).model())
    one, two = analysis.coupling.branches.free
    dense, single, none = (analysis.costs(dict.fromkeys(g, 0)) for g in ((), (one.gate,), (one.gate, two.gate)))
    assert dense.parameters == single.parameters == none.parameters + 2 * 8 * 12
    assert dense.macs > single.macs > none.macs
    for part in analysis.costs.terms:
        assert part.dims
    totals = [sum(t.price(s).get("params", 0) for t in analysis.costs.terms) for s in ({}, {one.gate: 0, two.gate: 0})]
    assert totals[0] - totals[1] == 2 * 8 * 12
