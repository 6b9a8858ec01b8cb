"""Calibration data as a table of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from taking import I64, TEXT, F, read, taking

from graphprune.calibrate import open_data
from graphprune.errors import UsageError

MODEL = taking(x=(F, "n", 3))
X = np.arange(12).reshape(4, 3) / 4


def put(folder: Path, text: str, name: str = "a.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "a|b|c\n", "\ufeff\"first, or not\"|b|c\n"])
def test_features_of_one_input(tmp_path: Path, delimiter: str, header: str) -> None:
    lines = [delimiter.join(str(n) for n in row) for row in X]
    text = header.replace("|", delimiter) + "\n".join(lines) + "\n\n"
    samples = open_data(put(tmp_path, text), MODEL)
    assert np.allclose(np.concatenate(read(samples)), X) and samples.count == 4
    assert samples.assumed == (f"x: the table's 3 columns, as they are ({'with' if header else 'without'} a header)",)


@pytest.mark.parametrize("sizes", [(1, 3), (3,), ("n", 1, 3, 1), ("n", "features")])
def test_forms_of_the_input(tmp_path: Path, sizes: tuple) -> None:
    found = read(open_data(put(tmp_path, "0,1,2\n3,4,5\n"), taking(x=(F, *sizes))))
    assert [a.ravel().tolist() for a in found] == [[0, 1, 2], [3, 4, 5]]
    assert found[0].ndim == len(sizes)


def test_columns_by_name(tmp_path: Path) -> None:
    model = taking(age=(F, "n", 1), sex=(TEXT, "n", 1), cars=(I64, "n"), more=(F, "n", 2))
    samples = open_data(put(tmp_path, "cars,unused,age,sex\n2,x,30.5,f\n0,y,41,m\n"), model)
    feeds = list(samples.batches(2))
    assert feeds[0]["age"].tolist() == [[30.5], [41]] and feeds[0]["sex"].tolist() == [["f"], ["m"]]
    assert feeds[0]["cars"].tolist() == [2, 0] and feeds[0]["more"].shape == (2, 2)
    assert any(said.startswith("more: ") for said in samples.assumed)


def test_a_folder_and_parts_of_it(tmp_path: Path) -> None:
    put(tmp_path, "a,b,c\n0,0,0\n1,1,1\n", "1.csv")
    put(tmp_path, "2,2,2\n3,3,3\n4,4,4\n", "2.csv")
    samples = open_data(tmp_path, MODEL)
    assert [int(a[0, 0]) for a in read(samples)] == [0, 1, 2, 3, 4]
    part = samples.pick([1, 3, 4]) if samples.pick else samples
    assert [int(a[0, 0]) for a in read(part)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv: is empty"),
        ("a,b,c\n", "has a header and no rows"),
        ("1,2,3\n4,5\n", "line 2: has 2 columns, the first line 3"),
        ("a,b,c\n1,2,3\n1,oops,3\n", "line 3, column 'b': 'oops' is not a number"),
        ("1,2,3\n1,,3\n", "line 2, column 2: '' is not a number"),
        ("1,2,nan\n", "line 1, column 3: 'nan' is not a number"),
        ("1,2,3,4\n", r"has 4 columns, which fit no input of the model \(x \[\?, 3\]\): leave out labels"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(open_data(put(tmp_path, text), MODEL).open())


def test_what_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"column 'x' has one number, the input takes \[\?, 3\]"):
        open_data(put(tmp_path, "x,y\n1,2\n"), MODEL)
    with pytest.raises(UsageError, match="line 2: input 'cars' is float64, the model takes int64"):
        open_data(put(tmp_path, "cars\n1.5\n"), taking(cars=(I64, "n")))
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe1,2,3\n")
    with pytest.raises(UsageError, match="cannot be read as a table"):
        open_data(tmp_path / "a.csv", MODEL)
