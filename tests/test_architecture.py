"""The house rules, as tests: who may import whom, where operator knowledge lives, how long things may be."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import graphprune
from graphprune.ops import AXES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "graphprune"
SOURCES = sorted(p for folder in ("graphprune", "converters") for p in (ROOT / folder).rglob("*.py"))
COMMANDS = ("cli", "converting", "exporting", "finetuning", "several", "sweeping", "terminal")
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 300, 60, 6

PUBLIC = [
    "Analysis", "Checking", "Choosing", "GraphPruneError", "Looking", "PruningPlan", "Result", "Runtime", "analyse",
    "prune",
]  # fmt: skip

HEAVY = ("onnxruntime", "torch", "networkx", "typer", "rich", "onnx", "onnx_ir", "scipy", "pandas", "matplotlib")
"""What `import graphprune` must not load: it stays instant."""

LATER = ("score", "allocate", "reconstruct", "rewrite", "pipeline", "cli", "report", "validate", "measure", "plan")
MAY_NOT_IMPORT = {
    "axes": None,  # nothing of ours at all
    "ops": ("trace", "groups", "graph", "prove", *LATER),
    "trace": ("groups", "prove", *LATER),
    "groups": ("prove", *LATER),
    "score": ("pipeline", "cli", "rewrite", "allocate"),
    "allocate": ("pipeline", "cli", "rewrite"),
    "rewrite": ("pipeline", "cli", "score", "allocate"),
    "report": ("cli",),
    "pipeline": ("cli",),
}
OPS_MAY_IMPORT = ("axes", "ops", "errors")
TABLES = ("graphprune/ops/", "converters/torch_ops/")
"""Where operators are named: one table per question."""

# Operators that may be named outside the tables, file by file, with the reason.
NAMED_ON_PURPOSE = {
    "graphprune/axes/__init__.py": {"Sum"},  # the algebra's own Sum, which is no operator
    "graphprune/model.py": {"Constant"},  # older files hold every constant that is not an input as a node
    "graphprune/rewrite/apply.py": {"Mul", "Where"},  # the masked oracle multiplies by zeros and ones
    "graphprune/rewrite/patch.py": {"Where", "Div", "Mul"},  # nodes that correct sizes computed at run time
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    """Return the room of a file: its folder in the package, or its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (module, line) of everything a file imports, those for type checkers only left out."""
    checked = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(path)):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def ours(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (room, line) of what a file imports from graphprune."""
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == "graphprune" and len(parts) > 1:
            yield parts[1], line


def package_files(*rooms: str) -> list[Path]:
    return [p for p in SOURCES if p.is_relative_to(PACKAGE) and room(p) in rooms]


@pytest.mark.parametrize("importer", MAY_NOT_IMPORT)
def test_imports_point_one_way(importer: str) -> None:
    forbidden = MAY_NOT_IMPORT[importer]
    files = package_files(importer)
    assert files, f"no room {importer}"
    found = [
        f"{name_of(p)}:{line} imports {other}"
        for p in files
        for other, line in ours(p)
        if other != importer and (forbidden is None or other in forbidden)
    ]
    assert not found, "\n".join(found)


def test_operator_tables_import_only_the_algebra() -> None:
    found = [
        f"{name_of(p)}:{line} imports {other}"
        for p in package_files("ops")
        for other, line in ours(p)
        if other not in OPS_MAY_IMPORT
    ]
    assert not found, "\n".join(found)


def test_only_the_command_line_knows_typer() -> None:
    # terminal.py: what the others share
    homes = (*COMMANDS, "__main__")
    users = {room(p) for p in SOURCES if p.is_relative_to(PACKAGE) for m, _ in imports(p) if m.split(".")[0] == "typer"}
    assert users <= set(homes), users


def test_the_core_does_not_know_torch() -> None:
    core = [p for p in SOURCES if p.is_relative_to(PACKAGE)]
    found = [f"{name_of(p)}:{n}" for p in core for m, n in imports(p) if m.split(".")[0] == "torch"]
    assert not found, found


def operator_names() -> set[str]:
    """Return operators' names; those that are also words of other things are left to the other test."""
    return {operator for _, operator, _, _ in AXES.operators()} | {"Constant", "If", "Loop", "Scan"}


def docstrings(path: Path) -> set[int]:
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            found.add(id(node.body[0].value))  # type: ignore[attr-defined]
    return found


