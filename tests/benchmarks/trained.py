"""Train a torchvision network on Fashion-MNIST, as a file with weights that mean something to measure on.

    apt-get install dataset-fashion-mnist
    python tests/benchmarks/trained.py efficientnet_b0 mobilenet_v2 --out folder

Images are 64 x 64, of one channel three times. Writes NAME.onnx (input `input`, output `output`, BatchNorm folded) for
each, and calibration.npz (512 training images), test.npz (256 test images) for `divergence.py`; prints accuracy on the
10,000 test images. The last weights are the result: the test images choose nothing. EfficientNet-B0 takes 16 minutes an
epoch on one core. Needs torch and torchvision.
"""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

FIRST = runpy.run_path(str(Path(__file__).parents[2] / "samples" / "0_train_fashion_mnist.py"))
SIDE, BATCH, PEAK = 64, 128, 2e-3


def large(images: Tensor) -> Tensor:
    """Return images ``[n, 1, 28, 28]`` as ``[n, 3, 64, 64]``."""
    return nn.functional.interpolate(images, size=SIDE, mode="bilinear").expand(-1, 3, -1, -1)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train ``model`` in place by AdamW with a one-cycle learning rate, in bfloat16 where that is safe."""
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        start, total, order = time.perf_counter(), 0.0, torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch = large(FIRST["augment"](images[chosen], 1)).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch)
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % 50 == 49:
                rate = (step + 1) * BATCH / (time.perf_counter() - start)
                print(f"  epoch {epoch + 1}/{epochs}: {total / (step + 1):.4f}, {rate:.0f} images/s", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that are labelled rightly."""
    model.eval()
    parts = zip(images.split(500), labels.split(500), strict=True)
    right = [(model(large(image)).argmax(1) == label).sum() for image, label in parts]
    return float(torch.stack(right).sum()) / len(images)


def main() -> None:
    """Train the networks that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="+", help="functions of torchvision.models")
    parser.add_argument("--data", type=Path, default=FIRST["DEFAULT_DATA"], help="folder with the *-ubyte.gz files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    images, labels = FIRST["load_tensors"](args.data, "train")
    test, test_labels = FIRST["load_tensors"](args.data, "t10k")
    np.savez(args.out / "calibration.npz", input=large(images[:512]).numpy())
    np.savez(args.out / "test.npz", input=large(test[:256]).numpy())
    for name in args.names:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(num_classes=10).to(memory_format=torch.channels_last)
        train(model, images, labels, args.epochs)
        print(f"{name}: {accuracy(model, test, test_labels):.4f}", flush=True)
        batch = torch.export.Dim("batch")
        torch.onnx.export(model, (torch.zeros(2, 3, SIDE, SIDE),), str(args.out / f"{name}.onnx"), dynamo=True,
                          external_data=False, input_names=["input"], output_names=["output"],
                          dynamic_shapes=({0: batch},))  # fmt: skip


if __name__ == "__main__":
    main()
