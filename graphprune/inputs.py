"""Inputs to run a model with when nobody gives any: what each input is for is guessed from its name and type.

A wrong guess costs a poorer calibration or a run that fails, so every guess is told in a sentence. The guesses are
the table `_RULES`, one row per kind of input; the first row that fits wins.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.errors import UsageError

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

_TOKENS, _OTHER, _BYTES = 100, 2, 256  # how many different values to draw where the caller knows no bound
_SAMPLE_RATE = 16000


@dataclass(frozen=True)
class InputSpec:
    """Describe one input of a model.

    >>> InputSpec("input_ids", np.dtype("int64"), ("batch", "sequence"), bound=30522).bound
    30522

    `dtype` is numpy's or one of ml_dtypes. An axis in `shape` is a size, the name of a symbolic one, or None.
    Integers must lie in [0, `bound`): the number of rows of the table they index, where the caller knows it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    bound: int | None = None


def parse_input_shapes(texts: Sequence[str]) -> dict[str, Shape]:
    """Read shapes written as `name:1,3,224,224` or `name:1x3x224x224`.

    >>> parse_input_shapes(["x:1,3,224,224", "serving:0:1x8"])
    {'x': (1, 3, 224, 224), 'serving:0': (1, 8)}

    The name is all before the last colon. Raises `UsageError` for a text of another form, a size that is not a
    whole number from 0 up, or a name given twice.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, _, sizes = (part.strip() for part in text.rpartition(":"))
        if not name or not sizes:
            raise UsageError(f"input shape {text!r} is not of the form name:1,3,224,224")
        parts = [part.strip() for part in re.split(r"[,xX]", sizes)]
        wrong = [part for part in parts if not re.fullmatch(r"[0-9]+", part)]
        if wrong:
            raise UsageError(
                f"input shape {text!r}: {wrong[0]!r} is not a size; write whole numbers, {name}:1,3,224,224"
            )
        if name in shapes:
            raise UsageError(f"input {name!r} is given two shapes")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def synthesise(
    specs: Sequence[InputSpec], shapes: Mapping[str, Shape], seed: int = 0
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Make up an array for every input, and say of each what was assumed.

    >>> feeds, assumed = synthesise([InputSpec("attention_mask", np.dtype("int64"), ("b", "s"))],
    ...                             {"attention_mask": (1, 3)})
    >>> feeds["attention_mask"].tolist(), assumed
    ([[1, 1, 1]], ('attention_mask: ones',))

    `shapes` gives the size of every axis that `specs` leaves open; inputs of fixed shape need none. An input's
    values depend on `seed` (0 or more), its name and its shape, not on the other inputs. Raises `UsageError` for a
    shape that is missing or contradicts the model, a name the model lacks, or a type that cannot be made up.
    """
    names = [spec.name for spec in specs]
    unknown = [name for name in shapes if name not in names]
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}; its inputs are {', '.join(map(repr, names))}")
    everyone = tuple((spec, _concrete(spec, shapes.get(spec.name))) for spec in specs)
    feeds: dict[str, Array] = {}
    assumed: list[str] = []
    for spec, shape in everyone:
        rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        array, phrase = _maker(spec)(_Wanted(spec, shape, rng, everyone))
        feeds[spec.name] = array
        assumed.append(f"{spec.name}: {phrase}")
    return feeds, tuple(assumed)


@dataclass(frozen=True)
class _Wanted:
    """One array to make: what for, how large, from which random numbers, beside which other inputs."""

    spec: InputSpec
    shape: Shape
    rng: np.random.Generator
    everyone: tuple[tuple[InputSpec, Shape], ...]

    @property
    def top(self) -> int:
        """The largest integer allowed: by the type, and by the bound where there is one."""
        bits = re.search(r"\d+$", self.spec.dtype.name)
        largest = 2 ** (int(bits.group()) - (not self.spec.dtype.name.startswith("u"))) - 1 if bits else 1
        return largest if self.spec.bound is None else max(0, min(largest, self.spec.bound - 1))

    def full(self, value: float | str) -> Array:
        """An array of the wanted shape and type with one value throughout."""
        return np.full(self.shape, value).astype(object if isinstance(value, str) else self.spec.dtype)


