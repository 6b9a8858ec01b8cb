"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import cnn, put


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Return the file of a small CNN."""
    return put(tmp_path / "net.onnx", cnn())
