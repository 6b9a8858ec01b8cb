"""Calibration data as Python objects and `.npz` files: read twice, checked, and told what is wrong."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from taking import BOOL, F16, I32, I64, TEXT, F, read, taking

from graphprune.calibrate import open_data
from graphprune.calibrate import spool as spooling
from graphprune.errors import UsageError

X = np.arange(24, dtype=np.float32).reshape(6, 4)
DENSE = taking(x=(F, "batch", 4))


class Reader:
    """A CalibrationDataReader over feeds."""

    def __init__(self, feeds: list[Any], end: Any = None) -> None:
        self.feeds, self.end = iter(feeds), end

    def get_next(self) -> Any:
        return next(self.feeds, self.end)


class Loader:
    """Re-iterable, in another order each time, with a length: a shuffling data loader."""

    def __init__(self, items: list[Any], length: int | None = None) -> None:
        self.items, self.length, self.turn = items, length, 0

    def __iter__(self) -> Any:
        self.turn += 1
        return iter(self.items[self.turn % len(self.items) :] + self.items[: self.turn % len(self.items)])

    def __len__(self) -> int:
        return len(self.items) if self.length is None else self.length


def rows(samples: Any, name: str = "x") -> np.ndarray:
    return np.concatenate(read(samples, name))


@pytest.mark.parametrize(
    "given",
    [
        {"x": X},
        X,
        Reader([{"x": X[:4]}, {"x": X[4:]}]),
        Reader([{"x": X[:1]}, {"x": X[1:]}], end={}),
        [{"x": X[:4]}, {"x": X[4:]}],
        list(X),
        [X[:2], X[2:]],
        ({"x": row} for row in X),
        iter([X]),
        ((row, 7) for row in X),
    ],
    ids=["dict", "array", "reader", "reader-empty-dict", "list", "rows", "arrays", "generator", "iterator", "labels"],
)
def test_every_kind_gives_the_same_samples(given: Any) -> None:
    samples = open_data(given, DENSE)
    assert samples.count == 6 and samples.source == "in-distribution"
    assert np.array_equal(rows(samples), X)
    assert [f["x"].shape for f in samples.batches(4)] == [(4, 4), (2, 4)]


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, compressed: bool) -> None:
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", x=X)
    samples = open_data(tmp_path / "a.npz", DENSE)
    assert np.array_equal(rows(samples), X)
    assert np.array_equal(rows(samples.limited(3)), X[[int(n) for n in rows(samples.limited(3))[:, 0] // 4]])


def test_npz_of_columns_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(X))
    assert np.array_equal(rows(open_data(tmp_path / "a.npz", DENSE)), X)


def test_a_folder_of_npz_is_read_by_name(tmp_path: Path) -> None:
    for name, part in (("b", X[2:5]), ("a/z", X[:2]), ("c", X[5:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / f"{name}.npz", x=part)
    (tmp_path / "notes.pdf").write_text("")
    samples = open_data(str(tmp_path), DENSE)
    assert samples.count == 6 and np.array_equal(rows(samples), X)
    assert any("1 other files" in said for said in samples.assumed)
    part, rest = samples.split(0.3, 2)
    assert sorted(np.concatenate([rows(part), rows(rest)])[:, 0].tolist()) == X[:, 0].tolist()


def test_a_loader_that_shuffles_is_read_once() -> None:
    samples = open_data(Loader(list(X)), DENSE)
    assert samples.count == 6
    read(samples)


def test_spooled_data_goes_with_the_samples() -> None:
    samples = open_data(Reader([{"x": X}]), DENSE)
    folder = _spool_of(samples)
    assert folder.is_dir()
    part = samples.limited(2)
    del samples
    gc.collect()
    assert rows(part).shape == (2, 4)
    del part
    gc.collect()
    assert not folder.exists()


def _spool_of(samples: Any) -> Path:
    found = [o for o in gc.get_objects() if isinstance(o, spooling.Spool)]
    assert len(found) == 1
    return found[0].folder


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "_LEFT_FREE", 1 << 60)
    with pytest.raises(UsageError, match="limit their number"):
        open_data(Reader([{"x": X}]), DENSE)


def test_limit_and_batch() -> None:
    endless = ({"x": X[:2]} for _ in iter(int, 1))
    assert open_data(endless, DENSE, limit=5).count == 5
    samples = open_data(X, DENSE, limit=4, batch=3)
    assert [f["x"].shape[0] for f in samples.open()] == [3, 1] and samples.count == 4
    with pytest.raises(UsageError, match="limit"):
        open_data(X, DENSE, limit=0)


def test_types_are_cast_where_nothing_is_lost() -> None:
    model = taking(x=(F, "n", 2), ids=(I64, "n", 3), seen=(BOOL, "n"), half=(F16, "n"))
    given = {
        "x": np.ones((2, 2)),
        "ids": np.ones((2, 3), np.int32),
        "seen": np.array([0, 1]),
        "half": np.ones(2, np.float32),
    }
    samples = open_data(given, model)
    feed = next(samples.open())
    assert [feed[n].dtype.name for n in given] == ["float32", "int64", "bool", "float16"]
    assert "x: float64 data cast to float32" in samples.assumed
    assert len(samples.assumed) == 4
    assert open_data({"x": np.ones((2, 2), ml_dtypes.bfloat16)}, taking(x=(F, "n", 2))).count == 2


def test_bfloat16_survives_the_spool() -> None:
    model = taking(x=(16, "n", 2), words=(TEXT, "n"))
    given = [{"x": np.ones((2, 2), ml_dtypes.bfloat16) * 3, "words": np.array(["a", "longer"], object)}]
    feeds = list(open_data(iter(given), model).open())
    assert feeds[1]["x"].dtype == ml_dtypes.bfloat16 and feeds[1]["x"].tolist() == [[3, 3]]
    assert feeds[1]["words"].tolist() == ["longer"]


def test_missing_inputs_are_made_up_and_told() -> None:
    model = taking(x=(F, "batch", 4), state=(F, 2, "batch", 3), sr=(I64,), x_lengths=(I64, "batch"))
    samples = open_data({"x": X}, model)
    feeds = list(samples.batches(4))
    assert feeds[0]["state"].shape == (2, 4, 3) and feeds[0]["sr"] == 16000
    assert feeds[0]["x_lengths"].tolist() == [4] * 4
    assert not np.array_equal(feeds[0]["state"][:, 0], feeds[0]["state"][:, 1])
    assert [said for said in samples.assumed if "made up" in said and said.startswith("state")]
    assert len(samples.assumed) == 3
    for i, feed in enumerate(samples.limited(6).open()):
        assert np.array_equal(feed["state"][:, 0], np.concatenate([f["state"] for f in feeds], 1)[:, i])


def test_a_state_may_be_given_along_its_own_axis_or_the_first() -> None:
    model = taking(x=(F, "batch", 4), state=(F, 2, "batch", 3))
    state = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
    for given in (state, np.ascontiguousarray(state.transpose(1, 0, 2))[:, :, None]):
        feeds = list(open_data({"x": X, "state": given}, model).open())
        assert np.array_equal(np.concatenate([f["state"] for f in feeds], 1), state)


def test_fixed_batches() -> None:
    one = open_data(X, taking(x=(F, 1, 4)))
    assert [f["x"].shape for f in one.batches(8)] == [(1, 4)] * 6
    three = open_data(X, taking(x=(F, 3, 4)))
    assert three.count == 2 and np.array_equal(rows(three), X)
    with pytest.raises(UsageError, match="6 samples, the model takes 4 at a time"):
        open_data(X, taking(x=(F, 4, 4)))
    assert open_data(np.zeros((5, 3, 8), np.float32), taking(x=(F, 3, 8))).count == 5


def test_the_same_for_every_sample() -> None:
    model = taking(x=(F, "batch", 4), sr=(I64,), table=(F, 1))
    feeds = list(open_data({"x": X, "sr": np.array(8000), "table": np.ones(1, np.float32)}, model).batches(9))
    assert len(feeds) == 1 and feeds[0]["sr"] == 8000 and feeds[0]["table"].shape == (1,)
    feeds = list(open_data({"x": X, "sr": np.arange(6)}, taking(x=(F, "batch", 4), sr=(I64,))).open())
    assert [int(f["sr"]) for f in feeds] == list(range(6))


BAD = np.array([[1, 2, np.nan, 4]], np.float32)


@pytest.mark.parametrize(
    ("given", "model", "said"),
    [
        ({}, DENSE, "holds no arrays"),
        ([], DENSE, "is empty"),
        (iter([]), DENSE, "is empty.*read before"),
        (Reader([]), DENSE, "is empty"),
        (3, DENSE, "cannot be read from int.*folder of images"),
        ({"y": X}, DENSE, "no input 'y'; its inputs are 'x'"),
        ([{"x": X}, {"y": X}], DENSE, "feed 1: the model has no input 'y'"),
        ({"x": X[:, :3]}, DENSE, r"sample 0: input 'x' has the shape \[1, 3\], the model takes \[\?, 4\]"),
        ({"x": X[None, None]}, DENSE, r"4 axes \[1, 1, 6, 4\], the model takes 2"),
        ({"x": X.astype(np.int64)}, DENSE, "is int64, the model takes float32"),
        ({"x": np.array([["a"] * 4])}, DENSE, "the model takes float32"),
        ({"x": np.zeros((0, 4), np.float32)}, DENSE, "is empty"),
        ([{"x": np.zeros((0, 4), np.float32)}], DENSE, "feed 0: input 'x' is empty"),
        ([X, BAD], DENSE, r"feed 1: input 'x' has NaN at \[0, 2\]"),
        ({"x": np.full((1, 4), -np.inf, np.float32)}, DENSE, r"has an infinite number at \[0, 0\]"),
        ({"x": np.full((1, 4), 1e30)}, taking(x=(F16, "n", 4)), "too large for float16"),
        ({"x": np.full((1, 4), 2**40)}, taking(x=(I32, "n", 4)), "holds numbers that int32 does not have"),
        ({"x": X}, taking(x=(I64, "n", 4)), "is float32, the model takes int64"),
        ({"x": X, "y": X[:5]}, taking(x=(F, "n", 4), y=(F, "n", 4)), "different numbers of samples.*'x' 6, 'y' 5"),
        ([{"x": X, "y": X[:5]}], taking(x=(F, "n", 4), y=(F, "n", 4)), "different numbers of samples"),
        (Loader(list(X), length=9), DENSE, "ended after 6 feeds, though its length says 9"),
    ],
)
def test_bad_data_is_told_in_one_line(given: Any, model: ir.Model, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        for _ in open_data(given, model).open():
            pass
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("calibration data")


def test_code_that_fails_is_told() -> None:
    def feeds() -> Any:
        yield {"x": X}
        raise RuntimeError("disk on fire")

    with pytest.raises(UsageError, match=r"reading feed 1 failed: RuntimeError: disk on fire"):
        open_data(feeds(), DENSE)


def test_ids_of_another_vocabulary_are_told() -> None:
    model = taking(ids=(I64, "n", 3))
    with pytest.raises(UsageError, match="has 50, but indexes a table of 20 rows"):
        next(open_data({"ids": np.full((2, 3), 50)}, model, bounds={"ids": 20}).open())


def test_masks_may_hold_minus_infinity() -> None:
    model = taking(x=(F, "n", 4), attn_mask=(F, "n", 4))
    mask = np.full((6, 4), -np.inf, np.float32)
    assert open_data({"x": X, "attn_mask": mask}, model).count == 6
    mask[3, 1] = np.nan
    with pytest.raises(UsageError, match="sample 3: input 'attn_mask' has NaN"):
        list(open_data({"x": X, "attn_mask": mask}, model).open())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npz", b"not a zip", "a.npz: is not an .npz file"),
        ("a.npz", b"", "a.npz: is not an .npz file"),
        ("a.xyz", b"1", "of no kind that can be read .*folder of images"),
        ("gone/../b.npz", None, "no such file or folder"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        open_data(tmp_path / name, DENSE)


def test_bad_arrays_in_files_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(UsageError, match=r"objects.npz: .*Python objects"):
        open_data(tmp_path / "objects.npz", DENSE)
    whole = X.copy()
    whole[4, 2] = np.inf
    np.savez(tmp_path / "inf.npz", x=whole)
    with pytest.raises(UsageError, match=r"inf.npz, sample 4: input 'x' has an infinite number"):
        list(open_data(tmp_path / "inf.npz", DENSE).open())
    content = (tmp_path / "inf.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"cut.npz: is not"):
        open_data(tmp_path / "cut.npz", DENSE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder: holds no calibration data"):
        open_data(tmp_path / "folder", DENSE)
