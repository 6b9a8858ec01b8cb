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
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

SAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "samples" / "4_train_zoo.py"))
FIRST, SIDE, PEAK = SAMPLE["FIRST"], 64, 2e-3


class Large(nn.Module):
    """Bilinear enlargement."""

    def forward(self, images: Tensor) -> Tensor:
        """Return images ``[n, 1, 28, 28]`` as ``[n, 3, 64, 64]``."""
        large = nn.functional.interpolate(images, size=SIDE, mode="bilinear").expand(-1, 3, -1, -1)
        return large.contiguous(memory_format=torch.channels_last)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train ``model`` in place by AdamW with a one-cycle learning rate."""
    steps = epochs * (len(images) // SAMPLE["BATCH_SIZE"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=steps, pct_start=0.2)
    SAMPLE["fit"](model, images, labels, epochs, optimizer, schedule)


def main() -> None:
    """Train the networks that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="+", help="functions of torchvision.models")
    parser.add_argument("--data", type=Path, default=FIRST.DEFAULT_DATA, help="folder with the *-ubyte.gz files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    images, labels = FIRST.load_tensors(args.data, "train")
    test = FIRST.load_tensors(args.data, "t10k")
    large = Large()
    np.savez(args.out / "calibration.npz", input=large(images[:512]).numpy())
    np.savez(args.out / "test.npz", input=large(test[0][:256]).numpy())
    for name in args.names:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(num_classes=10).to(memory_format=torch.channels_last)
        both = nn.Sequential(large, model)
        train(both, images, labels, args.epochs)
        print(f"{name}: {FIRST.accuracy(both, *test):.4f}", flush=True)
        model.eval()
        torch.onnx.export(model, (torch.zeros(2, 3, SIDE, SIDE),), str(args.out / f"{name}.onnx"), dynamo=True,
                          external_data=False, input_names=["input"], output_names=["output"],
                          dynamic_shapes=({0: torch.export.Dim("batch")},))  # fmt: skip


if __name__ == "__main__":
    main()
