"""Loading: whatever holds a graph gives the same groups, nothing given is modified, broken files are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small import array_of, cnn, external, mlp, shapes_of, tensor

import graphprune
from graphprune.errors import ModelError, UsageError
from graphprune.model import Mapped, has_external_data, is_marked, load, save
from graphprune.output import MARK

FAST = {"time": False, "align": 1, "calibration": "off"}


def groups(model: Any) -> list[tuple[str, int, int, tuple[Any, ...]]]:
    coupling = graphprune.analyse(model).coupling
    return [(g.name, g.size, g.parameters, g.occurrences) for g in coupling.groups]


def read_all(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_every_form_gives_the_same_groups(tmp_path: Path) -> None:
    proto = cnn()
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(proto.SerializeToString())
    graphsurgeon = pytest.importorskip("onnx_graphsurgeon")
    forms = {
        "path": plain,
        "text path": str(plain),
        "external": external(proto, tmp_path / "one.onnx"),
        "several files": external(proto, tmp_path / "many.onnx", lambda name: f"{name}.bin"),
        "ModelProto": proto,
        "ir.Model": ir.from_proto(proto),
        "graphsurgeon": graphsurgeon.import_onnx(proto),
    }
    found = {name: groups(form) for name, form in forms.items()}
    assert [(n, s) for n, s, _, _ in found["path"]] == [("w1:0", 32), ("w2:0", 48)]
    for name, got in found.items():
        assert sorted(got, key=str) == sorted(found["path"], key=str), name


def test_nothing_given_is_modified(tmp_path: Path) -> None:
    proto = cnn()
    before = proto.SerializeToString()
    graphprune.prune(proto, 0.5, **FAST)
    assert proto.SerializeToString() == before

    held = ir.from_proto(proto)
    text = ir.to_proto(held).SerializeToString()
    graphprune.prune(held, 0.5, **FAST)
    assert ir.to_proto(held).SerializeToString() == text

    external(proto, tmp_path / "model.onnx")
    files = read_all(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    graphprune.prune(tmp_path / "model.onnx", 0.5, output=out / "small.onnx", **FAST)
    assert read_all_files(tmp_path) == files
    assert sorted(os.listdir(out)) == ["small.onnx", "small.onnx.data"]

    graphsurgeon = pytest.importorskip("onnx_graphsurgeon")
    graph = graphsurgeon.import_onnx(proto)
    before = graphsurgeon.export_onnx(graph).SerializeToString()
    graphprune.prune(graph, 0.5, **FAST)
    assert graphsurgeon.export_onnx(graph).SerializeToString() == before


def read_all_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_external_weights_are_embedded_when_asked_for_as_proto_or_saved(tmp_path: Path) -> None:
    source = external(cnn(), tmp_path / "model.onnx", lambda name: f"{name}.bin")
    result = graphprune.prune(source, 0.5, **FAST)
    assert shapes_of(result.model)["w1"] == [16, 3, 3, 3]
    assert all(w.data_location != TensorProto.EXTERNAL and w.raw_data for w in result.model.graph.initializer)
    np.testing.assert_array_equal(array_of(result.model, "b3"), array_of(cnn(), "b3"))
    result.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx.data").exists()
    same = onnx.load(tmp_path / "again.onnx")
    for name in ("w1", "w2", "w3", "b1", "b2", "b3"):
        np.testing.assert_array_equal(array_of(same, name), array_of(result.model, name))


def test_a_result_is_never_saved_over_the_models_own_data(tmp_path: Path) -> None:
    source = external(cnn(), tmp_path / "model.onnx", lambda name: "small.onnx.data")
    files = read_all(tmp_path)
    with pytest.raises(UsageError, match="own data"):
        graphprune.prune(source, 0.5, output=tmp_path / "small.onnx", **FAST)
    result = graphprune.prune(source, 0.5, **FAST)
    with pytest.raises(UsageError, match="own data"):
        result.save(tmp_path / "small.onnx")
    with pytest.raises(UsageError, match="model itself"):
        result.save(source)
    assert read_all(tmp_path) == files


def test_memory_maps_go_with_their_arrays(tmp_path: Path) -> None:
    analysis = graphprune.analyse(external(cnn(), tmp_path / "model.onnx"))
    assert has_external_data(analysis.original)
    held = analysis.model.graph.initializers["w2"].const_value
    assert isinstance(held, Mapped)
    np.testing.assert_array_equal(held.numpy(), array_of(cnn(), "w2"))
    assert held.tobytes() == array_of(cnn(), "w2").tobytes()
    assert held.raw is None and np.asarray(held).shape == (48, 32, 3, 3)


def test_marks_are_found_without_reading_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(cnn().SerializeToString())
    assert not is_marked(path, MARK)
    graphprune.prune(path, 0.5, output=tmp_path / "b.onnx", **FAST)
    assert is_marked(tmp_path / "b.onnx", MARK) and not is_marked(tmp_path / "b.onnx", "graph")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty").write_bytes(b"")
    assert not any(is_marked(tmp_path / name, MARK) for name in ("noise", "empty", "missing"))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot load a model from int"):
        load(3)
    with pytest.raises(ModelError, match="no graph"):
        load(onnx.ModelProto())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", broken)
    with pytest.raises(UsageError, match="No space left"):
        save(ir.from_proto(cnn()), path)
    assert os.listdir(tmp_path) == ["a.onnx"] and path.read_bytes() == b"old"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_truncated_files_are_told(tmp_path: Path, share: float) -> None:
    content = cnn().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        load(path)


def moved(path: Path, location: str) -> Path:
    proto = onnx.load(path, load_external_data=False)
    for w in proto.graph.initializer:
        for entry in w.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_that_is_missing_short_or_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(cnn(), folder / "m.onnx")
    data = folder / "weights.bin"
    content = data.read_bytes()
    data.write_bytes(content[:-4])
    with pytest.raises(ModelError, match="too short"):
        load(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"missing: weights\.bin"):
        load(path)
    outside = tmp_path / "outside.bin"
    outside.write_bytes(content)
    data.symlink_to(outside)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(path)
    data.unlink()
    os.link(outside, data)
    with pytest.raises(ModelError, match="hard link"):
        load(path)
    for location in ("../outside.bin", str(outside), "sub/../../outside.bin"):
        with pytest.raises(ModelError, match="outside the model's folder"):
            load(moved(path, location))


def test_external_data_inside_subgraphs_is_checked(tmp_path: Path) -> None:
    inner = helper.make_tensor("k", TensorProto.FLOAT, [4], [0.0] * 4)
    inner.ClearField("float_data")
    inner.data_location = TensorProto.EXTERNAL
    entry = inner.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    branches = [
        helper.make_graph(
            [helper.make_node("Add", ["y0", "k"], [f"b{i}"])], f"g{i}", [],
            [helper.make_tensor_value_info(f"b{i}", TensorProto.FLOAT, None)], [inner],
        )
        for i in range(2)
    ]
    proto = mlp()
    proto.graph.node[2].output[0] = "y0"
    proto.graph.initializer.append(helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    proto.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside"):
        load(path)


OPSETS = [(7, 3), (8, 3), (9, 4), (11, 6), (13, 7), (17, 8), (21, 10), (23, 11), (26, 13)]


@pytest.mark.parametrize("opset,version", OPSETS)
def test_what_a_file_says_of_itself_survives(tmp_path: Path, opset: int, version: int) -> None:
    proto = cnn(opset, version, producer_name="maker", producer_version="1.2", domain="org.x", model_version=7)
    proto.doc_string, proto.graph.doc_string, proto.graph.name = "about", "about the graph", "the net"
    helper.set_model_props(proto, {"stride": "32", "names": "{0: 'cat'}"})
    proto.graph.node[0].doc_string = "first"
    if version >= 10:
        entry = proto.graph.node[0].metadata_props.add()
        entry.key, entry.value = "namespace", "layer1"
        value = proto.graph.value_info.add()
        value.CopyFrom(helper.make_tensor_value_info("c1", TensorProto.FLOAT, ["batch", 32, 8, 8], "feature map"))
        entry = value.metadata_props.add()
        entry.key, entry.value = "k", "v"
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    graphprune.prune(path, 0.5, output=tmp_path / "p.onnx", **FAST)
    got = onnx.load(tmp_path / "p.onnx")
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(got, name) == getattr(proto, name), name
    assert [(o.domain, o.version) for o in got.opset_import] == [("", opset)]
    assert (got.graph.name, got.graph.doc_string) == ("the net", "about the graph")
    props = {p.key: p.value for p in got.metadata_props}
    assert props.pop(MARK) and props == {"stride": "32", "names": "{0: 'cat'}"}
    assert [(n.name, n.op_type, list(n.output)) for n in got.graph.node] == [
        (n.name, n.op_type, list(n.output)) for n in proto.graph.node
    ]
    assert got.graph.node[0].doc_string == "first"
    if version >= 10:
        assert {p.key: p.value for p in got.graph.node[0].metadata_props} == {"namespace": "layer1"}
        stated = {v.name: v for v in got.graph.value_info}["c1"]
        assert [d.dim_param or d.dim_value for d in stated.type.tensor_type.shape.dim] == ["batch", 16, 8, 8]
        assert stated.doc_string == "feature map" and stated.metadata_props[0].value == "v"
    assert shapes_of(got)["w2"] == [24, 16, 3, 3]
    assert [i.name for i in got.graph.input] == [i.name for i in proto.graph.input]
    last = [d.dim_value for d in got.graph.input[-1].type.tensor_type.shape.dim]
    assert last == ([5] if version < 4 else [0, 3, 8, 8])


@pytest.mark.parametrize("version", [3, 8])
def test_unused_initializers_make_no_new_inputs(version: int) -> None:
    proto = cnn(8, version)
    spare = tensor("spare", np.zeros((3, 3)))
    proto.graph.initializer.append(spare)
    if version < 4:
        proto.graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, [3, 3]))
    got = graphprune.prune(proto, 0.5, **FAST).model
    needed = {i.name for i in got.graph.input} - {w.name for w in got.graph.initializer}
    assert needed == {"x"}
