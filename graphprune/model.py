"""Models at the border: load whatever holds an ONNX graph, find its constants, save without half-written files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy.typing as npt
import onnx_ir as ir

from graphprune.checks import check_embedded, check_external, hushed, put_in_order
from graphprune.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx

ModelLike: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model | Any"
"""A path, a ModelProto, an onnx_ir Model or a graphsurgeon Graph."""

EMBED_LIMIT = 1_900_000_000
"""Bytes of weights above which a model needs external data: one protobuf file ends at 2 GB."""


def load(model: ModelLike) -> ir.Model:
    """Return a model as onnx_ir; weights in external data stay on disk, memory-mapped.

    >>> load("model.onnx").graph.name  # doctest: +SKIP

    Raises ModelError if the file is missing, not ONNX, truncated, or its external data is.
    """
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, (str, os.PathLike)):
        return _load_path(Path(model))
    import onnx

    if isinstance(model, onnx.ModelProto):
        return _checked(_deserialised(model), "the model")
    if type(model).__module__.startswith("onnx_graphsurgeon"):
        import onnx_graphsurgeon

        return _checked(_deserialised(onnx_graphsurgeon.export_onnx(model)), "the graph")
    raise UsageError(f"cannot load a model from {type(model).__name__}: give a path, ModelProto, ir.Model or gs.Graph")


def _deserialised(proto: onnx.ModelProto) -> ir.Model:
    try:
        with hushed():
            return ir.serde.deserialize_model(proto)
    except Exception as error:
        raise ModelError(f"the model is not valid ({type(error).__name__})") from error


def _load_path(path: Path) -> ir.Model:
    if not path.exists() and not path.is_symlink():
        raise ModelError(f"{path}: no such file")
    if not path.is_file():
        raise ModelError(f"{path}: is not a file")
    try:
        with hushed():
            model = ir.load(path, format="protobuf")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise ModelError(f"{path}: is not an ONNX model, or is truncated ({type(error).__name__})") from error
    return _checked(model, str(path))


def _checked(model: ir.Model, where: str) -> ir.Model:
    if not model.ir_version or not (len(model.graph) or model.graph.outputs):
        raise ModelError(f"{where}: is not an ONNX model: it has no graph")
    if not model.graph.outputs:
        raise ModelError(f"{where}: the graph has no outputs: nothing would be left of it")
    put_in_order(model.graph, where)
    for graph in model.graphs():
        for value, tensor in constants(graph):
            if isinstance(tensor, ir.ExternalTensor):
                check_external(value.name or "", tensor, where)
            elif isinstance(tensor, ir.TensorProtoTensor):
                check_embedded(value.name or "", tensor, where)
    return model


def constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield the initializers and the outputs of Constant nodes of a graph, subgraphs not included."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value
    for node in graph:
        if not node.inputs and len(node.outputs) == 1:
            tensor = constant_of(node.outputs[0])
            if tensor is not None:
                yield node.outputs[0], tensor


def values_of(graph: ir.Graph) -> list[ir.Value]:
    """Return all values that a graph itself makes known, those of its bodies not included."""
    return [*graph.inputs, *graph.initializers.values(), *[o for node in graph for o in node.outputs]]


def all_values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the values of a normalised model, those inside of bodies too, by name."""
    return {v.name: v for graph in model.graphs() for v in values_of(graph) if v.name}


def all_nodes(model: ir.Model) -> dict[str, ir.Node]:
    """Return the nodes of a normalised model, those inside of bodies too, by name."""
    return {node.name or "": node for graph in model.graphs() for node in graph}


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the content of an initializer or of a Constant node's output."""
    if value is None:
        return None
    if value.const_value is not None and value.producer() is None:
        return value.const_value
    node = value.producer()
    if node is None or node.inputs or len(node.outputs) != 1:
        return None
    attribute = node.attributes.get("value")
    if node.op_type == "Constant" and attribute is not None and attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor()  # not get_const_tensor, which renames the tensor, and that is the caller's
    with suppress(ValueError):  # sparse constants
        return ir.convenience.get_const_tensor(value)
    return None


