"""Converters between ONNX and the frameworks that models come from; installed as `graphprune.converters`.

One module per framework, loaded only when asked for, thin over the exporter that its field keeps well. Each way in is a
function `to_onnx(source, asked) -> Converted`; `FRAMEWORKS` says which source is whose. The way back to PyTorch is
`pytorch.to_module`.
"""

from graphprune.converters.source import FRAMEWORKS, Asked, Converted, Framework, framework_of, is_source, to_onnx

__all__ = ["FRAMEWORKS", "Asked", "Converted", "Framework", "framework_of", "is_source", "to_onnx"]
