"""Contractions: Gemm, MatMul and Einsum, with their costs by hand."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Net, check


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", ["none", "vector", "row", "matrix", "scalar", "column"])
def test_gemm(trans_a: int, trans_b: int, bias: str) -> None:
    net = Net()
    y = net.gemm(net.input("x", [6, 5]), 5, 8, name="a")
    y = net("Transpose", y, perm=[1, 0]) if trans_a else y
    w = net.weight(*((7, 8) if trans_b else (8, 7)), name="w")
    shapes = {"vector": (7,), "row": (1, 7), "matrix": (6, 7), "scalar": (), "column": (6, 1)}
    biases = [net.weight(*shapes[bias], name="c")] if bias != "none" else []
    y = net("Gemm", y, w, *biases, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    free = {"a:0": "8", f"w:{trans_b}": "8", f"w:{1 - trans_b}": "7"}
    got = check(net.output(net.gemm(y, 7, 4)), groups=2, free=free)
    assert got.macs("Gemm") == 6 * 8 * 5 + 6 * 7 * 8 + 6 * 4 * 7
    if bias in ("vector", "row", "matrix"):
        assert got.axis(f"c:{len(shapes[bias]) - 1}") == "7"


@pytest.mark.parametrize("lead", [(), (None,), (None, "s"), (2, 3, 4)], ids=["vector", "2d", "3d", "4d"])
def test_weight_on_the_right(lead: tuple[int | str | None, ...]) -> None:
    net = Net()
    y = net("Relu", net.matmul(net.input("x", [*lead, 5]), 5, 8, name="a"))
    got = check(net.output(net.matmul(y, 8, 4, name="b")), groups=1, free={"a:1": "8", "b:0": "8"})
    assert got.macs("MatMul") == {0: 1, 1: 1, 2: 16, 3: 24}[len(lead)] * (5 * 8 + 8 * 4)


@pytest.mark.parametrize("tail", [(), (6,)], ids=["vector", "matrix"])
def test_weight_on_the_left(tail: tuple[int, ...]) -> None:
    net = Net()
    y = net("MatMul", net.weight(8, 5, name="a"), net.input("x", [5, *tail]))
    got = check(net.output(net("MatMul", net.weight(4, 8, name="b"), y)), groups=1, free={"a:0": "8", "b:1": "8"})
    assert got.macs("MatMul") == (8 * 5 + 4 * 8) * (6 if tail else 1)


def test_vectors_on_both_sides() -> None:
    net = Net()
    y = net("MatMul", net.input("x", [5]), net.weight(5, 8, name="a"))
    check(net.output(net("MatMul", y, net.weight(8, name="v"))), groups=1, free={"a:1": "8", "v:0": "8"})


def test_matrix_times_vector() -> None:
    net = Net()
    y = net("MatMul", net.matmul(net.input("x", [None, 6, 5]), 5, 8, name="a"), net.weight(8, name="v"))
    check(net.output(net.gemm(y, 6, 3)), groups=1, free={"a:1": "8", "v:0": "8"})


@pytest.mark.parametrize("batch", [(3,), (1,), (2, 3), (2, 1)])
def test_batched_weights(batch: tuple[int, ...]) -> None:
    """A weight per expert: the experts meet the input's batch axis."""
    net = Net()
    x = net.input("x", [2, 3, 6, 5])
    y = net("MatMul", x, net.weight(*batch, 5, 8, name="a"))
    check(net.output(net("MatMul", y, net.weight(*batch, 8, 4, name="b"))), groups=1, free=[f"a:{len(batch) + 1}"])


def test_activations_on_both_sides() -> None:
    """Attention scores: the contracted axis is shared by both projections."""
    net = Net()
    x = net.input("x", [None, "s", 5])
    q, k, v = (net.matmul(x, 5, n, name=name) for name, n in (("q", 8), ("k", 8), ("v", 6)))
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])), axis=-1)
    y = net.matmul(net("MatMul", scores, v), 6, 4, name="o")
    got = check(net.output(y), groups=2, free={"q:1": "8", "k:1": "8", "v:1": "6", "o:0": "6"})
    assert got.macs("MatMul") == 16 * 5 * (8 + 8 + 6) + 16 * 16 * (8 + 6) + 16 * 6 * 4


