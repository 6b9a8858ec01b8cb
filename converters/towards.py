"""A penalty on exactly what a plan will remove, so that the dense model learns to do without it before it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from graphprune.analysis import analyse
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Tensor
from graphprune.errors import PlanError
from graphprune.options import Looking
from graphprune.plan import PruningPlan
from graphprune.rewrite.apply import kept_index


@dataclass(frozen=True)
class Penalty:
    """What is pulled to 0, and how; `removed` is a mask of each parameter, True where the plan removes.

    `greg`: a square penalty that grows (GReg-1, arXiv 2012.09243, section 3.1: its factor rises by a little every few
    steps). There it is part of the gradient of SGD; Adam would divide it away by its own size, so here a step divides
    the weights by 1 + `strength` t, where t rises evenly from 0 to 1 over all steps: the proximal step of the penalty.
    `mask`: an absolute penalty of constant strength on what a mask chooses (MaskSparsity, arXiv 2201.06776, on scales
    of batch normalisations; here on all weights of the channel, as exporters fold scales away). A step takes
    `strength` times the learning rate off each, not beyond 0.
    """

    kind: str
    strength: float
    removed: Mapping[str, Tensor]

    def shrink(self, module: OnnxModule, share: float, lr: float) -> None:
        """Carry out the penalty's part of a step, when `share` of all steps are done."""
        with torch.no_grad():
            for key, weight in module.named_parameters():
                if key not in self.removed:
                    continue
                mask = self.removed[key].to(weight.device)
                if self.kind == "greg":
                    weight.copy_(torch.where(mask, weight / (1 + self.strength * share), weight))
                else:
                    shrunk = torch.nn.functional.softshrink(weight, self.strength * lr)
                    weight.copy_(torch.where(mask, shrunk, weight))

    @contextmanager
    def carried_out(self, module: OnnxModule) -> Iterator[None]:
        """Set what will be removed to 0 for a while: the pruned model, where nothing normalises over channels."""
        with torch.no_grad():
            held = {k: p for k, p in module.named_parameters() if k in self.removed}
            kept = {k: p.detach().clone() for k, p in held.items()}
            for key, weight in held.items():
                weight.masked_fill_(self.removed[key].to(weight.device), 0)
            try:
                yield
            finally:
                for key, weight in held.items():
                    weight.copy_(kept[key])

    def size(self, module: OnnxModule) -> float:
        """Return the root of the mean square of what will be removed."""
        values = [p.detach()[self.removed[k].to(p.device)] for k, p in module.named_parameters() if k in self.removed]
        return float(torch.cat(values).double().square().mean().sqrt())


def penalty_of(module: OnnxModule, dense: ir.Model, plan: PruningPlan, kind: str, strength: float) -> Penalty:
    """Return the penalty of a plan for the module of its dense model; raises PlanError where they do not fit."""
    coupling = analyse(dense, Looking(observe=False).allowing(plan.allow_io)).coupling
    chosen = plan.straight().chosen(coupling)
    branches = (coupling.branches.named(name) for name in plan.bypass)
    whole = {w for b in branches if b is not None for w in coupling.branches.unread(b.nodes)}
    removed = {}
    for key, weight in module.named_parameters():
        name = module.onnx_names[key]
        if name not in coupling.graph.constants and name not in whole:
            continue
        mask = np.full(tuple(weight.shape), name in whole)
        for axis, kept in enumerate(kept_index(coupling, chosen, name) if name not in whole else ()):
            if kept is not None:
                gone = np.setdiff1d(np.arange(mask.shape[axis]), kept)
                mask[(slice(None),) * axis + (gone,)] = True
        if mask.any():
            removed[key] = torch.as_tensor(mask)
    if not removed:
        raise PlanError("the plan removes no weight that can be trained: there is nothing to go towards")
    return Penalty(kind, strength, removed)
