"""Converters between ONNX and the frameworks that models come from; installed as `graphprune.converters`.

One module per framework, loaded only when asked for. None is written yet: graphprune reads ONNX files.
"""
