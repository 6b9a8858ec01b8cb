"""Write a transformer-like model of any size with external data, without ever holding more than one weight.

    python tests/make_large.py 2.4 /tmp/large/model.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

_FLOAT = TensorProto.FLOAT


def make_large(gigabytes: float, path: Path, blocks: int = 20) -> int:
    """Write residual blocks of two matrices each (width d, hidden 4 d); return the bytes of the largest weight."""
    width = int((gigabytes * 1e9 / (blocks * 8 * 4)) ** 0.5) // 64 * 64
    data = path.with_name(path.name + ".data")
    rng = np.random.default_rng(0)
    initializers, nodes, value = [], [], "x"
    with open(data, "wb") as file:

        def weight(name: str, *shape: int) -> str:
            offset = file.tell()
            for _ in range(shape[0]):
                row = rng.standard_normal(shape[1:], dtype=np.float32) / np.float32(shape[0] ** 0.5)
                file.write(np.atleast_1d(row).tobytes())
            tensor = TensorProto(name=name, data_type=_FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
            for key, content in (("location", data.name), ("offset", offset), ("length", file.tell() - offset)):
                tensor.external_data.add(key=key, value=str(content))
            initializers.append(tensor)
            return name

        for k in range(blocks):
            up, down = weight(f"up.{k}", width, 4 * width), weight(f"down.{k}", 4 * width, width)
            scale, shift = weight(f"scale.{k}", width), weight(f"shift.{k}", width)
            nodes += [
                helper.make_node("LayerNormalization", [value, scale, shift], [f"n{k}"], name=f"norm.{k}"),
                helper.make_node("MatMul", [f"n{k}", up], [f"h{k}"], name=f"block.{k}.up"),
                helper.make_node("Relu", [f"h{k}"], [f"r{k}"], name=f"block.{k}.act"),
                helper.make_node("MatMul", [f"r{k}", down], [f"o{k}"], name=f"block.{k}.down"),
                helper.make_node("Add", [value, f"o{k}"], [f"x{k}"], name=f"block.{k}.add"),
            ]
            value = f"x{k}"
    sides = [[helper.make_tensor_value_info(n, _FLOAT, ["batch", "sequence", width])] for n in ("x", value)]
    graph = helper.make_graph(nodes, "large", *sides, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert onnx.load(path, load_external_data=False).graph.name == "large"
    return 4 * width * width * 4


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"largest weight: {make_large(float(sys.argv[1]), target) / 1e6:.0f} MB")
