"""Low-rank updates of weights: the weights stay, two thin matrices beside each are tuned, and are added at the end."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import nn
from torch.nn.utils import parametrize

from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Tensor
from graphprune.errors import UsageError


class LowRank(nn.Module):  # type: ignore[misc]
    """W + B A, where W is a matrix of its first axis and all others: LoRA, arXiv 2106.09685, section 4.1.

    A is drawn as for a layer of its own, B is 0, so nothing changes at first. The factor alpha / r of the paper is 1.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.down = nn.Parameter(nn.init.kaiming_uniform_(weight.new_empty(rank, columns), a=5**0.5))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its update."""
        return weight + (self.up @ self.down).reshape(weight.shape)


def adapt(module: OnnxModule, rank: int, patterns: Sequence[str] = ()) -> None:
    """Give matrices and convolutions low-rank updates of this rank.

    `patterns` choose by ONNX names, all where there are none. A weight so small that its update would have as many
    numbers as itself is tuned itself. Other weights stay as `requires_grad` says. Raises UsageError.
    """
    found: set[object] = set()
    for key, weight in list(module.weights.named_parameters()):
        name = module.onnx_names[f"weights.{key}"]
        fits = [p for p in patterns if fnmatch(name, p)]
        if sum(s > 1 for s in weight.shape) < 2 or (patterns and not fits):
            continue
        found |= {True, *fits}
        if rank * (weight.shape[0] + weight[0].numel()) >= weight.numel():
            weight.requires_grad_(True)
            continue
        weight.requires_grad_(False)
        parametrize.register_parametrization(module.weights, key, LowRank(weight.detach(), rank))
    idle = [p for p in patterns if p not in found]
    if idle or not found:
        what = f"--lora-on {idle[0]!r} fits no matrix" if idle else "--lora needs matrices or convolutions: none is"
        raise UsageError(f"{what} of the model")


def merge(module: OnnxModule) -> None:
    """Add all updates to their weights, which are plain parameters again."""
    with torch.no_grad():
        for key in list(getattr(module.weights, "parametrizations", {})):
            parametrize.remove_parametrizations(module.weights, key, leave_parametrized=True)
