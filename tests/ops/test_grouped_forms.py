"""GroupQueryAttention in every form that onnxruntime's CPU kernel runs: caches, rotation, windows, sinks, scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import contributed as own
import numpy as np
import pytest
from oracles import Checked, Net, check

MS = "com.microsoft"
IN, WIDTH, HEADS, SHARED = 5, 32, 4, 2
PLAIN, HALVES, PAIRS = "4 [8]", "((2 [8]) + (2 [8]))", "2 [8] 2"


@dataclass(frozen=True)
class Form:
    """What a node has beside queries, keys and values; `cache` is the length of the past, `total` of all."""

    packed: bool = False
    rotary: int | None = None
    cache: int = 0
    total: int = 0
    tokens: int = 6
    places: bool = False
    bias: bool = False
    sink: bool = False
    norms: bool = False
    scaled: str = ""
    bits: int = 8

    @property
    def length(self) -> int:
        return self.total or self.tokens + self.cache


def operands(net: Net, form: Form, batch: int) -> list[str]:
    x = net.input("x", [batch, form.tokens, IN])
    if form.packed:
        found = [net.matmul(x, IN, (HEADS + 2 * SHARED) * WIDTH, name="w"), "", ""]
    else:
        found = [net.matmul(x, IN, n * WIDTH, name=m) for m, n in (("q", HEADS), ("k", SHARED), ("v", SHARED))]
    found += past(net, form, batch) if form.cache else ["", ""]
    found += [net.const([form.length - 1] * batch, np.int32), net.const(form.length, np.int32)]
    angles = np.linspace(0, 3, 16 * WIDTH // 2).reshape(16, -1)
    turned = form.rotary is not None
    found += [net.const(np.cos(angles), name="cos"), net.const(np.sin(angles), name="sin")] if turned else ["", ""]
    found += [net.const(np.tile(np.arange(form.tokens), (batch, 1))) if form.places else ""]
    found += [net.weight(1, HEADS, form.tokens, form.length, name="r") if form.bias else ""]
    found += [net.weight(HEADS, name="s") if form.sink else ""]
    each = (1, SHARED, 1, WIDTH) if form.scaled == "PER_CHANNEL" else (1,)
    found += [net.const(net.rng.uniform(0.01, 0.03, each), name=f"{n}.s") if form.scaled else "" for n in "kv"]
    found += [net.weight(WIDTH, name=f"{n}.n", positive=True) if form.norms else "" for n in "qk"]
    while not found[-1]:
        found.pop()
    return found


def past(net: Net, form: Form, batch: int) -> list[str]:
    shape = (batch, SHARED, form.cache, WIDTH * form.bits // 8)
    if not form.scaled:
        return [net.weight(*shape, name=name) for name in ("pk", "pv")]
    dtype = np.int8 if form.bits == 8 else np.uint8
    return [net.const(net.rng.integers(-90, 90, shape).astype(dtype), dtype, name) for name in ("pk", "pv")]


def built(form: Form, extra: dict[str, Any]) -> Net:
    net = Net()
    given = operands(net, form, 1 if form.cache else 2)
    attributes = {"num_heads": HEADS, "kv_num_heads": SHARED, **extra}
    attributes |= {"do_rotary": 1, "rotary_interleaved": form.rotary} if form.rotary is not None else {}
    scaled = {"k_quant_type": form.scaled, "v_quant_type": form.scaled, "kv_cache_bit_width": form.bits}
    attributes |= scaled if form.scaled else {}
    y = net("GroupQueryAttention", *given, n=3 if form.cache else 1, domain=MS, **attributes)
    if form.cache:
        y, *present = y
        net.output(*[net("ReduceMean", net("Cast", p, to=1), axes=[1, 3], keepdims=0) for p in present])
    return net.output(net.matmul(y, HEADS * WIDTH, 3, name="o"))


def judged(form: Form, extra: dict[str, Any] | None = None, **asked: Any) -> Checked:
    """Prove and prune; heads, shares of heads and widths must be free."""
    got = check(built(form, extra or {}), groups=3, **asked)
    inside = PLAIN if form.rotary is None else PAIRS if form.rotary else HALVES
    query, key = f"({SHARED} {HEADS // SHARED} {inside})", f"({SHARED} {inside})"
    if form.packed:
        assert got.axis("w:1") == f"({query} + {key} + {key})"
    else:
        assert (got.axis("q:1"), got.axis("k:1"), got.axis("v:1")) == (query, key, key)
    return got


@pytest.mark.parametrize("cache", [0, 5])
@pytest.mark.parametrize("rotary", [None, 0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_rotation_and_caches(packed: bool, rotary: int | None, cache: int) -> None:
    judged(Form(packed=packed, rotary=rotary, cache=cache, tokens=1 if cache else 6))


@pytest.mark.parametrize(("form", "extra"), [
    (Form(rotary=0), {"local_window_size": 3}),
    (Form(cache=5, tokens=1), {"local_window_size": 3}),
    (Form(packed=True, rotary=0), {"local_window_size": 3, "softcap": 2.0}),
    (Form(cache=4, tokens=1, total=8), {"local_window_size": 4, "sliding_window_cache": 1}),
    (Form(cache=8, tokens=1, total=6), {}),
    (Form(cache=8, tokens=1, total=6, rotary=0, packed=True), {}),
    (Form(cache=5, tokens=3), {}),
    (Form(rotary=0, places=True), {}),
    (Form(rotary=1, places=True, packed=True), {}),
    (Form(rotary=0, sink=True, packed=True), {}),
    (Form(sink=True), {"smooth_softmax": 1}),
    (Form(rotary=0, cache=5, tokens=1), {"smooth_softmax": 1}),
    (Form(), {"causal": 0}),
    (Form(bias=True), {"causal": 0}),
    (Form(bias=True, packed=True), {}),
], ids=str)
def test_forms(form: Form, extra: dict[str, Any]) -> None:
    """Windows, caches with room for more or that lose what is old, sinks, and scores with something added."""
    judged(form, extra)


@pytest.mark.parametrize("scaled", ["PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize("packed", [False, True])
def test_caches_of_integers(packed: bool, scaled: str) -> None:
    """Scales of channels go with heads and widths."""
    got = judged(Form(packed=packed, scaled=scaled, cache=5, tokens=1, rotary=0), tolerance=1e-3)
    if scaled == "PER_CHANNEL":
        assert got.axis("k.s:1") == "2" and got.axis("v.s:3") == HALVES


def test_caches_of_halves_of_bytes_pin_the_width() -> None:
    net = built(Form(scaled="PER_TENSOR", cache=5, tokens=1, bits=4), {})
    got = check(net, groups=2, free={"q:1": "(2 2 [4] [8])", "k:1": "(2 [4] [8])"}, tolerance=1e-3)
    assert any("share bytes" in reason for reason, _ in got.coupling.solution.pins.values())


def test_heads_that_are_normalised() -> None:
    """The kernel for CPUs refuses these."""
    got = judged(Form(norms=True), reference=[own.GroupQueryAttention])
    assert got.axis("q.n:0") == "(4 [8])"
    assert got.coupling.dims[got.group("q.n:0")].normalised
