"""A temporary folder that goes when nobody refers to it any more, at the latest at exit."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path


class Folder:
    """A folder that is made when its path is asked for first."""

    @cached_property
    def path(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix="graphprune-"))
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return path
