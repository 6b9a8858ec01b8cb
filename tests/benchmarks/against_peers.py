"""Time graphprune and its peers on the same architectures: one process, one thread, in turn, medians of repeats.

    OMP_NUM_THREADS=1 python tests/benchmarks/against_peers.py [--models resnet18 vgg16] [--repeats 5] [--folder DIR]

Every network comes from torchvision with random weights, is exported once to ONNX (1 x 3 x 224 x 224), and loses half
of its channels in each tool. What is timed, in seconds:

    analysis     graphprune, model loaded: normalise, sizes, trace, solve
    prune        the same, then score, allocate, rewrite, until all sliced weights are in memory
    files        the same, and load and save
    tp           Torch-Pruning: MagnitudePruner, constructed and stepped once, on the torch module
    tp group     Torch-Pruning: GroupNormPruner, likewise
    onnxsim      onnxsim.apply_structured_pruning on the loaded ONNX model
    onnxsim c++  onnxsim.apply_structured_pruning_cpp, likewise

Beside each time stands the fraction of the parameters that is left. The peers are optional: one that is not installed
is left out with a message. Needs torch and torchvision (pip install 'graphprune[bench]' torchvision).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphprune import Analysis, Choosing, analyse
from graphprune.model import load, save
from graphprune.pipeline import make_plan
from graphprune.rewrite import rearranged

MODELS = ("resnet18", "resnet50", "densenet121", "vgg16", "mobilenet_v2")
CHOOSING = Choosing(sparsity=0.5, align=1)
Timed = tuple[float, float]  # seconds, fraction of the parameters that is left
Contestant = Callable[[Path, str], Timed]


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took, and what it returned."""
    gc.collect()
    began = time.perf_counter()
    got = call()
    return time.perf_counter() - began, got


def pruned(analysis: Analysis) -> tuple[ir.Model, float]:
    """Return a model that has lost half of every group, and the fraction of its parameters that is left."""
    plan = make_plan(analysis, CHOOSING)
    after = analysis.costs(plan.sizes_of(analysis.coupling))
    return rearranged(analysis.model, analysis.coupling, plan.chosen(analysis.coupling)), (
        after.parameters / analysis.dense.parameters
    )


def graphprune_analysis(path: Path, name: str) -> Timed:
    model = load(path)
    return seconds_of(lambda: analyse(model))[0], 1.0


def graphprune_prune(path: Path, name: str) -> Timed:
    model = load(path)

    def work() -> float:
        out, kept = pruned(analyse(model))
        ir.to_proto(out)  # weights are sliced when they are asked for
        return kept

    return seconds_of(work)


def graphprune_files(path: Path, name: str) -> Timed:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:

        def work() -> float:
            out, kept = pruned(analyse(path))
            save(out, Path(folder) / "pruned.onnx")
            return kept

        return seconds_of(work)


def torch_pruning(pruner: str, importance: str) -> Contestant:
    """Return the contestant that constructs a pruner of Torch-Pruning and takes one step."""
    tp = importlib.import_module("torch_pruning")
    torch = importlib.import_module("torch")

    def contestant(path: Path, name: str) -> Timed:
        module = network(name)
        x = torch.randn(1, 3, 224, 224)
        last = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1]
        before = sum(p.numel() for p in module.parameters())

        def work() -> None:
            rank = getattr(tp.importance, importance)(p=2)
            getattr(tp.pruner, pruner)(module, x, importance=rank, pruning_ratio=0.5, ignored_layers=[last]).step()

        took, _ = seconds_of(work)
        return took, sum(p.numel() for p in module.parameters()) / before

    return contestant


def onnxsim(function: str) -> Contestant:
    """Return the contestant that calls a function of onnxsim on the loaded model."""
    prune = getattr(importlib.import_module("onnxsim"), function)

    def contestant(path: Path, name: str) -> Timed:
        model = onnx.load(path)
        before = parameters(model)
        took, out = seconds_of(lambda: prune(model, 0.5))
        return took, parameters(out) / before

    return contestant


