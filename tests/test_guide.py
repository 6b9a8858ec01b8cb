"""The guide's code runs as it stands and prints what the guide says, and its tables name what is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import graphprune.ops as ops
from graphprune.ops.registry import Table

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "ADD_AN_OPERATOR.md").read_text(encoding="utf-8")


def steps() -> list[tuple[str, str]]:
    """Return each block of code with what it prints: the plain block that follows."""
    found = re.findall(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", GUIDE, re.DOTALL | re.MULTILINE)
    return [(code, printed) for code, printed in found]


def test_the_code_of_the_guide_prints_what_the_guide_shows(tmp_path: Path) -> None:
    assert len(steps()) >= 5 and sum(bool(printed) for _, printed in steps()) >= 5
    script = tmp_path / "guide.py"
    script.write_text("\nprint('-----')\n".join(code for code, _ in steps()), encoding="utf-8")
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("-----\n") == [printed for _, printed in steps()]


def test_the_guide_names_every_table() -> None:
    tables = {name for name, value in vars(ops).items() if isinstance(value, Table)}
    named = set(re.findall(r"^\| `([A-Z]+)` \|", GUIDE, re.MULTILINE))
    assert named == tables


def test_what_the_guide_names_is_there() -> None:
    from graphprune.axes import Pin, Same, Use
    from graphprune.axes.equations import Free
    from graphprune.ops.sizes import attributes, output_sizes

    assert callable(attributes(num_groups="g")) and callable(output_sizes(1))
    for kind in (Same, Pin, Free, Use):
        assert f"`{kind.__name__}(" in GUIDE
