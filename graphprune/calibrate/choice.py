"""What `--calibration` and the options beside it ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from graphprune.calibrate.given import open_data
from graphprune.calibrate.images import parse_preset
from graphprune.calibrate.samples import Samples, Source
from graphprune.errors import UsageError

Kind = Literal["data", "none", "noise"]


@dataclass(frozen=True)
class Calibration:
    """Where calibration inputs come from: the user's data, what the model itself allows (none), or plain noise.

    `data` is a path where the command line gave one, else anything that `open_data` reads. `source` is whether data
    is of the kind that the model will meet.
    """

    kind: Kind
    data: Any = None
    source: Source = "synthetic"
    preset: str | None = None
    tokenizer: str | None = None
    length: int | None = None

    def open(self, model: ir.Model, **options: Any) -> Samples:
        """Open the data, by `open_data` with further options of its; raises UsageError where there is none."""
        if self.kind != "data":
            raise UsageError(f"calibration is {self.kind}: there is no data to open")
        asked = {"preset": self.preset, "tokenizer": self.tokenizer, "length": self.length, "source": self.source}
        return open_data(self.data, model, **{**asked, **options})


def parse_calibration(
    value: Any = None, preset: str | None = None, tokenizer: str | None = None, length: int | None = None
) -> Calibration:
    """Read `--calibration VALUE`: a path, `none`, `noise`, or `ood:PATH`; or data itself.

    >>> parse_calibration("noise").kind, parse_calibration("none").source
    ('noise', 'synthetic')
    >>> parse_calibration("ood:photos").source  # doctest: +SKIP
    'out-of-distribution'

    A file or folder that is called `none` or `noise` is written `./none`. Raises UsageError.
    """
    parse_preset(preset)
    if length is not None and length < 1:
        raise UsageError(f"length is {length}: give 1 or more")
    if value is None or (isinstance(value, str) and value in ("none", "noise")):
        idle = [name for name, given in (("preset", preset), ("tokenizer", tokenizer)) if given is not None]
        if idle:
            raise UsageError(f"--{idle[0]} is for calibration data, but none is given: add --calibration PATH")
        if value == "noise":
            return Calibration("noise", source="noise")
        return Calibration("none", length=length)
    source: Source = "in-distribution"
    if isinstance(value, str) and value.startswith("ood:"):
        value, source = value.removeprefix("ood:"), "out-of-distribution"
    if isinstance(value, (str, Path)) and not (str(value) and Path(value).exists()):
        hint = " (or none, noise, ood:PATH)" if source == "in-distribution" else ""
        raise UsageError(f"{value or 'ood:'}: no such file or folder of calibration data{hint}")
    return Calibration("data", value, source, preset, tokenizer, length)
