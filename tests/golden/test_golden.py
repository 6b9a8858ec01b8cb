"""The groups of known networks, written down: one line a group, and what is pinned by reason.

`UPDATE_GOLDEN=1 pytest tests/golden` writes the files again; read their diff before you commit it.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import blocks
import pytest
from building import Builder

from graphprune.axes import leaves
from graphprune.feeds import observer
from graphprune.groups import Coupling, axis_text, couple
from graphprune.model import ModelLike, load
from graphprune.normalize import normalize
from graphprune.sizes import choose
from graphprune.trace import trace

HERE = Path(__file__).parent
SAMPLE = HERE.parent.parent / "samples" / "fashion_mnist_resnet.onnx"


def _image(block: Callable[[Builder, str], str], channels: int = 16) -> Callable[[], ModelLike]:
    def make() -> ModelLike:
        b = Builder()
        x = b.op("Relu", b.batch_norm(b.conv(b.input(3, 16, 16), channels, bias=False)))
        x = b.op("GlobalAveragePool", block(b, x))
        b.output(b.op("Gemm", b.op("Flatten", x, axis=1), b.weight(10, b.shapes[x][1]), b.weight(10), transB=1))
        return b.model()

    return make


def _text(block: Callable[[Builder, str], str], opset: int = 17) -> Callable[[], ModelLike]:
    def make() -> ModelLike:
        b = Builder(opset)
        x = block(b, b.linear(b.input(6, 20), 24))
        b.output(b.linear(b.layer_norm(x), 10))
        return b.model()

    return make


def _detector() -> ModelLike:
    b = Builder()
    x = b.swish(b.batch_norm(b.conv(b.input(3, 16, 16), 8, strides=[2, 2], bias=False)))
    for y in blocks.detector_head(b, x, 12, 3, 5):
        b.output(y)
    return b.model()


MODELS: dict[str, Callable[[], ModelLike]] = {
    "fashion_mnist_resnet": lambda: SAMPLE,
    "resnet_block": _image(lambda b, x: blocks.residual(b, x, 12)),
    "mobilenet_block": _image(lambda b, x: blocks.inverted(b, x, 24)),
    "densenet_block": _image(lambda b, x: blocks.dense(b, x, 6, 3)),
    "shufflenet_blocks": _image(lambda b, x: blocks.shuffle(b, blocks.shuffle(b, x))),
    "squeeze_excite": _image(lambda b, x: blocks.squeeze_excite(b, x, 4)),
    "unet": _image(lambda b, x: blocks.unet(b, x, 6)),
    "attention": _text(lambda b, x: blocks.attention(b, x, 4, 8)),
    "attention_fused_qkv": _text(lambda b, x: blocks.fused_attention(b, x, 4, 8)),
    "attention_split_qkv": _text(lambda b, x: blocks.split_attention(b, x, 4, 8)),
    "gqa_rope_half": _text(lambda b, x: blocks.grouped_attention(b, x, 6, 2, 8, "half")),
    "gqa_rope_pairs": _text(lambda b, x: blocks.grouped_attention(b, x, 6, 2, 8, "pairs")),
    "mixer": _text(lambda b, x: blocks.mixer(b, x, 12, 40)),
    "gated_mlp_opset11": _text(lambda b, x: blocks.gated(b, b.layer_norm(x), 32), 11),
    "detector_head": _detector,
}


def coupled(model: ModelLike) -> Coupling:
    normalised = normalize(load(model))
    return couple(trace(normalised, choose(normalised, {}, observer())))


def described(coupling: Coupling) -> str:
    """Return the golden text: groups with their occurrences, then the pinned axes of weights by reason."""
    lines = []
    for g in sorted(coupling.groups, key=lambda g: g.name):
        places = " | ".join(
            f"{o.initializer}:{o.axis} {o.role.value}{' gain' if o.gain else ''} {o.expression}"
            for o in sorted(g.occurrences, key=lambda o: (o.initializer, o.axis))
        )
        mark = " normalised" if g.normalised else ""
        lines.append(f"{g.name} [{g.size}]{mark} parameters={g.parameters}: {places}")
    reasons: Counter[str] = Counter()
    for weight in coupling.graph.weights.values():
        for axis in weight.axes:
            for dim in dict.fromkeys(leaves(coupling.expand(axis))):
                if dim in coupling.solution.pins:
                    reasons[coupling.solution.pins[dim][0]] += 1
    lines += ["", *[f"pinned: {reason}: {n} dims of weight axes" for reason, n in sorted(reasons.items())]]
    outputs = coupling.graph.ops[-1].outputs
    lines += [f"last value: {' '.join(axis_text(coupling, a) for a in o.axes)}" for o in outputs if o is not None]
    return "\n".join(lines) + f"\ncoverage: {coupling.coverage:.3f}\n"


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_as_written_down(name: str) -> None:
    path = HERE / f"{name}.txt"
    got = described(coupled(MODELS[name]()))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(got, encoding="utf-8")
    want = path.read_text(encoding="utf-8")
    diff = difflib.unified_diff(want.splitlines(), got.splitlines(), "written down", "found", lineterm="", n=0)
    assert got == want, "\n".join(diff)


def test_every_file_belongs_to_a_model() -> None:
    assert {p.stem for p in HERE.glob("*.txt")} == set(MODELS)


def test_the_text_is_stable() -> None:
    """No serial numbers, no order of dictionaries: two runs in one process write the same."""
    first, second = (described(coupled(MODELS["gqa_rope_half"]())) for _ in range(2))
    assert first == second
