"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small import cnn, put


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Return the file of a small CNN."""
    return put(tmp_path / "net.onnx", cnn())


@pytest.fixture(autouse=True, scope="session")
def nothing_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test read or write what is kept of this machine between runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHPRUNE_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield
