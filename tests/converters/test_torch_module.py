"""ONNX graphs as torch modules: what is trained, modes and types, and the way back by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphprune.converters.pytorch import to_module, write_back  # noqa: E402
from graphprune.errors import ModelError, UsageError  # noqa: E402
from graphprune.execute import evaluate, relative_error  # noqa: E402
from graphprune.model import load  # noqa: E402

RNG = np.random.default_rng(0)


def rand(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def model(nodes: list[Any], constants: dict[str, Any], inputs: dict[str, Any], outputs: list[str]) -> Any:
    """Return a model; inputs are given by example."""
    given = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
        for k, v in inputs.items()
    ]
    made = [helper.make_empty_tensor_value_info(o) for o in outputs]
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", given, made, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Return a node; `-` stands for an absent value, ai.onnx for no domain."""
    names = [["" if n == "-" else n for n in text.split()] for text in (inputs, outputs)]
    return helper.make_node(kind, *names, name=f"{kind}_{outputs.split()[0]}", **attributes)


def network() -> tuple[Any, dict[str, Any]]:
    """Return a small network with all that matters: dots in names, a shared vector, scalars, statistics, dropout."""
    constants = {
        "conv.weight": rand(6, 3, 3, 3), "zeros": np.zeros(6, np.float32), "bn.scale": 1 + 0.1 * rand(6),
        "bn.mean": rand(6), "bn.var": np.abs(rand(6)) + 0.5, "two": np.float32(2.0), "half": np.float32(0.5),
        "conv2.weight": rand(6, 6, 1, 1), "head.weight": rand(4, 6), "head.bias": rand(4),
        "shape": np.array([0, -1], np.int64), "ratio": np.float32(0.5),
    }  # fmt: skip
    nodes = [
        node("Conv", "x conv.weight zeros", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a bn.scale zeros bn.mean bn.var", "b"),
        node("Pow", "b two", "c"),
        node("Conv", "c conv2.weight zeros", "d"),
        node("Mul", "d half", "e"),
        node("GlobalAveragePool", "e", "f"),
        node("Reshape", "f shape", "g"),
        node("Dropout", "g ratio", "h"),
        node("Gemm", "h head.weight head.bias", "y", transB=1),
    ]
    feeds = {"x": rand(2, 3, 5, 5)}
    return model(nodes, constants, feeds, ["y"]), feeds


def test_weights_are_parameters_under_their_names_and_scalars_are_not() -> None:
    proto, feeds = network()
    module = to_module(proto).eval()
    trained = {module.onnx_names[k]: p for k, p in module.named_parameters()}
    assert {"conv.weight", "conv2.weight", "head.weight", "head.bias", "bn.scale"} <= set(trained)
    assert not {"two", "half", "ratio", "bn.mean", "bn.var", "shape"} & set(trained)
    assert len([n for n in trained if n.startswith("zeros")]) == 3, "a vector that three nodes share is three weights"
    assert set(module.statistics) == {"bn.mean", "bn.var"}
    assert all("." not in k.removeprefix("weights.") for k, _ in module.named_parameters())
    expected = evaluate(load(proto), feeds)
    for outputs in (module(feeds["x"]), module(x=torch.as_tensor(feeds["x"]))):
        assert relative_error(expected, {"y": outputs["y"].detach().numpy()})[0] < 1e-5


def test_patterns_of_names_decide() -> None:
    proto, _ = network()
    module = to_module(proto, frozen=["conv*"], trained=["half"])
    names = {module.onnx_names[k] for k, _ in module.named_parameters()}
    assert "half" in names and not any(n.startswith("conv") for n in names)


def test_normalisations_and_dropout_know_the_mode() -> None:
    proto, feeds = network()
    module = to_module(proto)
    before = {n: v.clone() for n, v in module.values()}
    module.eval()(**feeds)
    assert all(torch.equal(v, before[n]) for n, v in module.values())
    module.batch_statistics = False
    module.train()(**feeds)
    assert all(torch.equal(v, before[n]) for n, v in module.values())
    module.batch_statistics = True
    first, second = module(**feeds)["y"], module(**feeds)["y"]
    assert not torch.allclose(first, second), "dropout drops other elements each time"
    now = dict(module.values())
    assert all(not torch.equal(now[n], before[n]) for n in module.statistics)
    x = torch.nn.functional.conv2d(torch.as_tensor(feeds["x"]), before["conv.weight"], padding=1)
    mean = before["bn.mean"]
    for _ in range(2):
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
    assert torch.allclose(now["bn.mean"], mean, atol=1e-5)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-5), (torch.bfloat16, 5e-2)])
def test_other_number_types(dtype: Any, allowed: float) -> None:
    proto, feeds = network()
    module = to_module(proto).eval().to(dtype)
    got = module(**feeds)["y"]
    assert got.dtype == dtype
    assert relative_error(evaluate(load(proto), feeds), {"y": got.detach().float().numpy()})[0] < allowed


