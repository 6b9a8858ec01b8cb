"""What makes a loaded graph unusable, told as one line: names that nothing makes, cycles, tensors of a wrong length."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import onnx_ir as ir

from graphprune.errors import ModelError

_TYPED = ("float_data", "double_data", "int64_data")
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


@contextmanager
def hushed() -> Iterator[None]:
    """Keep onnx_ir from logging what is raised here in a form of our own."""
    logger = logging.getLogger("onnx_ir")
    before = logger.disabled, logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.disabled, logger.level = before


def put_in_order(graph: ir.Graph, where: str) -> None:
    """Sort a graph whose nodes are not in order; raise ModelError for names that nothing makes and for cycles."""
    known = {*graph.inputs, *graph.initializers.values()}
    made: set[ir.Node] = set()
    ordered = True
    for node in graph:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if value is not None and producer is None and value not in known:
                raise ModelError(
                    f"{where}: node {node.name or node.op_type!r} reads {value.name!r}, which nothing makes (sparse "
                    "initializers are not read)"
                )
            ordered &= producer is None or producer in made
        made.add(node)
    for value in graph.outputs:
        if value.producer() is None and value not in known:
            raise ModelError(f"{where}: output {value.name!r} is made by no node")
    if not ordered:
        try:
            graph.sort()
        except ValueError as error:
            raise ModelError(f"{where}: the graph has a cycle") from error


def check_embedded(name: str, tensor: ir.TensorProtoTensor, where: str) -> None:
    """Raise ModelError if a tensor's content is not as long as its shape says."""
    proto = tensor.raw
    if tensor.dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{where}: initializer {name!r} has no element type")
    if proto.HasField("raw_data"):
        have, want, unit = len(proto.raw_data), tensor.nbytes, "bytes"
    else:
        lengths = [len(getattr(proto, field)) for field in _TYPED]
        if tensor.dtype in _COMPLEX or not any(lengths):
            return
        have, want, unit = sum(lengths), prod(tensor.shape.numpy()), "elements"
    if have != want:
        word = "is truncated" if have < want else "is too long"
        raise ModelError(f"{where}: initializer {name!r} {word}: {have} of {want} {unit}")


def check_external(name: str, tensor: ir.ExternalTensor, where: str) -> None:
    """Raise ModelError if external data is missing, too short, or not inside the model's folder."""
    folder = Path(tensor.base_dir or ".").resolve()
    file = (folder / tensor.location).resolve()
    if os.path.isabs(tensor.location) or not file.is_relative_to(folder):
        raise ModelError(f"{where}: external data of {name!r} points outside the model's folder: {tensor.location}")
    if not file.is_file():
        raise ModelError(f"{where}: external data of {name!r} is missing: {file.name} (copy it beside the model)")
    if file.stat().st_nlink > 1:
        raise ModelError(f"{where}: external data of {name!r} is a hard link, which onnx refuses: copy {file.name}")
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if file.stat().st_size < end or (tensor.length is not None and tensor.length < tensor.nbytes):
        raise ModelError(f"{where}: external data of {name!r} is too short: {file.name} ends before byte {end}")
