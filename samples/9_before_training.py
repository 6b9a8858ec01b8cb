"""Prune a network before it is trained, by several criteria, then train every one alike, and compare accuracies.

The residual CNN of `samples/frameworks/`, untrained, from PyTorch, Keras or JAX (flax), is converted to ONNX. Its
weights are drawn anew, half of its parameters go, and what is left is trained on Fashion-MNIST from the ONNX file. All
of that is `graphprune convert`, `prune --reinit` and `finetune --labels`::

    pip install '.[torch]'      # and keras or jax (and flax, optax) for sources of these
    python samples/9_before_training.py torch --criteria snip,grasp,crop,synflow,random
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent))
shared = importlib.import_module("8_any_framework")
PRUNING = ["--allocation", "global", "--normalise", "none", "--align", "1", "--no-time"]
KEEPING = {"torch": ["--keep-norms"], "jax": ["--keep-norms"]}
TRAINING = ["--batch", "128", "--lr", "4e-3"]


def accuracy(model: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of right answers of an ONNX file."""
    session = onnxruntime.InferenceSession(model)
    return float(shared.accuracy(session.run(None, {session.get_inputs()[0].name: images})[0], labels))


def main() -> None:
    """Convert, prune, train, print a row for each criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=["torch", "keras", "jax"])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--criteria", default="snip,grasp,crop,synflow,random")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--keep", default="params=0.5")
    parser.add_argument("--threads", default="1")
    asked = parser.parse_args()
    sys.path.insert(0, str(shared.HERE))
    framework = importlib.import_module(shared.MODULES[asked.framework])
    images, labels = shared.read(asked.data, "train", 60_000)
    test, truth = shared.read(asked.data, "t10k", 10_000)
    some = np.random.default_rng(0).permutation(len(images))[: asked.images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net, data = folder / "net.onnx", folder / "train.npz"
        options = [*shared.OPTIONS.get(asked.framework, []), *KEEPING.get(asked.framework, [])]
        shared.graphprune("convert", framework.untrained(folder), "-o", str(net), *options)
        key = onnxruntime.InferenceSession(net).get_inputs()[0].name
        np.savez(data, **{key: framework.arranged(images[some]), "labels": labels[some]})
        print("framework   criterion  parameters kept   MACs kept   trained")
        for criterion in ("dense", *filter(None, asked.criteria.split(","))):
            start, done = folder / f"{criterion}.onnx", folder / f"{criterion}.trained.onnx"
            by = ["--target", asked.keep, "--criterion", criterion] if criterion != "dense" else ["--sparsity", "0"]
            given = ["--calibration", str(data), "--labels", "labels", *PRUNING]
            pruned = shared.graphprune("prune", str(net), "--reinit", "0", *by, *given, "-o", str(start))
            epochs = ["--epochs", str(asked.epochs), "--threads", asked.threads]
            given = ["--labels", "labels", "--data", str(data), *epochs, *TRAINING]
            shared.graphprune("finetune", str(start), *given, "-o", str(done))
            before, after = pruned["before"], pruned["after"]
            assert isinstance(before, dict) and isinstance(after, dict)
            kept = [after[k] / before[k] for k in ("parameters", "macs")]
            right = accuracy(done, framework.arranged(test), truth)
            print(f"{asked.framework:11} {criterion:9} {kept[0]:16.1%} {kept[1]:11.1%} {right:9.2f}", flush=True)


if __name__ == "__main__":
    main()
