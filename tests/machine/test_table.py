"""Tables of times and the folder they are kept in: written whole, read with care."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphprune.errors import UsageError
from graphprune.machine.cache import folder, place, remember, remembered
from graphprune.machine.roofline import Record
from graphprune.machine.table import Table, Where
from graphprune.runtime import Runtime

HERE = Where("a processor", 4, "1.31.1", "cpu", 1)
TABLE = Table(HERE, (Record("Conv/3x3", (1e6, 2e4, 3e4), 12345.5), Record("Relu/4", (0.0, 2e4, 0.0), 800.0)))


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "m.json")
    assert Table.load(tmp_path / "m.json") == TABLE
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_the_later_of_two_measurements_counts() -> None:
    more = TABLE.with_records([Record("Relu/4", (0.0, 2e4, 0.0), 900.0), Record("Relu/4", (0.0, 4e4, 0.0), 1500.0)])
    assert [r.ns for r in more.near("Relu/4", (0.0, 2e4, 0.0))] == [900.0, 1500.0]
    assert more.near("nothing", (1.0, 1.0, 1.0)) == ()


def test_the_roofline_is_that_of_the_records() -> None:
    fixed, macs, data, _ = TABLE.prior.rates
    assert fixed == 800 and 1 / macs == pytest.approx(1e6 / 12345.5) and 1 / data == pytest.approx(2e4 / 800)
    assert min(Table(HERE).prior.rates) > 0


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": "graphprune machine 1"}', '{"format": "graphprune machine 2", "records": []}',
        '{"format": "graphprune machine 1", "machine": {"cpu": 1}, "records": []}',
        '{"format": "graphprune machine 1", "machine": {"cpu": "a", "cores": 1, "onnxruntime": "1", "provider": "cpu", '
        '"threads": 1}, "records": [["Conv", 1, 2]]}',
        '{"format": "graphprune machine 1", "machine": {"cpu": "a", "cores": 1, "onnxruntime": "1", "provider": "cpu", '
        '"threads": 1}, "records": [["Conv", 1, 2, 3, -4]]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_table_is_refused_in_one_line_and_ignored_where_it_is_kept(text: str, tmp_path: Path) -> None:
    place(HERE, tmp_path).write_text(text)
    with pytest.raises(UsageError, match="is not a table of a machine"):
        Table.load(place(HERE, tmp_path))
    table, remark = remembered(HERE, tmp_path)
    assert table == Table(HERE) and "ignored" in remark and "\n" not in remark


def test_times_are_kept_for_each_machine_and_way_to_run(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    assert remembered(HERE, root) == (Table(HERE), "")
    assert remember(TABLE, root) == "" and remembered(HERE, root) == (TABLE, "")
    other = Where("a processor", 4, "1.31.1", "cpu", 2)
    assert remembered(other, root) == (Table(other), "")
    place(other, root).write_text(place(HERE, root).read_text())
    assert remembered(other, root)[0] == Table(other) and "another machine" in remembered(other, root)[1]
    (tmp_path / "file").touch()
    assert "not kept" in remember(TABLE, tmp_path / "file" / "deeper")
    assert remember(TABLE, None) == "" and remembered(HERE, None) == (Table(HERE), "")


def test_the_folder_is_the_platforms_own_or_the_one_named() -> None:
    assert folder({"HOME": "/h"}, "linux") == Path("/h/.cache/graphprune")
    assert folder({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "linux") == Path("/c/graphprune")
    assert folder({"HOME": "/h"}, "darwin") == Path("/h/Library/Caches/graphprune")
    assert folder({"USERPROFILE": "/u"}, "win32") == Path("/u/AppData/Local/graphprune")
    assert folder({"GRAPHPRUNE_CACHE": "/x"}, "linux") == Path("/x") and folder({"GRAPHPRUNE_CACHE": ""}) is None


def test_this_machine_is_described() -> None:
    here = Where.here(Runtime(threads=2))
    assert here.threads == 2 and here.provider == "cpu" and here.cores >= 1 and here.onnxruntime[0].isdigit()
    assert "2 threads" in str(here) and "\n" not in str(here)
