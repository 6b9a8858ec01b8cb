"""Whether a speed-up that was asked for is there: models are pruned by the command line, timed by onnxruntime alone.

    python tests/benchmarks/speed.py MODEL.onnx... [--speedup 1.5 2] [--sparsity 0.3] [--prune OPTIONS...]

Every result is timed in turn with the dense model, on one thread, in several openings of both; a line of JSON for each
goes to the results, and what is there already is not done again. Nothing of graphprune is imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

OPENINGS, ROUNDS = 4, 15
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(opened: onnxruntime.InferenceSession, shapes: dict[str, list[int]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    out = {}
    for value in opened.get_inputs():
        kind = TYPES[value.type]
        shape = shapes[value.name]
        out[value.name] = rng.standard_normal(shape).astype(kind) if kind == np.float32 else np.ones(shape, kind)
    return out


def measured(dense: Path, pruned: Path, shapes: dict[str, list[int]]) -> tuple[float, float]:
    """Return dense over pruned: medians of wall times, and of the thread's own, which other work disturbs less."""
    walls: dict[Path, list[float]] = {dense: [], pruned: []}
    owns: dict[Path, list[float]] = {dense: [], pruned: []}
    rng = np.random.default_rng(0)
    for k in range(OPENINGS):
        order = [dense, pruned] if k % 2 else [pruned, dense]
        opened = {path: session(path) for path in order}
        given = {path: feed(opened[path], shapes) for path in order}
        for n in range(ROUNDS + 2):
            for i in rng.permutation(2):
                path = order[i]
                wall, own = time.perf_counter(), time.thread_time()
                opened[path].run(None, given[path])
                if n > 1:
                    walls[path].append(time.perf_counter() - wall)
                    owns[path].append(time.thread_time() - own)
    return tuple(float(np.median(found[dense]) / np.median(found[pruned])) for found in (walls, owns))  # type: ignore


def one(model: Path, option: str, value: float, more: list[str], folder: Path) -> dict[str, Any]:
    """Prune and time; what cannot be done says why."""
    output = folder / "pruned.onnx"
    began = time.perf_counter()
    command = [sys.executable, "-m", "graphprune", "prune", str(model), f"--{option}", str(value), "-o", str(output),
               "--force", "--json", "--no-time", *more]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr[-300:]}
    row: dict[str, Any] = {"model": model.name, "option": option, "value": value}
    row["seconds"] = round(time.perf_counter() - began, 1)
    if "error" in told:
        return {**row, "error": told["error"]}
    wall, own = measured(model, output, told["model"]["inputs"])
    macs = told["before"]["macs"] / max(told["after"]["macs"], 1)
    trials = [[round(t[k], 3) for k in ("predicted", "measured")] for t in _trials(told)]
    return {**row, "wall": round(wall, 3), "own": round(own, 3), "macs": round(macs, 3), "trials": trials,
            "allocation": told["plan"]["meta"]["allocation"]}  # fmt: skip


def _trials(told: dict[str, Any]) -> list[dict[str, float]]:
    return list(told["plan"]["meta"].get("speed", {}).get("trials", []))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--speedup", nargs="*", type=float, default=[])
    parser.add_argument("--sparsity", nargs="*", type=float, default=[])
    parser.add_argument("--results", type=Path, default=Path("speed.jsonl"))
    parser.add_argument("--prune", nargs=argparse.REMAINDER, default=[], help="Options of prune, last.")
    asked = parser.parse_args()
    lines = asked.results.read_text().splitlines() if asked.results.exists() else []
    known = {(r["model"], r["option"], r["value"]) for r in map(json.loads, lines)}
    wanted = [("speedup", v) for v in asked.speedup] + [("sparsity", v) for v in asked.sparsity]
    with tempfile.TemporaryDirectory() as folder:
        for model in asked.models:
            for option, value in wanted:
                if (model.name, option, value) in known:
                    continue
                row = one(model, option, value, asked.prune, Path(folder))
                with asked.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