def test_autocast_trains_in_bfloat16() -> None:
    proto, feeds = network()
    module = to_module(proto)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(**feeds)["y"].float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_tuned_weights_go_back_into_the_same_graph(tmp_path: Path) -> None:
    proto, feeds = network()
    module = to_module(proto)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module(**feeds)["y"].square().sum().backward()
    optimizer.step()
    tuned = write_back(module, proto)
    got = evaluate(tuned, feeds)
    assert relative_error(got, {"y": module.eval()(**feeds)["y"].detach().numpy()})[0] < 1e-5
    assert relative_error(evaluate(load(proto), feeds), got)[0] > 1e-3
    assert [n.op_type for n in tuned.graph] == [n.op_type for n in proto.graph.node]
    assert {i.name for i in proto.graph.initializer} <= set(tuned.graph.initializers)
    untouched = write_back(to_module(proto), proto)
    assert set(untouched.graph.initializers) == {i.name for i in proto.graph.initializer}, "equal copies are one again"


def test_weights_of_another_model_and_broken_ones_are_refused() -> None:
    proto, _ = network()
    module = to_module(proto)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(rand(6, 3, 1, 1), "conv.weight"))
    with pytest.raises(ModelError, match=r"conv\.weight.*shape"):
        write_back(module, other)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        write_back(module, proto)


def test_what_cannot_be_converted_is_named() -> None:
    nodes = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")]
    with pytest.raises(ModelError, match=r"QuantizeLinear.*QuantizeLinear_q.*quantis"):
        to_module(model(nodes, {"s": np.float32(0.1)}, {"x": rand(2)}, ["y"]))
    proto, feeds = network()
    with pytest.raises(UsageError, match="inputs are x"):
        to_module(proto)(z=feeds["x"])
    with pytest.raises(ModelError, match="Conv_a"):
        to_module(proto)(rand(2, 5, 5, 5))


def test_without_torch_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; old = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'torch' else old(n, *a)\n"
        "from graphprune.converters.pytorch import to_module\n"
        "from graphprune.errors import UsageError\n"
        "try: to_module('m.onnx')\n"
        "except UsageError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "graphprune[torch]" in done.stdout and done.stdout.count("\n") == 1, done.stderr


def test_tables_of_angles_and_masks_are_frozen_and_learned_positions_are_not() -> None:
    angles = np.arange(6)[:, None] * np.array([[1.0, 0.1]])
    constants = {
        "embed.weight": rand(9, 4), "positions": rand(6, 4),
        "cos": np.cos(np.hstack([angles, angles])).astype(np.float32),
        "mask": np.triu(np.full((6, 6), -1e9, np.float32), 1), "w": rand(4, 4), "frequencies": rand(1, 2, 1),
    }  # fmt: skip
    nodes = [
        node("Gather", "embed.weight ids", "e"), node("Add", "e positions", "p"), node("Mul", "p cos", "r"),
        node("MatMul", "r w", "q"), node("Transpose", "p", "t", perm=[0, 2, 1]), node("MatMul", "q t", "s"),
        node("Add", "s mask", "m"), node("Cast", "ids", "n", to=TensorProto.FLOAT), node("Unsqueeze", "n one", "u"),
        node("MatMul", "frequencies u", "f"), node("Sin", "f", "z"),
    ]  # fmt: skip
    proto = model(nodes, {**constants, "one": np.array([1])}, {"ids": np.zeros((2, 6), np.int64)}, ["m", "z"])
    module = to_module(proto)
    assert {module.onnx_names[k] for k, _ in module.named_parameters()} == {"embed.weight", "positions", "w"}


def test_weights_inside_of_bodies_are_trained_and_go_back() -> None:
    def body(name: str) -> Any:
        out = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, None)
        weight = numpy_helper.from_array(rand(3, 3), "w")
        return helper.make_graph([helper.make_node("MatMul", ["x", "w"], [f"y_{name}"])], name, [], [out], [weight])

    step = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "recurrent"], ["h2"]), helper.make_node("Tanh", ["h2"], ["h3"]),
            helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["h3"], ["each"]),
        ],
        "step",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("k", 7, []), ("c", 9, []), ("h", 1, None))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("c2", 9, []), ("h3", 1, None), ("each", 1, None))],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["flag"], ["b"], then_branch=body("yes"), else_branch=body("no")),
        helper.make_node("Loop", ["times", "", "b"], ["last", "all"], body=step),
    ]
    feeds = {"x": rand(2, 3), "flag": np.array(True), "times": np.array(3, np.int64)}
    proto = model(nodes, {"recurrent": rand(3, 3)}, feeds, ["last", "all"])
    module = to_module(proto)
    assert sorted(module.onnx_names[k] for k, _ in module.named_parameters())[:2] == ["recurrent", "w"]
    for flag in (True, False):
        given = {**feeds, "flag": np.array(flag)}
        module.zero_grad()
        outputs = module(**given)
        outputs["all"].sum().backward()
        got = [p.grad is not None for k, p in module.named_parameters() if module.onnx_names[k].startswith("w")]
        assert sorted(got) == [False, True], "only the branch that was taken has gradients"
        arrays = {k: v.detach().numpy() for k, v in outputs.items()}
        assert relative_error(evaluate(load(proto), given), arrays)[0] < 1e-5
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
    arrays = {k: v.detach().numpy() for k, v in module(**feeds).items()}
    assert relative_error(evaluate(write_back(module, proto), feeds), arrays)[0] < 1e-5