_Maker: TypeAlias = Callable[[_Wanted], tuple[Array, str]]


class _Rule(NamedTuple):
    """Inputs whose plain name matches `pattern` and whose kind is in `kinds` are filled by `make`."""

    pattern: str
    kinds: tuple[str, ...]
    make: _Maker


def _constant(value: float | str, phrase: str) -> _Maker:
    return lambda wanted: (wanted.full(value), phrase)


def _positions(wanted: _Wanted) -> tuple[Array, str]:
    steps = np.minimum(np.arange(wanted.shape[-1] if wanted.shape else 1), wanted.top)
    array = np.broadcast_to(steps if wanted.shape else steps[0], wanted.shape)
    return array.astype(wanted.spec.dtype), "positions 0, 1, 2, ... along the last axis"


def _lengths(wanted: _Wanted) -> tuple[Array, str]:
    found = _sequence_axis(wanted)
    if found is None:
        return wanted.full(min(1, wanted.top)), "1, as no other input has a sequence axis"
    owner, axis, size = found
    return wanted.full(min(size, wanted.top)), f"the full length of axis {axis} of {owner}"


def _sample_rate(wanted: _Wanted) -> tuple[Array, str]:
    rate = _SAMPLE_RATE if _kind(wanted.spec) == "float" else min(_SAMPLE_RATE, wanted.top)
    return wanted.full(rate), f"{rate} Hz"


def _small_normal(wanted: _Wanted) -> tuple[Array, str]:
    return (0.1 * _normal(wanted)[0].astype(np.float32)).astype(wanted.spec.dtype), "normal, deviation 0.1"


def _normal(wanted: _Wanted) -> tuple[Array, str]:
    return np.asarray(wanted.rng.standard_normal(wanted.shape)).astype(wanted.spec.dtype), "standard normal"


def _tokens(wanted: _Wanted) -> tuple[Array, str]:
    # 0 is often padding, which models treat apart.
    return _integers(wanted, 1, wanted.spec.bound or _TOKENS, "token ids")


def _other_integers(wanted: _Wanted) -> tuple[Array, str]:
    bytes_of_image = wanted.spec.dtype == np.uint8 and len(wanted.shape) >= 3
    return _integers(wanted, 0, wanted.spec.bound or (_BYTES if bytes_of_image else _OTHER), "integers")


def _integers(wanted: _Wanted, low: int, high: int, what: str) -> tuple[Array, str]:
    """Draw from [low, high), or from less where the type or the bound is narrower."""
    high = min(high, wanted.top + 1)
    low = min(low, high - 1)
    drawn = wanted.rng.integers(low, high, wanted.shape)
    return np.asarray(drawn).astype(wanted.spec.dtype), f"random {what} in [{low}, {high})"


_INTEGER, _FLOAT, _BOOL, _TEXT = "integer", "float", "bool", "string"
# Patterns see names in lower case with underscores at both ends and between words: `_attention_mask_`.
_RULES = (
    # 0 hides nothing where a mask is added to attention scores, which its name must say; 1 where it multiplies.
    _Rule(r"(mask|att).*(bias|additive)|(bias|additive).*(mask|att)", (_FLOAT,), _constant(0, "zeros")),
    # PyTorch's boolean padding masks are True where there is padding; all True makes softmax return NaN.
    _Rule(r"_pad(ding)?_mask", (_BOOL,), _constant(0, "False, as nothing is padding")),
    _Rule(r"mask", (_BOOL,), _constant(1, "True")),
    _Rule(r"mask", (_INTEGER, _FLOAT), _constant(1, "ones")),
    _Rule(r"token_type|segment|_type_ids?_", (_INTEGER,), _constant(0, "zeros")),
    _Rule(r"_pos(itions?)?_", (_INTEGER,), _positions),
    _Rule(r"length|_lens?_|_seq_?lens?_", (_INTEGER,), _lengths),
    _Rule(r"_sr_|_sampl(e|ing)_rate_", (_INTEGER, _FLOAT), _sample_rate),
    _Rule(r"_past_|_key_values?_|cache|_states?_|hidden|_[hc](\d+|n|_\d+)?_", (_FLOAT,), _small_normal),
    _Rule(r"_ids?_|token|_words?_", (_INTEGER,), _tokens),
    _Rule(r"", (_INTEGER,), _other_integers),
    _Rule(r"", (_BOOL,), _constant(1, "True")),
    _Rule(r"", (_FLOAT,), _normal),
    _Rule(r"", (_TEXT,), _constant("", "empty strings")),
)


