"""Time how analysis grows with a model: the same block repeated, from a few nodes to thousands.

    python tests/benchmarks/scaling.py [--blocks 8 16 32 64 128 256 512] [--repeats 3] [--json FILE]

Two kinds of block: a residual block (two convolutions, an Add) whose channels all belong to one group for the whole
length of the network, and a block of attention (four projections, reshapes, transposes, softmax, an Add). If the cost
is linear, microseconds per node stay where they are while the number of nodes grows.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune import analyse

BLOCKS = (8, 16, 32, 64, 128, 256, 512)


class Net:
    """A model while it is being built: nodes and random weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(self.random.standard_normal(shape, np.float32) / 8, name))
        return name

    def ints(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attributes))
        return out

    def model(self, x: list[int], y: str, out: list[int]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "repeated",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, out)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(blocks: int) -> onnx.ModelProto:
    """Return a residual CNN: one group through the whole network, and one inside each block."""
    net = Net()
    y = net("Conv", "x", net.weight(16, 3, 3, 3), net.weight(16), pads=[1, 1, 1, 1])
    for _ in range(blocks):
        inner = net("Relu", net("Conv", y, net.weight(16, 16, 3, 3), net.weight(16), pads=[1, 1, 1, 1]))
        inner = net("Conv", inner, net.weight(16, 16, 3, 3), net.weight(16), pads=[1, 1, 1, 1])
        y = net("Relu", net("Add", inner, y))
    y = net("Flatten", net("GlobalAveragePool", y))
    return net.model([1, 3, 8, 8], net("Gemm", y, net.weight(10, 16), transB=1), [1, 10])


def attention(blocks: int) -> onnx.ModelProto:
    """Return a stack of attention: heads, query and value widths in each block, one group through all of them."""
    net = Net()
    heads, merged = net.ints(1, 6, 4, 8), net.ints(1, 6, 32)
    y = net("MatMul", "x", net.weight(5, 24))
    for _ in range(blocks):
        q, k, v = (net("Reshape", net("MatMul", y, net.weight(24, 32)), heads) for _ in range(3))
        q, v = (net("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        p = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 3, 1])))
        z = net("Reshape", net("Transpose", net("MatMul", p, v), perm=[0, 2, 1, 3]), merged)
        y = net("Add", net("MatMul", z, net.weight(32, 24)), y)
    return net.model([1, 6, 5], net("MatMul", y, net.weight(24, 7)), [1, 6, 7])


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {"residual": residual, "attention": attention}


def measure(kind: str, blocks: int, repeats: int) -> dict[str, Any]:
    """Analyse a model of so many blocks: nodes, groups, and median seconds of tracing and solving and of everything."""
    model = KINDS[kind](blocks)
    runs: list[tuple[float, float]] = []
    for _ in range(repeats):
        gc.collect()
        began = time.perf_counter()
        analysis = analyse(model)
        whole = time.perf_counter() - began
        runs.append((analysis.seconds["trace"] + analysis.seconds["solve"], whole))
    core, everything = (statistics.median(x) for x in zip(*runs, strict=True))
    return {
        "kind": kind, "blocks": blocks, "nodes": len(model.graph.node), "groups": len(analysis.coupling.groups),
        "core": core, "whole": everything,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return measurements as Markdown."""
    lines = ["| block | nodes | groups | analysis, s | trace + solve, us per node |", "|---|--:|--:|--:|--:|"]
    for r in rows:
        each = r["core"] / r["nodes"] * 1e6
        lines.append(f"| {r['kind']} | {r['nodes']} | {r['groups']} | {r['whole']:.3f} | {each:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Time analysis against the number of nodes.")
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(kind, n, args.repeats) for kind in args.kinds for n in args.blocks]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
