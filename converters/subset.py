"""Which weights are tuned: all, or only biases, norms, or those whose names fit a pattern (PERP, arXiv 2312.15230)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from graphprune.converters.lora import adapt
from graphprune.converters.torch_module import OnnxModule
from graphprune.converters.torch_ops.registry import Program
from graphprune.converters.torch_ops.roles import NORMS
from graphprune.converters.tuning import Tuning
from graphprune.errors import UsageError

BIAS, NORM = "bias", "norm"


def prepare(module: OnnxModule, asked: Tuning) -> int:
    """Freeze what is not tuned, and add low-rank updates where they are asked for; return how many numbers are tuned.

    >>> prepare(module, Tuning(lora=4, only=("bias",)))  # doctest: +SKIP
    5124
    """
    if not asked.lora:
        return choose(module, asked.only)
    if asked.only:
        choose(module, asked.only)
    else:
        module.requires_grad_(False)
    adapt(module, asked.lora, asked.lora_on)
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def choose(module: OnnxModule, only: Sequence[str]) -> int:
    """Freeze all parameters but the chosen ones; return how many numbers are tuned.

    `only`: `bias` for vectors that are no scales of normalisations, `norm` for what normalisations read, else a
    pattern of ONNX names; nothing: all. Raises UsageError for what fits no weight.
    """
    norms = _read_by_norms(module.program)
    found = dict.fromkeys(only, 0)
    for key, weight in module.named_parameters():
        name = module.onnx_names[key]
        fits = [w for w in only if _fits(w, name, name in norms, sum(s > 1 for s in weight.shape) <= 1)]
        weight.requires_grad_(not only or bool(fits))
        found.update({w: found[w] + 1 for w in fits})
    idle = [w for w, n in found.items() if not n]
    if idle:
        raise UsageError(f"--only {idle[0]!r} fits no weight of the model: give bias, norm, or a pattern of names")
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _fits(word: str, name: str, in_norm: bool, vector: bool) -> bool:
    if word == NORM:
        return in_norm
    return vector and not in_norm if word == BIAS else fnmatch(name, word)


def _read_by_norms(program: Program) -> set[str]:
    norms = (node for node in program.all_nodes() if NORMS.get(node.domain, node.type, node.version))
    return {n for node in norms for n in node.inputs[1:] if n}
