"""Every error graphprune raises on purpose, in one tree.

    GraphPruneError
    ├── UsageError            the call or an option is wrong                         exit 2
    ├── ModelError            the file is missing, broken or not ONNX                exit 2
    ├── RuntimeUnavailable    the asked-for execution provider is not installed      exit 2
    ├── SessionError          onnxruntime refuses to load or to run the model        exit 2
    ├── TargetError           the asked-for target cannot be reached                 exit 2
    ├── PlanError             a plan does not fit the model                          exit 2
    ├── WorkerError           other processes cannot be reached, or are lost         exit 2
    ├── NothingPrunable       no channel group is left to prune                      exit 3
    └── ValidationError       the pruned model failed its checks                     exit 1

A message is one line: what, where, why, and what to do.
"""

from __future__ import annotations


class GraphPruneError(Exception):
    """Base of all errors a user can cause or meet; `exit_code` is what the command returns."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class UsageError(GraphPruneError):
    """An option, argument or input is wrong."""


class ModelError(GraphPruneError):
    """The model file cannot be used: missing, broken, not ONNX, or its data lies outside its folder."""


class RuntimeUnavailable(GraphPruneError):
    """The asked-for onnxruntime execution provider is not installed here."""


class SessionError(GraphPruneError):
    """Onnxruntime refused to load or to run a model."""


class TargetError(GraphPruneError):
    """The asked-for sparsity or target cannot be reached."""


class PlanError(GraphPruneError):
    """A plan names groups that the model does not have, or of another size."""


class WorkerError(GraphPruneError):
    """Workers or their scheduler do not answer, or died of the work they were given."""


class NothingPrunable(GraphPruneError):
    """The model has no weights, or every one of them is pinned."""

    exit_code = 3


class ValidationError(GraphPruneError):
    """The pruned model failed a check; nothing was written."""

    exit_code = 1
