"""Small models to try operator rules on, and the oracles that judge every rule.

    net = Net()
    x = net.input("x", [None, 4, 6, 6])
    y = net("Relu", net.conv(x, 4, 8, name="a"))
    net.output(net.conv(y, 8, 3, name="b"))
    check(net, free={"a:0": "8"}, pinned={"b:0": "graph output"})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphprune.axes import Dim, leaves, show
from graphprune.costs import CostModel
from graphprune.errors import SessionError
from graphprune.execute import relative_error
from graphprune.groups import Coupling, couple
from graphprune.normalize import normalize
from graphprune.prove import permutations
from graphprune.rewrite import masked, rearranged
from graphprune.runtime import Runtime, open_session, run
from graphprune.sizes import Worlds, choose
from graphprune.trace import trace

Array = npt.NDArray[Any]
Chosen = dict[Dim, npt.NDArray[np.int64]]
Feeds = dict[str, dict[str, Array]]
Runs = list[dict[str, Array]]
_CODES = {
    np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32, np.dtype(np.bool_): TensorProto.BOOL, np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
}


class Net:
    """Build a model by calling it: `net("Relu", x)` adds a node and returns its output's name (a tuple if many)."""

    def __init__(self, opset: int = 17, ir_version: int = 10, dtype: Any = np.float32, seed: int = 0) -> None:
        self.opset = opset
        self.ir_version = ir_version
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.domains: list[str] = []
        self.ranges: dict[str, tuple[float, float]] = {}
        self.count = 0

    def name(self, base: str) -> str:
        self.count += 1
        return f"{base.lower()}_{self.count}"

    def input(
        self,
        name: str,
        shape: Sequence[int | str | None],
        dtype: Any = None,
        between: tuple[float, float] | None = None,
    ) -> str:
        """Add an input; `between` bounds what the oracles feed it (integers: below the upper one)."""
        kind = np.dtype(dtype or self.dtype)
        sizes = [f"{name}_{k}" if n is None and k else "batch" if n is None else n for k, n in enumerate(shape)]
        self.inputs.append(helper.make_tensor_value_info(name, _CODES[kind], sizes))
        if between is not None:
            self.ranges[name] = between
        return name

    def output(self, *names: str, dtype: Any = None) -> Net:
        """Declare outputs; the model states the shapes that onnx infers, for these and all other values."""
        kind = _CODES[np.dtype(dtype or self.dtype)]
        self.outputs += [helper.make_tensor_value_info(n, kind, None) for n in names]
        return self

    def const(self, value: Any, dtype: Any = None, name: str = "", node: bool = False) -> str:
        """Add a constant: floats of the model's type, integers int64; as an initializer or a Constant node."""
        array = np.asarray(value)
        kind = dtype or {"f": self.dtype, "i": np.dtype(np.int64)}.get(array.dtype.kind, array.dtype)
        name = name or self.name("const")
        tensor = numpy_helper.from_array(np.ascontiguousarray(array.astype(kind)).reshape(array.shape), name)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, *shape: int, name: str = "", positive: bool = False, dtype: Any = None, node: bool = False) -> str:
        """Add random numbers: normal ones, or some between 0.5 and 1.5."""
        array = self.rng.uniform(0.5, 1.5, shape) if positive else self.rng.standard_normal(shape)
        return self.const(array, dtype or self.dtype, name, node)

    def __call__(self, op_type: str, *inputs: str, n: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node with `n` outputs."""
        outputs = [self.name(op_type) for _ in range(n)]
        if domain and domain not in self.domains:
            self.domains.append(domain)
        label = f"n{len(self.nodes)}_{op_type}"
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=label, domain=domain, **attributes))
        return outputs[0] if n == 1 else tuple(outputs)

    def conv(self, x: str, cin: int, cout: int, k: int = 1, *, name: str = "", dims: int = 2, **attributes: Any) -> str:
        """Add a convolution with weight `name` and bias `name.b`; `bias=False` leaves that out."""
        group = attributes.get("group", 1)
        bias = attributes.pop("bias", True)
        name = name or self.name("conv_w")
        w = self.weight(cout, cin // group, *[k] * dims, name=name)
        operands = [w, self.weight(cout, name=name + ".b")] if bias else [w]
        return str(self("Conv", x, *operands, **attributes))

    def gemm(self, x: str, cin: int, cout: int, *, name: str = "") -> str:
        """Add a Gemm as PyTorch exports it: weight [out, in] transposed."""
        name = name or self.name("gemm_w")
        return str(self("Gemm", x, self.weight(cout, cin, name=name), self.weight(cout, name=name + ".b"), transB=1))

    def matmul(self, x: str, cin: int, cout: int, *, name: str = "") -> str:
        return str(self("MatMul", x, self.weight(cin, cout, name=name or self.name("matmul_w"))))

    def ints(self, *values: int) -> str:
        return self.const(np.asarray(values, dtype=np.int64))

    def model(self) -> onnx.ModelProto:
        inputs = list(self.inputs)
        if self.ir_version < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.initializers]
        graph = helper.make_graph(self.nodes, "net", inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), *[helper.make_opsetid(d, 1) for d in self.domains]]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        return onnx.shape_inference.infer_shapes(model)


@dataclass(frozen=True)
class Checked:
    """What `check` worked with, for further assertions."""

    model: ir.Model
    coupling: Coupling
    feeds: Feeds = field(repr=False)

    def axis(self, place: str) -> str:
        """Return the expression of a weight's axis, pinned dims in brackets: `axis("w:0") == "(4 8)"`."""
        return _axis(self.coupling, place)

    def group(self, place: str) -> Dim:
        """Return the one free dim of a weight's axis."""
        name, _, k = place.rpartition(":")
        axis = self.coupling.expand(self.coupling.graph.weights[name].axes[int(k)])
        (dim,) = dict.fromkeys(d for d in leaves(axis) if d in self.coupling.dims)
        return dim

    def pruned(self, chosen: Chosen) -> onnx.ModelProto:
        return ir.to_proto(rearranged(self.model, self.coupling, chosen))

    def macs(self, op_type: str) -> int:
        """Return the multiply-accumulates of all nodes of one type at the natural input sizes."""
        kinds = {op.name: op.type for op in self.coupling.graph.ops}
        return sum(n for name, n in CostModel(self.coupling).op_macs({}).items() if kinds[name] == op_type)


def solved(net: Net) -> tuple[ir.Model, Coupling]:
    """Return the normalised model and its coupling."""
    model = normalize(ir.from_proto(net.model()))
    return model, couple(trace(model, choose(model, {})))


def check(
    net: Net,
    *,
    groups: int | None = None,
    free: Mapping[str, str] | Sequence[str] = (),
    pinned: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
    reference: bool | Sequence[type] = False,
) -> Checked:
    """Judge a model's coupling by all oracles.

    `groups` is the exact number of channel groups; `free` names weight axes that must have one (a mapping gives
    their expressions), `pinned` those that must not, with a part of the reason. `reference` runs onnx's reference
    evaluator, for what onnxruntime cannot run; it may list operators that this one lacks, too.
    """
    model, coupling = solved(net)
    found = [(g.name, g.size) for g in coupling.groups]
    assert groups is None or len(found) == groups, (found, coupling.pins())
    _expect(coupling, free, pinned or {})
    worlds = coupling.graph.worlds
    feeds = {k: _feeds(net, worlds, k) for k in (("traced", "natural") if worlds.has_dynamic else ("traced",))}
    if coupling.groups:
        _judge(model, coupling, feeds, tolerance, _Reference(reference) if reference else _Onnxruntime())
    return Checked(model, coupling, feeds)


def _judge(model: ir.Model, coupling: Coupling, feeds: Feeds, tolerance: float, runner: Any) -> None:
    dense = runner(model, feeds)
    assert all(np.isfinite(a).all() for run_ in dense for a in run_.values() if a.dtype.kind == "f"), "not finite"
    assert any(a.any() for run_ in dense for a in run_.values()), "the outputs are all zero"
    # onnxruntime's graph optimisation breaks a few models by itself.
    levels = (False, True) if _runs(runner, model, feeds) else (False,)
    permuted = runner(rearranged(model, coupling, permutations(coupling.groups, 1)), feeds)
    _compare("permuted", dense, permuted, tolerance)
    for thin in (False, True):
        chosen = subsets(coupling, thin)
        pruned = rearranged(model, coupling, chosen)
        if all(v.shape is not None for v in pruned.graph.outputs):
            # Before opset 9 a Constant holds floats by the letter; exporters and onnxruntime never minded.
            onnx.checker.check_model(ir.to_proto(pruned), full_check=model.opset_imports[""] >= 9)
        for optimise in levels:
            for a, b in zip(dense, runner(pruned, feeds, optimise), strict=True):
                assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}, "output shapes differ"
        plain = {g.dim: chosen[g.dim] for g in coupling.groups if not g.normalised}
        if plain:
            kept = runner(masked(model, coupling, plain), feeds)
            _compare("masked", kept, runner(rearranged(model, coupling, plain), feeds), tolerance)