def set_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Replace the content of an initializer or of a Constant node's output."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
        value.const_value = None
    value.shape = ir.Shape(tensor.shape.numpy())
    value.type = ir.TensorType(tensor.dtype)


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, ir_version: int) -> ir.Value:
    """Add a constant: an initializer, or a node for files so old that every initializer is an input as well."""
    if ir_version >= 4:
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        graph.register_initializer(value)
        return value
    node = ir.node("Constant", [], attributes={"value": tensor}, name=name)
    node.outputs[0].name = name
    node.outputs[0].shape = ir.Shape(tensor.shape.numpy())
    node.outputs[0].type = ir.TensorType(tensor.dtype)
    graph.insert_before(graph.node(0), node)
    return node.outputs[0]


class Mapped(ir.ExternalTensor):
    """External data that is mapped into memory only while somebody holds the array.

    An ExternalTensor keeps its map, and with it every page that was ever touched, for as long as it lives.
    """

    def numpy(self) -> npt.NDArray[Any]:
        return self._again().numpy()

    def __array__(self, dtype: Any = None) -> npt.NDArray[Any]:
        return self.numpy().__array__(dtype)

    def tobytes(self) -> bytes:
        return self._again().tobytes()

    def _again(self) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self.location, self.offset, self.length, self.dtype, shape=self.shape, name=self.name or "",
            base_dir=self.base_dir,
        )


def unmapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor that does not hold on to a memory map."""
    if not isinstance(tensor, ir.ExternalTensor) or isinstance(tensor, Mapped):
        return tensor
    return Mapped(
        tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or "",
        doc_string=tensor.doc_string, metadata_props=tensor.metadata_props, base_dir=tensor.base_dir,
    )


def tensor_bytes(model: ir.Model) -> int:
    """Return the bytes of all constants of a model."""
    return sum(t.nbytes for graph in model.graphs() for _, t in constants(graph))


def has_external_data(model: ir.Model) -> bool:
    """Return whether any weight of a model lies in a file of its own."""
    return any(isinstance(t, ir.ExternalTensor) for graph in model.graphs() for _, t in constants(graph))


def external_files(model: ir.Model) -> set[Path]:
    """Return the files that hold external data of a model."""
    tensors = (t for graph in model.graphs() for _, t in constants(graph))
    return {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}


def embedded(model: ir.Model) -> ir.Model:
    """Return a copy that needs no external data: what is on disk is read when the copy is written."""
    out = model.clone()
    for graph in out.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = _read_later(tensor)
    return out


def _read_later(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    def read() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)

    return ir.LazyTensor(read, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def is_marked(path: str | os.PathLike[str], mark: str) -> bool:
    """Return whether a model file has a metadata entry of that name; the graph is passed over, not read."""
    try:
        with open(path, "rb") as file:
            return any(entry.startswith(b"\n%c%s" % (len(mark), mark.encode())) for entry in _metadata(file))
    except OSError:
        return False


def _metadata(file: BinaryIO) -> Iterator[bytes]:
    """Yield the metadata entries of a serialised ModelProto (field 14); stop where the file is none."""
    while True:
        tag = _varint(file)
        kind = tag & 7 if tag is not None else None
        if kind not in (0, 2):
            return
        number = _varint(file)
        if number is None:
            return
        if kind == 2:
            if tag is not None and tag >> 3 == 14:
                yield file.read(number)
            else:
                file.seek(number, os.SEEK_CUR)


def _varint(file: BinaryIO) -> int | None:
    number = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)
        if not byte:
            return None
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    return None


def save(model: ir.Model, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
    """Write a model beside its destination, then rename; weights go into `NAME.data` if `external`.

    By default external data is used where the weights exceed what one protobuf file may hold.
    """
    target = Path(path)
    if external is None:
        external = tensor_bytes(model) > EMBED_LIMIT
    if not target.parent.is_dir():
        raise UsageError(f"{target}: cannot be written: no folder {target.parent}")
    try:
        with tempfile.TemporaryDirectory(prefix=".graphprune-", dir=target.parent) as folder:
            written = write_into(model, Path(folder), target.name, external=external)
            publish(written, target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror or error}") from error


def write_into(model: ir.Model, folder: Path, name: str, *, external: bool) -> Path:
    """Write a model into a folder under its final names; return the model file's path."""
    path = folder / name
    if external:
        ir.save(model, path, external_data=name + ".data", size_threshold_bytes=1024, max_workers=1)
    else:
        ir.save(embedded(model) if has_external_data(model) else model, path)
    return path


def publish(written: Path, target: Path) -> None:
    """Move a written model and its data file to their destination, data first."""
    data = written.with_name(written.name + ".data")
    if data.exists():
        os.replace(data, target.with_name(target.name + ".data"))
    os.replace(written, target)
