"""Prune, tune, quantise, deploy: the whole way of a network, with what each step costs and gives.

The Fashion-MNIST network is pruned to a quarter of its multiply-accumulates, tuned to its own dense outputs (no
labels), quantised by onnxruntime with the same images that it was pruned with, and run by `10_deploy.py`, which imports
numpy and onnxruntime only. Needs torch, for tuning. Without `--data` it uses the 256 training and 1,000 test images
that ship with the samples::

    python samples/10_pipeline.py --data FOLDER --images 20000 --epochs 3
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

HERE = Path(__file__).resolve().parent
MODEL, SUBSET = HERE / "fashion_mnist_resnet.onnx", HERE / "fashion_mnist_subset.npz"
INPUT = "image"


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Return images [n, 28, 28] of bytes as the network takes them."""
    return ((pixels[:, None].astype(np.float32) / 255 - 0.286) / 0.353).astype(np.float32)


def read(folder: Path, part: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of Fashion-MNIST's own files."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:most]
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        return scaled(pixels), np.frombuffer(file.read(), np.uint8, offset=8)[:most]


def graphprune(*arguments: object) -> dict[str, Any]:
    """Show and run a command, as anybody would."""
    print("$ graphprune", *(a.name if isinstance(a, Path) else a for a in arguments))
    command = [sys.executable, "-m", "graphprune", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


class Images(CalibrationDataReader):
    """The images that onnxruntime sees to choose ranges by."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.split(images, range(32, len(images), 32)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantised(model: Path, images: np.ndarray) -> tuple[Path, Path]:
    """Return a model with 8-bit weights, and one with 8-bit activations too, whose ranges are those of the images."""
    ready, dynamic, static = (model.with_name(f"{model.stem}.{kind}.onnx") for kind in ("ready", "dynamic", "int8"))
    quant_pre_process(model, ready)
    quantize_dynamic(ready, dynamic)
    quantize_static(ready, static, Images(images), quant_format=QuantFormat.QDQ, per_channel=True)
    return dynamic, static


def deployed(model: Path, images: Path) -> np.ndarray:
    """Return the classes that the script for deployment prints."""
    command = [sys.executable, str(HERE / "10_deploy.py"), str(model), str(images)]
    return np.array(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(), np.int64)


def main() -> None:
    """Run all steps and print one line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with Fashion-MNIST's own files")
    parser.add_argument("--images", type=int, default=20_000, help="how many of --data to tune on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--target", default="macs=0.25")
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long to time")
    asked = parser.parse_args()
    with np.load(SUBSET) as stored:
        few, test, truth = scaled(stored["calibration"]), scaled(stored["images"]), stored["labels"]
    train = few
    if asked.data is not None:
        train, (test, truth) = read(asked.data, "train", asked.images)[0], read(asked.data, "t10k", 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, images in (("few", few), ("train", train), ("test", test)):
            np.savez(folder / f"{kind}.npz", **{INPUT: images})
        pruned, tuned = folder / "pruned.onnx", folder / "tuned.onnx"
        graphprune("prune", MODEL, "--target", asked.target, "--calibration", folder / "few.npz", "-o", pruned,
                   "--no-time", "--effort", asked.effort, "--threads", 1)
        graphprune("finetune", pruned, "--teacher", MODEL, "--data", folder / "train.npz", "-o", tuned,
                   "--epochs", asked.epochs, "--batch", 128, "--threads", 1)
        copy = folder / "dense.onnx"
        copy.write_bytes(MODEL.read_bytes())
        models = [copy, quantised(copy, few)[1], pruned, tuned, *quantised(tuned, few)]
        times = {c["model"]: c for c in graphprune("bench", *models, "--seconds", asked.seconds)["models"]}
        print(f"{'model':20} accuracy    bytes  latency")
        for model in models:
            right = (deployed(model, folder / "test.npz") == truth).mean()
            print(f"{model.name:20} {right:8.2%} {model.stat().st_size:8,} {times[str(model)]['median_ms']:6.3f} ms")


if __name__ == "__main__":
    main()
