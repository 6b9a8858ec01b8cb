"""What tests of quantised operators share: narrow numbers, their scales and zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
from oracles import Net


def whole(net: Net, *shape: int, name: str = "", dtype: Any = np.int8) -> str:
    """Add random integers of a narrow type."""
    low, high = (-100, 100) if np.dtype(dtype) == np.int8 else (28, 228)
    return net.const(net.rng.integers(low, high, shape), dtype, name)


def scales(net: Net, *shape: int, name: str = "") -> str:
    return net.const(net.rng.uniform(0.01, 0.03, shape), np.float32, name)


def zeros(net: Net, *shape: int, dtype: Any = np.int8, name: str = "") -> str:
    middle = 0 if np.dtype(dtype) == np.int8 else 128
    return net.const(net.rng.integers(middle - 5, middle + 5, shape), dtype, name)


def around(net: Net, x: str, scale: float = 0.05, dtype: Any = np.uint8, **attributes: Any) -> str:
    """Quantise a value and back, as QDQ files do at every activation."""
    pair = net.const(np.float32(scale)), zeros(net, dtype=dtype)
    return str(net("DequantizeLinear", net("QuantizeLinear", x, *pair, **attributes), *pair, **attributes))


def into(net: Net, x: str, dtype: Any = np.uint8, scale: float = 0.05) -> tuple[str, str, str]:
    """Quantise a value; return it with its scale and zero point."""
    pair = net.const(np.float32(scale)), zeros(net, dtype=dtype)
    return net("QuantizeLinear", x, *pair), *pair
