"""Tables of times: what was measured on one machine, as a file that another machine can use."""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError
from graphprune.machine.roofline import Loads, Record, Records, Roof
from graphprune.runtime import Runtime
from graphprune.writing import put

FORMAT = "graphprune machine 1"
_MOST = 20_000
_DIGITS = 4  # significant ones, by which loads are told apart
_FAST_MACS, _FAST_BYTES = 50.0, 10.0  # each nanosecond, where nothing at all was measured
_FIXED = 1000.0
_HIGH = 0.95


@dataclass(frozen=True)
class Where:
    """What times hold for: the processor, its cores, and how onnxruntime runs."""

    cpu: str
    cores: int
    onnxruntime: str
    provider: str
    threads: int

    @staticmethod
    def here(runtime: Runtime) -> Where:
        """Return this machine."""
        version = str(importlib.import_module("onnxruntime").__version__)
        return Where(_cpu(), os.cpu_count() or 1, version, runtime.provider.lower(), runtime.threads)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else "all cores"
        return f"{self.cpu}, {self.cores} cores, onnxruntime {self.onnxruntime}, {self.provider}, {threads}"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


@dataclass(frozen=True)
class Table:
    """Times of nodes, measured on one machine.

    >>> Table.load("pi.json").prior.rates  # doctest: +SKIP
    (1000.0, 0.08, 0.1, 0.1)
    """

    where: Where
    records: tuple[Record, ...] = ()

    @cached_property
    def by_family(self) -> Mapping[str, Records]:
        """Return the records of each family."""
        out: dict[str, list[Record]] = {}
        for r in self.records:
            out.setdefault(r.family, []).append(r)
        return {family: Records(tuple(found)) for family, found in out.items()}

    def near(self, family: str, at: Loads) -> tuple[Record, ...]:
        """Return the records of a family that are nearest to some loads."""
        found = self.by_family.get(family)
        return found.near(at) if found is not None else ()

    @cached_property
    def prior(self) -> Roof:
        """Return the roofline of the machine: for what has no records, high rates of what has."""
        macs = _high([r.loads[0] / r.ns for r in self.records if r.ns > 0 and r.loads[0]])
        moved = _high([sum(r.loads[1:]) / r.ns for r in self.records if r.ns > 0 and not r.loads[0]])
        fixed = min((r.ns for r in self.records if r.ns > 0), default=_FIXED)
        rate = 1 / (moved or _FAST_BYTES)
        return Roof((fixed, 1 / (macs or _FAST_MACS), rate, rate))

    def with_records(self, more: Iterable[Record]) -> Table:
        """Return the table with more records; of two with the same loads the later counts, and of all the last 20,000.

        >>> Table(where, (Record("Conv", (8.0, 4.0, 1.0), 9.0),)).with_records([]).records[0].ns  # doctest: +SKIP
        9.0
        """
        found: dict[tuple[Any, ...], Record] = {}
        for r in (*self.records, *more):
            key = (r.family, *(float(f"{x:.{_DIGITS}g}") for x in r.loads))
            found.pop(key, None)
            found[key] = r
        return replace(self, records=tuple(found.values())[-_MOST:])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table beside its destination, then rename; raises UsageError where that is not possible."""
        rows = ",\n".join(json.dumps([r.family, *r.loads, round(r.ns, 1)]) for r in self.records)
        head = json.dumps({"format": FORMAT, "machine": asdict(self.where)}, indent=1).removesuffix("\n}")
        put(Path(path), f'{head},\n "records": [\n{rows}\n]}}\n')

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Table:
        """Read a table; raises UsageError where the file is missing or is none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            where = Where(**data["machine"])
            if not isinstance(where.cpu, str) or not isinstance(where.threads, int):
                raise ValueError("its machine is described in another way")
            return Table(where, tuple(_record(row) for row in data["records"]))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(
                f"{path}: is not a table of a machine ({' '.join(str(error).split())[:120]}); write one with "
                "graphprune profile-machine"
            ) from error


def _high(rates: list[float]) -> float:
    """Return a rate that few are above, 0 where there are none."""
    return sorted(rates)[int(_HIGH * len(rates))] if rates else 0.0


def _record(row: Any) -> Record:
    family, *numbers = row
    macs, data, stored, ns = (float(x) for x in numbers)
    if not isinstance(family, str) or not all(isfinite(x) and x >= 0 for x in (macs, data, stored, ns)):
        raise ValueError(f"a record is {row!r}")
    return Record(family, (macs, data, stored), ns)
