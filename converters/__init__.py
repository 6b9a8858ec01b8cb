"""Converters between ONNX and the frameworks that models come from; installed as `graphprune.converters`.

One module per framework, loaded only when asked for: `pytorch` makes a trainable module of a model, and back.
"""