def _maker(spec: InputSpec) -> _Maker:
    """Return the maker of the first rule that fits; the last rows fit any name."""
    name, kind = plain(spec.name), _kind(spec)
    return next(rule.make for rule in _RULES if kind in rule.kinds and re.search(rule.pattern, name))


def carries_content(spec: InputSpec) -> bool:
    """Return whether an input holds what a model is asked about, and not a mask, a length, a state or the like.

    >>> carries_content(InputSpec("pixel_values", np.dtype("float32"), ("b", 3, 224, 224)))
    True
    """
    return _maker(spec) in (_tokens, _other_integers, _normal)


def _kind(spec: InputSpec) -> str:
    """Return the kind of an input's type; names rather than numpy's letters, because ml_dtypes has none."""
    name = spec.dtype.name
    if spec.dtype.kind in "OUST":
        return _TEXT
    for prefix, kind in (("bool", _BOOL), ("int", _INTEGER), ("uint", _INTEGER), ("float", _FLOAT), ("bfloat", _FLOAT)):
        if name.startswith(prefix):
            return kind
    raise UsageError(f"input {spec.name!r} is of type {name}, which cannot be made up; give data for it")


def plain(name: str) -> str:
    """Spell a name in lower case words between underscores.

    >>> plain("serving/attentionMask:0")
    '_serving_attention_mask_0_'
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return "_" + re.sub(r"[^a-z0-9]+", "_", words).strip("_") + "_"


def _concrete(spec: InputSpec, given: Shape | None) -> Shape:
    """Return the shape to use, or say what is missing or wrong."""
    written = ",".join(str(size) if isinstance(size, int) else "?" for size in spec.shape)
    if given is None:
        if not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(f"input {spec.name!r} has open sizes: give its shape, as {spec.name}:{written}")
        return tuple(int(size) for size in spec.shape if isinstance(size, int))
    fits = len(given) == len(spec.shape) and all(
        size >= 0 and (size == wanted or not isinstance(wanted, int))
        for size, wanted in zip(given, spec.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"input {spec.name!r} is given the shape {list(given)}, but the model takes [{written}]")
    return tuple(given)


def _sequence_axis(wanted: _Wanted) -> tuple[str, int, int] | None:
    """Find the axis that a length counts: its owner, index and size.

    `x_lengths` belongs to `x` if there is one, by the words the names share; otherwise to the first input that has
    a sequence. Caches are left out, as theirs is the length of the past.
    """
    own = set(plain(wanted.spec.name).split("_")) - {""}
    best: tuple[tuple[bool, int], str, int, int] | None = None
    for spec, shape in wanted.everyone:
        if spec is wanted.spec or not shape or _maker(spec) in (_lengths, _small_normal, _sample_rate):
            continue
        shared = len(own & set(plain(spec.name).split("_")))
        # A vector holds one number per example, unless nothing else is there to be the sequence.
        rank = (len(shape) > 1, shared)
        if best is None or rank > best[0]:
            axis = _likely_sequence(spec, shape)
            best = (rank, spec.name, axis, shape[axis])
    return best[1:] if best else None


def _likely_sequence(spec: InputSpec, shape: Shape) -> int:
    """Return the axis that looks like a sequence: named so, else open, else the longest; the first axis last."""

    def rank(axis: int) -> tuple[bool, bool, bool, int]:
        declared = spec.shape[axis]
        named = isinstance(declared, str) and re.search(r"seq|len|time|frame|sample|step|token", declared.lower())
        return bool(named), axis > 0, not isinstance(declared, int), shape[axis]

    return max(range(len(shape)), key=rank)
