"""A temporary folder that goes when nobody refers to it any more, at the latest at exit."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class Folder:
    """A folder that is made when its path is asked for first."""

    @cached_property
    def path(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix="graphprune-"))
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return path

    def park(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Write an array and return it memory-mapped, to be read only."""
        return parked(self.path / f"{name}.npy", array)


def parked(path: Path, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Write an array into a file and return it memory-mapped, to be read only."""
    np.save(path, array)
    return np.asarray(np.load(path, mmap_mode="r"))
