"""Accuracy on all 10,000 Fashion-MNIST test images, dense and pruned, without any training after pruning.

    python samples/4_train_zoo.py --out zoo
    python tests/benchmarks/accuracy.py zoo --targets 0.5 0.25 0.125 [--only vit] [--json out.json] [--baseline] \
        [--set "data: --calibration {calibration}" --set "no data: --calibration none"]

Every `--set NAME: OPTIONS` is one row per network: options of `graphprune prune`, in which {calibration} stands for an
.npz of `--samples` unlabelled training images, {folder} for a folder with the same images as PNG files. Targets are
fractions of the multiply-accumulates to keep; what was really kept stands beside the accuracy. With `--baseline`
Torch-Pruning prunes the same weights by L2, LAMP, Taylor and Hessian, in small steps until the target is met; the
two with gradients see labelled training images (Hessian, which wants a pass back for each, 32 of them). Needs the
Fashion-MNIST files; the baseline torch and torch-pruning.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphprune.runtime import Runtime, open_session, run

DATA = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.286, 0.353
BASELINES = {
    "L2": ("GroupMagnitudeImportance", False),
    "LAMP": ("LAMPImportance", True),
    "Taylor": ("GroupTaylorImportance", True),
    "Hessian": ("GroupHessianImportance", True),
}
STEPS = 50
HESSIAN_SAMPLES = 32
Array = npt.NDArray[Any]


def split(data: Path, name: str) -> tuple[Array, Array]:
    """Return raw images [n, 28, 28] and labels [n] of "train" or "t10k"."""
    images = gzip.decompress((data / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((data / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
    return np.frombuffer(images, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)


def normalised(images: Array) -> Array:
    """Return images as the networks take them, [n, 1, 28, 28]."""
    return ((images[:, None] / 255 - MEAN) / DEVIATION).astype(np.float32)


def accuracy(model: Path, images: Array, labels: Array, batch: int = 500) -> float:
    """Return the share of images that an ONNX model classifies right."""
    session = open_session(str(model), Runtime(threads=0))
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    right = 0
    for k in range(0, len(images), batch):
        got = run(session, {name: normalised(images[k : k + batch])}, [output])[output]
        right += int((got.argmax(1) == labels[k : k + batch]).sum())
    return right / len(images)


def pruned(model: Path, target: float, options: list[str], folder: Path) -> tuple[Path, float, float]:
    """Prune by the command line; return the file, the share of the MACs that is left, and seconds."""
    out = folder / "pruned.onnx"
    words = ["prune", str(model), "--target", f"macs={target}", "-o", str(out), "--force", "--no-time", "--json"]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "graphprune", *words, *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"graphprune {shlex.join([*words, *options])}: {done.stderr.strip()[-500:]}")
    report = json.loads(done.stdout)
    return out, kept_macs(report), time.perf_counter() - began


def kept_macs(report: dict[str, Any]) -> float:
    """Return the share of the MACs that a report of `prune --json` says are left."""
    return float(report["after"]["macs"]) / float(report["before"]["macs"])


def zoo_module() -> Any:
    """Return the sample that trained the networks."""
    script = Path(__file__).resolve().parents[2] / "samples" / "4_train_zoo.py"
    spec = importlib.util.spec_from_file_location("zoo", script)
    assert spec is not None and spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = zoo
    spec.loader.exec_module(zoo)
    return zoo


def torch_twin(name: str, path: Path) -> Any:
    """Return the torch module of a network of the zoo with the weights of its ONNX file, BatchNorm folded."""
    torch, zoo = importlib.import_module("torch"), zoo_module()
    module = without_batch_norm(zoo.ZOO[name].make(), torch).eval()
    called: list[Any] = []
    layers = [m for m in module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in layers]
    module(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    own = dict(module.named_parameters())
    for key, array in constants.items():  # those of normalisations and positions keep their names
        if key in own and own[key].shape == array.shape:
            own[key].data = torch.tensor(array.copy())
    nodes = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in constants]
    for layer, node in zip(called, nodes, strict=True):
        weight = constants[node.input[1]]
        layer.weight.data = torch.tensor((weight.T if node.op_type == "MatMul" else weight).copy())
        if len(node.input) > 2:
            layer.bias.data = torch.tensor(constants[node.input[2]].copy())
    return module


def without_batch_norm(module: Any, torch: Any) -> Any:
    """Replace BatchNorm by nothing and give the convolutions biases, as folding does."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, torch.nn.Identity())
        elif isinstance(child, torch.nn.Conv2d) and child.bias is None:
            child.bias = torch.nn.Parameter(torch.zeros(child.out_channels))
        else:
            without_batch_norm(child, torch)
    return module


def by_torch_pruning(module: Any, method: str, target: float, images: Array, labels: Array) -> float:
    """Prune a module in place until so much of its MACs is left; return how much it is."""
    tp, torch = importlib.import_module("torch_pruning"), importlib.import_module("torch")
    x = torch.zeros(1, 1, 28, 28)
    kind, everywhere = BASELINES[method]
    importance = getattr(tp.importance, kind)()
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    narrow = {m.mlp[0] for m in module.modules() if hasattr(m, "mlp")}  # it fails where one layer makes q, k and v
    left = [m for m in [*linear, module.patches] if m not in narrow] if narrow else [linear[-1]]
    loose = [(module.positions, 2)] if hasattr(module, "positions") else None
    pruner = tp.pruner.BasePruner(
        module, x, importance=importance, global_pruning=everywhere, pruning_ratio=0.95, max_pruning_ratio=0.95,
        iterative_steps=STEPS, ignored_layers=left, unwrapped_parameters=loose,
    )  # fmt: skip
    dense = tp.utils.count_ops_and_params(module, x)[0]
    now = dense
    for _ in range(STEPS):
        gradients(module, importance, method, (images, labels))
        pruner.step()
        now = tp.utils.count_ops_and_params(module, x)[0]
        if now <= target * dense:
            break
    return float(now / dense)


