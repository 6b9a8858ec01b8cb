"""Accuracy after pruning and tuning, on all 10,000 Fashion-MNIST test images, beside what else one could do.

    python samples/4_train_zoo.py --out zoo
    python tests/benchmarks/tuning.py zoo --only plain --targets 0.25 --json plain.json [--peer L2 Taylor] [--scratch]

Every network is pruned by `graphprune prune` with `--samples` unlabelled images and tuned by `graphprune finetune` to
labels on the 60,000 training images, mirrored and shifted (`--tune` has the options; {dense} in them is the dense
network: `--tune "--teacher {dense} ..."` has it as an aim). Beside it: Torch-Pruning on the same weights, written as
ONNX and tuned by the same command (`--peer`); and the architecture that graphprune found, with its BatchNorm, trained
from new weights by the recipe of the dense networks for as long as tuning took (`--scratch`, "Rethinking the value of
network pruning", arXiv 1810.05270). Test images choose nothing.
Needs torch, the Fashion-MNIST files, and torch-pruning for `--peer`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import (
    BASELINES,
    DATA,
    accuracy,
    by_torch_pruning,
    normalised,
    pruned,
    split,
    torch_accuracy,
    torch_twin,
    zoo_module,
)
from onnx import numpy_helper

TUNE = "--labels labels --smoothing 0.05 --epochs 5 --batch 128 --augment mirror,shift=1 --bfloat16 --threads 1"


def tuned(model: Path, dense: Path, options: list[str], folder: Path) -> tuple[Path, float, list[float]]:
    """Tune by the command line; return the file, seconds of its one thread, and the held-back losses."""
    out = folder / "tuned.onnx"
    words = ["finetune", str(model), "--data", str(folder / "train.npz"), "-o", str(out), "--force", "--json"]
    words += [w.replace("{dense}", str(dense)) for w in options]
    began = sum(os.times()[2:4])
    done = subprocess.run([sys.executable, "-m", "graphprune", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"graphprune {shlex.join(words)}: {done.stderr.strip()[-500:]}")
    return out, sum(os.times()[2:4]) - began, json.loads(done.stdout)["loss"]


def by_peer(path: Path, method: str, target: float, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prune by Torch-Pruning, tune by graphprune; return what came out."""
    torch = importlib.import_module("torch")
    train, test = split(args.data, "train"), split(args.data, "t10k")
    chosen = np.random.default_rng(args.seed).permutation(len(train[0]))[: args.samples]
    module = torch_twin(path.stem, path)
    macs = by_torch_pruning(module, method, target, train[0][chosen], train[1][chosen])
    row = {"macs": macs, "before": torch_accuracy(module, *test)}
    file = folder / "peer.onnx"
    torch.onnx.export(
        module.eval(), (torch.zeros(1, 1, 28, 28),), str(file), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    out, seconds, losses = tuned(file, path, shlex.split(args.tune), folder)
    return {**row, "accuracy": accuracy(out, *test), "seconds": round(seconds), "loss": losses}


def from_scratch(name: str, smaller: Path, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Train the architecture of a pruned file from new weights for so many seconds, in whole epochs."""
    torch, zoo = importlib.import_module("torch"), zoo_module()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    module = shrunk(zoo.ZOO[name].make(), smaller).to(memory_format=torch.channels_last)
    images, labels = zoo.FIRST.load_tensors(args.data, "train")
    probe = shrunk(zoo.ZOO[name].make(), smaller).to(memory_format=torch.channels_last)
    part = 40 * zoo.BATCH_SIZE
    zoo.train(probe, images[:part], labels[:part], zoo.ZOO[name]._replace(epochs=1))
    began = time.process_time()
    zoo.train(probe, images[:part], labels[:part], zoo.ZOO[name]._replace(epochs=1))
    epoch = (time.process_time() - began) * len(images) / part
    epochs = max(round(seconds / epoch), 1)
    began = time.process_time()
    zoo.train(module, images, labels, zoo.ZOO[name]._replace(epochs=epochs))
    took = time.process_time() - began
    reached = zoo.FIRST.accuracy(module.eval(), *zoo.FIRST.load_tensors(args.data, "t10k"))
    return {"accuracy": reached, "epochs": epochs, "seconds": round(took)}


def shrunk(module: Any, file: Path) -> Any:
    """Return a network of the zoo with new layers, as wide as those of a pruned file, in the order they are called."""
    torch = importlib.import_module("torch")
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d)
    called: list[Any] = []
    hooks = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in module.modules() if type(m) in kinds]
    module.eval()(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    graph = onnx.load(file).graph
    shapes = {t.name: tuple(numpy_helper.to_array(t).shape) for t in graph.initializer}
    weights = [(n, shapes[n.input[1]]) for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    layers, width, new = iter(weights), 0, {}
    for layer in called:
        if isinstance(layer, torch.nn.BatchNorm2d):
            new[layer] = torch.nn.BatchNorm2d(width)
            continue
        node, shape = next(layers)
        if isinstance(layer, torch.nn.Conv2d):
            width = shape[0]
            groups = 1 if layer.groups == 1 else width
            new[layer] = torch.nn.Conv2d(
                shape[1] * groups, width, layer.kernel_size, layer.stride, layer.padding, groups=groups,
                bias=layer.bias is not None,
            )  # fmt: skip
        else:
            new[layer] = torch.nn.Linear(*(shape if node.op_type == "MatMul" else shape[::-1]))
    assert next(layers, None) is None, "the pruned network has other layers: prune it with --no-layers"
    return replaced(module, new)


def replaced(module: Any, new: dict[Any, Any]) -> Any:
    """Put new layers in the places of old ones."""
    for name, child in module.named_children():
        if child in new:
            setattr(module, name, new[child])
        else:
            replaced(child, new)
    return module


def rows_of(path: Path, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure one network at every target."""
    test = split(args.data, "t10k")
    rows: list[dict[str, Any]] = [{"network": path.stem, "method": "dense", "accuracy": accuracy(path, *test)}]
    for target in args.targets:
        smaller, kept, _ = pruned(path, target, shlex.split(args.prune) + calibrated(folder), folder)
        before = accuracy(smaller, *test)
        out, seconds, losses = tuned(smaller, path, shlex.split(args.tune), folder)
        row = {"macs": kept, "before": before, "accuracy": accuracy(out, *test), "seconds": round(seconds)}
        rows.append(tell({"network": path.stem, "target": target, "method": "graphprune", **row, "loss": losses}))
        if args.scratch:
            rows.append(tell({"network": path.stem, "target": target, "method": "from scratch", "macs": kept,
                              **from_scratch(path.stem, smaller, seconds, args)}))  # fmt: skip
        for method in args.peer:
            head = {"network": path.stem, "target": target, "method": f"Torch-Pruning {method}"}
            try:
                rows.append(tell({**head, **by_peer(path, method, target, args, folder)}))
            except Exception as error:  # whatever a peer throws is its result
                rows.append(tell({**head, "error": f"{type(error).__name__}: {error}"[:300]}))
    return rows


def calibrated(folder: Path) -> list[str]:
    """Return the options that name the calibration images."""
    return ["--calibration", str(folder / "calibration.npz")]


def tell(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row as it comes."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return results as a Markdown table."""
    lines = ["| network | MACs left | method | pruned | tuned | CPU seconds |", "|---|---|---|---|---|---|"]
    for r in rows:
        if "accuracy" in r:
            before = f"{100 * r['before']:.2f}" if "before" in r else ""
            cells = [r["network"], f"{r.get('macs', 1):.3f}", r["method"], before, f"{100 * r['accuracy']:.2f}"]
            lines.append(f"| {' | '.join([*cells, str(r.get('seconds', ''))])} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Measure the networks of a folder and print the table."""
    parser = argparse.ArgumentParser(description="Accuracy after pruning and tuning.")
    parser.add_argument("zoo", type=Path, help="folder of ONNX files")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the *-ubyte.gz files")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.25, 0.125])
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--prune", default="--no-layers", help="options of graphprune prune")
    parser.add_argument("--tune", default=TUNE, help="options of graphprune finetune")
    parser.add_argument("--peer", nargs="*", choices=BASELINES, default=[], help="Torch-Pruning by these, too")
    parser.add_argument("--scratch", action="store_true", help="trained from new weights, too")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--images", type=int, default=60000, help="training images to tune on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    args = parser.parse_args(words)
    paths = [p for p in sorted(args.zoo.glob("*.onnx")) if not args.only or p.stem in args.only]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, labels = split(args.data, "train")
        chosen = np.random.default_rng(args.seed).permutation(len(images))[: args.samples]
        np.savez(folder / "calibration.npz", image=normalised(images[chosen]))
        some = slice(args.images)
        np.savez(folder / "train.npz", image=normalised(images[some]), labels=labels[some].astype(np.int64))
        rows = [r for p in paths for r in rows_of(p, args, folder)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
