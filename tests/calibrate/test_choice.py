"""What `--calibration` may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from taking import F, taking

from graphprune.calibrate import parse_calibration
from graphprune.errors import UsageError


def test_values(tmp_path: Path) -> None:
    for value, kind, source in (
        (None, "none", "synthetic"),
        ("none", "none", "synthetic"),
        ("noise", "noise", "noise"),
        (str(tmp_path), "data", "in-distribution"),
        (tmp_path, "data", "in-distribution"),
        (f"ood:{tmp_path}", "data", "out-of-distribution"),
        ({"x": np.zeros((2, 3))}, "data", "in-distribution"),
    ):
        found = parse_calibration(value)
        assert (found.kind, found.source) == (kind, source), value
    assert parse_calibration(f"ood:{tmp_path}").data == str(tmp_path)


def test_data_is_opened_with_its_options() -> None:
    model = taking(x=(F, "n", 3))
    samples = parse_calibration({"x": np.zeros((5, 3), np.float32)}).open(model, limit=2)
    assert samples.count == 2 and samples.source == "in-distribution"
    with pytest.raises(UsageError, match="calibration is none"):
        parse_calibration("none").open(model)


def test_data_out_of_distribution_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 3), np.float32))
    assert parse_calibration(f"ood:{tmp_path}").open(taking(x=(F, "n", 3))).source == "out-of-distribution"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("gone",), r"gone: no such file or folder of calibration data \(or none, noise, ood:PATH\)"),
        (("ood:",), "ood:: no such"),
        (("ood:gone",), "^gone: no such"),
        (("none", "imagenet"), "--preset is for calibration data"),
        ((None, None, "t.json"), "--tokenizer is for calibration data"),
        ((None, "nonsense"), "'nonsense' is not known"),
        ((None, None, None, 0), "length is 0"),
    ],
)
def test_what_is_refused(options: tuple, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_calibration(*options)
