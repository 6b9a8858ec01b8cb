"""Prune the Fashion-MNIST network in several ways and print what each of them costs and gives.

Nothing is trained. What is left of the layers is fitted anew: with 256 unlabelled training images that ship with the
sample, with inputs that graphprune makes up, or not at all. Accuracy is that on the 1,000 labelled test images that
ship with the sample. Latencies are measured on this machine, pruned and dense model in turn, one image at a time and
one thread. Run it with:

    python samples/1_prune_fashion_mnist.py [--seconds 1]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from rich import box
from rich.console import Console
from rich.table import Table

import graphprune

HERE = Path(__file__).resolve().parent
MODEL, SUBSET = HERE / "fashion_mnist_resnet.onnx", HERE / "fashion_mnist_subset.npz"

INNER = {"exclude": ["*/Add", "*/stem*"]}  # channels that pass through an Add, and the stem's, all stay


def images(name: str) -> npt.NDArray[np.float32]:
    """Return images of the subset as the network wants them."""
    pixels = np.load(SUBSET)[name][:, None].astype(np.float32)
    return np.asarray((pixels / 255 - 0.286) / 0.353, np.float32)


ALONE: dict[str, Any] = {"calibration": "off"}  # weights only, nothing fitted anew
DATA: dict[str, Any] = {"calibration": {"image": images("calibration")}}
TRIALS: dict[str, dict[str, Any]] = {
    "sparsity 0.5, weights only": {"sparsity": 0.5, **ALONE},
    "macs 0.75, weights only": {"target": {"macs": 0.75}, **ALONE},
    "macs 0.75, weights only, inside blocks": {"target": {"macs": 0.75}, **INNER, **ALONE},
    "macs 0.5, weights only": {"target": {"macs": 0.5}, **ALONE},
    "macs 0.5, l2, 256 images": {"target": {"macs": 0.5}, "criterion": "l2", **DATA},
    "macs 0.75, made-up inputs": {"target": {"macs": 0.75}},
    "macs 0.5, made-up inputs": {"target": {"macs": 0.5}},
    "macs 0.25, made-up inputs": {"target": {"macs": 0.25}},
    "macs 0.75, 256 images": {"target": {"macs": 0.75}, **DATA},
    "macs 0.5, 256 images": {"target": {"macs": 0.5}, **DATA},
    "macs 0.25, 256 images": {"target": {"macs": 0.25}, **DATA},
}


def accuracy(model: bytes) -> float:
    """Return the share of the labelled test images that a model gets right."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images("images")})
    return float((logits.argmax(1) == np.load(SUBSET)["labels"]).mean())


def main() -> None:
    """Prune in every way of TRIALS and print one row for each."""
    parser = argparse.ArgumentParser(description="Prune the Fashion-MNIST sample network in several ways.")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to time each pruned model")
    seconds = parser.parse_args().seconds

    table = Table(title="no fine-tuning", box=box.SIMPLE_HEAD)
    for name in ("", "accuracy", "parameters", "MACs", "latency", "speed-up", "proof error"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    dense = accuracy(MODEL.read_bytes())
    for name, options in TRIALS.items():
        result = graphprune.prune(MODEL, **options, seconds=seconds)
        report, before, after = result.report, result.report["before"], result.report["after"]
        if not table.rows:
            table.add_row("dense", f"{dense:.1%}", f"{before['parameters']:,}", f"{before['macs'] / 1e6:.2f} M",
                          f"{before['latency_ms'] * 1000:.0f} us", "", "")  # fmt: skip
        table.add_row(
            name,
            f"{accuracy(result.model.SerializeToString()):.1%}",
            f"{after['parameters']:,}",
            f"{after['macs'] / 1e6:.2f} M",
            f"{after['latency_ms'] * 1000:.0f} us",
            f"{report['speedup']:.2f}x",
            f"{report['proof']['max_relative_error']:.0e}",
        )
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    main()
