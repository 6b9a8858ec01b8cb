"""graphprune: structured pruning of any ONNX model, proven and timed in onnxruntime.

    import graphprune

    result = graphprune.prune("model.onnx", 0.5)
    print(result.report["after"], result.report["speedup"])
    result.save("pruned.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.errors import GraphPruneError
    from graphprune.pipeline import Analysis, Checking, Choosing, Looking, Result, analyse, prune
    from graphprune.plan import PruningPlan
    from graphprune.runtime import Runtime

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Checking",
    "Choosing",
    "GraphPruneError",
    "Looking",
    "PruningPlan",
    "Result",
    "Runtime",
    "analyse",
    "prune",
]

_HOMES = {
    "GraphPruneError": "errors",
    "PruningPlan": "plan",
    "Runtime": "runtime",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first asked for, so that `import graphprune` stays instant."""
    if name not in __all__:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphprune.{_HOMES.get(name, 'pipeline')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
