"""Train the Fashion-MNIST sample network and write the two files the samples work on.

The script trains a small residual CNN (14 convolutions, about 400,000 parameters) on Fashion-MNIST, prints its
accuracy on the 10,000 test images, and writes into the output folder (by default the script's own folder):

``fashion_mnist_resnet.onnx``
    the trained network as a single ONNX file; input ``image`` (float32, ``[batch, 1, 28, 28]``), output ``logits``
    (float32, ``[batch, 10]``), with a dynamic ``batch`` axis.
``fashion_mnist_subset.npz``
    ``images`` and ``labels``: 1,000 test images, 100 of each class; ``calibration``: 256 training images without
    labels. Images are uint8, ``[n, 28, 28]``.

The network does not normalise its input. Whoever runs it has to: ``image = (pixels / 255 - 0.286) / 0.353``.

Run it, with numpy, torch and onnx installed, as::

    apt-get install dataset-fashion-mnist
    python samples/0_train_fashion_mnist.py

``--data`` names another folder with the four original ``*-ubyte.gz`` files. Training takes about ten minutes on two CPU
cores. The number of epochs is fixed and the last epoch's weights are the result: the test images choose nothing.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
MODEL_NAME, SUBSET_NAME = "fashion_mnist_resnet.onnx", "fashion_mnist_subset.npz"

MEAN, STD = 0.286, 0.353
CLASSES = 10
BATCH_SIZE, PEAK_LR = 128, 0.1
STAGES = ((32, 2), (64, 2), (128, 1))  # (channels, residual blocks); each stage halves the resolution

Uint8Array = npt.NDArray[np.uint8]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual branch + shortcut)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """Stem convolution, three residual stages, global average pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        channels = STAGES[0][0]
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        blocks: list[nn.Module] = []
        for width, depth in STAGES:
            for index in range(depth):
                blocks.append(ResidualBlock(channels, width, stride=2 if index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images ``[batch, 1, 28, 28]`` to logits ``[batch, 10]``."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits


def read_idx(path: Path) -> Uint8Array:
    """Read a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape([int(size) for size in shape])


def load_split(data: Path, split: str) -> tuple[Uint8Array, Uint8Array]:
    """Return the images ``[n, 28, 28]`` and labels ``[n]`` of ``split``, which is "train" or "t10k"."""
    return read_idx(data / f"{split}-images-idx3-ubyte.gz"), read_idx(data / f"{split}-labels-idx1-ubyte.gz")


def load_tensors(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the normalised images ``[n, 1, 28, 28]`` and the labels ``[n]`` of ``split`` as torch tensors."""
    images, labels = load_split(data, split)
    pixels = torch.from_numpy(images.astype(np.float32)).unsqueeze(1)
    return (pixels / 255 - MEAN) / STD, torch.from_numpy(labels.astype(np.int64))


def augment(batch: Tensor, max_shift: int = 2) -> Tensor:
    """Shift each image by up to ``max_shift`` pixels in both directions and mirror half of them."""
    count, _, height, width = batch.shape
    padded = nn.functional.pad(batch, (max_shift,) * 4, value=-MEAN / STD)[:, 0]
    rows = torch.arange(height) + torch.randint(2 * max_shift + 1, (count, 1))
    columns = torch.arange(width).repeat(count, 1)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    columns = columns + torch.randint(2 * max_shift + 1, (count, 1))
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train ``model`` in place: SGD with Nesterov momentum, one-cycle learning rate, label smoothing."""
    steps = len(images) // BATCH_SIZE
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LR, total_steps=epochs * steps, pct_start=0.25, cycle_momentum=False
    )
    model.train()
    for epoch in range(epochs):
        total, order = 0.0, torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            loss = nn.functional.cross_entropy(model(augment(images[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: training loss {total / steps:.4f}", flush=True)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of ``images`` that ``model`` classifies as ``labels``."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in torch.split(images, 500)])
    return float((predicted == labels).float().mean())


def export(model: nn.Module, path: Path) -> None:
    """Write ``model`` to ``path`` as one ONNX file with its weights inside."""
    model.eval()
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the exporter that folds BatchNorm into the convolutions and needs no package besides onnx
    )


def write_subset(data: Path, path: Path, seed: int, per_class: int = 100, calibration: int = 256) -> None:
    """Write the class-balanced labelled test subset and the unlabelled calibration images to ``path``."""
    generator = np.random.default_rng(seed)
    images, labels = load_split(data, "t10k")
    picks = [generator.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(CLASSES)]
    chosen = np.sort(np.concatenate(picks))
    train_images = load_split(data, "train")[0]
    sample = np.sort(generator.choice(len(train_images), calibration, replace=False))
    np.savez_compressed(path, images=images[chosen], labels=labels[chosen], calibration=train_images[sample])


def main() -> None:
    """Parse the command line, then write the subset, train, evaluate and export."""
    parser = argparse.ArgumentParser(description="Train and export the Fashion-MNIST sample network.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with the *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    write_subset(args.data, args.out / SUBSET_NAME, args.seed)
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    model = FashionResNet()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    start = time.perf_counter()
    train(model, *load_tensors(args.data, "train"), args.epochs)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    print(f"test accuracy {accuracy(model, *load_tensors(args.data, 't10k')):.4f}")
    export(model, args.out / MODEL_NAME)


if __name__ == "__main__":
    main()
