"""Arrays of element types that onnxruntime computes with but whose arrays its run() does not carry faithfully."""

from __future__ import annotations

import ctypes
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

EXOTIC = re.compile(r"tensor\(((?:bfloat|float8|u?int4)\w*)\)")
"""Their names: bfloat16 raises in run(), float8 comes back as bytes."""


def array_of(value: Any) -> npt.NDArray[Any]:
    """Copy a tensor out of an OrtValue in host memory, into an ml_dtypes array where numpy has no such type."""
    exotic = EXOTIC.fullmatch(value.data_type())
    if exotic is None:
        return np.asarray(value.numpy())
    kind, shape = ir.DataType[exotic.group(1).upper()], tuple(value.shape())
    count = math.prod(shape)
    size = (count * kind.bitwidth + 7) // 8
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", dtype=np.uint8)
    if kind.bitwidth == 4:
        raw = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(-1)[:count]
    return np.array(raw.view(kind.numpy()).reshape(shape))


def pack(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pack 4-bit elements two to a byte, the first in the low half, as onnxruntime stores them.

    The result keeps the unpacked shape, because onnxruntime reads the shape from it, and ends in unused bytes.
    """
    nibbles = np.zeros(array.size + array.size % 2, np.uint8)
    nibbles[: array.size] = array.reshape(-1).view(np.uint8) & 0xF
    packed = np.zeros(array.size, np.uint8)
    packed[: nibbles.size // 2] = nibbles[0::2] | nibbles[1::2] << 4
    return packed.reshape(array.shape)
