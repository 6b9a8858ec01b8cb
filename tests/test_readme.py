"""What the README says is so: its commands run, its tables are fresh, its options and links exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from graphprune import cli
from graphprune.ops.table import BEGIN, END, markdown, updated

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")), "samples/README.md"]


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language; "" for those without one."""
    found: list[str] = []
    inside: list[str] | None = None
    opened = ""
    for line in README.splitlines():
        if line.startswith("```"):
            if inside is None:
                inside, opened = [], line[3:]
            else:
                if opened == language:
                    found.append("\n".join(inside))
                inside = None
        elif inside is not None:
            inside.append(line)
    return found


def commands() -> dict[str, Any]:
    """Return the commands of the command line with their options."""
    group = typer.main.get_command(cli.app)
    return dict(group.commands)  # type: ignore[attr-defined]


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder that has the samples, and return its output."""
    if not (folder / "samples").exists():
        (folder / "samples").symlink_to(ROOT / "samples")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shape_of(text: str) -> str:
    """Replace numbers, which differ from machine to machine, and the space that they take."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.,]+(e-\d+)?%?", "0", text)).strip()


def test_ci_runs_the_command_of_the_readme() -> None:
    (tests,) = [b for b in blocks("") if "pytest" in b]
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert lines[-1] == tests
    assert os.access(script, os.X_OK)


def test_the_install_commands_use_the_constraints() -> None:
    found = [b for b in blocks("") if b.startswith("python3 -m venv")]
    assert len(found) == 2
    assert all(" -c constraints.txt " in b for b in found)


def test_the_first_command_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (command,) = [b for b in blocks("") if "graphprune prune" in b]
    shown = blocks("")[blocks("").index(command) + 1]
    arguments = command.partition("graphprune prune ")[2].split()
    out = run(tmp_path, "graphprune", "prune", *arguments)
    assert (tmp_path / "pruned.onnx").is_file()
    ours, theirs = ([shape_of(line) for line in text.splitlines()] for text in (shown, out))
    assert [line for line in ours if not line.startswith("peak")] == [x for x in theirs if not x.startswith("peak")]


def test_the_example_is_ten_lines_and_prints_what_the_readme_shows(tmp_path: Path) -> None:
    example = blocks("python")[0]
    assert len(example.splitlines()) <= 10
    shown = blocks("")[0]
    assert shape_of(run(tmp_path, sys.executable, "-c", example)) == shape_of(shown)
    assert (tmp_path / "pruned.onnx").is_file() and (tmp_path / "plan.json").is_file()


@pytest.mark.parametrize("block", range(1, len(blocks("python"))))
def test_the_other_python_runs(block: int, tmp_path: Path) -> None:
    run(tmp_path, sys.executable, "-c", blocks("python")[block])


def test_the_table_of_operators_is_fresh() -> None:
    assert README.count(BEGIN) == README.count(END) == 1
    assert updated(README) == README, "run: python -m graphprune.ops.table README.md"
    assert "| Conv |" in markdown()


def test_every_option_in_the_readme_exists() -> None:
    known = {name for c in commands().values() for p in c.params for name in (*p.opts, *p.secondary_opts)}
    foreign = {"--no-deps"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known | foreign | {"--help"}


def test_every_command_is_in_the_readme() -> None:
    named = set(re.findall(r"^\| `graphprune ([\w-]+) ", README, re.MULTILINE))
    assert named == set(commands())


def test_exit_codes_are_those_of_the_errors() -> None:
    import graphprune.errors as errors

    codes = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and hasattr(e, "exit_code")}
    named = {int(c) for c in re.findall(r"^\| (\d+) \|", README.partition("### Exit codes")[2], re.MULTILINE)}
    assert codes | {0, 130} == named


def test_the_keys_of_json_are_those_of_prune(tmp_path: Path) -> None:
    import json

    model = "samples/fashion_mnist_resnet.onnx"
    options = ("-o", "p.onnx", "--sparsity", "0.5", "--seconds", "0.05", "--samples", "64", "--effort", "low", "--json")
    record = json.loads(run(tmp_path, "graphprune", "prune", model, *options))
    rows = re.findall(r"^\| (`.*?) \|", README.partition("### JSON")[2].partition("### Plans")[0], re.MULTILINE)
    assert {k for row in rows for k in re.findall(r"`(\w+)`", row)} == set(record)
    proof = re.search(r"^\| `proof` \| (.*) \|$", README, re.MULTILINE)
    assert proof is not None and set(re.findall(r"`(\w+)`", proof[1])) == set(record["proof"])


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|`[^`\n]*`", lambda m: "" if "\n" in m[0] else m[0], text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}, target