def parameters(model: onnx.ModelProto) -> int:
    """Return the number of floating-point elements of all initializers."""
    return sum(prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def network(name: str) -> Any:
    """Return a torchvision network with random weights."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    return getattr(importlib.import_module("torchvision").models, name)(weights=None).eval()


def export(name: str, folder: Path) -> Path:
    """Return the network as an ONNX file, exporting it with torch if it is not in the folder yet."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        torch = importlib.import_module("torch")
        x = torch.zeros(1, 3, 224, 224)
        torch.onnx.export(network(name), (x,), str(path), dynamo=True, external_data=False, verbose=False)
    return path


def contestants(asked: Iterable[str] | None = None) -> dict[str, Contestant]:
    """Return all contestants that are installed, and say of the others that they are not."""
    found: dict[str, Contestant] = {
        "analysis": graphprune_analysis, "prune": graphprune_prune, "files": graphprune_files,
    }
    peers: dict[str, Callable[[], Contestant]] = {
        "tp": lambda: torch_pruning("MagnitudePruner", "GroupMagnitudeImportance"),
        "tp group": lambda: torch_pruning("GroupNormPruner", "GroupMagnitudeImportance"),
        "onnxsim": lambda: onnxsim("apply_structured_pruning"),
        "onnxsim c++": lambda: onnxsim("apply_structured_pruning_cpp"),
    }
    for name, make in peers.items():
        try:
            found[name] = make()
        except (ImportError, AttributeError) as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return {k: v for k, v in found.items() if asked is None or k in asked}


def race(path: Path, name: str, runners: dict[str, Contestant], repeats: int) -> dict[str, dict[str, Any]]:
    """Run all contestants in turn, some times over, after one round that does not count."""
    times: dict[str, list[Timed]] = {k: [] for k in runners}
    errors: dict[str, str] = {}
    for turn in range(repeats + 1):
        for k, runner in runners.items():
            if k in errors:
                continue
            try:
                got = runner(path, name)
            except Exception as error:
                errors[k] = f"{type(error).__name__}: {error}"[:200]
                continue
            if turn:
                times[k].append(got)
    out: dict[str, dict[str, Any]] = {k: {"error": e} for k, e in errors.items()}
    for k, samples in times.items():
        if k not in errors:
            took = sorted(s for s, _ in samples)
            out[k] = {"seconds": statistics.median(took), "fastest": took[0], "slowest": took[-1],
                      "kept": samples[-1][1]}  # fmt: skip
    return out


def table(results: dict[str, dict[str, dict[str, Any]]], names: Iterable[str]) -> str:
    """Return the results as Markdown: seconds and, after pruning, the parameters left; then peers / prune."""
    columns = list(names)
    lines = ["| network | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]

    def cell(column: str, got: dict[str, Any]) -> str:
        if "error" in got:
            return "failed"
        return f"{got['seconds']:.3f} s" + ("" if column == "analysis" else f", {got['kept']:.0%}")

    for name, row in results.items():
        lines.append(f"| {name} | " + " | ".join(cell(c, row[c]) for c in columns) + " |")
    peers = [c for c in columns if c not in ("analysis", "prune", "files")]
    if "prune" in columns and peers:
        lines += ["", "| times as long as `prune` | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
        for name, row in results.items():
            base = row["prune"].get("seconds", float("nan"))
            ratios = [f"{row[c]['seconds'] / base:.1f}" if "seconds" in row[c] else "failed" for c in peers]
            lines.append(f"| {name} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Return the versions of everything that takes part."""
    found = {}
    for package in ("graphprune", "torch", "torchvision", "torch-pruning", "onnxsim", "onnx", "onnxruntime", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Read the options, race, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Time graphprune and its peers on the same networks.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names in torchvision.models")
    parser.add_argument("--only", nargs="+", help="contestants, of those in the table's head")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where exported models are kept; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    importlib.import_module("torch").set_num_threads(1)
    runners = contestants(args.only)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        results = {}
        for name in args.models:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = race(export(name, folder), name, runners, args.repeats)
    print(table(results, runners))
    if args.json:
        args.json.write_text(json.dumps({"versions": versions(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
