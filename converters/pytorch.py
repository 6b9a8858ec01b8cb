"""ONNX as a trainable torch module, and tuned weights back into the same ONNX graph."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.errors import ModelError, UsageError
from graphprune.execute import session
from graphprune.model import ModelLike, all_values, constant_of, load, set_constant
from graphprune.normalize import normalize, reshare
from graphprune.runtime import Runtime

if TYPE_CHECKING:
    from graphprune.converters.torch_module import OnnxModule


def need_torch(what: str) -> None:
    """Raise UsageError, naming the extra to install, where torch is missing.

    >>> need_torch("fine-tuning")  # doctest: +SKIP
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(f"{what} needs torch, which is not installed: pip install 'graphprune[torch]'")


def to_module(model: ModelLike, *, frozen: Sequence[str] = (), trained: Sequence[str] = ()) -> OnnxModule:
    """Return an ONNX model as a `torch.nn.Module` that computes the same and can be trained.

    >>> module = to_module("model.onnx")  # doctest: +SKIP
    >>> module(x)["logits"].shape, module(input=x)["logits"].shape  # doctest: +SKIP
    (torch.Size([8, 10]), torch.Size([8, 10]))

    Inputs are given by their ONNX names or in the file's order, as tensors or arrays; outputs come as a dict by name,
    in the file's order. Weights are parameters; torch forbids dots in their names, `module.onnx_names` maps them to
    those of the file. Scalars, whole numbers, masks, tables of angles, bounds and scales are no weights and stay as
    they are; running statistics follow in training mode, unless `module.batch_statistics` is False. `frozen` and
    `trained` are patterns of ONNX names (`*position*`) that decide against that. Vectors that several nodes share
    become one parameter each. `.to(torch.bfloat16)`, `.double()`, `.to(device)` and autocast work as with any module.

    Raises UsageError without torch, ModelError where an operator has no torch rule; quantised ones have none.
    """
    need_torch("a torch module")
    from graphprune.converters.torch_module import OnnxModule
    from graphprune.converters.trainable import Choice

    return OnnxModule(normalize(load(model)), Choice(tuple(frozen), tuple(trained)))


def write_back(module: OnnxModule, model: ModelLike, *, check: bool = True) -> ir.Model:
    """Return the ONNX model with the module's weights and running statistics, by name; nothing is exported anew.

    >>> graphprune.model.save(write_back(module, "model.onnx"), "tuned.onnx")  # doctest: +SKIP

    `model` is the one that the module was made of. Numbers get the types of the file. With `check`, onnxruntime opens
    the result. Raises ModelError if a weight is not in the model, has another shape or is not finite.
    """
    out = normalize(load(model))
    values = all_values(out)
    for name, tensor in module.values():
        old = constant_of(values.get(name))
        if old is None or tuple(old.shape.numpy()) != tuple(tensor.shape):
            raise ModelError(f"weight {name!r} of the module is not in the model with its shape {tuple(tensor.shape)}")
        array = tensor.detach().cpu().double().numpy()
        if not np.isfinite(array).all() and np.isfinite(np.asarray(old.numpy()).astype(np.float64)).all():
            raise ModelError(f"weight {name!r} is not finite after training: lower the learning rate")
        set_constant(values[name], ir.Tensor(array.astype(old.dtype.numpy(), order="C"), dtype=old.dtype, name=name))
    reshare(out)
    if check:
        session(out, Runtime())
    return out
