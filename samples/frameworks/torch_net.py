"""The small residual CNN in PyTorch; its source is an exported program, net.pt2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.around = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.around(x))


def build() -> nn.Module:
    """Return the network, images [n, 1, 28, 28] to logits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )


def train(images: np.ndarray, labels: np.ndarray, epochs: int, folder: Path) -> str:
    """Train on images [n, 28, 28], and return the source to convert."""
    net = build()
    x, y = torch.from_numpy(images[:, None]), torch.from_numpy(labels)
    steps = epochs * (len(x) // 100)
    tuner = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(tuner, steps)
    order = torch.cat([torch.randperm(len(x)) for _ in range(epochs)])
    for part in order[: steps * 100].split(100):
        tuner.zero_grad()
        nn.functional.cross_entropy(net(x[part]), y[part]).backward()
        tuner.step()
        schedule.step()
    return saved(net, folder)


def untrained(folder: Path) -> str:
    """Return the source of the network before training."""
    return saved(build(), folder)


def saved(net: nn.Module, folder: Path) -> str:
    """Export a network, and return the source to convert."""
    images, batch = torch.zeros(2, 1, 28, 28), torch.export.Dim.DYNAMIC
    program = torch.export.export(net.eval(), (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "net.pt2")
    return str(folder / "net.pt2")


def arranged(images: np.ndarray) -> np.ndarray:
    """Return images as the network takes them."""
    return images[:, None]


def answers(source: str, images: np.ndarray) -> np.ndarray:
    """Return what the framework itself computes."""
    with torch.no_grad():
        return torch.export.load(source).module()(torch.from_numpy(arranged(images))).numpy()
