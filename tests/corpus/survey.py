"""Run graphprune over a folder of models and print what the project is judged by.

    python tests/corpus/survey.py FOLDER [CATALOGUE.json] [--only PATTERN] [--align 1]

For each model: coverage, the permutation proof, the pruned model's run, parameters kept. With a catalogue (rows with
`file` and `recipe`) the inputs come from there, otherwise they are made up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.border import border
from graphprune.errors import GraphPruneError, NothingPrunable
from graphprune.pipeline import Checking, Choosing, Looking, analyse, make_plan, run_plan
from graphprune.prove import prove


def recipe_inputs(recipe: Mapping[str, Mapping[str, Any]], seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return arrays for a catalogue's recipe: shape, dtype, and a range or a value; else standard normal."""
    rng = np.random.default_rng(seed)
    out: dict[str, npt.NDArray[Any]] = {}
    for name, spec in recipe.items():
        dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
        if "value" in spec:
            out[name] = np.full(shape, spec["value"], dtype)
        elif "range" in spec:
            low, high = spec["range"]
            drawn = rng.integers(low, high, shape) if dtype.kind in "iu" else rng.uniform(low, high, shape)
            out[name] = np.asarray(drawn, dtype)
        else:
            out[name] = np.asarray(rng.standard_normal(shape), dtype)
    return out


def recipes_of(catalogue: Path | None) -> dict[str, Mapping[str, Any]]:
    """Return a catalogue's recipes by the names of files; none without a catalogue."""
    rows = json.loads(catalogue.read_text()) if catalogue else []
    return {r["file"]: r["recipe"] for r in rows}


def survey_model(path: Path, recipe: Mapping[str, Any] | None, align: int | str = 1) -> dict[str, Any]:
    """Inspect, prove and prune one model; return what was seen. Raises nothing that graphprune raises on purpose."""
    row: dict[str, Any] = {"file": path.name}
    began = time.perf_counter()
    try:
        analysis = analyse(path, Looking(observe=True))
        row |= {"coverage": analysis.coupling.coverage, "groups": len(analysis.coupling.groups)}
        row["inside"] = border(analysis.opened).inside
        row["analysis_s"] = analysis.seconds["trace"] + analysis.seconds["solve"]
        if recipe:
            fitting = analyse(path, Looking(inputs=recipe_inputs(recipe)))
            row["recipe_proof"] = prove(fitting.model, fitting.coupling, fitting.calmest).max_relative_error
        plan = make_plan(analysis, Choosing(sparsity=0.5, align=align))  # type: ignore[arg-type]
        result = run_plan(analysis, plan, Checking(time=False))
        proof = result.report["proof"]
        row |= {"proof": proof["max_relative_error"], "tolerance": proof["tolerance"]}
        row["sizes"] = len(analysis.reference.feeds)
        before, after = result.report["before"], result.report["after"]
        row["kept"] = after["parameters"] / before["parameters"]
        row["macs"] = after["macs"] / before["macs"] if before["macs"] else 1.0
        row["outcome"] = "ok"
    except NothingPrunable as error:
        row |= {"outcome": "nothing prunable", "why": str(error)[:120]}
    except GraphPruneError as error:
        row |= {"outcome": type(error).__name__, "why": str(error)[:300]}
    row["seconds"] = time.perf_counter() - began
    return row


def main() -> int:
    """Survey a folder; exit 1 if any model failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("catalogue", type=Path, nargs="?")
    parser.add_argument("--only", default="*")
    parser.add_argument("--align", default="1")
    args = parser.parse_args()
    recipes = recipes_of(args.catalogue)
    rows = []
    for path in sorted(args.folder.glob(f"{args.only}.onnx")):
        row = survey_model(path, recipes.get(path.name), args.align if args.align == "auto" else int(args.align))
        rows.append(row)
        print(json.dumps(row), flush=True)
    good = [r for r in rows if r["outcome"] == "ok"]
    bad = [r for r in rows if r["outcome"] not in ("ok", "nothing prunable")]
    if good:
        print(f"{len(rows)} models, {len(good)} pruned, {len(bad)} failed", file=sys.stderr)
        coverage = statistics.median(r["coverage"] for r in rows if "coverage" in r)
        print(f"median coverage {coverage:.4f}", file=sys.stderr)
        print(f"median parameters kept {statistics.median(r['kept'] for r in good):.4f}", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
