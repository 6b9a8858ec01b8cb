"""Train a small network in one of four frameworks, convert it, prune it to half of its MACs, and compare accuracies.

PyTorch, Keras and JAX (flax) train the same residual CNN on Fashion-MNIST, scikit-learn a multi-layer perceptron; the
sources are in `samples/frameworks/`. Everything after training is what `graphprune convert` and `graphprune prune` do
with what the framework saved. Pruning gets no data::

    pip install '.[torch]'      # or keras, jax (and optax, flax), sklearn
    python samples/8_any_framework.py torch --epochs 2
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent / "frameworks"
MEAN, STD = 0.286, 0.353
OPTIONS = {"jax": ["--input-shape", "image:1,28,28,1"], "sklearn": ["--trust"]}
MODULES = {"torch": "torch_net", "keras": "keras_net", "jax": "flax_net", "sklearn": "sklearn_net"}


def read(folder: Path, part: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images [n, 28, 28], scaled, and labels."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:most]
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)[:most].astype(np.int64)
    return ((pixels / np.float32(255) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32), labels


def graphprune(*arguments: str) -> dict[str, object]:
    """Run a command with --json, as anybody would."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "graphprune", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def accuracy(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of right answers."""
    return float((answers.argmax(1) == labels).mean() * 100)


def main() -> None:
    """Train, convert, prune, print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=MODULES)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--prune", default="--target macs=0.5 --no-time", help="options of graphprune prune")
    parser.add_argument("--keep", type=Path, help="a folder for the source and the models")
    asked = parser.parse_args()
    sys.path.insert(0, str(HERE))
    framework = importlib.import_module(MODULES[asked.framework])
    images, labels = read(asked.data, "train", asked.images)
    test, truth = read(asked.data, "t10k", 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        source = framework.train(images, labels, asked.epochs, folder)
        options = OPTIONS.get(asked.framework, [])
        converted = graphprune("convert", source, "-o", str(folder / "net.onnx"), "--force", *options)
        pruned = graphprune("prune", source, "-o", str(folder / "pruned.onnx"), "--force", *options,
                            *asked.prune.split())
        there = accuracy(framework.answers(source, test), truth)
        results = []
        for model in ("net.onnx", "pruned.onnx"):
            session = onnxruntime.InferenceSession(folder / model)
            feed = {session.get_inputs()[0].name: framework.arranged(test)}
            results.append(accuracy(session.run(None, feed)[0], truth))
    before, after = pruned["before"], pruned["after"]
    assert isinstance(before, dict) and isinstance(after, dict)
    print("framework   outputs differ   in it   ONNX  pruned   MACs kept")
    print(f"{asked.framework:11} {converted['max_relative_difference']:14.0e} {there:7.1f} {results[0]:6.1f} "
          f"{results[1]:7.1f} {after['macs'] / before['macs']:11.1%}")


if __name__ == "__main__":
    main()
