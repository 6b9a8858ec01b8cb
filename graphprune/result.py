"""What pruning returns: the model, its plan, and the report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.model import embedded, save
from graphprune.output import guard_data
from graphprune.plan import PruningPlan

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Result:
    """A pruned model that passed its checks, with its plan and what was measured."""

    ir_model: ir.Model
    plan: PruningPlan
    report: Mapping[str, Any]
    dense: ir.Model
    source: Path | None = None
    external: bool = False

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The pruned model as a ModelProto, weights included."""
        return ir.to_proto(embedded(self.ir_model))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model (beside its place, then renamed); weights go into `NAME.data` if the source's did."""
        guard_data(Path(path), self.dense, self.source)
        save(self.ir_model, path, external=self.external or None)