def _runs(runner: Any, model: ir.Model, feeds: Feeds) -> bool:
    try:
        runner(model, feeds, True)
    except SessionError:
        return False
    return True


def _compare(what: str, left: Runs, right: Runs, tolerance: float) -> None:
    for a, b in zip(left, right, strict=True):
        error, name = relative_error(a, b)
        assert error <= tolerance, f"{what}: output {name!r} is off by {error:.2g}"


def subsets(coupling: Coupling, thin: bool = False) -> Chosen:
    """Return a random part of every group, of different sizes; `thin`: a single index of each."""
    rng = np.random.default_rng(7)
    out: Chosen = {}
    for i, g in enumerate(coupling.groups):
        number = g.least if thin else max(g.least, g.size - 1 - i % max(1, g.size // 2))
        out[g.dim] = np.sort(rng.permutation(g.size)[:number])
    return out


class _Onnxruntime:
    def __call__(self, model: ir.Model, feeds: Feeds, optimise: bool = False) -> Runs:
        session = open_session(ir.to_proto(model).SerializeToString(), Runtime(threads=1, optimise=optimise))
        return [run(session, f) for f in feeds.values()]


class _Reference:
    def __init__(self, operators: bool | Sequence[type]) -> None:
        self.operators: Any = None if isinstance(operators, bool) else list(operators)

    def __call__(self, model: ir.Model, feeds: Feeds, optimise: bool = False) -> Runs:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=self.operators)
        names = evaluator.output_names
        return [dict(zip(names, evaluator.run(None, f), strict=True)) for f in feeds.values()]


def _feeds(net: Net, worlds: Worlds, which: str) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    sizes = worlds.traced_inputs if which == "traced" else worlds.natural_inputs
    out: dict[str, Array] = {}
    for info in net.inputs:
        kind, shape = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type), sizes[info.name]
        low, high = net.ranges.get(info.name, (0, 2))
        if kind.kind != "f":
            out[info.name] = rng.integers(int(low), int(high), shape).astype(kind)
        elif info.name in net.ranges:
            out[info.name] = rng.uniform(low, high, shape).astype(kind)
        else:
            out[info.name] = rng.standard_normal(shape).astype(kind)
    return out


def _expect(coupling: Coupling, free: Mapping[str, str] | Sequence[str], pinned: Mapping[str, str]) -> None:
    reasons = {place: reason for place, reason, _ in coupling.pins()}
    for place in free:
        assert place not in reasons, f"{place} is pinned: {reasons[place]}"
        text = _axis(coupling, place)
        assert not isinstance(free, Mapping) or text == free[place], f"{place} is {text}"
    for place, reason in pinned.items():
        assert place in reasons, f"{place} is not pinned but {_axis(coupling, place)}"
        assert reason in reasons[place], f"{place} is pinned: {reasons[place]}"


def _axis(coupling: Coupling, place: str) -> str:
    name, _, k = place.rpartition(":")
    axis = coupling.expand(coupling.graph.weights[name].axes[int(k)])
    return show(axis, lambda d: str(d.size) if d in coupling.dims else f"[{d.size}]")
