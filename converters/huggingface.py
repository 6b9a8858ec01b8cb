"""Folders of Hugging Face models on disk to ONNX: loaded by transformers, exported by torch; nothing is fetched."""

from __future__ import annotations

from typing import Any

from graphprune.converters.pytorch_export import of_module
from graphprune.converters.source import Asked, Converted

_TOKENS = 16
_AXES = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert the model of a folder with config.json and weights, with the head that the configuration names.

    >>> [i.name for i in to_onnx("my_bert", Asked()).model.graph.input]  # doctest: +SKIP
    ['input_ids', 'attention_mask']

    Inputs are tokens and their mask, or what else the model's `main_input_name` is. Caches are not put out.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    kind = next((k for k in named if k is not None), transformers.AutoModel)
    model = kind.from_pretrained(source, local_files_only=True, attn_implementation="eager").eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    inputs = _inputs(model, asked)
    axes = {name: _AXES.get(name, {0: "batch"}) for name in inputs}
    outputs = list(_tensors(model(**inputs, return_dict=True)))
    return of_module(_plain(model, list(inputs)), inputs, asked, axes, outputs)


def _plain(model: Any, names: list[str]) -> Any:
    """Return a module that takes inputs in order and gives a tuple of tensors."""
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return tuple(_tensors(self.model(**dict(zip(names, inputs, strict=True)), return_dict=True)).values())

    return Plain().eval()


def _tensors(answer: Any) -> dict[str, Any]:
    import torch

    return {name: x for name, x in answer.items() if isinstance(x, torch.Tensor)}


def _inputs(model: Any, asked: Asked) -> dict[str, Any]:
    import torch

    main = model.main_input_name
    if main == "input_ids":
        shape = asked.shapes.get(main, (1, _TOKENS))
        return {main: torch.ones(*shape, dtype=torch.int64), "attention_mask": torch.ones(*shape, dtype=torch.int64)}
    given = asked.shapes.get(main)
    example = torch.randn(*given) if given else model.dummy_inputs.get(main)
    if example is None or example.ndim < 2:
        size = getattr(model.config, "image_size", 224)
        sizes = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        example = torch.randn(1, getattr(model.config, "num_channels", 3), *sizes)
    return {main: example}
