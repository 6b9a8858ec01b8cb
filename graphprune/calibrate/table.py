"""Calibration data that is a table: rows are samples, columns the features of one input or inputs by name."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.samples import Feed, Samples, Source, of_reader
from graphprune.calibrate.wanted import Wanted, written
from graphprune.errors import UsageError

Array = npt.NDArray[Any]


class _Table(NamedTuple):
    """A file of rows: what parts columns, their names (None without a header), how many rows."""

    path: Path
    delimiter: str
    header: tuple[str, ...] | None
    rows: int


class _Columns(NamedTuple):
    """Columns `first` to `end` of a row are one input, of this shape for one sample."""

    name: str
    first: int
    end: int
    shape: tuple[int, ...]


def open_table(files: Sequence[Path], wanted: Wanted, source: Source) -> Samples:
    """Return a sample per row; the first row is a header if none of its cells is a number.

    Columns are inputs by name, or all the features of the one input that has as many. Raises UsageError.
    """
    tables = [_look(path) for path in files]
    plans = [_columns(t, wanted) for t in tables]
    starts = np.cumsum([0, *(t.rows for t in tables)])
    numeric = {s.name for s in wanted.specs if s.dtype.kind != "O"}

    def read(items: Sequence[int]) -> Iterator[Feed]:
        todo = iter(items)
        item = next(todo, None)
        for table, plan, start in zip(tables, plans, starts, strict=False):
            if item is None or item >= start + table.rows:
                continue
            for number, (line, cells) in enumerate(_rows(table), int(start)):
                if number != item:
                    continue
                given = {c.name: _cells(cells, c, table, line, c.name in numeric) for c in plan}
                typed = {name: _exact(array, name, wanted) for name, array in given.items()}
                yield wanted.complete(typed, f"{table.path}, line {line}", number)
                item = next(todo, None)
                if item is None:
                    return

    first = next(read([0]))
    given = {c.name: first[c.name] for c in plans[0]}
    assumed = (*(_told(c, tables[0]) for c in plans[0]), *wanted.said_missing(given))
    return of_reader(range(int(starts[-1])), read, source, assumed, wanted.axes)


def _told(columns: _Columns, table: _Table) -> str:
    if table.header is not None and columns.end - columns.first == 1:
        return f"{columns.name}: column {table.header[columns.first]!r} of the table"
    header = "with" if table.header is not None else "without"
    return f"{columns.name}: the table's {columns.end - columns.first} columns, as they are ({header} a header)"


def _look(path: Path) -> _Table:
    """Read a table once: its form, how many rows, and that all rows are as long as the first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            begin = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a table ({error})") from error
    delimiter = max(",;\t", key=begin.count)
    table = _Table(path, delimiter, None, 0)
    names = next((cells for _, cells in _rows(table)), None)
    if names is None:
        raise UsageError(f"{path}: is empty")
    header = None if any(_is_number(cell) for cell in names) else tuple(cell.strip() for cell in names)
    table = table._replace(header=header)
    count = 0
    for line, cells in _rows(table):
        if len(cells) != len(names):
            raise UsageError(f"{path}, line {line}: has {len(cells)} columns, the first line {len(names)}")
        count += 1
    if not count:
        raise UsageError(f"{path}: has a header and no rows")
    return table._replace(rows=count)


def _rows(table: _Table) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and cells, empty lines and the header left out."""
    is_header = table.header is not None
    try:
        with table.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=table.delimiter)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    if not is_header:
                        yield reader.line_num, cells
                    is_header = False
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table.path}: cannot be read as a table ({error})") from error


def _columns(table: _Table, wanted: Wanted) -> tuple[_Columns, ...]:
    """Return which columns are which input."""
    named = {name: k for k, name in enumerate(table.header or ()) if name in wanted.symbols}
    if named:
        shapes = {name: _shape(name, wanted) for name in named}
        wrong = [name for name, shape in shapes.items() if prod(shape) != 1]
        if not wrong:
            return tuple(_Columns(name, k, k + 1, shapes[name]) for name, k in named.items())
        shown = _shown(wrong[0], wanted)
        raise UsageError(f"{table.path}: column {wrong[0]!r} has one number, the input takes [{shown}]")
    width = len(table.header or next(cells for _, cells in _rows(table)))
    floats = [s.name for s in wanted.specs if s.dtype.name.startswith(("float", "bfloat"))]
    fitting = [name for name in floats if prod(_shape(name, wanted, width)) == width]
    if not fitting:
        inputs = "; ".join(f"{name} [{_shown(name, wanted)}]" for name in floats) or "none of them floats"
        raise UsageError(
            f"{table.path}: has {width} columns, which fit no input of the model ({inputs}): leave out labels and "
            "indices, or name columns after inputs"
        )
    return (_Columns(fitting[0], 0, width, _shape(fitting[0], wanted, width)),)


def _shown(name: str, wanted: Wanted) -> str:
    return written(wanted.symbols[name])


def _shape(name: str, wanted: Wanted, width: int = 1) -> tuple[int, ...]:
    """Return the shape of one sample; a last axis that is open takes the width of the table."""
    want = wanted.symbols[name]
    fixed = [1 if isinstance(n, str) else n for n in want]
    if want and isinstance(want[-1], str) and wanted.axes.get(name) != len(want) - 1:
        fixed[-1] = max(width // max(prod(fixed), 1), 1)
    return tuple(fixed)


def _cells(cells: list[str], columns: _Columns, table: _Table, line: int, numeric: bool) -> Array:
    """Return some cells of a row as an array."""
    some = cells[columns.first : columns.end]
    if not numeric:
        return np.array(some, dtype=object).reshape(columns.shape)
    numbers = []
    for k, cell in enumerate(some, columns.first):
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(float("nan"))
        if not isfinite(numbers[-1]):
            where = f"column {table.header[k]!r}" if table.header is not None else f"column {k + 1}"
            where = f"{table.path}, line {line}, {where}"
            raise UsageError(f"{where}: {cell!r} is not a number: fill it in or remove the line")
    return np.array(numbers).reshape(columns.shape)


def _exact(array: Array, name: str, wanted: Wanted) -> Array:
    """Turn numbers into integers where the input takes those and they are whole; `Wanted` refuses the rest."""
    dtype = next(s.dtype for s in wanted.specs if s.name == name)
    whole = dtype.kind in "iub" and np.array_equal(array, np.rint(array))
    return array.astype(np.int64) if whole else array


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