def gradients(module: Any, importance: Any, method: str, data: tuple[Array, Array]) -> None:
    """Leave in a module the gradients that a method looks at."""
    if method not in ("Taylor", "Hessian"):
        return
    torch = importlib.import_module("torch")
    images, labels = torch.tensor(normalised(data[0])), torch.tensor(data[1].astype(np.int64))
    module.zero_grad()
    if method == "Taylor":
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        return
    importance.zero_grad()
    losses = torch.nn.functional.cross_entropy(
        module(images[:HESSIAN_SAMPLES]), labels[:HESSIAN_SAMPLES], reduction="none"
    )
    for loss in losses:
        module.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(module)


def torch_accuracy(module: Any, images: Array, labels: Array) -> float:
    """Return the share of images that a torch module classifies right."""
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        batches = (torch.tensor(normalised(images[k : k + 500])) for k in range(0, len(images), 500))
        got = np.concatenate([module(batch).argmax(1).numpy() for batch in batches])
    return float((got == labels).mean())


def rows_of(path: Path, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure one network: dense, every set of options at every target, the baselines."""
    train, test = split(args.data, "train"), split(args.data, "t10k")
    chosen = np.random.default_rng(args.seed).permutation(len(train[0]))[: args.samples]
    dense = accuracy(path, *test)
    rows: list[dict[str, Any]] = [{"network": path.stem, "method": "dense", "macs": 1.0, "accuracy": dense}]
    for text in args.set:
        name, _, options = text.partition(":")
        given = options.replace("{calibration}", str(folder / "calibration.npz"))
        given = given.replace("{folder}", str(folder / "png"))
        for target in args.targets:
            row = {"network": path.stem, "method": name, "target": target}
            try:
                out, kept, seconds = pruned(path, target, shlex.split(given), folder)
                row |= {"macs": kept, "accuracy": accuracy(out, *test), "seconds": round(seconds, 1)}
            except RuntimeError as error:
                row["error"] = str(error)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    for method in args.methods if args.baseline and not path.stem.endswith("_bn") else ():
        for target in args.targets:
            row = {"network": path.stem, "method": f"Torch-Pruning {method}", "target": target}
            try:
                module = torch_twin(path.stem, path)
                assert abs(torch_accuracy(module, *test) - dense) < 0.002, "the torch module computes something else"
                row["macs"] = by_torch_pruning(module, method, target, train[0][chosen], train[1][chosen])
                row["accuracy"] = torch_accuracy(module, *test)
            except Exception as error:  # whatever a peer throws is its result
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return results as a Markdown table: a line per network and method, a column per target."""
    targets = sorted({r["target"] for r in rows if "target" in r}, reverse=True)
    lines = ["| network | method | " + " | ".join(f"{t:g} of the MACs" for t in targets) + " |"]
    lines.append("|---" * (2 + len(targets)) + "|")
    dense = {r["network"]: r["accuracy"] for r in rows if r["method"] == "dense"}
    for network, method in dict.fromkeys((r["network"], r["method"]) for r in rows if "target" in r):
        cells = {r["target"]: cell(r) for r in rows if (r["network"], r["method"]) == (network, method)}
        texts = " | ".join(cells.get(t, "") for t in targets)
        lines.append(f"| {network} ({100 * dense[network]:.1f}) | {method} | {texts} |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """Return a row's accuracy, with the share of the MACs where it is not what was asked for."""
    if "accuracy" not in row:
        return "failed"
    off = abs(row["macs"] - row["target"]) > 0.03 * row["target"]
    return f"{100 * row['accuracy']:.1f}" + (f" (at {row['macs']:.2f})" if off else "")


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Write the unlabelled calibration images, as arrays that the networks take and, where asked for, as PNG files."""
    images = split(args.data, "train")[0]
    chosen = np.random.default_rng(args.seed).permutation(len(images))[: args.samples]
    np.savez(folder / "calibration.npz", image=normalised(images[chosen]))
    if any("{folder}" in text for text in args.set):
        image = importlib.import_module("PIL.Image")
        (folder / "png").mkdir()
        for k in chosen:
            image.fromarray(images[k]).save(folder / "png" / f"{k:05d}.png")


def main(words: list[str] | None = None) -> None:
    """Measure the networks of a folder and print the table."""
    parser = argparse.ArgumentParser(description="Accuracy after pruning without training.")
    parser.add_argument("zoo", type=Path, help="folder of ONNX files, or one file")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the *-ubyte.gz files")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--set", action="append", default=[], metavar="NAME: OPTIONS", help="one way to prune")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baseline", action="store_true", help="Torch-Pruning too")
    parser.add_argument("--methods", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    args = parser.parse_args(words)
    paths = [args.zoo] if args.zoo.is_file() else sorted(args.zoo.glob("*.onnx"))
    with tempfile.TemporaryDirectory() as name:
        prepare(args, Path(name))
        rows = [r for p in paths if not args.only or p.stem in args.only for r in rows_of(p, args, Path(name))]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
