"""Weights of a few bits in blocks with one scale each."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from oracles import Net, check

from graphprune.execute import evaluate
from graphprune.ops.blockwise import unpacked

MS = "com.microsoft"
BLOCK = 16


def bytes_of(net: Net, *shape: int, name: str = "") -> str:
    return net.const(net.rng.integers(0, 256, shape), np.uint8, name)


def bits(
    net: Net, x: str, k: int, n: int, *, width: int = 4, zeros: str = "packed", flat: bool = False, bias: bool = False,
    name: str = "w",
) -> str:
    """Add a MatMulNBits whose operands are called after `name`."""
    blocks = -(-k // BLOCK)
    weight = bytes_of(net, n, blocks, BLOCK * width // 8, name=name)
    scale = net.const(net.rng.uniform(0.01, 0.03, n * blocks if flat else (n, blocks)), np.float32, name + ".s")
    operands = [x, weight, scale]
    per_row = -(-blocks * width // 8)
    if zeros == "packed":
        operands.append(bytes_of(net, *((n * per_row,) if flat else (n, per_row)), name=name + ".z"))
    elif zeros == "real":
        middle = net.rng.uniform(0, 1 << width, n * blocks if flat else (n, blocks))
        operands.append(net.const(middle, np.float32, name + ".z"))
    if bias:
        operands += [""] * (5 - len(operands)) + [net.weight(n, name=name + ".b")]
    return str(net("MatMulNBits", *operands, domain=MS, K=k, N=n, bits=width, block_size=BLOCK))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("zeros", "width"), [("", 4), ("", 8), ("packed", 4), ("packed", 8), ("real", 4)])
def test_whole_blocks(zeros: str, width: int, flat: bool) -> None:
    """Two zero points of four bits share a byte, so blocks go in pairs."""
    net = Net(17)
    x = net.matmul(net.input("x", [None, 3, 5]), 5, 64, name="a")
    y = bits(net, net("Relu", x), 64, 32, width=width, zeros=zeros, flat=flat, bias=not zeros)
    blocks = "2 [2]" if zeros == "packed" and width == 4 else "4"
    net.output(net.matmul(y, 32, 4))
    got = check(net, groups=2, free={"a:1": f"({blocks} [16])", "w:0": "32"}, tolerance=1e-3)
    assert got.macs("MatMulNBits") == 3 * 64 * 32
    assert got.axis("w:1") == (blocks if blocks == "4" else f"({blocks})")
    assert got.axis("w.s:0") == (f"(32 {blocks})" if flat else "32")


def test_a_layer_after_another() -> None:
    """Rows of the first are the columns of the second: they go in blocks of the second."""
    net = Net(17)
    x = bits(net, net.input("x", [None, 32]), 32, 64, zeros="", name="v")
    y = bits(net, net("Relu", x), 64, 32, zeros="", name="w")
    got = check(net.output(net.matmul(y, 32, 4)), groups=2, free={"v:0": "(4 [16])", "w:1": "4"}, tolerance=1e-3)
    pruned = got.pruned({got.group("w:1"): np.array([1, 3])})
    sizes = [{a.name: a.i for a in n.attribute} for n in pruned.graph.node if n.op_type == "MatMulNBits"]
    assert [(s["K"], s["N"]) for s in sizes] == [(32, 32), (32, 32)]


@pytest.mark.parametrize(("k", "reason"), [(48, "the last is not full"), (60, "the last block is not full")])
def test_what_is_not_full_pins(k: int, reason: str) -> None:
    """Zero points of three blocks in two bytes; a block of which a part is not used."""
    net = Net(17)
    x = net.matmul(net.input("x", [None, 5]), 5, k, name="a")
    y = bits(net, x, k, 32, zeros="packed" if k == 48 else "")
    check(net.output(net.matmul(y, 32, 4)), groups=1, free={"w:0": "32"}, pinned={"a:1": reason, "w:1": reason},
          tolerance=1e-3)


def test_blocks_in_another_order_pin() -> None:
    net = Net(17)
    x = net.matmul(net.input("x", [None, 5]), 5, 64, name="a")
    order = net.const(np.arange(64) // BLOCK, np.int32)
    operands = bytes_of(net, 32, 4, 8, name="w"), net.const(np.full((32, 4), 0.02), np.float32, "s")
    y = net("MatMulNBits", x, *operands, "", order, domain=MS, K=64, N=32, bits=4, block_size=BLOCK)
    check(net.output(net.matmul(y, 32, 4)), groups=1, free={"w:0": "32"}, pinned={"a:1": "order of their own"},
          tolerance=1e-3)


def test_real_numbers() -> None:
    """What scores are computed from is what the operator multiplies by."""
    net = Net(17)
    x = net.input("x", [None, 64])
    net.output(bits(net, net("Relu", net.matmul(x, 64, 64, name="eye")), 64, 32))
    (eye,) = [t for t in net.initializers if t.name == "eye"]
    eye.raw_data = np.eye(64, dtype=np.float32).tobytes()
    got = check(net, tolerance=1e-3)
    real = got.coupling.graph.weights["w"].read().reshape(32, 64)
    (out,) = evaluate(got.model, {"x": np.eye(64, dtype=np.float32)}).values()
    assert np.allclose(out.T, real, atol=1e-4)


def test_unpacked() -> None:
    assert unpacked(np.array([[0xE4]], np.uint8), 2).tolist() == [[0, 1, 2, 3]]
    assert unpacked(np.array([7], np.uint8), 8).tolist() == [7]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("zeros", [True, False])
def test_rows_in_blocks(zeros: bool, packed: bool) -> None:
    net = Net(21)
    ids = net.input("ids", [None, 6], np.int64, between=(0, 9))
    scale = net.const(net.rng.uniform(0.01, 0.03, (9, 4)), np.float32, "s")
    operands = [ids, scale]
    if packed:
        data = bytes_of(net, 9, 32, name="w")
        operands += [bytes_of(net, 9, 2, name="z")] if zeros else []
    else:
        data = "w"
        for name, shape in (("w", (9, 64)), ("z", (9, 4))):
            array = net.rng.integers(0, 16, shape).astype(ml_dtypes.uint4)
            net.initializers.append(ir.serde.serialize_tensor(ir.tensor(array, name=name)))
        operands += ["z"] if zeros else []
    y = net("GatherBlockQuantized", data, *operands, domain=MS, block_size=BLOCK, quantize_axis=1, gather_axis=0)
    y = net.matmul(net("Relu", y), 64, 5, name="v")
    got = check(net.output(y), groups=1, free=["w:1", "v:0"], pinned={"w:0": "indexed by data"})
    pair = packed and zeros
    assert (got.group("v:0").size, got.axis("s:1")) == ((2, "(2 [2])") if pair else (4, "4"))
    real = got.coupling.graph.weights["w"].read()
    assert real.shape == ((9, 32, 2) if packed else (9, 64))
    assert 0.05 < np.abs(real).max() < 0.5


def test_a_gather_along_packed_numbers_pins() -> None:
    net = Net(21)
    ids = net.input("ids", [2], np.int64, between=(0, 4))
    scale = net.const(net.rng.uniform(0.01, 0.03, (2, 32)), np.float32)
    x = net("GatherBlockQuantized", bytes_of(net, 32, 16, name="w"), ids, scale, domain=MS, block_size=16,
            quantize_axis=0, gather_axis=1, bits=8)
    check(net.output(net.matmul(net("Transpose", x), 32, 4)), groups=0, pinned={"w:0": "share bytes, or blocks"})


def test_flat_weights_pin() -> None:
    net = Net(17)
    x = net.matmul(net.input("x", [None, 5]), 5, 32, name="a")
    weight = bytes_of(net, 32 * 16 // 2, name="w"), net.const(np.full(32, 0.02), np.float32)
    y = net("MatMulBnb4", x, *weight, domain=MS, K=32, N=16, block_size=16, quant_type=1)
    got: Any = check(net.output(net.matmul(y, 16, 4)), groups=0, pinned={"a:1": "run across its rows"})
    assert got.macs("MatMulBnb4") == 32 * 16