def test_heads() -> None:
    """Heads split off by Reshape and Transpose: head and width are both free."""
    net = Net()
    x = net.input("x", [None, "s", 5])

    def heads(name: str) -> str:
        y = net("Reshape", net.matmul(x, 5, 12, name=name), net.ints(0, 0, 3, 4))
        return str(net("Transpose", y, perm=[0, 2, 1, 3]))

    q, k, v = heads("q"), heads("k"), heads("v")
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net("Transpose", net("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.matmul(net("Reshape", y, net.ints(0, 0, 12)), 12, 5, name="o")
    got = check(net.output(y), groups=3, free={"q:1": "(3 4)", "k:1": "(3 4)", "v:1": "(3 4)", "o:0": "(3 4)"})
    assert got.axis("q:1") == got.axis("k:1")


EINSUMS = {
    "dense": ("bsd,dh->bsh", [(5, 8)], "a:1", "8"),
    "weight first": ("dh,bsd->bsh", [(5, 8)], "a:1", "8"),
    "transposed": ("bsd,hd->bsh", [(8, 5)], "a:0", "8"),
    "ellipsis": ("...d,dh->...h", [(5, 8)], "a:1", "8"),
    "implicit": ("bsd,dy", [(5, 8)], "a:1", "8"),
    "spaces": (" b s d , d h -> b s h ", [(5, 8)], "a:1", "8"),
    "three operands": ("bsd,dh,h->bsh", [(5, 8), (8,)], "a:1", "8"),
}


@pytest.mark.parametrize("case", EINSUMS.values(), ids=EINSUMS)
def test_einsum_dense(case: tuple[str, list[tuple[int, ...]], str, str]) -> None:
    equation, shapes, place, text = case
    net = Net()
    x = net.input("x", [2, 6, 5])
    weights = [net.weight(*s, name="ac"[i]) for i, s in enumerate(shapes)]
    operands = [weights[0], x] if equation.startswith("dh") else [x, *weights]
    y = net.matmul(net("Einsum", *operands, equation=equation), 8, 4, name="b")
    got = check(net.output(y), groups=1, free={place: text, "b:0": "8"})
    assert got.macs("Einsum") == 2 * 6 * 5 * 8


@pytest.mark.parametrize(
    ("scores", "mix"),
    [("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"), ("...qhd,...khd->...hqk", "...hqk,...khd->...qhd")],
    ids=["letters", "ellipsis"],
)
def test_einsum_attention(scores: str, mix: str) -> None:
    net = Net()
    x = net.input("x", [None, "s", 5])
    q, k, v = (net("Einsum", x, net.weight(5, 3, 4, name=n), equation="bsd,dhe->bshe") for n in "qkv")
    y = net("Einsum", net("Softmax", net("Einsum", q, k, equation=scores), axis=-1), v, equation=mix)
    y = net("Einsum", y, net.weight(3, 4, 5, name="o"), equation="bqhd,hde->bqe")
    got = check(net.output(y), groups=3, free={"q:1": "3", "q:2": "4", "v:2": "4", "o:0": "3", "o:1": "4"})
    assert got.macs("Einsum") == 3 * 16 * 5 * 12 + 2 * 12 * 16 * 16 + 16 * 12 * 5


def test_einsum_sum_and_transpose() -> None:
    net = Net()
    y = net("Einsum", net.matmul(net.input("x", [2, 6, 5]), 5, 8, name="a"), equation="bsd->ds")
    check(net.output(net("MatMul", net.weight(3, 8, name="b"), y)), groups=1, free={"a:1": "8", "b:1": "8"})


def test_einsum_broadcast_ellipsis() -> None:
    """An axis of size one meets a wider one."""
    net = Net()
    x = net.input("x", [2, 6, 5])
    y = net("Einsum", net.matmul(x, 5, 8, name="a"), net.weight(1, 7, 8, name="w"), equation="...sd,...td->...st")
    check(net.output(net.matmul(y, 7, 3)), groups=2, free={"a:1": "8", "w:1": "7", "w:2": "8"})


@pytest.mark.parametrize("equation", ["bdd->bd", "bdd->b"])
def test_einsum_diagonal_pins(equation: str) -> None:
    net = Net()
    y = net("Reshape", net.matmul(net.input("x", [2, 5]), 5, 16, name="a"), net.ints(0, 4, 4))
    y = net("Einsum", y, equation=equation)
    check(net.output(y), groups=0, pinned={"a:1": "diagonal"})


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_types(dtype: type) -> None:
    net = Net(dtype=dtype)
    y = net.gemm(net.matmul(net.input("x", [None, 5]), 5, 8, name="a"), 8, 4)
    check(net.output(y), groups=1, tolerance=1e-9 if dtype is np.float64 else 1e-2)