def test_operator_names_stay_in_the_tables() -> None:
    known = operator_names()
    found = []
    for path in SOURCES:
        where = name_of(path)
        if where.startswith(TABLES):
            continue
        excused = NAMED_ON_PURPOSE.get(where, set())
        skip = docstrings(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and node.value in known - excused and id(node) not in skip:
                found.append(f"{where}:{node.lineno}: {node.value!r}")
    assert not found, "\n".join(found)


def test_exceptions_are_still_needed() -> None:
    for where, names in NAMED_ON_PURPOSE.items():
        used = {n.value for n in ast.walk(tree(ROOT / where)) if isinstance(n, ast.Constant)}
        assert names <= used, f"{where} names {names - used} no longer"


def test_nobody_asks_for_the_kind_of_a_node() -> None:
    """`if node.op_type == "..."` is a table that has not been written."""
    found = []
    for path in SOURCES:
        if name_of(path).startswith(TABLES):
            continue
        for node in ast.walk(tree(path)):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            asks = any(isinstance(s, ast.Attribute) and s.attr in ("op_type", "type") for s in sides)
            words = {c.value for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)}
            words -= NAMED_ON_PURPOSE.get(name_of(path), set())
            if asks and any(isinstance(w, str) for w in words):
                found.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def test_no_path_leaves_the_project() -> None:
    """No `..` in strings and no absolute paths of a machine."""
    absolute = re.compile(r"^(/(home|root|work|tmp|Users)/|[A-Z]:\\)")
    found = [
        f"{name_of(p)}:{node.lineno}: {node.value!r}"
        for p in SOURCES
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if absolute.match(node.value) or "../" in node.value
    ]
    assert not found, "\n".join(found)


def test_files_are_short() -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    found = {name: n for name, n in lengths.items() if n > LONGEST_FILE}
    assert not found, found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_functions_are_short() -> None:
    found = {}
    for path in SOURCES:
        for f in functions(path):
            length = (f.end_lineno or f.lineno) - f.lineno + 1
            if length > LONGEST_FUNCTION:
                found[f"{name_of(path)}:{f.lineno} {f.name}"] = length
    assert not found, found


def test_functions_take_few_arguments() -> None:
    """Six, then a dataclass; keyword-only ones and a command's options are no burden to the reader."""
    found = {}
    for path in SOURCES:
        if path.stem in COMMANDS:
            continue
        for f in functions(path):
            names = [a.arg for a in [*f.args.posonlyargs, *f.args.args] if a.arg not in ("self", "cls")]
            if len(names) > MOST_ARGUMENTS:
                found[f"{name_of(path)}:{f.lineno} {f.name}"] = len(names)
    assert not found, found


def test_importing_is_instant() -> None:
    script = "import sys, json, graphprune; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {m.split(".")[0] for m in json.loads(done.stdout)}
    assert not loaded & set(HEAVY), sorted(loaded & set(HEAVY))


def test_the_public_names_are_these() -> None:
    assert sorted(graphprune.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(graphprune, name) is not None, name
    assert set(PUBLIC) <= set(dir(graphprune))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", graphprune.__version__)


def test_public_names_and_their_methods_are_documented() -> None:
    missing = []
    for name in PUBLIC:
        thing = getattr(graphprune, name)
        if not (inspect.getdoc(thing) or "").strip():
            missing.append(name)
        if inspect.isclass(thing):
            members = [(k, v) for k, v in vars(thing).items() if not k.startswith("_")]
            methods = [(k, v) for k, v in members if inspect.isfunction(v) or isinstance(v, property | classmethod)]
            missing += [f"{name}.{k}" for k, v in methods if not (inspect.getdoc(v) or "").strip()]
    assert not missing, missing


def test_functions_of_modules_are_documented() -> None:
    """Every function of a module that others may call says what it does."""
    missing = [
        f"{name_of(p)}:{f.lineno} {f.name}"
        for p in SOURCES
        for f in tree(p).body
        if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")
        if ast.get_docstring(f) is None
    ]
    assert not missing, "\n".join(missing)


def test_modules_say_what_they_are_for() -> None:
    missing = [name_of(p) for p in SOURCES if ast.get_docstring(tree(p)) is None]
    assert not missing, missing


def test_types_are_shipped_and_everything_is_annotated() -> None:
    assert (PACKAGE / "py.typed").is_file()
    missing = []
    for path in SOURCES:
        for f in functions(path):
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if (f.returns is None and f.name != "__init__") or bare:
                missing.append(f"{name_of(path)}:{f.lineno} {f.name} {bare}")
    assert not missing, "\n".join(missing)


def test_every_error_is_in_the_drawn_tree() -> None:
    errors = importlib.import_module("graphprune.errors")
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    assert errors.GraphPruneError in classes
    for c in classes:
        assert issubclass(c, errors.GraphPruneError) and c.__name__ in (errors.__doc__ or ""), c
