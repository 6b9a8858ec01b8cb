"""Train five small Fashion-MNIST networks of different kinds and write them as ONNX files.

They are what accuracy without training is measured on (``tests/benchmarks/accuracy.py``): a plain CNN, a residual one,
inverted residuals as in MobileNetV2, a dense one (each layer reads the concatenation of all before it), and a vision
transformer of 6 blocks of width 128 with 4 heads. Each file takes ``image`` (float32, ``[batch, 1, 28, 28]``) and gives
``logits`` (``[batch, 10]``); BatchNorm is folded into the convolutions, as exporters do. ``residual_bn.onnx`` is the
residual network once more with its BatchNormalization nodes left in. None of them normalises its input: whoever runs
them has to, ``image = (pixels / 255 - 0.286) / 0.353``.

Run it, with numpy, torch and onnx installed, as::

    apt-get install dataset-fashion-mnist
    python samples/4_train_zoo.py --out zoo

Training takes about half an hour on one CPU core with bfloat16 instructions. The number of epochs is fixed and the last
epoch's weights are the result: the test images choose nothing. A network whose file is there already is not trained
again. ``accuracy.json`` in the same folder holds the accuracy of each on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

BATCH_SIZE = 128


def sample_zero() -> ModuleType:
    """Load the first sample, which reads and augments the images; its name is no Python name."""
    spec = importlib.util.spec_from_file_location("train", Path(__file__).with_name("0_train_fashion_mnist.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIRST = sample_zero()


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    """Return a convolution that keeps the resolution over its stride, BatchNorm, and ReLU if wanted."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


def plain() -> nn.Module:
    """Return five 3x3 convolutions, three poolings and two linear layers, like a VGG."""
    return nn.Sequential(
        conv_bn(1, 32), nn.MaxPool2d(2), conv_bn(32, 64), conv_bn(64, 64), nn.MaxPool2d(2),
        conv_bn(64, 128), conv_bn(128, 128), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128 * 9, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10),
    )  # fmt: skip


class Inverted(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow again; add the input where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, widen: int = 4) -> None:
        super().__init__()
        inner = inputs * widen
        self.same = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            conv_bn(inputs, inner, 1),
            conv_bn(inner, inner, 3, stride, inner),
            conv_bn(inner, outputs, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y: Tensor = self.body(x)
        return x + y if self.same else y


def inverted() -> nn.Module:
    """Return a MobileNetV2-like network: seven inverted residuals in three stages."""
    layers: list[nn.Module] = [conv_bn(1, 24, 3, 2)]
    channels = 24
    for width, strides in ((24, (1, 1)), (40, (2, 1, 1)), (80, (2, 1))):
        for stride in strides:
            layers.append(Inverted(channels, width, stride))
            channels = width
    return nn.Sequential(*layers, conv_bn(80, 256, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class Dense(nn.Module):
    """Append the channels of each 3x3 convolution to what it read."""

    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn(inputs + i * growth, growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, inputs, h, w]`` to ``[n, inputs + depth * growth, h, w]``."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def dense() -> nn.Module:
    """Return three dense blocks of four layers with 1x1 convolutions and average pooling between."""
    layers: list[nn.Module] = [conv_bn(1, 32, 3, 2)]
    channels = 32
    for index in range(3):
        layers.append(Dense(channels, 24, 4))
        channels += 4 * 24
        if index < 2:
            layers += [conv_bn(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Block(nn.Module):
    """A transformer block with LayerNorm before attention and before the two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, tokens, width]`` to the same shape."""
        n, tokens, _ = x.shape
        inner = self.qkv.out_features // 3  # not the width of x where somebody has pruned
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, inner // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, tokens, inner))
        mlp: Tensor = self.mlp(self.norm2(x))
        return x + mlp


class Transformer(nn.Module):
    """A vision transformer: 25 patches of 6 x 6, learned positions, mean over the tokens."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 6, stride=6, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 25, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images ``[n, 1, 28, 28]`` to logits ``[n, 10]``."""
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class Recipe(NamedTuple):
    """A network, how long it is trained, and whether by AdamW (transformers) rather than SGD."""

    make: Callable[[], nn.Module]
    epochs: int
    adam: bool = False


# Cheapest first, so that a run that is cut short leaves something.
ZOO = {
    "plain": Recipe(plain, 4),
    "residual": Recipe(FIRST.FashionResNet, 4),
    "dense": Recipe(dense, 4),
    "inverted": Recipe(inverted, 4),
    "vit": Recipe(Transformer, 6, adam=True),
}


def train(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """Train ``model`` in place with a one-cycle learning rate and label smoothing, in bfloat16 where that is safe."""
    steps = len(images) // BATCH_SIZE
    if recipe.adam:
        peak, optimizer = 1e-3, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    else:
        peak = 0.1
        optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak, total_steps=recipe.epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    fit(model, images, labels, recipe.epochs, optimizer, schedule)


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int,
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:  # fmt: skip
    """Run ``model`` over augmented images for so many epochs, a step of the optimiser and the schedule per batch."""
    steps = len(images) // BATCH_SIZE
    model.train()
    for epoch in range(epochs):
        start, total, order = time.perf_counter(), 0.0, torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            batch = FIRST.augment(images[chosen], 1).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch)
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {seconds:.0f} s", flush=True)


def export(model: nn.Module, path: Path, fold: bool) -> None:
    """Write ``model`` to ``path``, BatchNorm folded into the convolutions or left as nodes."""
    model.eval()
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        model, (torch.zeros(1, 1, 28, 28),), str(path), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, training=mode, dynamo=False,
    )  # fmt: skip


def main() -> None:
    """Train what is asked for and not there yet, smallest first."""
    parser = argparse.ArgumentParser(description="Train and export five small Fashion-MNIST networks.")
    parser.add_argument("--data", type=Path, default=FIRST.DEFAULT_DATA, help="folder with the *-ubyte.gz files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", nargs="*", choices=ZOO, default=list(ZOO), help="networks to train")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    images, labels = FIRST.load_tensors(args.data, "train")
    test = FIRST.load_tensors(args.data, "t10k")
    results = args.out / "accuracy.json"
    for name in args.only:
        path = args.out / f"{name}.onnx"
        if path.exists():
            print(f"{name}: {path} is there already", flush=True)
            continue
        torch.manual_seed(args.seed)
        model = ZOO[name].make().to(memory_format=torch.channels_last)
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        train(model, images, labels, ZOO[name])
        reached = FIRST.accuracy(model, *test)
        print(f"{name}: {100 * reached:.2f} % of the test images", flush=True)
        known = json.loads(results.read_text()) if results.exists() else {}
        results.write_text(json.dumps({**known, name: round(reached, 4)}, indent=2) + "\n")
        if name == "residual":
            export(model, args.out / "residual_bn.onnx", fold=False)
        export(model, path, fold=True)


if __name__ == "__main__":
    main()
