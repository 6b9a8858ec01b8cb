"""Converters between ONNX and the frameworks models come from; installed as `graphprune.converters`.

One module per framework, loaded only when asked for. Every converter checks itself with `parity`: the
outputs of two callables, or of an ONNX file and a framework's model, on the same inputs.
"""
